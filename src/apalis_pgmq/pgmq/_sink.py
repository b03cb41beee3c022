"""Sends messages: whatever is pushed while one batch is being stored makes up the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from apalis_pgmq.core import EncodeError

from ._connect import bounded, roll_back
from ._errors import DRIVER_ERRORS
from ._store import ids_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from datetime import timedelta

    from apalis_pgmq.core import TaskId

    from ._connect import Connection
    from ._lanes import Lane
    from ._sql import Statements

_LARGEST_STATEMENT: Final = 10_000
"""Messages that are sent by one statement, unless one call alone brings more."""
_PART: Final = 1000
"""The same, of one call that brings many more."""
_MOST_CHARACTERS: Final = 16 * 1024 * 1024
"""The same for their text."""
_TURN: Final = 100
"""Messages that are encoded before the event loop has its turn."""


@dataclass(slots=True, eq=False)
class Parcel:
    """The messages of one call, to be sent all or none."""

    payloads: Sequence[str]
    headers: Sequence[str | None]
    delays: Sequence[timedelta]
    sent: asyncio.Future[list[TaskId]]


MANY: Final = 2 * _PART
"""From so many messages by one call on, `Sink.send_many` is the way."""


class Sink:
    """The sending part of a backend: one statement per batch of pushes.

    A lone push is sent at once. Pushes that come while a statement is under way wait for it and share the
    next one, and so share the cost of one durable commit.

    Args:
        lane: the connection to send on.
        ready: makes sure that the queue is there, and returns its statements.
    """

    def __init__(self, lane: Lane, ready: Callable[[], Awaitable[Statements]]) -> None:
        self._lane = lane
        self._ready = ready
        self._waiting: deque[Parcel] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def send(
        self, payloads: Sequence[str], headers: Sequence[str | None], delays: Sequence[timedelta]
    ) -> list[TaskId]:
        """Store messages durably, all or none; return their ids in the same order.

        Raises:
            EncodeError: PostgreSQL cannot store one of them.
            PgMqUnavailableError: they may or may not have been stored.
            PgMqError: they were refused.
        """
        sent: asyncio.Future[list[TaskId]] = asyncio.get_running_loop().create_future()
        return await self._post(Parcel(payloads, headers, delays, sent))

    async def _post(self, parcel: Parcel) -> list[TaskId]:
        self._waiting.append(parcel)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_waiting(), name="apalis-pgmq sink")
        return await parcel.sent

    async def send_many(
        self, encoded: Iterator[tuple[str, str | None]], count: int, delay: timedelta
    ) -> list[TaskId]:
        """Store many messages durably, all or none; return their ids in the same order.

        While the server works on some of them the next ones are encoded, and the event loop has its turn in
        between.

        Args:
            encoded: makes their payloads and headers, one by one.
            count: how many there are.
            delay: the same for all.

        Raises:
            EncodeError: one of them has no JSON form, or PostgreSQL cannot store it.
            PgMqUnavailableError, PgMqError: as `send`.
        """
        statements = await self._ready()
        ids: list[TaskId] = []
        async with self._lane.session() as connection:
            transaction = connection.transaction()
            await bounded(transaction.start())
            under_way: asyncio.Task[list[Any]] | None = None
            try:
                while part := await _encoded(encoded):
                    if under_way is not None:
                        ids += ids_of(await under_way)
                    under_way = asyncio.create_task(
                        bounded(connection.fetch(*_insertion(statements, part), delay, count))
                    )
                    count -= len(part)
                if under_way is not None:
                    ids += ids_of(await under_way)
                await bounded(transaction.commit())
            except BaseException:
                if under_way is not None:
                    under_way.cancel()
                    await asyncio.gather(under_way, return_exceptions=True)
                await roll_back(connection, transaction)
                raise
        return sorted(ids)

    async def send_on(
        self,
        connection: Connection,
        payloads: Sequence[str],
        headers: Sequence[str | None],
        delays: Sequence[timedelta],
    ) -> list[TaskId]:
        """Store messages on the caller's connection, and so in its transaction; return their ids in order.

        Raises:
            EncodeError, PgMqUnavailableError, PgMqError: as `send`.
        """
        statements = await self._ready()
        try:
            rows = await connection.fetch(statements.insert, payloads, headers, delays)
        except DRIVER_ERRORS as error:
            raise self._lane.translate(error) from error
        return sorted(ids_of(rows))

    async def close(self) -> None:
        """Send what is waiting."""
        if self._sender is not None:
            await asyncio.wait([self._sender])

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await self._send_together(self._take())
        finally:
            self._sender = None
            for parcel in self._waiting:
                parcel.sent.cancel()
            self._waiting.clear()

    def _take(self) -> list[Parcel]:
        """Take as many whole parcels as fit into one statement; leave out what nobody waits for."""
        parcels: list[Parcel] = []
        messages = characters = 0
        while self._waiting:
            parcel = self._waiting[0]
            messages += len(parcel.payloads)
            characters += sum(map(len, parcel.payloads))
            if parcels and (messages > _LARGEST_STATEMENT or characters > _MOST_CHARACTERS):
                break
            self._waiting.popleft()
            if not parcel.sent.done():
                parcels.append(parcel)
        return parcels

    async def _send_together(self, parcels: Sequence[Parcel]) -> None:
        if not parcels:
            return
        try:
            ids = await self._insert(parcels)
        except EncodeError as error:
            if len(parcels) == 1:
                _fail(parcels, error)
                return
            # One of them is at fault: the others must not suffer for it.
            middle = len(parcels) // 2
            await self._send_together(parcels[:middle])
            await self._send_together(parcels[middle:])
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the parcels
            _fail(parcels, error)
        except BaseException:
            for parcel in parcels:
                parcel.sent.cancel()
            raise
        else:
            start = 0
            for parcel in parcels:
                end = start + len(parcel.payloads)
                if not parcel.sent.done():
                    parcel.sent.set_result(ids[start:end])
                start = end

    async def _insert(self, parcels: Sequence[Parcel]) -> list[TaskId]:
        statements = await self._ready()
        rows = await self._lane.fetch(
            statements.insert,
            [payload for parcel in parcels for payload in parcel.payloads],
            [headers for parcel in parcels for headers in parcel.headers],
            [delay for parcel in parcels for delay in parcel.delays],
        )
        # Ids are handed out in the order of insertion; RETURNING promises none.
        return sorted(ids_of(rows))


async def _encoded(encoded: Iterator[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Take as many payloads, with their headers, as a statement is to send.

    Every now and then the event loop has its turn, also to write on what the socket did not take at once of the
    statement before.
    """
    part: list[tuple[str, str | None]] = []
    characters = 0
    while len(part) < _PART and characters < _MOST_CHARACTERS and (more := list(islice(encoded, _TURN))):
        characters += sum(len(payload) for payload, _ in more)
        part += more
        await asyncio.sleep(0)
    return part


def _insertion(statements: Statements, part: Sequence[tuple[str, str | None]]) -> tuple[str, str, str | None]:
    """Return the statement that sends a part, its lines of payloads, and its headers."""
    # In JSON a line break can only be white space.
    lines = "\n".join([payload.replace("\n", " ") for payload, _ in part])
    first = part[0][1]
    if all(headers is first for _, headers in part):
        return statements.insert_part, lines, first
    return statements.insert_part_each, lines, "\n".join([headers or "" for _, headers in part])


def _fail(parcels: Sequence[Parcel], error: Exception) -> None:
    for parcel in parcels:
        if not parcel.sent.done():
            parcel.sent.set_exception(error)
