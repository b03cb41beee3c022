"""Making PGMQ and a queue ready, safely from many processes at once."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from ._errors import PgMqError, PgMqNotInstalledError, PgMqPermissionError, PgMqVersionError
from ._sql import (
    CREATE_EXTENSION,
    CREATE_QUEUE,
    INSPECT,
    NOTIFY_FUNCTION,
    SETUP_LOCK,
    insert_channel,
    notify_trigger,
    queue_table,
)

if TYPE_CHECKING:
    from ._connect import Connection
    from ._lanes import Lane

logger = logging.getLogger("apalis_pgmq")

_INSTALL_HINT = (
    "ask for 'CREATE EXTENSION pgmq' where the server offers it, "
    "or install the SQL that the 'pgmq' package carries: pip install 'apalis-pgmq[embedded]'"
)


@dataclass(frozen=True, slots=True)
class Found:
    """What a queue's tables are like.

    Attributes:
        has_last_read_at: whether they have that column (PGMQ 1.10 and later).
        is_announced: whether a trigger of ours announces every insert.
    """

    has_last_read_at: bool
    is_announced: bool


async def ensure_queue(lane: Lane, queue: str) -> Found:
    """Make sure that PGMQ and the queue are there.

    Where both are there, this is one query of the catalogues. Otherwise PGMQ is installed, as an
    extension or from the SQL of the ``pgmq`` package, and the queue created, under an advisory lock. A new
    queue is given the trigger that announces inserts, if the role may do that.

    Raises:
        PgMqNotInstalledError: PGMQ is not there and can be had neither way.
        PgMqVersionError: the PGMQ that is there is older than 1.5.1.
        PgMqPermissionError: the role may not do what is needed.
        PgMqUnavailableError: the server does not answer now.
    """
    async with lane.connection() as connection:
        found = await _inspect(connection, queue)
        if not found["has_queue"]:
            try:
                async with connection.transaction():
                    if not (await lock_and_inspect(connection, queue))["has_queue"]:
                        await create(connection, queue, CREATE_QUEUE, queue)
                        await _try_to_add_trigger(connection, queue)
            except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
                # Somebody who does not know our lock was faster.
                pass
            found = await _inspect(connection, queue)
    return Found(bool(found["has_last_read_at"]), bool(found["is_announced"]))


async def lock_and_inspect(connection: Connection, queue: str) -> asyncpg.Record:
    """Begin what makes queues, inside a transaction: alone of its kind, and with PGMQ there.

    Returns:
        What was found, as `INSPECT` names it.

    Raises:
        PgMqError: as `ensure_queue`.
    """
    await connection.execute(SETUP_LOCK)
    found = await _inspect(connection, queue)
    if not found["has_meta"]:
        await _install(connection, is_available=found["is_available"])
    return found


async def create(connection: Connection, queue: str, sql: str, *arguments: str) -> None:
    """Create a queue that is not there yet.

    Raises:
        PgMqPermissionError: the role may not.
    """
    try:
        await connection.execute(sql, *arguments)
    except asyncpg.InsufficientPrivilegeError as error:
        raise PgMqPermissionError(
            f"the database role may not create queue {queue!r}: {error}; create it as a role that "
            f"may, with 'apalis-pgmq setup' or SELECT pgmq.create('{queue}')"
        ) from error
    logger.info("created queue %s", queue, extra={"queue": queue})


async def _try_to_add_trigger(connection: Connection, queue: str) -> None:
    try:
        async with connection.transaction():
            await add_trigger(connection, queue)
    except asyncpg.InsufficientPrivilegeError as error:
        logger.info(
            "queue %s does not announce its messages and is polled instead: %s",
            queue,
            error,
            extra={"queue": queue},
        )


async def add_trigger(connection: Connection, queue: str) -> None:
    """Give a queue the trigger that announces every insert."""
    if insert_channel(queue) is not None:
        await connection.execute(NOTIFY_FUNCTION)
        await connection.execute(notify_trigger(queue))


async def _install(connection: Connection, *, is_available: bool) -> None:
    try:
        if is_available:
            await connection.execute(CREATE_EXTENSION)
        else:
            await connection.execute(_packaged_sql())
    except asyncpg.InsufficientPrivilegeError as error:
        raise PgMqPermissionError(
            f"PGMQ is not in this database, and the database role may not put it there: {error}; "
            "run 'apalis-pgmq setup' once as a role with CREATE on the database"
        ) from error
    logger.info("installed PGMQ %s", "as an extension" if is_available else "from the 'pgmq' package")


def _packaged_sql() -> str:
    # Located without importing it: that would import psycopg.
    spec = importlib.util.find_spec("pgmq")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        script = Path(folder) / "sql" / "pgmq.sql"
        if script.is_file():
            return script.read_text(encoding="utf-8")
    raise PgMqNotInstalledError(f"PGMQ is not in this database; {_INSTALL_HINT}")


async def _inspect(connection: Connection, queue: str) -> asyncpg.Record:
    """Look at what is there; refuse what we cannot use."""
    found: asyncpg.Record = (await connection.fetch(INSPECT, queue_table(queue)))[0]
    if not found["has_schema"]:
        return found
    if not found["has_usage"]:
        raise PgMqPermissionError(
            "the database role may not use schema pgmq; as its owner run "
            "'GRANT USAGE ON SCHEMA pgmq TO <role>', and grant it the tables of its queues"
        )
    if not found["has_meta"]:
        if found["version"] is not None:
            raise PgMqError("extension pgmq is there, but not in schema pgmq; only that schema is supported")
        return found
    if not found["has_headers"]:
        version = found["version"] or "of an unknown version"
        raise PgMqVersionError(
            f"this database has PGMQ {version}, which has no message headers; "
            "1.5.1 or later is needed: ALTER EXTENSION pgmq UPDATE"
        )
    return found
