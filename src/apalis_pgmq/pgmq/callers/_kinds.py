"""The kinds of connections that messages can be sent on, for a type checker.

Structural, so that it accepts the right ones, and refuses a synchronous one where an asynchronous one is needed,
whichever of the packages are installed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

Rows: TypeAlias = Sequence[Sequence[Any]]
SyncFetch: TypeAlias = Callable[[str, Sequence[object]], Rows]
"""Carries out a statement with ``$1`` parameters on a connection, and returns its rows."""
AsyncFetch: TypeAlias = Callable[[str, Sequence[object]], Awaitable[Rows]]
"""The same, to be awaited."""


class PsycopgConnection(Protocol):
    """A `psycopg.Connection`."""

    @property
    def pgconn(self) -> Any:
        """Its connection of libpq."""
        ...

    def transaction(self) -> AbstractContextManager[Any]:
        """Begin a transaction or a savepoint."""
        ...


class PsycopgAsyncConnection(Protocol):
    """A `psycopg.AsyncConnection`."""

    @property
    def pgconn(self) -> Any:
        """Its connection of libpq."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """Begin a transaction or a savepoint."""
        ...


class Psycopg2Connection(Protocol):
    """A connection of psycopg2."""

    def get_transaction_status(self) -> int:
        """Return what its transaction is at."""
        ...

    def cursor(self) -> Any:
        """Return a cursor."""
        ...


class _Result(Protocol):
    def fetchall(self) -> Sequence[Any]: ...


class AlchemyConnection(Protocol):
    """A `sqlalchemy.Connection`."""

    @property
    def dialect(self) -> Any:
        """What it speaks."""
        ...

    def exec_driver_sql(self, statement: str, parameters: Any = ..., /) -> _Result:
        """Carry out a statement as it stands."""
        ...


class AlchemySession(Protocol):
    """A `sqlalchemy.orm.Session`, or a ``scoped_session``."""

    def connection(self) -> AlchemyConnection:
        """Return the connection of its transaction."""
        ...

    def begin_nested(self) -> AbstractContextManager[Any]:
        """Begin a savepoint."""
        ...


class AlchemyAsync(Protocol):
    """An `AsyncSession` or `AsyncConnection` of ``sqlalchemy.ext.asyncio``."""

    def run_sync(self, fn: Callable[[Any], Any], /) -> Awaitable[Any]:
        """Call a function with its synchronous counterpart."""
        ...


class DjangoConnection(Protocol):
    """A connection of Django's, such as `django.db.connection`."""

    alias: str
    in_atomic_block: bool

    def cursor(self) -> Any:
        """Return a cursor."""
        ...


SyncCaller: TypeAlias = (
    PsycopgConnection | AlchemySession | AlchemyConnection | DjangoConnection | Psycopg2Connection
)
"""What `PgMqProducer` sends on."""
AsyncCaller: TypeAlias = (
    "asyncpg.Connection[Any] | PoolConnectionProxy[Any] | PsycopgAsyncConnection | AlchemyAsync"
)
"""What `PgMqBackend` sends on."""
