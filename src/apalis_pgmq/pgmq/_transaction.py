"""Handling a message in a transaction: its effects and its removal are committed together."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import asyncpg

from apalis_pgmq.core import BackendUnavailableError, LeaseLostError
from apalis_pgmq.delivery import Backoff

from ._connect import PoolSource, bounded, is_pooled, roll_back, statement_seconds
from ._errors import DRIVER_ERRORS, translate
from ._lanes import Lanes
from ._sql import SESSION
from ._store import Fence, ids_of
from ._watched import WatchedConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from apalis_pgmq.core import Config, Duration, Task, TaskId
    from apalis_pgmq.delivery import Claim, QueueConsumer

    from ._connect import Connection, Source
    from ._sql import Statements

logger = logging.getLogger("apalis_pgmq")

M = TypeVar("M")

_COMMIT_BOUND: Final = 2
"""How many times as long as a statement may take the server waits for the commit once a message is removed."""
_KEEPALIVES: Final = """
    SET LOCAL tcp_keepalives_idle = 30; SET LOCAL tcp_keepalives_interval = 10; SET LOCAL tcp_keepalives_count = 3
"""
"""Has the server look after a client that says nothing: one that is gone would leave its transaction open, and
what it locked locked, for the two hours that are the usual default. Without effect where not supported."""
_TRIES: Final = 3
"""How often to look for a message whose lease is being extended at the same moment."""


class TransactionalSink(Protocol[M]):
    """What a transaction needs of a backend to send to it; `PgMqBackend` is one."""

    async def push(
        self,
        message: M,
        *,
        delay: Duration = ...,
        headers: Mapping[str, object] | None = ...,
        group: str | None = ...,
        dedup_key: str | None = ...,
        dedup_window: Duration | None = ...,
        connection: Connection | None = ...,
    ) -> TaskId:
        """Send a message on the given connection."""
        ...

    async def push_many(
        self,
        messages: Iterable[M],
        *,
        delay: Duration = ...,
        headers: Mapping[str, object] | None = ...,
        group: str | None = ...,
        dedup_key: Callable[[M], str] | None = ...,
        dedup_window: Duration | None = ...,
        connection: Connection | None = ...,
    ) -> list[TaskId]:
        """Send messages on the given connection."""
        ...

    async def schedule(
        self,
        message: M,
        at: datetime | Duration,
        *,
        headers: Mapping[str, object] | None = ...,
        group: str | None = ...,
        dedup_key: str | None = ...,
        dedup_window: Duration | None = ...,
        connection: Connection | None = ...,
    ) -> TaskId:
        """Send a message for later on the given connection."""
        ...


class Transaction:
    """An open transaction around a handler; ask for it by type annotation, in an ``async def`` handler.

    When the handler returns, what it did on `connection` and the removal of its message are committed
    together. When it raises, or its lease is lost, both are rolled back. So its effects in this database
    happen exactly once, however often the message is delivered.

    Attributes:
        connection: an asyncpg connection inside the transaction. It must neither be committed nor rolled
            back by the handler, other than to a savepoint (``async with connection.transaction()``).
    """

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def push(
        self,
        backend: TransactionalSink[M],
        message: M,
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
    ) -> TaskId:
        """Send a message to a queue of the same database, if and when the transaction commits."""
        return await backend.push(
            message,
            delay=delay,
            headers=headers,
            group=group,
            dedup_key=dedup_key,
            dedup_window=dedup_window,
            connection=self.connection,
        )

    async def push_many(
        self,
        backend: TransactionalSink[M],
        messages: Iterable[M],
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: Callable[[M], str] | None = None,
        dedup_window: Duration | None = None,
    ) -> list[TaskId]:
        """Send messages to a queue of the same database, if and when the transaction commits."""
        return await backend.push_many(
            messages,
            delay=delay,
            headers=headers,
            group=group,
            dedup_key=dedup_key,
            dedup_window=dedup_window,
            connection=self.connection,
        )

    async def schedule(
        self,
        backend: TransactionalSink[M],
        message: M,
        at: datetime | Duration,
        *,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
    ) -> TaskId:
        """Send a message for later to a queue of the same database, if and when the transaction commits."""
        return await backend.schedule(
            message,
            at,
            headers=headers,
            group=group,
            dedup_key=dedup_key,
            dedup_window=dedup_window,
            connection=self.connection,
        )


class Transactions:
    """Runs handlers in transactions, each on a connection of its own.

    Connections that are done with are kept for the next handler, so that there are as many as handlers ran
    at the same time.

    Args:
        source: where connections come from.
        config: the queue's settings.
        ready: makes sure that the queue is there, and returns its statements.
    """

    def __init__(self, source: Source, config: Config, ready: Callable[[], Awaitable[Statements]]) -> None:
        self._source = source
        self._config = config
        self._ready = ready
        self._spare: list[Connection] = []
        self._lane = Lanes(source, hold=False).lane(config.queue)

    async def close(self) -> None:
        """Let go of the spare connections."""
        while self._spare:
            await self._source.release(self._spare.pop())

    async def transact(
        self,
        consumer: QueueConsumer[Any],
        tasks: Callable[[], Sequence[Task[Any]]],
        body: Callable[[Transaction], Awaitable[object]],
    ) -> object:
        """Run ``body`` and commit what it did together with the removal of the tasks' messages.

        Nothing is committed if no task is done.

        Raises:
            LeaseLostError: a message was not ours any more; all was rolled back.
            PgMqError: the transaction could not be begun or committed.
        """
        connection = await self._translated(self._take())
        try:
            # At a higher level the removal would fail as soon as the lease was extended meanwhile.
            transaction = connection.transaction(isolation="read_committed")
            await self._translated(transaction.start())
            try:
                await self._translated(connection.execute(_KEEPALIVES))
                result = await body(Transaction(connection))
                if done := tasks():
                    await _uninterrupted(self._end(connection, transaction, consumer, done))
                else:
                    await transaction.rollback()
            except BaseException:
                await roll_back(connection, transaction)
                raise
        finally:
            await self._put_back(connection)
        return result

    async def _end(
        self,
        connection: Connection,
        transaction: asyncpg.transaction.Transaction,
        consumer: QueueConsumer[Any],
        tasks: Sequence[Task[Any]],
    ) -> None:
        async with consumer.removing(tasks) as claims:
            missing = await self._translated(self._remove(connection, claims))
            if missing:
                for claim in missing:
                    consumer.lost(claim)
                raise LeaseLostError(
                    f"message {missing[0].id} on queue {self._config.queue!r} is not ours any more; "
                    "what its handler did was rolled back"
                )
            try:
                await bounded(transaction.commit())
            except DRIVER_ERRORS as error:
                if not await self._was_committed(claims, error):
                    reason = self._error(error)
                    if isinstance(reason, BackendUnavailableError):
                        raise reason from error
                    # A deferred constraint, say: the handler's own error, to be judged by its type.
                    raise

    async def _remove(self, connection: Connection, claims: Sequence[Claim]) -> list[Claim]:
        """Remove messages; return those that are not ours any more."""
        statements = await self._ready()
        archive = self._config.on_success == "archive"
        sql = statements.archive_last if archive else statements.delete_last
        # As long as we may wait for the answer to the commit, and some more.
        bound = str(round(_COMMIT_BOUND * statement_seconds() * 1000))
        missing = list(claims)
        for _ in range(_TRIES):
            # An extension that was under way when we began makes us miss the row once: our statement waits
            # for it and then finds another `vt`. By now the claim names that one too.
            removed = ids_of(await connection.fetch(sql, *Fence(missing).arrays, bound))
            missing = [claim for claim in missing if claim.id not in removed]
            if not missing:
                break
        return missing

    async def _was_committed(self, claims: Sequence[Claim], error: Exception) -> bool:
        """Find out whether a commit took place whose answer was lost: then the messages are gone."""
        if isinstance(error, asyncpg.PostgresError) and not isinstance(
            error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError
        ):
            return False
        statements = await self._ready()
        lane = Lanes(self._source, hold=False).lane(self._config.queue)
        backoff = Backoff()
        try:
            async with asyncio.timeout(self._config.visibility_timeout.total_seconds()):
                while True:
                    try:
                        rows = await lane.fetch(statements.present, [claim.id for claim in claims])
                        return not ids_of(rows)
                    except BackendUnavailableError:
                        await asyncio.sleep(backoff.delay())
        except TimeoutError:
            return False

    async def _take(self) -> Connection:
        while self._spare:
            connection = self._spare.pop()
            if not connection.is_closed():
                return connection
            await self._source.release(connection)
        connection = await self._source.connect()
        # `isinstance` would take a pool's proxy for one too: asyncpg's metaclass says so for every subclass.
        if type(connection) is WatchedConnection:
            try:
                pooled = await is_pooled(connection)
            except BaseException:
                connection.terminate()
                raise
            # A pooler's process id is of its own invention.
            if not pooled:
                connection.watch(statement_seconds(), partial(self._look_after, connection))
        return connection

    async def _look_after(self, connection: WatchedConnection) -> None:
        """End a connection on which an answer is waited for that the server is not at work on.

        Its socket has gone silent, and either the statement is lost or the answer.
        """
        before: list[Any] | None = None
        while True:
            session: list[Any] | None = None
            with suppress(BackendUnavailableError):
                session = await self._lane.fetch(SESSION, connection.get_server_pid())
            if session and not (session[0]["state"] or "").startswith("idle"):
                session = None
            # Twice the same, so that it did not just happen to be between two statements; nothing at all is a
            # session that has ended.
            if session is not None and session == before:
                logger.warning(
                    "queue %s: a handler's connection has gone silent, it is closed",
                    self._config.queue,
                    extra={"queue": self._config.queue},
                )
                connection.terminate()
                return
            before = session
            await asyncio.sleep(statement_seconds() / 3)

    async def _put_back(self, connection: Connection) -> None:
        """Keep a sound connection for the next handler, without what this one has set on it."""
        if isinstance(self._source, PoolSource) or connection.is_closed() or connection.is_in_transaction():
            await self._source.release(connection)
            return
        try:
            await bounded(connection.reset())
        except DRIVER_ERRORS:
            await self._source.release(connection)
        except BaseException:
            connection.terminate()
            raise
        else:
            self._spare.append(connection)

    async def _translated(self, call: Awaitable[M]) -> M:
        try:
            return await bounded(call)
        except DRIVER_ERRORS as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> Exception:
        return translate(error, server=self._source.address, queue=self._config.queue)


async def _uninterrupted(work: Awaitable[None]) -> None:
    """See work through, even if cancelled meanwhile: between removal and commit is no place to stop.

    Work that succeeds wins over a cancellation that came too late: what is committed is done. Whoever asked for
    it can still tell by the task's ``cancelling()``.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and (task.cancelled() or task.exception() is not None):
        # The error gives way to the cancellation.
        raise cancelled
    task.result()
