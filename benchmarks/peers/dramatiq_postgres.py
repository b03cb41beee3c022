"""dramatiq with dramatiq-postgres: a worker with threads."""

from __future__ import annotations

import threading
from typing import Any

import dramatiq
import psycopg
from dramatiq.worker import Worker
from dramatiq_postgres import PostgresBroker
from dramatiq_postgres.schema import init

from benchmarks.child import Parent

from ._phases import Drain, Listen, Turns, arguments, begin_preload, end_preload

_THREADS = 8


def main(parent: Parent, job: dict[str, Any]) -> None:
    """Carry out a phase."""
    with psycopg.connect(job["url"]) as connection, connection.cursor() as cursor:
        init(cursor)
    broker = PostgresBroker(url=job["url"], results=False)
    drain, listen = Drain(parent, job), Listen(parent)
    lock, done = threading.Lock(), threading.Event()

    @dramatiq.actor(broker=broker)
    def handle(number: int, **_fields: object) -> None:
        if job["phase"] == "listen":
            listen.started(number)
            return
        with lock:
            if drain.handled():
                done.set()

    if job["phase"] == "preload":
        begin_preload(parent)
        for fields in arguments(job):
            handle.send(**fields)
        broker.close()
        end_preload(parent)
        return
    if job["phase"] == "send":
        begin_preload(parent)
        turns = Turns(job)
        turns.send_all_blocking(lambda fields: handle.send(**fields))
        broker.close()
        turns.end(parent)
        return
    worker = Worker(broker, worker_threads=_THREADS)
    drain.begin()
    worker.start()
    if job["phase"] == "listen":
        parent.hear()
    else:
        done.wait()
    worker.stop()
    broker.close()
    if job["phase"] == "listen":
        listen.end()
        return
    drain.end("dramatiq", "dramatiq-postgres", "psycopg")


if __name__ == "__main__":
    harness = Parent()
    main(harness, harness.hear())
