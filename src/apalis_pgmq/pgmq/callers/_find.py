"""What kind of connection it is, and how to send a statement on it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from apalis_pgmq.core import ConfigError

from ._percent import percent
from ._psycopg import fetch_asynchronously, fetch_synchronously

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._kinds import AsyncCaller, AsyncFetch, Rows, SyncCaller, SyncFetch

_SYNC: Final = "a psycopg or psycopg2 connection, a Session or Connection of SQLAlchemy, or django.db.connection is needed"
_ASYNC: Final = "an asyncpg.Connection, a psycopg.AsyncConnection, or an AsyncSession or AsyncConnection of SQLAlchemy is needed"
_PERCENT_DRIVERS: Final = ("psycopg", "psycopg_async", "psycopg2")


def synchronous(connection: SyncCaller) -> SyncFetch:
    """Return how to send a statement on the caller's connection, in its transaction.

    Raises:
        ConfigError: it is of no kind that is supported.
    """
    given: Any = connection
    if _is(given, "psycopg", "Connection"):
        return fetch_synchronously(given)
    if _is(given, "sqlalchemy.orm", "Session", "scoped_session"):
        # Asked for each time: with the transaction the connection changes.
        return lambda sql, arguments: _fetch_by_sqlalchemy(given.connection(), sql, arguments)
    if _is(given, "sqlalchemy", "Connection"):
        return lambda sql, arguments: _fetch_by_sqlalchemy(given, sql, arguments)
    if _is_django(given):
        return lambda sql, arguments: _fetch_by_django(given, sql, arguments)
    if _is(given, "psycopg2.extensions", "connection"):
        return lambda sql, arguments: _fetch_by_cursor(given, sql, arguments)
    if _is_asynchronous(given):
        raise ConfigError(f"{_name(given)} is for asyncio, where PgMqBackend sends on it; here {_SYNC}")
    raise ConfigError(f"{_SYNC}, not {_name(given)}")


def asynchronous(connection: AsyncCaller) -> AsyncFetch:
    """Return how to send a statement on the caller's connection, in its transaction.

    Raises:
        ConfigError: it is of no kind that is supported.
    """
    given: Any = connection
    if isinstance(given, asyncpg.Connection):

        async def fetch(sql: str, arguments: Sequence[object]) -> Rows:
            rows: Rows = await given.fetch(sql, *arguments)
            return rows

        return fetch
    if _is(given, "psycopg", "AsyncConnection"):
        return fetch_asynchronously(given)
    if _is(given, "sqlalchemy.ext.asyncio", "AsyncSession", "AsyncConnection"):

        async def run(sql: str, arguments: Sequence[object]) -> Rows:
            rows: Rows = await given.run_sync(lambda inner: synchronous(inner)(sql, arguments))
            return rows

        return run
    try:
        synchronous(given)
    except ConfigError:
        raise ConfigError(f"{_ASYNC}, not {_name(given)}") from None
    raise ConfigError(f"{_name(given)} is synchronous, and would block the event loop: {_ASYNC}")


def _fetch_by_sqlalchemy(connection: Any, sql: str, arguments: Sequence[object]) -> Rows:
    # By SQLAlchemy, not on the driver's connection below it: so the transaction is begun that will be committed.
    dialect = connection.dialect
    parameters: object = tuple(arguments)
    if dialect.name == "postgresql" and dialect.driver in _PERCENT_DRIVERS:
        sql, parameters = percent(sql, arguments)
    elif dialect.name != "postgresql" or dialect.driver != "asyncpg":
        raise ConfigError(
            f"the SQLAlchemy connection is by {dialect.name}+{dialect.driver}; "
            "postgresql+psycopg, postgresql+asyncpg or postgresql+psycopg2 is needed"
        )
    rows: Rows = connection.exec_driver_sql(sql, parameters).fetchall()
    return rows


def _fetch_by_django(connection: Any, sql: str, arguments: Sequence[object]) -> Rows:
    # Not looked at before: its settings may not be there yet when a module makes its producer.
    if connection.vendor != "postgresql":
        raise ConfigError(
            f"Django's connection {connection.alias!r} is to {connection.vendor}, not to PostgreSQL"
        )
    return _fetch_by_cursor(connection, sql, arguments)


def _fetch_by_cursor(connection: Any, sql: str, arguments: Sequence[object]) -> Rows:
    with connection.cursor() as cursor:
        cursor.execute(*percent(sql, arguments))
        rows: Rows = cursor.fetchall()
        return rows


def _is_asynchronous(connection: object) -> bool:
    return (
        isinstance(connection, asyncpg.Connection)
        or _is(connection, "psycopg", "AsyncConnection")
        or _is(connection, "sqlalchemy.ext.asyncio", "AsyncSession", "AsyncConnection")
    )


def _is_django(connection: object) -> bool:
    # `django.db.connection` is a proxy for the connection of the thread.
    return _is(connection, "django.db.backends.base.base", "BaseDatabaseWrapper") or _is(
        connection, "django.utils.connection", "ConnectionProxy"
    )


def _is(connection: object, module: str, *classes: str) -> bool:
    """Tell whether it is of one of these classes; no instance of them is where their module is not loaded."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(connection, tuple(getattr(loaded, name) for name in classes))


def _name(connection: object) -> str:
    kind = type(connection)
    return f"a {kind.__module__}.{kind.__qualname__}"
