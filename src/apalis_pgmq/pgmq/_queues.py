"""What is done to a queue as a whole, by people and scripts rather than by workers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from ._body_table import sweep
from ._connect import UrlSource
from ._lanes import Lanes
from ._ordered_setup import ensure_ordered
from ._setup import announce_inserts, ensure_queue
from ._sql import INSPECT, SCHEMA, autovacuum, queue_table, quote

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from ._lanes import Lane

_DROP_QUEUE: Final = "SELECT pgmq.drop_queue($1::text)"


async def create_queue(
    url: str, queue: str, *, notify: bool = True, tune: bool = False, ordered: bool = False
) -> bool:
    """Make sure that PGMQ and the queue are there, as `PgMqBackend.setup` does.

    Any name that PGMQ takes will do, a dead-letter queue's among them.

    Args:
        url: the database.
        queue: the queue's name.
        notify: whether to have every insert into the queue announced, by a trigger, also if the queue was
            there before. Workers then need not poll it. False leaves a queue that is there as it is.
        tune: whether to have the queue's table vacuumed as soon as 10,000 rows are dead, and without pauses.
        ordered: whether to give it what ordered claims need (``Config(ordered=True)``).

    Returns:
        Whether the queue was made; False if it was there before.

    Raises:
        ConfigError: not a database URL.
        PgMqError: see `PgMqBackend.setup`.
    """
    async with _lane(url, queue) as lane:
        [found] = await lane.fetch(INSPECT, queue_table(queue))
        made = await ensure_queue(lane, queue, notify=notify)
        async with lane.connection() as connection:
            if notify:
                await announce_inserts(connection, queue)
            if tune:
                await connection.execute(autovacuum(queue))
        if ordered:
            await ensure_ordered(lane, queue, has_last_read_at=made.has_last_read_at)
        return not found["has_queue"]


async def drop_queue(url: str, queue: str) -> bool:
    """Remove a queue with all its messages, its archive included.

    Returns:
        Whether there was one.

    Raises:
        ConfigError: not a database URL.
        PgMqError: the server does not answer, or refuses.
    """
    async with _lane(url, queue) as lane:
        [found] = await lane.fetch(INSPECT, queue_table(queue))
        if found["has_queue"]:
            await lane.fetch(_DROP_QUEUE, queue)
        return bool(found["has_queue"])


async def queue_length(url: str, queue: str) -> int:
    """Count the messages of a queue: waiting, delayed and in flight.

    Raises:
        ConfigError: not a database URL.
        PgMqQueueMissingError: there is no such queue.
        PgMqError: the server does not answer, or refuses.
    """
    async with _lane(url, queue) as lane:
        [row] = await lane.fetch(f"SELECT count(*) FROM {SCHEMA}.{quote(queue_table(queue))}")
        return int(row[0])


async def sweep_bodies(url: str, queue: str) -> int:
    """Delete what is left of large payloads whose messages are gone; return how many there were.

    A backend deletes them with their messages. What others delete (``pgmq.delete``, ``pgmq.purge_queue``, old rows of an
    archive) leaves them behind, unreachable; so run this from time to time where that happens. It looks at the queue, its
    archive, its dead-letter queue and the archive of that, and takes nothing that one of them refers to.

    Args:
        url: the database.
        queue: the queue's name; it need not be there any more.

    Raises:
        ConfigError: not a database URL.
        PgMqError: the server does not answer, or refuses.
    """
    async with _lane(url, queue) as lane, lane.session() as connection:
        return await sweep(connection, queue)


@asynccontextmanager
async def _lane(url: str, queue: str) -> AsyncGenerator[Lane]:
    lane = Lanes(UrlSource(url, prepared_statements=None)).lane(queue)
    try:
        yield lane
    finally:
        await lane.close()
