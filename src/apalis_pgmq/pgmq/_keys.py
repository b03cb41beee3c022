"""The table of the keys of deduplication: making it, and keeping it small."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from apalis_pgmq.core import ApalisError

from ._errors import DRIVER_ERRORS, PgMqPermissionError, PgMqQueueMissingError
from ._keyed_sql import CREATE_KEYS, HAS_KEYS, KEYS, TIDY_KEYS
from ._queue_sql import autovacuum
from ._setup_sql import SETUP_LOCK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

    from ._setup import Port
    from .callers import SyncFetch

logger = logging.getLogger("apalis_pgmq")

_TIDY_INTERVAL: Final = 1.0
"""Seconds between two times that expired keys are deleted by one sender."""
_TIDIED_AT_ONCE: Final = 1000
_TIDIES: Final = 10
"""Statements each time: so much more is deleted in a second than one sender adds."""
_RIGHTS: Final = (
    f"a sender with dedup_key needs SELECT, INSERT, UPDATE, DELETE on {KEYS}, INSERT (msg_id) on the queue's table "
    "and USAGE on the sequence of its ids (see docs/deduplication.md)"
)


class Keys:
    """What a sender knows of the table.

    Attributes:
        are_there: whether it has seen it.
    """

    def __init__(self) -> None:
        self.are_there = False
        self._tidied_at = -_TIDY_INTERVAL

    @contextmanager
    def used(self) -> Generator[None]:
        """Say what is missing where the table is used."""
        try:
            yield
        except PgMqQueueMissingError:
            # It may be the table of the keys that is gone: the next push sees.
            self.are_there = False
            raise
        except PgMqPermissionError as error:
            raise PgMqPermissionError(f"{error}; {_RIGHTS}") from error.__cause__

    def are_due(self) -> bool:
        """Tell, once in a while, that expired ones are to be deleted."""
        now = monotonic()
        if now - self._tidied_at < _TIDY_INTERVAL:
            return False
        self._tidied_at = now
        return True


async def ensure_keys(port: Port) -> None:
    """Make sure that the table is there.

    Raises:
        PgMqPermissionError: it is not, and the role may not make it.
    """
    if not await port.fetch(HAS_KEYS):
        async with port.transaction():
            await port.execute(SETUP_LOCK)
            await create_keys(port)


async def create_keys(port: Port) -> None:
    """Make the table, if it is not there, inside a transaction that has the setup's lock.

    Raises:
        PgMqPermissionError: the role may not.
    """
    if await port.fetch(HAS_KEYS):
        return
    try:
        await port.execute(CREATE_KEYS)
        await port.execute(autovacuum(KEYS))
    except asyncpg.InsufficientPrivilegeError as error:
        raise PgMqPermissionError(
            f"deduplication needs table {KEYS}, and the database role may not make it: {error}; run "
            "'apalis-pgmq setup QUEUE --dedup' once as a role that may, and grant the senders their rights on it "
            "(see docs/deduplication.md)"
        ) from error


def require_keys(fetch: SyncFetch, queue: str) -> None:
    """Look whether the table is there, as nothing is made in a transaction of the caller's.

    Raises:
        PgMqQueueMissingError: it is not.
    """
    if not fetch(HAS_KEYS, ()):
        raise PgMqQueueMissingError(
            f"deduplication needs table {KEYS}, which is not there, and is not made in a transaction of yours: make it "
            f"beforehand, with 'apalis-pgmq setup {queue} --dedup'"
        )


async def delete_expired(fetch: Callable[..., Awaitable[Sequence[Any]]]) -> int:
    """Delete some thousand expired keys, of whatever queue; return how many."""
    deleted = 0
    for _ in range(_TIDIES):
        found = len(await fetch(TIDY_KEYS, _TIDIED_AT_ONCE))
        deleted += found
        if found < _TIDIED_AT_ONCE:
            break
    return deleted


async def delete_all_expired(port: Port) -> int:
    """Delete all expired keys, of whatever queue, if the table is there; return how many."""
    if not await port.fetch(HAS_KEYS):
        return 0
    deleted = 0
    while more := await delete_expired(port.fetch):
        deleted += more
    return deleted


async def tidy(fetch: Callable[..., Awaitable[Sequence[Any]]]) -> None:
    """Delete expired keys beside a sender's pushes, which must not fail for it."""
    try:
        await delete_expired(fetch)
    except (PgMqPermissionError, asyncpg.InsufficientPrivilegeError) as error:
        logger.warning("expired keys of deduplication stay in %s: %s", KEYS, error.__cause__ or error)
    except (ApalisError, *DRIVER_ERRORS) as error:
        # They are no hurry; the next time will do.
        logger.debug("expired keys of deduplication were not deleted: %s", error)
