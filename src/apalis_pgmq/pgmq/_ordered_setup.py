"""Making a queue ready for ordered claims."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import asyncpg

from ._errors import PgMqPermissionError
from ._names import queue_table
from ._ordered_sql import INSPECT_ORDERED, names, ordering
from ._setup_sql import SETUP_LOCK

if TYPE_CHECKING:
    from ._connect import Connection
    from ._lanes import Lane

logger = logging.getLogger("apalis_pgmq")


async def ensure_ordered(lane: Lane, queue: str, *, has_last_read_at: bool) -> None:
    """Make sure that a queue has the indexes, functions and the trigger of an ordered one.

    Where they are there, this is one query of the catalogues. Otherwise they are made, under an advisory lock;
    while the indexes of a queue with many messages are built, senders wait.

    Raises:
        PgMqPermissionError: they are not there, and the role may not make them.
        PgMqUnavailableError: the server does not answer now.
    """
    async with lane.session() as connection:
        if await _is_ready(connection, queue):
            return
        try:
            async with connection.transaction():
                await connection.execute(SETUP_LOCK)
                if await _is_ready(connection, queue):
                    return
                await connection.execute(ordering(queue, has_last_read_at=has_last_read_at))
        except asyncpg.InsufficientPrivilegeError as error:
            raise PgMqPermissionError(
                f"queue {queue!r} is not ready to be worked in order, and the database role may not make it so: "
                f"{error}; run 'apalis-pgmq setup {queue} --ordered' once as the owner of its table"
            ) from error
    logger.info("queue %s is ready to be worked in order", queue, extra={"queue": queue})


async def _is_ready(connection: Connection, queue: str) -> bool:
    own = names(queue)
    return bool(
        await connection.fetchval(
            INSPECT_ORDERED, queue_table(queue), own["claim"], [own["group"], own["order"]]
        )
    )
