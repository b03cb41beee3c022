"""Sending on the caller's own connection, and so in its transaction."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import ApalisError

from ._errors import translate
from ._inserts import ids_of, insert
from .callers import asynchronous, driver_error

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from apalis_pgmq.core import TaskId

    from ._inserts import Outgoing
    from ._sql import Statements
    from .callers import AsyncCaller, SyncFetch

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
        return ids_of(messages, await fetch(*insert(statements, messages)))


def send_synchronously(
    fetch: SyncFetch, statements: Statements, messages: Sequence[Outgoing], queue: str, server: str = SERVER
) -> list[TaskId]:
    """Store messages as `send_asynchronously` does, by what sends statements; the same errors."""
    with translated(server, queue):
        return ids_of(messages, fetch(*insert(statements, messages)))


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
