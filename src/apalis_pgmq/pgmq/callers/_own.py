"""Connections that a synchronous producer opens itself, by psycopg."""

from __future__ import annotations

import os
import select
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from apalis_pgmq.core import ApalisError, ConfigError
from apalis_pgmq.pgmq._errors import DRIVER_ERRORS

from ._errors import driver_error
from ._psycopg import fetch_synchronously

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping
    from contextlib import AbstractContextManager

    import psycopg

    from ._kinds import SyncFetch

R = TypeVar("R")

_CONNECT_TIMEOUT: Final = 10
_DEFAULTS: Final = {
    "connect_timeout": _CONNECT_TIMEOUT,
    # A socket that goes silent is found out: after 15 s while something was sent, after a minute otherwise.
    "tcp_user_timeout": 15_000,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
"""Of libpq, where the URL says nothing else."""


def complete(work: Coroutine[Any, Any, R]) -> R:
    """Run asynchronous code that waits for nothing, such as what is done on a `SyncPort`, and return its result."""
    try:
        work.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    work.close()
    raise RuntimeError("the code waits for an event loop, and there is none")


class SyncPort:
    """A psycopg connection, to code that is written for asyncpg's; none of its methods ever waits for an event loop.

    Attributes:
        fetch_rows: carries out a statement and returns its rows.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.fetch_rows: SyncFetch = fetch_synchronously(connection)

    def transaction_block(self) -> AbstractContextManager[object]:
        """Begin a transaction, or a savepoint in one."""
        return self._connection.transaction()

    async def fetch(self, sql: str, *arguments: object) -> list[Mapping[str, Any]]:
        """Carry out a statement; return its rows by column."""
        from psycopg import RawCursor  # noqa: PLC0415 - optional
        from psycopg.rows import dict_row  # noqa: PLC0415

        with _as_asyncpg(), RawCursor(self._connection, row_factory=dict_row) as cursor:
            cursor.execute(sql.encode(), arguments)
            return list(cursor.fetchall())

    async def execute(self, sql: str, *arguments: object) -> None:
        """Carry out a statement, or several if there are no arguments."""
        from psycopg import RawCursor  # noqa: PLC0415 - optional

        with _as_asyncpg(), RawCursor(self._connection) as cursor:
            cursor.execute(sql.encode(), arguments or None)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None]:
        """Begin a transaction, or a savepoint in one."""
        with _as_asyncpg(), self._connection.transaction():
            yield


class OwnConnections:
    """Up to ``size`` connections to a URL, for any thread, opened as they are needed and kept.

    A connection that was closed meanwhile, by the server or on the way, is noticed before it is used and replaced.
    A forked process opens its own.

    Args:
        url: the database.
        size: how many at most; further threads wait.
        prepared_statements: False behind a pooler that does not keep prepared statements; None leaves them out
            behind any pooler.
    """

    def __init__(self, url: str, *, size: int, prepared_statements: bool | None) -> None:
        self._url = url
        self._size = size
        self._prepared_statements = prepared_statements
        self._forget()

    @contextmanager
    def port(self) -> Generator[SyncPort]:
        """Have a connection to oneself."""
        if self._process != os.getpid():
            # The sockets are our parent's: neither to be used nor to be closed in an orderly way.
            self._forget()
        with self._free:
            connection = self._take()
            keep = False
            try:
                yield SyncPort(connection)
                keep = True
            except Exception:
                keep = not connection.closed and not connection.broken
                raise
            finally:
                if keep:
                    self._idle.append(connection)
                else:
                    connection.close()

    def close(self) -> None:
        """Close the connections, those in use when their statement is done; a later use opens new ones."""
        if self._process != os.getpid():
            self._forget()
            return
        for _ in range(self._size):
            self._free.acquire()
        try:
            while self._idle:
                self._idle.pop().close()
        finally:
            for _ in range(self._size):
                self._free.release()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._free = threading.BoundedSemaphore(self._size)
        self._idle: list[psycopg.Connection[Any]] = []

    def _take(self) -> psycopg.Connection[Any]:
        with suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not connection.closed and not _says_something(connection):
                    return connection
                connection.close()
        return self._open()

    def _open(self) -> psycopg.Connection[Any]:
        try:
            import psycopg  # noqa: PLC0415 - optional
            from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415
        except ImportError as error:
            raise ImportError(
                "a producer that connects to a URL needs psycopg: pip install 'apalis-pgmq[psycopg]'"
            ) from error
        try:
            given = conninfo_to_dict(self._url)
            for port in str(given.get("port") or 0).split(","):
                int(port or 0)
        except (psycopg.ProgrammingError, ValueError):
            # Without its text and its cause: both show the URL.
            raise ConfigError(
                "the database URL cannot be read: check its host, port and parameters"
            ) from None
        parameters: dict[str, Any] = {name: value for name, value in _DEFAULTS.items() if name not in given}
        connection = psycopg.connect(self._url, autocommit=True, **parameters)
        try:
            if self._prepared_statements is None:
                row = connection.execute("SELECT pg_backend_pid()").fetchone()
                # A pooler names a backend of its own invention in the handshake.
                self._prepared_statements = row is not None and row[0] == connection.info.backend_pid
            if not self._prepared_statements:
                connection.prepare_threshold = None
        except BaseException:
            connection.close()
            raise
        return connection


def _says_something(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether the server has sent something to an idle connection: that it is closed, as a rule."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([connection.fileno()], [], [], 0)[0])


@contextmanager
def _as_asyncpg() -> Generator[None]:
    try:
        yield
    except (ApalisError, *DRIVER_ERRORS):
        # Of a statement in a transaction: translated already, and on its way out of it.
        raise
    except Exception as error:
        found = driver_error(error)
        if found is None:
            raise
        same, own = found
        raise same from own
