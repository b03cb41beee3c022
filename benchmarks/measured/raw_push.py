"""The limits of sending: bare asyncpg, with payloads that are JSON already.

Its job:
    url, loop: the database, and the event loop.
    table, channel: of the queue.
    connections, seconds: that many connections, each with a coroutine that inserts one message after the other
        for so long, with a NOTIFY in the same statement; or
    many, way: so many messages at once, by ``insert`` (one INSERT of an array) or ``copy`` (COPY).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from benchmarks.child import Meter, serve
from benchmarks.payload import encoded

if TYPE_CHECKING:
    from benchmarks.child import Parent


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Send."""
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(job.get("connections", 1)):
            connections.append(await asyncpg.connect(job["url"]))
            stack.push_async_callback(connections[-1].close)
        # Announced by the statement itself, not by a trigger beside.
        await connections[0].execute(f"DROP TRIGGER IF EXISTS apalis_pgmq_notify ON {job['table']}")
        one = f"""
            WITH sent AS (
                INSERT INTO {job["table"]} (vt, message) VALUES (now(), $1::text::jsonb) RETURNING msg_id
            )
            SELECT msg_id, pg_notify('{job["channel"]}', '') FROM sent
        """
        inserts = [await connection.prepare(one) for connection in connections]
        many = await connections[0].prepare(
            f"INSERT INTO {job['table']} (vt, message) SELECT now(), m::jsonb FROM unnest($1::text[]) AS m"
        )
        await inserts[0].fetch(encoded(0))
        payloads = [encoded(number) for number in range(job.get("many", 1))]
        parent.tell("ready")
        await parent.hear_soon()
        meter = Meter()
        began = time.monotonic()
        if "many" not in job:
            sent = await _insert(inserts, payloads[0], began + job["seconds"])
        else:
            sent = len(payloads)
            if job["way"] == "insert":
                await many.fetch(payloads)
            else:
                schema, table = job["table"].split(".")
                now = datetime.now(UTC)
                await connections[0].copy_records_to_table(
                    table,
                    schema_name=schema,
                    columns=["vt", "message"],
                    records=[(now, payload) for payload in payloads],
                )
        took = time.monotonic() - began
        facts = meter.read()
    parent.tell("result", **facts, sent=sent, took=took, rate=sent / took)


async def _insert(inserts: list[Any], payload: str, until: float) -> int:
    async def push(insert: Any) -> int:
        sent = 0
        while time.monotonic() < until:
            await insert.fetch(payload)
            sent += 1
        return sent

    return sum(await asyncio.gather(*(push(insert) for insert in inserts)))


if __name__ == "__main__":
    serve(main)
