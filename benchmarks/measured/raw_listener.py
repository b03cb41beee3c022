"""The limit of latency: a bare asyncpg loop that listens, claims up to ten and deletes.

Its job:
    url, loop: the database, and the event loop.
    table, channel: of the queue.

It ends when told to stop.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from benchmarks.child import Meter, serve

from .raw_drain import claim_sql, delete_sql

if TYPE_CHECKING:
    from benchmarks.child import Parent

_CLAIMED: Final = 10


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Handle what comes."""
    connection = await asyncpg.connect(job["url"])
    claim = await connection.prepare(claim_sql(job["table"]))
    delete = await connection.prepare(delete_sql(job["table"]))
    notified = asyncio.Event()
    starts: list[tuple[int, float, float]] = []

    async def work() -> None:
        while True:
            await notified.wait()
            notified.clear()
            while rows := await claim.fetch(_CLAIMED):
                for row in rows:
                    number = json.loads(row["message"])["number"]
                    starts.append((number, time.monotonic(), time.time()))
                await delete.fetch([row["msg_id"] for row in rows])
                if len(rows) < _CLAIMED:
                    break

    await connection.add_listener(job["channel"], lambda *_: notified.set())
    parent.tell("ready")
    await parent.hear_soon()
    meter = Meter()
    async with asyncio.TaskGroup() as group:
        working = group.create_task(work())
        await parent.hear_soon()
        working.cancel()
    facts = meter.read()
    await connection.close()
    parent.tell("result", **facts, handled=len(starts), starts=starts)


if __name__ == "__main__":
    serve(main)
