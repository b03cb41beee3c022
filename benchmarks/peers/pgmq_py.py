"""pgmq-py, PGMQ's own client: asyncio loops of read_batch(100), handlers, delete_batch, on held connections.

Its latency is that of read_with_poll, at the interval that is its default.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pgmq.async_queue import PGMQueue

from benchmarks.child import Parent, serve

from ._phases import Drain, Listen, Turns, arguments, end_preload

if TYPE_CHECKING:
    from collections.abc import Mapping

_BATCH = 100
_LOOPS = 2


async def _listen(parent: Parent, job: dict[str, Any], queue: PGMQueue) -> None:
    listen = Listen(parent)

    async def loop() -> None:
        assert queue.pool is not None
        async with queue.pool.acquire() as connection:
            while True:
                found = await queue.read_with_poll(
                    job["queue"], vt=30, qty=10, max_poll_seconds=1, poll_interval_ms=100, conn=connection
                )
                for one in found or []:
                    listen.started(one.message["number"])
                if found:
                    await queue.delete_batch(job["queue"], [one.msg_id for one in found], conn=connection)

    parent.tell("ready")
    await parent.hear_soon()
    looping = asyncio.create_task(loop())
    await parent.hear_soon()
    looping.cancel()
    await asyncio.wait([looping])
    await queue.close()
    listen.end()


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Carry out a phase."""
    queue = PGMQueue(conn_string=job["url"], init_extension=False)
    await queue.init()
    if job["phase"] == "preload":
        parent.tell("ready")
        await parent.hear_soon()
        messages = list(arguments(job))
        for first in range(0, len(messages), 1000):
            await queue.send_batch(job["queue"], messages[first : first + 1000])
        await queue.close()
        end_preload(parent)
        return
    if job["phase"] == "send":
        parent.tell("ready")
        await parent.hear_soon()
        turns = Turns(job)
        await turns.send_all(lambda fields: queue.send(job["queue"], fields))
        await queue.close()
        turns.end(parent)
        return
    if job["phase"] == "listen":
        await _listen(parent, job, queue)
        return
    drain = Drain(parent, job)

    async def handle(_message: Mapping[str, Any]) -> None:
        drain.handled()

    async def loop() -> None:
        assert queue.pool is not None
        async with queue.pool.acquire() as connection:
            while found := await queue.read_batch(job["queue"], vt=30, batch_size=_BATCH, conn=connection):
                await asyncio.gather(*(handle(one.message) for one in found))
                await queue.delete_batch(job["queue"], [one.msg_id for one in found], conn=connection)

    await drain.begin_soon()
    await asyncio.gather(*(loop() for _ in range(_LOOPS)))
    await queue.close()
    drain.end("pgmq", "asyncpg")


if __name__ == "__main__":
    serve(main)
