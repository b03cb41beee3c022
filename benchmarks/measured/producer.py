"""A producer: batches of messages straight by SQL, as fast as it can, but never far ahead of the consumer.

Its job:
    url: the database.
    table: of the queue.
    batch: messages per INSERT, with one NOTIFY each.
    ahead: how many messages it may be ahead of what was handled.
    total: after how many to stop; without it, when told to ``stop``.

It is told how many were ``handled`` as they are.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from benchmarks.child import Meter, serve
from benchmarks.payload import encoded

if TYPE_CHECKING:
    from benchmarks.child import Parent


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Produce."""
    connection = await asyncpg.connect(job["url"])
    insert = await connection.prepare(
        f"INSERT INTO {job['table']} (vt, message) SELECT now(), m::jsonb FROM unnest($1::text[]) AS m"
    )
    # Made beforehand, so that it is PostgreSQL that is kept busy.
    payloads = [encoded(number) for number in range(job["batch"])]
    total = job.get("total")
    parent.tell("ready")
    await parent.hear_soon()
    meter = Meter()
    sent = handled = 0
    heard = asyncio.ensure_future(parent.hear_soon())
    while total is None or sent < total:
        if heard.done():
            word = heard.result()
            if "stop" in word:
                break
            handled = word["handled"]
            heard = asyncio.ensure_future(parent.hear_soon())
        if sent - handled >= job["ahead"]:
            await asyncio.wait([heard])
            continue
        batch = payloads if total is None else payloads[: total - sent]
        await insert.fetch(batch)
        sent += len(batch)
    heard.cancel()
    facts = meter.read()
    await connection.close()
    parent.tell("result", **facts, sent=sent)


if __name__ == "__main__":
    serve(main)
