"""Sends through `apalis_pgmq`'s public API.

Its job:
    url, loop: the database, and the event loop.
    queue: its name.
    coroutines, seconds: that many coroutines each push one message after the other for so long; or
    many: one `push_many` of so many messages.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from apalis_pgmq import PgMqBackend
from benchmarks.child import Meter, serve
from benchmarks.payload import Message, message

if TYPE_CHECKING:
    from benchmarks.child import Parent


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Send."""
    async with PgMqBackend(job["url"], job["queue"], Message) as backend:
        await backend.push(message(0))
        messages = [message(number) for number in range(job.get("many", 1))]
        parent.tell("ready")
        await parent.hear_soon()
        meter = Meter()
        began = time.monotonic()
        if "many" in job:
            sent = len(await backend.push_many(messages))
        else:
            sent = await _push(backend, messages[0], job["coroutines"], began + job["seconds"])
        took = time.monotonic() - began
        facts = meter.read()
    parent.tell("result", **facts, sent=sent, took=took, rate=sent / took)


async def _push(backend: PgMqBackend[Message], one: Message, coroutines: int, until: float) -> int:
    async def push() -> int:
        sent = 0
        while time.monotonic() < until:
            await backend.push(one)
            sent += 1
        return sent

    return sum(await asyncio.gather(*(push() for _ in range(coroutines))))


if __name__ == "__main__":
    serve(main)
