"""Sends messages that have a key, each key once in a while."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from apalis_pgmq.core import ApalisError, TaskId

from ._errors import DRIVER_ERRORS, PgMqPermissionError, PgMqQueueMissingError
from ._keyed_sql import CREATE_KEYS, HAS_KEYS, KEYS, TIDY_KEYS
from ._queue_sql import autovacuum
from ._sink import Parcel, Sink
from ._sql import SETUP_LOCK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from datetime import timedelta

    from apalis_pgmq.core import DedupKeys

    from ._connect import Connection
    from ._lanes import Lane
    from ._sql import Statements

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


@dataclass(slots=True, eq=False)
class KeyedParcel(Parcel):
    """The messages of one call, and their keys."""

    keys: DedupKeys


class KeyedSink(Sink):
    """The part of a backend that sends messages which have keys: as `Sink`, one statement per batch of pushes.

    The table of the keys is made when it is first needed. What has expired is deleted beside the pushes, once a
    second while there are any.

    Args:
        lane: the connection to send on.
        ready: makes sure that the queue is there, and returns its statements.
    """

    def __init__(self, lane: Lane, ready: Callable[[], Awaitable[Statements]]) -> None:
        super().__init__(lane, ready)
        self._has_keys = False
        self._tidied_at = -_TIDY_INTERVAL
        self._tidying: asyncio.Task[None] | None = None

    async def send_keyed(
        self,
        payloads: Sequence[str],
        headers: Sequence[str | None],
        delays: Sequence[timedelta],
        keys: DedupKeys,
    ) -> list[TaskId]:
        """Store messages durably, all or none, but those whose key is taken.

        Returns:
            The id of each message's key, in the order of the messages.

        Raises:
            EncodeError, PgMqUnavailableError, PgMqError: as `Sink.send`.
        """
        sent: asyncio.Future[list[TaskId]] = asyncio.get_running_loop().create_future()
        return await self._post(KeyedParcel(payloads, headers, delays, sent, keys))

    async def send_keyed_on(
        self,
        connection: Connection,
        payloads: Sequence[str],
        headers: Sequence[str | None],
        delays: Sequence[timedelta],
        keys: DedupKeys,
    ) -> list[TaskId]:
        """As `send_keyed`, on the caller's connection, and so in its transaction."""
        sql = await self._prepare()
        arguments = (payloads, headers, delays, keys.keys, [keys.window] * len(keys.keys))
        try:
            rows = await connection.fetch(sql, *arguments)
        except DRIVER_ERRORS as error:
            raise self._explained(self._lane.translate(error)) from error
        self._tidy_soon()
        return _in_order(rows, keys.keys)

    async def close(self) -> None:
        """Send what is waiting, and finish deleting."""
        await super().close()
        if self._tidying is not None:
            await asyncio.wait([self._tidying])

    async def _insert(self, parcels: Sequence[Parcel]) -> list[TaskId]:
        sql = await self._prepare()
        keyed = [parcel for parcel in parcels if isinstance(parcel, KeyedParcel)]
        keys = [key for parcel in keyed for key in parcel.keys.keys]
        try:
            rows = await self._lane.fetch(
                sql,
                [payload for parcel in keyed for payload in parcel.payloads],
                [headers for parcel in keyed for headers in parcel.headers],
                [delay for parcel in keyed for delay in parcel.delays],
                keys,
                [parcel.keys.window for parcel in keyed for _ in parcel.keys.keys],
            )
        except ApalisError as error:
            raise self._explained(error) from error.__cause__
        self._tidy_soon()
        return _in_order(rows, keys)

    async def _prepare(self) -> str:
        statements = await self._ready()
        if not self._has_keys:
            await ensure_keys(self._lane)
            self._has_keys = True
        return statements.insert_keyed

    def _explained(self, error: ApalisError) -> ApalisError:
        if isinstance(error, PgMqQueueMissingError):
            # It may be the table of the keys that is gone: the next push sees.
            self._has_keys = False
        return PgMqPermissionError(f"{error}; {_RIGHTS}") if isinstance(error, PgMqPermissionError) else error

    def _tidy_soon(self) -> None:
        if self._tidying is None and monotonic() - self._tidied_at >= _TIDY_INTERVAL:
            self._tidying = asyncio.create_task(self._tidy(), name="apalis-pgmq dedup")

    async def _tidy(self) -> None:
        try:
            for _ in range(_TIDIES):
                if len(await self._lane.fetch(TIDY_KEYS, _TIDIED_AT_ONCE)) < _TIDIED_AT_ONCE:
                    break
        except PgMqPermissionError as error:
            logger.warning("expired keys of deduplication stay in %s: %s", KEYS, error.__cause__ or error)
        except ApalisError as error:
            # They are no hurry; the next time will do.
            logger.debug("expired keys of deduplication were not deleted: %s", error)
        finally:
            self._tidied_at = monotonic()
            self._tidying = None


async def ensure_keys(lane: Lane) -> None:
    """Make sure that the table of the keys is there.

    Raises:
        PgMqPermissionError: it is not, and the role may not make it.
        PgMqError: the server does not answer, or refuses.
    """
    if not await lane.fetch(HAS_KEYS):
        async with lane.connection() as connection, connection.transaction():
            await connection.execute(SETUP_LOCK)
            await create_keys(connection)


async def create_keys(connection: Connection) -> None:
    """Make the table of the keys, if it is not there, inside a transaction that has the setup's lock.

    Raises:
        PgMqPermissionError: the role may not.
    """
    if await connection.fetch(HAS_KEYS):
        return
    try:
        await connection.execute(CREATE_KEYS)
        await connection.execute(autovacuum(KEYS))
    except asyncpg.InsufficientPrivilegeError as error:
        raise PgMqPermissionError(
            f"deduplication needs table {KEYS}, and the database role may not make it: {error}; run "
            "'apalis-pgmq setup QUEUE --dedup' once as a role that may, and grant the senders their rights on it "
            "(see docs/deduplication.md)"
        ) from error


def _in_order(rows: Iterable[Any], keys: Iterable[str]) -> list[TaskId]:
    ids = {row[0]: TaskId(row[1]) for row in rows}
    return [ids[key] for key in keys]
