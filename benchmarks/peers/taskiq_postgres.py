"""taskiq with taskiq-postgres: its receiver on asyncpg.

Its broker sees only what is sent while it listens. So it listens first, and is filled before its receiver runs.
"""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq.api import run_receiver_task
from taskiq_pg.asyncpg import AsyncpgBroker

from benchmarks.child import Parent, serve

from ._phases import Drain, Listen, Turns, arguments, end_preload

_CONCURRENCY = 20
_SENDERS = 8


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Carry out a phase."""
    broker = AsyncpgBroker(job["url"], write_kwargs={"min_size": 10, "max_size": 10})
    drain, listen = Drain(parent, job), Listen(parent)
    done = asyncio.Event()

    @broker.task(task_name="bench")
    async def handle(number: int, **_fields: object) -> None:
        if job["phase"] == "listen":
            listen.started(number)
        elif drain.handled():
            done.set()

    broker.is_worker_process = job["phase"] in {"drain", "listen"}
    await broker.startup()
    if job["phase"] == "preload":
        parent.tell("ready")
        await parent.hear_soon()
        waiting = arguments(job)

        async def send() -> None:
            for fields in waiting:
                await handle.kiq(**fields)

        await asyncio.gather(*(send() for _ in range(_SENDERS)))
        await broker.shutdown()
        end_preload(parent)
        return
    if job["phase"] == "send":
        parent.tell("ready")
        await parent.hear_soon()
        turns = Turns(job)
        await turns.send_all(lambda fields: handle.kiq(**fields))
        await broker.shutdown()
        turns.end(parent)
        return
    await drain.begin_soon()
    receiver = asyncio.create_task(
        run_receiver_task(broker, max_async_tasks=_CONCURRENCY, max_prefetch=100, run_startup=False)
    )
    over = asyncio.ensure_future(parent.hear_soon() if job["phase"] == "listen" else done.wait())
    await asyncio.wait([receiver, over], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.2)  # its last acks
    receiver.cancel()
    await asyncio.wait([receiver])
    await broker.shutdown()
    if job["phase"] == "listen":
        listen.end()
        return
    drain.end("taskiq", "taskiq-postgres", "asyncpg")


if __name__ == "__main__":
    serve(main)
