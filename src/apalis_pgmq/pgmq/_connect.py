"""Where connections come from."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import asyncpg

from apalis_pgmq.core import ConfigError

from ._errors import DRIVER_ERRORS
from ._watched import WatchedConnection

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import TypeAlias

    from asyncpg.pool import PoolConnectionProxy

    Connection: TypeAlias = asyncpg.Connection[Any] | PoolConnectionProxy[Any]

R = TypeVar("R")

_CONNECT_TIMEOUT: Final = 10.0
_STATEMENT_TIMEOUT: Final = 15.0
"""Seconds after which a statement counts as lost, and its connection as broken: a socket that goes
silent is found out within this time."""
_RELEASE_TIMEOUT: Final = 2.0
_HELD_BY_A_WORKER: Final = 2
"""Connections of a given pool, one to claim and one to settle; a third one listens."""


def statement_seconds() -> float:
    """Return how long a statement may take at most."""
    return _STATEMENT_TIMEOUT


def statement_timeout(longest: float = math.inf) -> asyncio.Timeout:
    """Return the bound on how long a statement may take, at most ``longest`` seconds."""
    return asyncio.timeout(min(statement_seconds(), longest))


async def bounded(call: Awaitable[R]) -> R:
    """Await a call to the server for as long as a statement may take."""
    async with statement_timeout():
        return await call


async def roll_back(connection: Connection, transaction: asyncpg.transaction.Transaction) -> None:
    """End a transaction that is not to be committed, whatever state it is in."""
    if connection.is_closed():
        return
    try:
        await bounded(transaction.rollback())
    except DRIVER_ERRORS:
        # Ended already, or broken: the server rolls back by itself.
        connection.terminate()


def address_of(url: str) -> str:
    """Return the server that a URL is for, for people: never with a password.

    Raises:
        ConfigError: not a ``postgres://`` or ``postgresql://`` URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError("the database URL cannot be read: its host is malformed") from error
    if parts.scheme not in ("postgres", "postgresql"):
        raise ConfigError(
            f"the database URL must begin with postgres:// or postgresql://, not {parts.scheme + '://'!r}"
            if parts.scheme
            else "the database URL must begin with postgres:// or postgresql://"
        )
    if "@" not in parts.netloc and "@" in url:
        # Then what was taken for the host is a piece of the password, not to be shown.
        raise ConfigError(
            "the database URL cannot be read: write '/', '?', '#' and '@' in its password as %2F, %3F, %23, %40"
        )
    hosts = parts.netloc.rpartition("@")[2] or "localhost"
    return f"PostgreSQL at {hosts}{parts.path}"


class Source(Protocol):
    """Where connections come from."""

    @property
    def address(self) -> str:
        """The server, for people: never with a password."""
        ...

    @property
    def prepared_statements(self) -> bool | None:
        """Whether prepared statements survive from one use to the next; None: depends on the connection."""
        ...

    @property
    def may_listen(self) -> bool:
        """Whether there is a connection to spare for listening."""
        ...

    async def connect(self) -> Connection:
        """Return a connection for the caller alone."""
        ...

    async def release(self, connection: Connection) -> None:
        """Take a connection back, sound or broken."""
        ...


class UrlSource:
    """Connections of our own to a ``postgres://`` or ``postgresql://`` URL.

    Args:
        url: as libpq reads it: several hosts, TLS options and all.
        prepared_statements: False behind a pooler that does not keep prepared statements (pgbouncer in
            transaction mode before 1.21); None finds out.

    Raises:
        ConfigError: not such a URL.
    """

    def __init__(self, url: str, *, prepared_statements: bool | None) -> None:
        self.address = address_of(url)
        self._url = url
        self.may_listen = True
        self.prepared_statements = prepared_statements

    async def connect(self) -> Connection:
        """Open a connection."""
        if self.prepared_statements is None:
            connection = await self._open(prepared=True)
            try:
                self.prepared_statements = not await is_pooled(connection)
            except BaseException:
                connection.terminate()
                raise
            if self.prepared_statements:
                return connection
            await self.release(connection)
        return await self._open(prepared=self.prepared_statements)

    async def release(self, connection: Connection) -> None:
        """Close a connection."""
        try:
            await connection.close(timeout=_RELEASE_TIMEOUT)
        except DRIVER_ERRORS:
            connection.terminate()

    async def _open(self, *, prepared: bool) -> Connection:
        try:
            return await asyncpg.connect(
                self._url,
                timeout=_CONNECT_TIMEOUT,
                connection_class=WatchedConnection,
                statement_cache_size=100 if prepared else 0,
                max_cached_statement_lifetime=0,
            )
        except DRIVER_ERRORS:
            raise
        except (ValueError, OverflowError):
            # Without its text and its cause: both show the URL.
            raise ConfigError(f"the URL of {self.address} cannot be read: check its host and port") from None


class PoolSource:
    """Connections of the program's own pool."""

    prepared_statements: bool | None = None

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self.may_listen = pool.get_max_size() > _HELD_BY_A_WORKER
        self.address = "PostgreSQL behind the given pool"

    async def connect(self) -> Connection:
        """Take a connection out of the pool."""
        try:
            connection = await self._pool.acquire(timeout=_CONNECT_TIMEOUT)
        except TimeoutError as error:
            raise TimeoutError(
                f"the given pool had no free connection for {_CONNECT_TIMEOUT:g} s; "
                f"a running worker holds two or three of its {self._pool.get_max_size()}: raise its max_size"
            ) from error
        return connection

    async def release(self, connection: Connection) -> None:
        """Put a connection back into the pool."""
        try:
            await self._pool.release(cast("PoolConnectionProxy[Any]", connection), timeout=_RELEASE_TIMEOUT)
        except DRIVER_ERRORS:
            connection.terminate()


async def is_pooled(connection: Connection) -> bool:
    """Tell whether a pooler stands between us and the server.

    A pooler names a backend of its own invention in the handshake. Asked in a way that prepares nothing:
    without parameters the simple protocol is used, and the command tag tells the number of rows.
    """
    tag = await connection.execute(f"SELECT WHERE pg_backend_pid() = {connection.get_server_pid():d}")
    return tag != "SELECT 1"
