"""A sender: single messages at random times, each by one INSERT; the queue's trigger announces them.

Its job:
    urls: the databases to send to.
    table: of the queue, the same in each.
    rate: messages per second, with exponentially distributed gaps.

Told ``to`` (which database), ``seconds`` and ``first`` (a number), it sends for so long, numbering from there,
and answers ``sent`` with the numbers, and for each when it was sent and when its commit was known (monotonic
clock). Told ``stop``, it ends.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg

from benchmarks.child import Meter, serve
from benchmarks.payload import encoded

if TYPE_CHECKING:
    from benchmarks.child import Parent


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Send when told, until told to stop."""
    chance = random.Random(1)  # noqa: S311 - the same gaps in every run
    meter = Meter()
    async with AsyncExitStack() as stack:
        inserts = []
        for url in job["urls"]:
            connection = await asyncpg.connect(url)
            stack.push_async_callback(connection.close)
            inserts.append(
                await connection.prepare(
                    f"INSERT INTO {job['table']} (vt, message) VALUES (now(), $1::text::jsonb)"
                )
            )
        parent.tell("ready")
        await parent.hear_soon()
        while "to" in (order := await parent.hear_soon()):
            insert = inserts[order["to"]]
            sent: list[tuple[int, float, float]] = []
            due = began = time.monotonic()
            while (due := due + chance.expovariate(job["rate"])) < began + order["seconds"]:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                number = order["first"] + len(sent)
                before = time.monotonic()
                await insert.fetch(encoded(number))
                sent.append((number, before, time.monotonic()))
            parent.tell("sent", sent=sent)
    parent.tell("result", **meter.read())


if __name__ == "__main__":
    serve(main)
