"""What is done to queues as a whole, by people and scripts rather than by workers."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from apalis_pgmq.core import ConfigError

from ._body_table import sweep
from ._errors import PgMqError, PgMqQueueMissingError
from ._keys import create_keys, delete_all_expired
from ._names import SCHEMA, queue_table, quote
from ._ordered_setup import ensure_ordered
from ._pool import OnPool, PgMqPool
from ._queue_facts import QueueInfo, QueueMetrics, TopicBinding
from ._queue_sql import (
    BIND_TOPIC,
    CREATE_PARTITIONED,
    CREATE_UNLOGGED,
    DROP_QUEUE,
    HAS_PARTMAN,
    LIST_QUEUES,
    METRICS,
    METRICS_OF_ALL,
    PARTITIONS,
    PURGE_QUEUE,
    TOPIC_BINDINGS,
    TOPIC_ROUTES,
    UNBIND_TOPIC,
    autovacuum,
    partition_indexes,
)
from ._setup import add_trigger, create, lock_and_inspect
from ._setup_sql import CREATE_QUEUE, INSPECT
from ._topic import topic_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from ._connect import Connection
    from ._queue_facts import Partitions

_LONGEST: Final = 600.0
"""Seconds that counting, emptying, dropping or indexing a large queue may take."""
logger = logging.getLogger("apalis_pgmq")

_TRIES: Final = 3
_ALL: Final = "*"
"""What stands for a queue's name in the errors of statements about all of them."""


class PgMqQueues(OnPool):
    """The queues of a database: make them, drop them, empty them, list and measure them.

    ::

        async with PgMqQueues("postgresql://localhost/app") as queues:
            await queues.create("emails")
            print((await queues.metrics("emails")).length)

    For people and scripts; a `PgMqBackend` makes the queue that it needs by itself. Any name that PGMQ takes
    will do, a dead-letter queue's among them.

    Args:
        url_or_pool: a ``postgres://`` or ``postgresql://`` URL, a `PgMqPool` or an `asyncpg.Pool`. Pools stay the
            caller's to close.
        prepared_statements: as for `PgMqBackend`.

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any] | PgMqPool,
        *,
        prepared_statements: bool | None = None,
    ) -> None:
        super().__init__(url_or_pool, prepared_statements=prepared_statements)

    async def create(
        self,
        queue: str,
        *,
        unlogged: bool = False,
        partitions: Partitions | None = None,
        notify: bool = True,
        tune: bool = False,
        dedup: bool = False,
        ordered: bool = False,
    ) -> bool:
        """Make sure that PGMQ and the queue are there, as `PgMqBackend.setup` does, all or nothing.

        Args:
            queue: the queue's name.
            unlogged: whether its messages need not survive a crash of PostgreSQL, for faster sends. **All of
                them are lost in a crash.** What workers promise beyond that holds.
            partitions: how to divide its tables, which takes the extension pg_partman; not divided by default.
                A partitioned queue is given the indexes that its workers need and PGMQ does not make.
            notify: whether to have every insert into the queue announced, by a trigger, also if the queue was
                there before. Workers then need not poll it. False leaves a queue that is there as it is.
            tune: whether to have the queue's table vacuumed as soon as 10,000 rows are dead, and without
                pauses. Of a partitioned queue, those partitions that are there now; and one that was there
                before is given its indexes, too.
            dedup: whether to make the table that ``push(..., dedup_key=...)`` needs, for senders that may not; one
                for all queues. Where they may, it is made at its first need.
            ordered: whether to give it what ordered claims need (``Config(ordered=True)``), once it is there.

        Returns:
            Whether the queue was made; False if it was there before.

        Raises:
            ConfigError: both ``unlogged`` and ``partitions``.
            PgMqError: see `PgMqBackend.setup`; or the queue is there but of another kind; or pg_partman is not.
        """
        if unlogged and partitions is not None:
            raise ConfigError("a queue can be unlogged or partitioned, not both")
        made = await self._make(
            queue, unlogged=unlogged, partitions=partitions, notify=notify, tune=tune, dedup=dedup
        )
        if ordered:
            lane = self._pool.sending.lane(queue)
            [found] = await lane.fetch(INSPECT, queue_table(queue))
            await ensure_ordered(lane, queue, has_last_read_at=found["has_last_read_at"])
        return made

    async def drop(self, queue: str) -> bool:
        """Remove a queue with all its messages, its archive included.

        Waits for transactions that use it, running workers' among them; workers that are still running then find it
        missing.

        Returns:
            Whether there was one.

        Raises:
            PgMqError: the server does not answer, or refuses.
        """
        async with self._connection(queue) as connection:
            if not (await connection.fetch(INSPECT, queue_table(queue)))[0]["has_queue"]:
                return False
            return bool((await connection.fetch(DROP_QUEUE, queue))[0][0])

    async def purge(self, queue: str) -> int:
        """Delete every message of a queue, those in flight included; return how many there were.

        By TRUNCATE, however many there are; it waits for transactions that use the queue, and they for it. What
        a worker holds is lost to it: its handler is cancelled when the lease is to be extended.

        Raises:
            PgMqQueueMissingError: there is no such queue.
            PgMqError: the server does not answer, or refuses.
        """
        table = f"{SCHEMA}.{quote(queue_table(queue))}"
        async with self._connection(queue) as connection, connection.transaction():
            # PGMQ counts before it locks, and what is sent in between would be missing from the number.
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            [row] = await connection.fetch(PURGE_QUEUE, queue)
            return int(row[0])

    async def sweep_bodies(self, queue: str) -> int:
        """Delete what is left of large payloads whose messages are gone; return how many there were.

        A backend deletes them with their messages. What others delete (``pgmq.delete``, `purge`, old rows of an
        archive) leaves them behind, unreachable; so run this from time to time where that happens. It looks at the queue,
        its archive, its dead-letter queue and the archive of that, and takes nothing that one of them refers to.

        Args:
            queue: the queue's name; it need not be there any more.

        Raises:
            PgMqError: the server does not answer, or refuses.
        """
        async with self._connection(queue) as connection:
            return await sweep(connection, queue)

    async def sweep_keys(self) -> int:
        """Delete expired keys of deduplication, of all queues; return how many there were.

        Whoever sends with keys on connections of its own does it beside. Run this from time to time where messages with keys
        are sent in your transactions only, by a `PgMqProducer`.

        Raises:
            PgMqError: the server does not answer, or refuses.
        """
        async with self._connection(_ALL) as connection:
            return await delete_all_expired(connection)

    async def all(self) -> list[QueueInfo]:
        """Return every queue, dead-letter queues among them, by name; none where there is no PGMQ.

        Raises:
            PgMqError: the server does not answer, or refuses.
        """
        async with self._connection(_ALL) as connection:
            if not (await connection.fetch(INSPECT, ""))[0]["has_meta"]:
                return []
            rows = await connection.fetch(LIST_QUEUES)
        return [
            QueueInfo(name=name, is_partitioned=partitioned, is_unlogged=unlogged, created_at=created_at)
            for name, partitioned, unlogged, created_at in rows
        ]

    async def metrics(self, queue: str) -> QueueMetrics:
        """Measure a queue. Its messages are counted one by one: a second or so for some million.

        Raises:
            PgMqQueueMissingError: there is no such queue.
            PgMqError: the server does not answer, or refuses.
        """
        async with self._connection(queue) as connection:
            [row] = await connection.fetch(METRICS, queue)
        return QueueMetrics.of(row)

    async def metrics_of_all(self) -> list[QueueMetrics]:
        """Measure every queue, by name; none where there is no PGMQ.

        A queue that PGMQ itself cannot measure is left out, with a warning: one whose table was dropped by hand, or
        whose name is so long in bytes that PostgreSQL cut the name of its sequence.

        Raises:
            PgMqError: the server does not answer, or refuses.
        """
        try:
            async with self._connection(_ALL) as connection:
                if not (await connection.fetch(INSPECT, ""))[0]["has_meta"]:
                    return []
                return [QueueMetrics.of(row) for row in await connection.fetch(METRICS_OF_ALL)]
        except PgMqQueueMissingError:
            # One was dropped while they were counted, or cannot be.
            return await self._metrics_one_by_one()

    async def _metrics_one_by_one(self) -> list[QueueMetrics]:
        found = []
        for info in await self.all():
            try:
                found.append(await self.metrics(info.name))
            except PgMqQueueMissingError as error:
                logger.warning("queue %s is not measured: %s", info.name, error, extra={"queue": info.name})
        return found

    async def bind(self, pattern: str, queue: str) -> None:
        """Have a queue get all that a `PgMqTopic` sends by a routing key that matches the pattern; at most once each.

        Harmless if it is bound like this already. Dropping the queue unbinds it.

        Args:
            pattern: such as ``orders.created``, ``orders.*.eu`` (``*`` is one word) or ``orders.#`` (``#`` is
                anything).
            queue: the name of a queue that is there.

        Raises:
            ConfigError: PGMQ refuses the pattern, or there is no such queue.
            PgMqVersionError: the database's PGMQ has no topics: 1.11 or later is needed.
            PgMqError: the server does not answer, or refuses.
        """
        await self._topics(queue, BIND_TOPIC, pattern, queue)

    async def unbind(self, pattern: str, queue: str) -> bool:
        """Undo `bind`; return whether it was bound.

        Raises:
            ConfigError, PgMqVersionError, PgMqError: as `bind`.
        """
        [row] = await self._topics(queue, UNBIND_TOPIC, pattern, queue)
        return bool(row[0])

    async def bindings(self, queue: str | None = None) -> list[TopicBinding]:
        """Return what is bound, of all queues or of one, by pattern and queue.

        Raises:
            PgMqVersionError, PgMqError: as `bind`.
        """
        rows = await self._topics(_ALL, TOPIC_BINDINGS, queue)
        return [TopicBinding(pattern=pattern, queue=name, bound_at=at) for pattern, name, at in rows]

    async def routes(self, routing_key: str) -> list[str]:
        """Return the names of the queues that a message sent by this routing key would reach.

        Raises:
            ConfigError: PGMQ refuses the key.
            PgMqVersionError, PgMqError: as `bind`.
        """
        return [row[0] for row in await self._topics(_ALL, TOPIC_ROUTES, routing_key)]

    async def _make(
        self,
        queue: str,
        *,
        unlogged: bool,
        partitions: Partitions | None,
        notify: bool,
        tune: bool,
        dedup: bool,
    ) -> bool:
        for tries_left in reversed(range(_TRIES)):
            try:
                async with self._connection(queue) as connection, connection.transaction():
                    found = await lock_and_inspect(connection, queue)
                    if not found["has_queue"]:
                        await _create(connection, queue, unlogged=unlogged, partitions=partitions)
                    else:
                        _refuse_other_kind(found, queue, unlogged=unlogged, partitions=partitions)
                    if notify and not found["is_announced"]:
                        await add_trigger(connection, queue)
                    if tune:
                        await _tune(connection, queue, is_partitioned=found["is_partitioned"])
                    if dedup:
                        await create_keys(connection)
                    return not found["has_queue"]
            except PgMqError as error:
                # Somebody who does not know our lock was faster.
                faster = isinstance(
                    error.__cause__, asyncpg.DuplicateObjectError | asyncpg.UniqueViolationError
                )
                if not (faster and tries_left):
                    raise
        raise AssertionError  # pragma: no cover - the last try returns or raises

    async def _topics(self, queue: str, sql: str, *arguments: str | None) -> list[Any]:
        with topic_errors():
            return await self._pool.sending.lane(queue).fetch(sql, *arguments)

    @asynccontextmanager
    async def _connection(self, queue: str) -> AsyncGenerator[Connection]:
        async with self._pool.sending.lane(queue).session() as connection, asyncio.timeout(_LONGEST):
            yield connection


async def _create(
    connection: Connection, queue: str, *, unlogged: bool, partitions: Partitions | None
) -> None:
    if partitions is None:
        await create(connection, queue, CREATE_UNLOGGED if unlogged else CREATE_QUEUE, queue)
        return
    if not await connection.fetch(HAS_PARTMAN):
        raise PgMqError(
            f"queue {queue!r} cannot be partitioned: the extension pg_partman is not in this database; where the "
            "server offers it, a superuser can add it: CREATE EXTENSION pg_partman"
        )
    await create(connection, queue, CREATE_PARTITIONED, queue, *partitions.arguments)
    await connection.execute(partition_indexes(queue))


def _refuse_other_kind(
    found: Mapping[str, Any], queue: str, *, unlogged: bool, partitions: Partitions | None
) -> None:
    """Refuse to take what is there for what is asked for; who asks for nothing special takes anything."""
    kind = "partitioned" if found["is_partitioned"] else "unlogged" if found["is_unlogged"] else "plain"
    wanted = "partitioned" if partitions is not None else "unlogged" if unlogged else kind
    if kind != wanted:
        raise PgMqError(
            f"queue {queue!r} is there already, but {kind} and not {wanted}; drop it first, or take another name"
        )


async def _tune(connection: Connection, queue: str, *, is_partitioned: bool) -> None:
    table = f"{SCHEMA}.{quote(queue_table(queue))}"
    if is_partitioned:
        await connection.execute(partition_indexes(queue))
    # A partitioned table has no rows of its own, and takes no such settings.
    partitions = [row[0] for row in await connection.fetch(PARTITIONS, table)]
    for each in partitions or [table]:
        await connection.execute(autovacuum(each))
