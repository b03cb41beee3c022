"""The PGMQ backend."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from apalis_pgmq.codecs import JsonCodec
from apalis_pgmq.core import Config, DedupKeys, duration, moment, with_group
from apalis_pgmq.delivery import QueueBackend

from ._body_table import bodies_of
from ._context import PgMqContext
from ._dead_letters import DeadLetters
from ._inserts import MANY, packing
from ._keyed import KeyedSink
from ._ordered_setup import ensure_ordered
from ._ordered_sql import ordered
from ._pool import PgMqPool, pool_of
from ._setup import ensure_queue
from ._sink import Sink
from ._sql import Statements
from ._store import PgMqStore
from ._transaction import Transaction, Transactions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from types import TracebackType

    import asyncpg

    from apalis_pgmq.core import AnyCodec, DeadLetter, Duration, Task, TaskId
    from apalis_pgmq.delivery import QueueConsumer

    from .callers import AsyncCaller

T = TypeVar("T")


class PgMqBackend(QueueBackend[T]):
    """A PGMQ queue of typed messages: `push` sends, a `WorkerBuilder` or `poll` receives.

    ::

        async with PgMqBackend("postgresql://localhost/app", "emails", EmailMessage) as emails:
            await emails.push(EmailMessage("ada@example.com", "Hello", "..."))

    Entering the block, like the first use of a backend without one, makes sure that PGMQ and the queue are
    there (see `setup`); leaving it sends what is still waiting and closes the connections. One backend
    serves one event loop.

    Args:
        url_or_pool: a ``postgres://`` or ``postgresql://`` URL (several hosts and TLS options as in
            libpq); a `PgMqPool`, which several backends share; or an `asyncpg.Pool`. Pools stay the caller's
            to close. A running worker holds three of an asyncpg pool's connections (two, and hears of nothing,
            if there are no more), each running handler with a `Transaction` one more, and a push takes one
            for a moment, or for as long as it waits for its ``dedup_key``.
        queue_or_config: the queue's name, or a `Config`.
        message_type: the type of the messages: a dataclass, pydantic model, TypedDict, NamedTuple, union
            or plain type. A type checker cannot infer ``T`` from a union: annotate the variable,
            ``queue: PgMqBackend[A | B] = PgMqBackend(url, "q", A | B)``.
        codec: how messages become JSON; a `JsonCodec` of the message type by default. A `LayeredCodec`
            compresses or encrypts them as well.
        prepared_statements: False behind a pooler that does not keep prepared statements (pgbouncer in
            transaction mode before 1.21); None, the default, turns them off behind any pooler. For a URL;
            a pool is configured by its ``statement_cache_size``.

    Raises:
        ConfigError: a setting that cannot work.
    """

    @overload
    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any] | PgMqPool,
        queue_or_config: str | Config,
        message_type: type[T],
        *,
        codec: AnyCodec[T] | None = ...,
        prepared_statements: bool | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any] | PgMqPool,
        queue_or_config: str | Config,
        message_type: Any,
        *,
        codec: AnyCodec[T] | None = ...,
        prepared_statements: bool | None = ...,
    ) -> None: ...
    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any] | PgMqPool,
        queue_or_config: str | Config,
        message_type: Any,
        *,
        codec: AnyCodec[T] | None = None,
        prepared_statements: bool | None = None,
    ) -> None:
        super().__init__(
            Config.of(queue_or_config), message_type, JsonCodec(message_type) if codec is None else codec
        )
        self._pool, self._owns_pool = pool_of(url_or_pool, prepared_statements=prepared_statements)
        self._lane = self._pool.sending.lane(self._config.queue)
        self._sink = Sink(self._lane, self._ready)
        self._keyed_sink = KeyedSink(
            self._pool.sending_keyed.lane(self._config.queue),
            self._pool.waiting_for_keys.lane(self._config.queue),
            self._ready,
        )
        self._transactions = Transactions(self._pool.source, self._config, self._ready)
        self._dead_letters = DeadLetters(self._lane, self._config, self._ready, self._poke)
        self._statements: Statements | None = None
        self._setup_lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<PgMqBackend {self._config.queue!r} on {self._pool.source.address}>"

    async def __aenter__(self) -> Self:
        try:
            await self.setup()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def setup(self) -> None:
        """Make sure that PGMQ and the queue are there; done by itself at first use.

        A PGMQ that is there is used, from 1.5.1 on. Otherwise it is installed: as an extension where the
        server offers it, else from the SQL that the ``pgmq`` package carries. Safe to call again, and from
        many processes at once.

        Raises:
            PgMqNotInstalledError: PGMQ is not there and can be had neither way.
            PgMqVersionError: the PGMQ that is there is older than 1.5.1.
            PgMqPermissionError: the role may not do what is needed.
            PgMqUnavailableError: the server does not answer now.
        """
        self._statements = None
        await self._ready()

    async def close(self) -> None:
        """Send what is waiting and close the connections; a later use opens new ones."""
        await self._sink.close()
        await self._keyed_sink.close()
        await self._transactions.close()
        if self._owns_pool:
            await self._pool.close()

    async def push(
        self,
        message: T,
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
        connection: AsyncCaller | None = None,
    ) -> TaskId:
        """Send one message; return its id once it is durably stored.

        Concurrent pushes share statements; where more of them come than can be stored, they wait in line. A cancelled
        push may or may not have been sent.

        Args:
            message: of the backend's message type.
            delay: how long until it becomes visible, a `timedelta` or seconds; none by default.
            headers: kept beside the message, for the handler to read; must have a JSON form.
            group: the message's group, as its header ``x-pgmq-group``: an ordered queue works one message of
                a group at a time, in the order in which they were sent (see `Config`). None: no group.
            dedup_key: 1 to 255 characters. A message with the key of another that was sent to the queue within
                the window is not stored, whether or not that one was handled already, and the id of that one is
                returned. Kept in the header ``x-dedup-key``; see docs/deduplication.md.
            dedup_window: for how long the key is taken from now on, a `timedelta` or seconds; 5 minutes by default.
            connection: the caller's own connection to the same database: an asyncpg connection, a
                `psycopg.AsyncConnection`, or an `AsyncSession` or `AsyncConnection` of SQLAlchemy on either of them.
                The message is sent on it, at once, and so if and when the caller's transaction commits.

        Raises:
            EncodeError: the message or its headers have no JSON form, or none that PostgreSQL stores; or it
                is larger than ``max_payload``; or the group makes no sense.
            ConfigError: the delay or the window is not a duration, the key cannot be one, or the connection is of
                another kind.
            PgMqUnavailableError: the server did not answer; the message may or may not have been stored.
            PgMqError: the server refused it.
        """
        wait = duration("delay", delay, allow_zero=True)
        keys = DedupKeys.of_one(dedup_key, dedup_window)
        ids = await self._send([message], wait, with_group(headers, group), keys, connection)
        return ids[0]

    async def push_many(
        self,
        messages: Iterable[T],
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: Callable[[T], str] | None = None,
        dedup_window: Duration | None = None,
        connection: AsyncCaller | None = None,
    ) -> list[TaskId]:
        """Send messages, all or none; return their ids in the same order.

        Less than 2,000, or whatever is sent on a connection of the caller's, are one statement; more are several in
        one transaction.

        Args:
            messages: of the backend's message type.
            delay: how long until they become visible, a `timedelta` or seconds; none by default.
            headers: the same for each message.
            group: the same for each message, as in `push`.
            dedup_key: returns the key of a message, as in `push`: ``lambda order: f"order-{order.number}"``. Then
                all are one statement, and messages with the same key have the same id.
            dedup_window: as in `push`.
            connection: as in `push`.

        Raises:
            EncodeError, ConfigError, PgMqUnavailableError, PgMqError: as `push`.
        """
        messages = list(messages)
        wait = duration("delay", delay, allow_zero=True)
        headers = with_group(headers, group)
        keys = DedupKeys.of_many(dedup_key, messages, dedup_window)
        if connection is None and keys is None and len(messages) >= MANY:
            ids = await self._sink.send_many(self._encoder(headers), messages, wait)
            if not wait:
                self._poke()
            return ids
        return await self._send(messages, wait, headers, keys, connection) if messages else []

    async def schedule(
        self,
        message: T,
        at: datetime | Duration,
        *,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
        connection: AsyncCaller | None = None,
    ) -> TaskId:
        """Send one message that becomes visible at a moment; return its id once it is durably stored.

        Args:
            message: of the backend's message type.
            at: when: a `datetime` with a time zone, by the server's clock, or a `timedelta` or seconds from now. At
                once if it is past.
            headers: kept beside the message, for the handler to read; must have a JSON form.
            group: the message's group, as in `push`.
            dedup_key: as in `push`.
            dedup_window: as in `push`: from now on, not from when the message becomes visible.
            connection: as in `push`.

        Raises:
            ConfigError: ``at`` is neither, has no time zone, or is more than ten years ahead; or as `push`.
            EncodeError, PgMqUnavailableError, PgMqError: as `push`.
        """
        due = moment("at", at)
        keys = DedupKeys.of_one(dedup_key, dedup_window)
        return (await self._send([message], due, with_group(headers, group), keys, connection))[0]

    async def dead_letters(self, limit: int = 100, after: int | None = None) -> list[DeadLetter]:
        """Return what is in the dead-letter queue, oldest first; nothing if there is none yet.

        Args:
            limit: at most so many.
            after: only those with a greater id: the ``id`` of the last one of the page before.

        Raises:
            ConfigError: the queue's config sends dead letters elsewhere, or an argument makes no sense.
            PgMqError: the server does not answer, or refuses.
        """
        return await self._dead_letters.page(limit, after)

    async def redrive(
        self, ids: Iterable[int] | None = None, *, limit: int | None = None, rate: float | None = None
    ) -> int:
        """Put dead letters back into the queue, visible at once; return how many were moved.

        Each becomes a new message with the payload as it was, its own headers, ``x-redrive-count`` counted
        up, and all of its attempts before it. What a consumer of the dead-letter queue holds stays there, and
        so does what fails again meanwhile. Batches are moved whole or not at all: it can be cancelled, fail
        and run several times at once without losing or doubling anything.

        Args:
            ids: which ones, by their ids in the dead-letter queue; None: all that are there now.
            limit: at most so many, oldest first; None: no limit.
            rate: at most so many per second; None: as fast as it goes.

        Raises:
            ConfigError: the queue's config sends dead letters elsewhere, or an argument makes no sense.
            PgMqUnavailableError: the server did not answer; some may have been moved. Call it again.
            PgMqError: the server refused.
        """
        return await self._dead_letters.redrive(ids, limit, rate)

    async def purge_dead_letters(self) -> int:
        """Delete all that is in the dead-letter queue now; return how many there were.

        Raises:
            ConfigError: the queue's config sends dead letters elsewhere.
            PgMqError: the server does not answer, or refuses.
        """
        return await self._dead_letters.purge()

    def injectables(self) -> Mapping[type, Callable[[Task[Any]], object]]:
        """Return what handlers may ask for beside the worker's own: `PgMqContext`."""
        return {PgMqContext: _context}

    @property
    def transaction_type(self) -> type[Transaction]:
        """What a handler asks for to be run in a transaction."""
        return Transaction

    async def transact(
        self,
        consumer: QueueConsumer[Any],
        tasks: Callable[[], Sequence[Task[Any]]],
        body: Callable[[Transaction], Awaitable[object]],
    ) -> object:
        """Run ``body`` and commit what it did together with the removal of the tasks' messages.

        What a `Worker` does for a handler that asks for a `Transaction`; see `SupportsTransactions`.

        Raises:
            LeaseLostError: a message was not ours any more; everything was rolled back.
            PgMqError: the transaction could not be begun or committed.
        """
        result = await self._transactions.transact(consumer, tasks, body)
        if self._config.ordered:
            consumer.poke()
        return result

    async def _ready(self) -> Statements:
        if self._statements is None:
            async with self._setup_lock:
                if self._statements is None:
                    found = await ensure_queue(self._lane, self._config.queue)
                    bodies = await bodies_of(self._lane, self._config)
                    statements = Statements.of(
                        self._config.queue,
                        self._config.dead_letter_queue,
                        has_last_read_at=found.has_last_read_at,
                        is_announced=found.is_announced,
                        bodies=bodies,
                    )
                    if self._config.ordered:
                        await ensure_ordered(
                            self._lane, self._config.queue, has_last_read_at=found.has_last_read_at
                        )
                        statements = ordered(statements, self._config.queue, bodies)
                    self._statements = statements
        return self._statements

    def _store(self) -> PgMqStore:
        return PgMqStore(self._pool, self._config, self._ready)

    async def _send(
        self,
        messages: Sequence[T],
        due: datetime | timedelta,
        headers: Mapping[str, object] | None,
        keys: DedupKeys | None,
        connection: AsyncCaller | None,
    ) -> list[TaskId]:
        pack = packing(self._encoder, messages, due, headers, keys)
        sink = self._sink if keys is None else self._keyed_sink
        if connection is not None:
            return await sink.send_on(connection, pack, self._config.queue)
        ids = await sink.send(pack)
        if not due:
            self._poke()
        return ids


def _context(task: Task[Any]) -> PgMqContext:
    return PgMqContext(task.queue, task.id, task.attempt, task.headers, task.enqueued_at, task.visible_until)
