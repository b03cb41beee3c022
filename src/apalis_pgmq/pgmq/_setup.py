"""Making PGMQ and a queue ready, safely from many processes at once."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg

from ._errors import (
    PgMqError,
    PgMqNotInstalledError,
    PgMqPermissionError,
    PgMqQueueMissingError,
    PgMqVersionError,
)
from ._names import insert_channel, queue_table
from ._setup_sql import CREATE_EXTENSION, CREATE_QUEUE, INSPECT, NOTIFY_FUNCTION, SETUP_LOCK, notify_trigger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from ._lanes import Lane

logger = logging.getLogger("apalis_pgmq")

_INSTALL_HINT = (
    "ask for 'CREATE EXTENSION pgmq' where the server offers it, "
    "or install the SQL that the 'pgmq' package carries: pip install 'apalis-pgmq[embedded]'"
)


class Port(Protocol):
    """What is needed of a connection to make a queue: asyncpg's have it. Its errors are asyncpg's."""

    async def fetch(self, query: str, /, *args: Any) -> Sequence[Any]:
        """Carry out a statement; return its rows."""
        ...

    async def execute(self, query: str, /, *args: Any) -> object:
        """Carry out a statement, or several if there are no arguments."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[object]:
        """Begin a transaction, or a savepoint in one."""
        ...


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
        return await ensure_queue_on(connection, queue)


async def ensure_queue_on(port: Port, queue: str) -> Found:
    """Make sure, as `ensure_queue` does, on a connection of any driver."""
    found = await _inspect(port, queue)
    if not found["has_queue"]:
        try:
            async with port.transaction():
                if not (await lock_and_inspect(port, queue))["has_queue"]:
                    await create(port, queue, CREATE_QUEUE, queue)
                    await _try_to_add_trigger(port, queue)
        except (asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            # Somebody who does not know our lock was faster.
            pass
        found = await _inspect(port, queue)
    return _found(found)


def existing_queue(found: Mapping[str, Any], queue: str) -> Found:
    """Return what a queue's tables are like; look at them only, where nothing may be made.

    Args:
        found: the row that `INSPECT` returns.
        queue: the queue's name.

    Raises:
        PgMqQueueMissingError: there is no such queue, or no PGMQ.
        PgMqVersionError, PgMqPermissionError: as `ensure_queue`.
    """
    if not _checked(found)["has_queue"]:
        raise PgMqQueueMissingError(
            f"queue {queue!r} is not there, and is not made in a transaction of yours: make it beforehand, with "
            f"'apalis-pgmq setup {queue}' or setup()"
        )
    return _found(found)


def _found(found: Mapping[str, Any]) -> Found:
    return Found(bool(found["has_last_read_at"]), bool(found["is_announced"]))


async def lock_and_inspect(connection: Port, queue: str) -> Mapping[str, Any]:
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


async def create(connection: Port, queue: str, sql: str, *arguments: str) -> None:
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


async def _try_to_add_trigger(connection: Port, queue: str) -> None:
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


async def add_trigger(connection: Port, queue: str) -> None:
    """Give a queue the trigger that announces every insert."""
    if insert_channel(queue) is not None:
        await connection.execute(NOTIFY_FUNCTION)
        await connection.execute(notify_trigger(queue))


async def _install(connection: Port, *, is_available: bool) -> None:
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


async def _inspect(connection: Port, queue: str) -> Mapping[str, Any]:
    """Look at what is there; refuse what we cannot use."""
    return _checked((await connection.fetch(INSPECT, queue_table(queue)))[0])


def _checked(found: Mapping[str, Any]) -> Mapping[str, Any]:
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
