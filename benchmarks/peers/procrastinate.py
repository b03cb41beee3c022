"""procrastinate: a worker on psycopg, several jobs at the same time, finished jobs deleted."""

from __future__ import annotations

import asyncio
from typing import Any

from procrastinate import App, PsycopgConnector

from benchmarks.child import Parent, serve

from ._phases import Drain, Listen, Turns, arguments, end_preload

_CONCURRENCY = 10


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Carry out a phase."""
    app = App(connector=PsycopgConnector(conninfo=job["url"], min_size=4, max_size=10))
    drain, listen = Drain(parent, job), Listen(parent)

    @app.task(name="bench", queue="bench")
    async def handle(number: int, **_fields: object) -> None:
        if job["phase"] == "drain":
            drain.handled()
        else:
            listen.started(number)

    async with app.open_async():
        if job["phase"] == "preload":
            parent.tell("ready")
            await parent.hear_soon()
            await app.schema_manager.apply_schema_async()
            messages = list(arguments(job))
            for first in range(0, len(messages), 1000):
                await handle.batch_defer_async(*messages[first : first + 1000])
            end_preload(parent)
            return
        if job["phase"] == "send":
            parent.tell("ready")
            await parent.hear_soon()
            turns = Turns(job)
            await turns.send_all(lambda fields: handle.defer_async(**fields))
            turns.end(parent)
            return
        await drain.begin_soon()
        running = asyncio.create_task(
            app.run_worker_async(
                queues=["bench"],
                concurrency=_CONCURRENCY,
                wait=job["phase"] == "listen",
                delete_jobs="always",
                install_signal_handlers=False,
            )
        )
        if job["phase"] == "listen":
            await parent.hear_soon()
            running.cancel()
            await asyncio.wait([running])
            listen.end()
            return
        await running
    drain.end("procrastinate", "psycopg")


if __name__ == "__main__":
    serve(main)
