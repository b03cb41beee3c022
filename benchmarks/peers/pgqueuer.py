"""pgqueuer: its QueueManager on one asyncpg connection, batches of 300."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
from pgqueuer import AsyncpgDriver, Queries, QueueManager

from benchmarks.child import Parent, serve

from ._phases import Drain, Listen, Turns, arguments, end_preload

if TYPE_CHECKING:
    from pgqueuer import Job

_BATCH = 300
_NAME = "bench"


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Carry out a phase."""
    connection = await asyncpg.connect(job["url"])
    queries = Queries(AsyncpgDriver(connection))
    if job["phase"] == "preload":
        parent.tell("ready")
        await parent.hear_soon()
        await queries.install()
        payloads = [json.dumps(fields).encode() for fields in arguments(job)]
        for first in range(0, len(payloads), 1000):
            batch = payloads[first : first + 1000]
            await queries.enqueue([_NAME] * len(batch), list(batch), [0] * len(batch))
        await connection.close()
        end_preload(parent)
        return
    if job["phase"] == "send":
        parent.tell("ready")
        await parent.hear_soon()
        turns = Turns(job)
        await turns.send_all(lambda fields: queries.enqueue(_NAME, json.dumps(fields).encode()))
        await connection.close()
        turns.end(parent)
        return
    drain, listen = Drain(parent, job), Listen(parent)
    manager = QueueManager(queries)

    async def count(_job: Job) -> None:
        if drain.handled():
            manager.shutdown.set()

    async def stamp(job: Job) -> None:
        listen.started(json.loads(job.payload or b"")["number"])

    manager.entrypoint(_NAME)(count if job["phase"] == "drain" else stamp)
    await drain.begin_soon()
    running = asyncio.create_task(manager.run(dequeue_timeout=timedelta(seconds=1), batch_size=_BATCH))
    if job["phase"] == "listen":
        await parent.hear_soon()
        manager.shutdown.set()
    await running
    await connection.close()
    if job["phase"] == "listen":
        listen.end()
    else:
        drain.end("pgqueuer", "asyncpg")


if __name__ == "__main__":
    serve(main)
