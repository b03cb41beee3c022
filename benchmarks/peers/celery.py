"""Celery on kombu-pgmq: a worker with the solo pool, acks after the task."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import Celery
from celery.worker import state

from benchmarks.child import Parent

from ._phases import Drain, Listen, Turns, arguments, begin_preload, end_preload


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
    drain, listen = Drain(parent, job), Listen(parent)

    @app.task(name="bench")
    def handle(number: int, **_fields: object) -> None:
        if job["phase"] == "listen":
            listen.started(number)
        elif drain.handled():
            state.should_stop = 0

    if job["phase"] == "preload":
        begin_preload(parent)
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            for fields in arguments(job):
                handle.apply_async(kwargs=fields, producer=producer)
        end_preload(parent)
        return
    if job["phase"] == "send":
        begin_preload(parent)
        turns = Turns(job)
        with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
            turns.send_all_blocking(lambda fields: handle.apply_async(kwargs=fields, producer=producer))
        turns.end(parent)
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

    def stop_when_told() -> None:
        parent.hear()
        state.should_stop = 0

    if job["phase"] == "listen":
        threading.Thread(target=stop_when_told, daemon=True).start()
    try:
        worker.start()
    except SystemExit:
        if state.should_stop is None:
            raise
    if job["phase"] == "listen":
        listen.end()
        return
    drain.end("celery", "kombu-pgmq", "psycopg")


if __name__ == "__main__":
    harness = Parent()
    main(harness, harness.hear())
