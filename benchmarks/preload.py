"""Fills queues before the clock runs: straight by SQL, 1,000 messages per transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from apalis_pgmq.pgmq import PgMqQueues

from .payload import encoded
from .server import QUEUE

if TYPE_CHECKING:
    from .server import Database

_BATCH: Final = 1000
_BATCH_BYTES: Final = 8 * 1024 * 1024


async def preload(
    database: Database, messages: int, *, queue: str = QUEUE, size: int = 0, delay: float = 0
) -> None:
    """Put messages into a queue, which is made if it is missing.

    Args:
        database: where.
        messages: how many.
        queue: which one.
        size: characters of their bodies; a few by default.
        delay: seconds until they are due.
    """
    batch = min(_BATCH, _BATCH_BYTES // size) if size else _BATCH
    connection = await asyncpg.connect(database.url)
    try:
        async with PgMqQueues(database.url) as queues:
            await queues.create(queue)
        insert = await connection.prepare(
            f'INSERT INTO pgmq."q_{queue}" (vt, message) '
            "SELECT now() + make_interval(secs => $2), m::jsonb FROM unnest($1::text[]) AS m"
        )
        for first in range(0, messages, batch):
            numbers = range(first, min(first + batch, messages))
            await insert.fetch([encoded(number, size) for number in numbers], delay)
    finally:
        await connection.close()


async def preload_groups(
    database: Database, groups: int, each: int, *, large: int = 0, ordered: bool
) -> None:
    """Put messages of groups into a queue: one of each group, again and again.

    Args:
        database: where.
        groups: how many.
        each: messages of each.
        large: messages of one more group, all of them before the others.
        ordered: whether the queue is made ready for being worked in order.
    """
    connection = await asyncpg.connect(database.url)
    try:
        async with PgMqQueues(database.url) as queues:
            await queues.create(QUEUE, ordered=ordered)
        insert = await connection.prepare(
            f'INSERT INTO pgmq."q_{QUEUE}" (vt, message, headers) '
            "SELECT clock_timestamp(), m::jsonb, jsonb_build_object('x-pgmq-group', g) "
            "FROM unnest($1::text[], $2::text[]) AS u (m, g)"
        )
        for first in range(0, large, _BATCH):
            count = min(_BATCH, large - first)
            await insert.fetch([encoded(first + number) for number in range(count)], ["large"] * count)
        for _ in range(each):
            for first in range(0, groups, _BATCH):
                numbers = range(first, min(first + _BATCH, groups))
                await insert.fetch(
                    [encoded(number) for number in numbers], [f"group-{number}" for number in numbers]
                )
    finally:
        await connection.close()


async def left_over(database: Database, queue: str = QUEUE) -> int:
    """Return how many messages a queue still has, due or not."""
    connection = await asyncpg.connect(database.url)
    try:
        return int(await connection.fetchval(f'SELECT count(*) FROM pgmq."q_{queue}"'))
    finally:
        await connection.close()
