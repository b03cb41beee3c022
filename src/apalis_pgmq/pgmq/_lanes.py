"""Lanes: a few connections that are held for good, each used by one statement at a time."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from ._connect import is_pooled, statement_timeout
from ._errors import DRIVER_ERRORS, translate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from contextlib import AbstractAsyncContextManager

    from apalis_pgmq.core import ApalisError

    from ._connect import Connection, Source


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """A connection between two uses.

    Attributes:
        connection: itself.
        needs_transactions: whether a pooler may prepare a statement here and execute it there.
    """

    connection: Connection
    needs_transactions: bool


class Lanes:
    """Up to ``size`` connections, opened as they are needed and held from then on.

    Checking a connection out of an asyncpg pool for each statement would cost several statements more, to
    reset it. The one that was used last is used next, so that there are as many as statements ran at the
    same time, and no more. A broken one is replaced at the next use.

    Args:
        source: where connections come from.
        size: how many there are at most.
        settings: run-time parameters to set on each connection; not behind a pooler, where they would
            reach whoever uses the server connection next.
        hold: False gives a connection back after each use.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: int = 1,
        settings: Mapping[str, str] | None = None,
        hold: bool = True,
    ) -> None:
        self._source = source
        self._size = size
        self._settings = ", ".join(
            f"set_config('{name}', '{value}', false)" for name, value in (settings or {}).items()
        )
        self._hold = hold
        self._idle: list[_Held] = []
        self._free = asyncio.Semaphore(size)

    def lane(self, queue: str, *, longest: float = math.inf) -> Lane:
        """Return a view for one queue.

        Args:
            queue: for error texts.
            longest: seconds that a statement may take, a connection included if one is needed, where 15 are
                too many.
        """
        return Lane(self, queue, longest)

    @asynccontextmanager
    async def connection(self, queue: str, longest: float | None) -> AsyncGenerator[Connection]:
        """Have a connection to oneself; see `Lane.connection` and `Lane.session`."""
        async with self._free:
            held: _Held | None = None
            keep = self._hold
            try:
                bound = asyncio.timeout(None) if longest is None else statement_timeout(longest)
                async with bound, AsyncExitStack() as stack:
                    held = await self._take()
                    if held.needs_transactions:
                        # Keeps a statement's preparation and execution on one server connection.
                        await stack.enter_async_context(held.connection.transaction())
                    yield held.connection
            except DRIVER_ERRORS as error:
                keep = keep and held is not None and _is_sound(held.connection, error)
                raise self.translate(error, queue) from error
            finally:
                if held is not None:
                    await self._put_back(held, keep=keep)

    async def fetch(self, queue: str, longest: float, sql: str, arguments: tuple[object, ...]) -> list[Any]:
        """Carry out one statement; see `Lane.fetch`."""
        held = self._idle[-1] if self._idle and not self._free.locked() else None
        if held is None or held.needs_transactions or held.connection.is_closed():
            async with self.connection(queue, longest) as connection:
                return await connection.fetch(sql, *arguments)
        # The same in short, for a connection that is ready to be used.
        keep = True
        async with self._free:
            self._idle.pop()
            try:
                async with statement_timeout(longest):
                    return await held.connection.fetch(sql, *arguments)
            except DRIVER_ERRORS as error:
                keep = _is_sound(held.connection, error)
                raise self.translate(error, queue) from error
            finally:
                await self._put_back(held, keep=keep)

    def translate(self, error: Exception, queue: str) -> ApalisError:
        """Return what to raise for an error of the driver."""
        return translate(error, server=self._source.address, queue=queue)

    async def close(self) -> None:
        """Let go of the connections, each when its statement is done; a later use opens new ones."""
        taken = 0
        try:
            for _ in range(self._size):
                await self._free.acquire()
                taken += 1
            while self._idle:
                await self._source.release(self._idle.pop().connection)
        finally:
            for _ in range(taken):
                self._free.release()

    async def _put_back(self, held: _Held, *, keep: bool) -> None:
        if keep:
            self._idle.append(held)
        else:
            await self._source.release(held.connection)

    async def _take(self) -> _Held:
        while self._idle:
            held = self._idle.pop()
            if not held.connection.is_closed():
                return held
            await self._source.release(held.connection)
        connection = await self._source.connect()
        try:
            pooled = await is_pooled(connection)
            if self._settings and not pooled:
                await connection.execute(f"SELECT {self._settings}")
        except BaseException:
            connection.terminate()
            await self._source.release(connection)
            raise
        return _Held(connection, pooled and not self._source.prepared_statements)


def _is_sound(connection: Connection, error: Exception) -> bool:
    """Tell whether a connection can be used after an error; end it if not."""
    # Not an answer of the server: the connection is in a state that nobody knows. Or one that is read-only, which
    # sessions stay that began so: another may be in a better place.
    if isinstance(error, asyncpg.PostgresError) and not isinstance(
        error, asyncpg.ReadOnlySQLTransactionError
    ):
        return True
    connection.terminate()
    return False


class Lane:
    """`Lanes` as one queue uses them; several may share the same."""

    def __init__(self, lanes: Lanes, queue: str, longest: float) -> None:
        self._lanes = lanes
        self._queue = queue
        self._longest = longest

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        """Carry out one statement and return its rows, as asyncpg records.

        Raises:
            PgMqUnavailableError: it may or may not have been carried out.
            PgMqError: it was refused.
        """
        return await self._lanes.fetch(self._queue, self._longest, sql, arguments)

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Have a connection to oneself for the time that a statement may take, to send statements.

        The driver's errors are translated on the way out.
        """
        return self._lanes.connection(self._queue, self._longest)

    def session(self) -> AbstractAsyncContextManager[Connection]:
        """As `connection`, for as long as it takes: whoever sends statements bounds each of them."""
        return self._lanes.connection(self._queue, None)

    def translate(self, error: Exception) -> ApalisError:
        """Return what to raise for an error of the driver."""
        return self._lanes.translate(error, self._queue)

    async def close(self) -> None:
        """Let go of the connections, those of other queues that share them included."""
        await self._lanes.close()
