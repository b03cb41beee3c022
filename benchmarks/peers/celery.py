"""Celery on kombu-pgmq: a worker with the solo pool, acks after the task."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.worker import state

from benchmarks.child import Parent

from ._phases import Drain, arguments, begin_preload, end_preload


def main(parent: Parent, job: dict[str, Any]) -> None:
    """Carry out a phase."""
    app = Celery(
        "bench",
        broker_url=job["url"],
        broker_transport="kombu_pgmq.transport:TransportPsycopg",
        broker_transport_options={"check_extension": False, "visibility_timeout": 60, "pool": False},
        task_ignore_result=True,
        task_acks_late=True,
        task_default_queue=job["queue"],
        worker_prefetch_multiplier=100,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=False,
    )
    drain = Drain(parent, job)

    @app.task(name="bench")
    def handle(**_fields: object) -> None:
        if drain.handled():
            state.should_stop = 0

    if job["phase"] == "preload":
        begin_preload(parent)
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for fields in arguments(job):
                handle.apply_async(kwargs=fields, producer=producer)
        end_preload(parent)
        return
    worker = app.Worker(
        pool="solo",
        concurrency=1,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=logging.WARNING,
        quiet=True,
    )
    drain.begin()
    try:
        worker.start()
    except SystemExit:
        if not drain.is_done:
            raise
    drain.end("celery", "kombu-pgmq", "psycopg")


if __name__ == "__main__":
    harness = Parent()
    main(harness, harness.hear())
