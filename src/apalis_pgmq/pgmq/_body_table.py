"""The table of a queue's large payloads: making it, and sweeping it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from apalis_pgmq.core import CLAIM_CHECK

from ._bodies import DEAD_LETTERS, Bodies, bodies_table
from ._connect import roll_back
from ._errors import PgMqPermissionError, PgMqQueueMissingError
from ._names import SCHEMA, quote
from ._setup_sql import SETUP_LOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apalis_pgmq.core import Config

    from ._connect import Connection
    from ._lanes import Lane

_EXISTING: Final = """
SELECT name FROM unnest($1::text[]) AS name
WHERE EXISTS (SELECT FROM pg_class WHERE relnamespace = 'pgmq'::regnamespace AND relname = name) ORDER BY name
"""
"""Which of these tables are there."""


async def bodies_of(lane: Lane, config: Config) -> Bodies:
    """Return where a queue's large payloads are, having made sure that the table is there.

    Raises:
        PgMqPermissionError: it is not, and the role may not make it.
        PgMqUnavailableError: the server does not answer now.
    """
    if config.claim_check_over is None:
        return Bodies()
    name = bodies_table(config.queue)
    async with lane.connection() as connection:
        await _see_what_is_committed(connection)
        if not await _existing(connection, [name]):
            async with _read_committed(connection):
                await connection.execute(SETUP_LOCK)
                if not await _existing(connection, [name]):
                    await _create(connection, name, config.queue)
    return Bodies(f"{SCHEMA}.{quote(name)}", config.claim_check_over)


def bodies_there(config: Config, fetch: Callable[..., Sequence[Sequence[object]]]) -> Bodies:
    """Return where a queue's large payloads are; look only, as nothing is made in a transaction of the caller's.

    Args:
        config: the queue's settings.
        fetch: carries out a statement with its arguments and returns the rows.

    Raises:
        PgMqQueueMissingError: the table is not there.
    """
    if config.claim_check_over is None:
        return Bodies()
    name = bodies_table(config.queue)
    if not fetch(_EXISTING, [name]):
        raise PgMqQueueMissingError(
            f"queue {config.queue!r} has no table for its large payloads yet (claim_check_over): workers need the "
            f"setting before producers have it, and make the table; or run: {_creation(name)}"
        )
    return Bodies(f"{SCHEMA}.{quote(name)}", config.claim_check_over)


async def sweep(connection: Connection, queue: str) -> int:
    """Delete the bodies that no message refers to; see `sweep_bodies`.

    A body and its message are stored by one statement, and a message moves by one; so whatever the statement that
    deletes sees is whole, as long as it looks into all tables.
    """
    table = bodies_table(queue)
    await _see_what_is_committed(connection)
    if not await _existing(connection, [table]):
        return 0
    base = table.removeprefix("b_")
    candidates = [f"{prefix}_{base}{suffix}" for prefix in "qa" for suffix in ("", DEAD_LETTERS)]
    while True:
        holders = await _existing(connection, candidates)
        transaction = _read_committed(connection)
        await transaction.start()
        try:
            rows = await connection.fetch(_sweep(table, holders))
            # A dead-letter queue may have been made, and a message moved there, before the statement began.
            if await _existing(connection, candidates) == holders:
                await transaction.commit()
                return len(rows)
            await transaction.rollback()
        except asyncpg.UndefinedTableError:
            # A queue was dropped meanwhile.
            await transaction.rollback()
        except BaseException:
            await roll_back(connection, transaction)
            raise


async def _see_what_is_committed(connection: Connection) -> None:
    """Behind a pooler everything is one transaction: have each of its statements see what others committed."""
    if connection.is_in_transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


def _read_committed(connection: Connection) -> asyncpg.transaction.Transaction:
    return connection.transaction(isolation=None if connection.is_in_transaction() else "read_committed")


async def _existing(connection: Connection, names: list[str]) -> list[str]:
    return [row["name"] for row in await connection.fetch(_EXISTING, names)]


async def _create(connection: Connection, name: str, queue: str) -> None:
    sql = _creation(name)
    try:
        await connection.execute(sql)
    except asyncpg.InsufficientPrivilegeError as error:
        raise PgMqPermissionError(
            f"queue {queue!r} keeps large payloads in a table of their own (claim_check_over), and the database "
            f"role may not make it: {error}; as a role that may, run: {sql}"
        ) from error


def _creation(name: str) -> str:
    return (
        f"CREATE TABLE {SCHEMA}.{quote(name)} "
        "(id text PRIMARY KEY, body jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now())"
    )


def _sweep(bodies: str, holders: list[str]) -> str:
    unused = [
        f"NOT EXISTS (SELECT FROM {SCHEMA}.{quote(holder)} AS m WHERE m.headers->>'{CLAIM_CHECK}' = b.id)"
        for holder in holders
    ]
    return f"DELETE FROM {SCHEMA}.{quote(bodies)} AS b WHERE {' AND '.join(unused) or 'true'} RETURNING b.id"
