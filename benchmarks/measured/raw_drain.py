"""The limit: a bare asyncpg loop that claims and deletes straight on the table, and does nothing else.

Its job:
    url, loop: the database, and the event loop.
    table: of the queue.
    batch: how many messages to claim at once.
    overlap: whether deletes go over a second connection while the next claim runs.

It ends when there is nothing to claim.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import asyncpg

from benchmarks.child import Meter, serve

if TYPE_CHECKING:
    from benchmarks.child import Parent


def claim_sql(table: str) -> str:
    """Return the claim: ``$1`` how many; all columns that PGMQ's own read returns."""
    return f"""
        WITH next AS (
            SELECT msg_id FROM {table} WHERE vt <= now() ORDER BY vt LIMIT $1 FOR UPDATE SKIP LOCKED
        )
        UPDATE {table} AS m SET vt = now() + interval '30 s', read_ct = read_ct + 1, last_read_at = now()
        FROM next WHERE m.msg_id = next.msg_id
        RETURNING m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message, m.headers
    """


def delete_sql(table: str) -> str:
    """Return the delete: ``$1`` ids."""
    return f"DELETE FROM {table} WHERE msg_id = ANY ($1::bigint[])"


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Drain the queue."""
    claims = await asyncpg.connect(job["url"])
    deletes = await asyncpg.connect(job["url"]) if job["overlap"] else claims
    claim = await claims.prepare(claim_sql(job["table"]))
    delete = await deletes.prepare(delete_sql(job["table"]))
    parent.tell("ready")
    await parent.hear_soon()
    meter = Meter()
    handled, at_first, first, last = 0, 0, 0.0, 0.0
    deleting: asyncio.Task[Any] | None = None
    while rows := await claim.fetch(job["batch"]):
        last = time.monotonic()
        first, at_first = first or last, at_first or len(rows)
        handled += len(rows)
        ids = [row["msg_id"] for row in rows]
        if not job["overlap"]:
            await delete.fetch(ids)
            continue
        if deleting is not None:
            await deleting
        deleting = asyncio.create_task(delete.fetch(ids))
    if deleting is not None:
        await deleting
    ended = time.monotonic()
    facts = meter.read()
    await claims.close()
    await deletes.close()
    parent.tell("result", **facts, handled=handled, at_first=at_first, first=first, last=last, ended=ended)


if __name__ == "__main__":
    serve(main)
