"""Connections: where they come from, and lanes, which hold one for good."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from urllib.parse import urlsplit

import asyncpg

from apalis_pgmq.core import ConfigError

from ._errors import DRIVER_ERRORS, translate
from ._watched import WatchedConnection

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from typing import TypeAlias

    from asyncpg.pool import PoolConnectionProxy

    from apalis_pgmq.core import ApalisError

    Connection: TypeAlias = asyncpg.Connection[Any] | PoolConnectionProxy[Any]

_CONNECT_TIMEOUT: Final = 10.0
_STATEMENT_TIMEOUT: Final = 15.0
"""Seconds after which a statement counts as lost, and its connection as broken: a socket that goes
silent is found out within this time."""
_RELEASE_TIMEOUT: Final = 2.0


def statement_seconds() -> float:
    """Return how long a statement may take at most."""
    return _STATEMENT_TIMEOUT


def statement_timeout(longest: float = math.inf) -> asyncio.Timeout:
    """Return the bound on how long a statement may take, at most ``longest`` seconds."""
    return asyncio.timeout(min(statement_seconds(), longest))


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
        self._url = url
        self.prepared_statements = prepared_statements
        hosts = parts.netloc.rpartition("@")[2] or "localhost"
        self.address = f"PostgreSQL at {hosts}{parts.path}"

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
        self.address = "PostgreSQL behind the given pool"

    async def connect(self) -> Connection:
        """Take a connection out of the pool."""
        try:
            connection = await self._pool.acquire(timeout=_CONNECT_TIMEOUT)
        except TimeoutError as error:
            raise TimeoutError(
                f"the given pool had no free connection for {_CONNECT_TIMEOUT:g} s; "
                f"a running worker holds two of its {self._pool.get_max_size()}: raise its max_size"
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


class Lane:
    """One connection, held for good and used by one statement at a time.

    Checking a connection out of a pool for each statement would cost several statements more. A broken
    connection is replaced at the next use.

    Args:
        source: where the connection comes from.
        queue: for error texts.
        settings: run-time parameters to set on the connection; not behind a pooler, where they would
            reach whoever uses the server connection next.
        hold: False gives the connection back after each use.
        longest: seconds that a statement may take, a connection included if one is needed, where 15 are too
            many.
    """

    def __init__(
        self,
        source: Source,
        queue: str,
        *,
        settings: Mapping[str, str] | None = None,
        hold: bool = True,
        longest: float = math.inf,
    ) -> None:
        self._source = source
        self._queue = queue
        self._settings = settings or {}
        self._hold = hold
        self._longest = longest
        self._connection: Connection | None = None
        self._needs_transactions = False
        self._lock = asyncio.Lock()

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        """Carry out one statement and return its rows, as asyncpg records.

        Raises:
            PgMqUnavailableError: it may or may not have been carried out.
            PgMqError: it was refused.
        """
        async with self.connection() as connection:
            return await connection.fetch(sql, *arguments)

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Have the connection to oneself for the time that a statement may take, to send statements.

        The driver's errors are translated on the way out.
        """
        async with self._lock:
            try:
                async with statement_timeout(self._longest), AsyncExitStack() as stack:
                    connection = await self._connect()
                    if self._needs_transactions:
                        # Keeps a statement's preparation and execution on one server connection.
                        await stack.enter_async_context(connection.transaction())
                    yield connection
            except DRIVER_ERRORS as error:
                # Not an answer of the server: the connection is in a state that nobody knows. Or one that is
                # read-only, which sessions stay that began so: another may be in a better place.
                if not isinstance(error, asyncpg.PostgresError) or isinstance(
                    error, asyncpg.ReadOnlySQLTransactionError
                ):
                    await self._drop(broken=True)
                raise self.translate(error) from error
            finally:
                if not self._hold:
                    await self._drop()

    def translate(self, error: Exception) -> ApalisError:
        """Return what to raise for an error of the driver."""
        return translate(error, server=self._source.address, queue=self._queue)

    async def close(self) -> None:
        """Let go of the connection."""
        async with self._lock:
            await self._drop()

    async def _connect(self) -> Connection:
        if self._connection is not None and self._connection.is_closed():
            await self._drop()
        if self._connection is None:
            connection = await self._source.connect()
            try:
                pooled = await is_pooled(connection)
                if not pooled:
                    for name, value in self._settings.items():
                        await connection.execute(f"SET {name} = {value}")
            except BaseException:
                connection.terminate()
                await self._source.release(connection)
                raise
            self._needs_transactions = pooled and not self._source.prepared_statements
            self._connection = connection
        return self._connection

    async def _drop(self, *, broken: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if broken:
                connection.terminate()
            await self._source.release(connection)
