"""Sending on the caller's own connection, and so in its transaction."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import ApalisError

from ._errors import translate
from ._inserts import insert, new_ids
from .callers import asynchronous, driver_error, synchronous

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from apalis_pgmq.core import TaskId

    from ._inserts import Outgoing
    from ._sql import Statements
    from .callers import AsyncCaller, SyncCaller

SERVER: Final = "PostgreSQL behind the given connection"
"""What errors call it."""


async def send_asynchronously(
    connection: AsyncCaller, statements: Statements, messages: Sequence[Outgoing], queue: str
) -> list[TaskId]:
    """Store messages by one statement on the caller's connection; return their ids in order.

    Raises:
        ConfigError: the connection is of no kind that is supported.
        EncodeError: PostgreSQL cannot store one of them.
        PgMqUnavailableError, PgMqError: it does not answer, or refuses. The transaction is aborted then.
    """
    fetch = asynchronous(connection)
    with translated(SERVER, queue):
        return new_ids(await fetch(*insert(statements, messages)))


def send_synchronously(
    connection: SyncCaller, statements: Statements, messages: Sequence[Outgoing], queue: str
) -> list[TaskId]:
    """Store messages as `send_asynchronously` does; the same errors."""
    fetch = synchronous(connection)
    with translated(SERVER, queue):
        return new_ids(fetch(*insert(statements, messages)))


@contextmanager
def translated(server: str, queue: str) -> Generator[None]:
    """Have the errors of any driver raised as ours, from the driver's own.

    What a framework raises by itself, of a transaction that must be rolled back first for instance, is left as it is.
    """
    try:
        yield
    except ApalisError:
        raise
    except Exception as error:
        found = driver_error(error)
        if found is None:
            raise
        same, own = found
        raise translate(same, server=server, queue=queue) from own
