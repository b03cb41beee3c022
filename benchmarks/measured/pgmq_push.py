"""Sends through pgmq-py's asynchronous client.

Its job:
    url, loop: the database, and the event loop.
    queue: its name.
    coroutines, seconds: that many coroutines each send one message after the other for so long, each on a
        connection of the client's pool; or
    many: so many messages by one call of ``send_batch``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pgmq.async_queue import PGMQueue

from benchmarks.child import Meter, serve
from benchmarks.payload import message

if TYPE_CHECKING:
    from benchmarks.child import Parent


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Send."""
    coroutines = job.get("coroutines", 1)
    queue = PGMQueue(conn_string=job["url"], init_extension=False, pool_size=coroutines)
    await queue.init()
    try:
        messages = [asdict(message(number)) for number in range(job.get("many", 1))]
        await asyncio.gather(*(queue.send(job["queue"], messages[0]) for _ in range(coroutines)))
        parent.tell("ready")
        await parent.hear_soon()
        meter = Meter()
        began = time.monotonic()
        if "many" in job:
            sent = len(await queue.send_batch(job["queue"], messages))
        else:
            sent = await _push(queue, job["queue"], messages[0], coroutines, began + job["seconds"])
        took = time.monotonic() - began
        facts = meter.read()
    finally:
        await queue.close()
    parent.tell("result", **facts, sent=sent, took=took, rate=sent / took)


async def _push(queue: PGMQueue, name: str, one: dict[str, Any], coroutines: int, until: float) -> int:
    async def push() -> int:
        sent = 0
        while time.monotonic() < until:
            await queue.send(name, one)
            sent += 1
        return sent

    return sum(await asyncio.gather(*(push() for _ in range(coroutines))))


if __name__ == "__main__":
    serve(main)
