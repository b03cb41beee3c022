"""Sends messages: whatever is pushed while one batch is being stored makes up the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from apalis_pgmq.core import EncodeError

from ._connect import bounded, roll_back
from ._inserts import MOST_CHARACTERS, PART, ids_of, insert, insert_part, new_ids, take
from ._on_callers import send_asynchronously

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from datetime import timedelta

    from apalis_pgmq.core import TaskId

    from ._inserts import Encoded, Outgoing
    from ._lanes import Lane
    from ._sql import Statements
    from .callers import AsyncCaller

_MOST_MESSAGES: Final = 10_000
"""Messages that are sent by one statement, unless one call alone brings more; and that wait to be sent."""
_TURN: Final = 100
"""Messages of many that are encoded before the event loop has its turn."""

_OF_ONE_MESSAGE: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.WithCheckOptionViolationError,
    asyncpg.RaiseError,
)
"""What a constraint or a trigger that somebody has put on the queue says of a message."""


@dataclass(slots=True, eq=False)
class Parcel:
    """The messages of one call, to be sent all or none."""

    messages: Sequence[Outgoing]
    characters: int
    sent: asyncio.Future[list[TaskId]]


class Sink:
    """The sending part of a backend: one statement per batch of pushes.

    A lone push is sent at once. Pushes that come while a statement is under way wait for it and share the
    next one, and so share the cost of one durable commit. While too much waits already, further ones wait in line
    before their messages are encoded.

    Args:
        lane: the connection to send on.
        ready: makes sure that the queue is there, and returns its statements.
    """

    def __init__(self, lane: Lane, ready: Callable[[], Awaitable[Statements]]) -> None:
        self._lane = lane
        self._ready = ready
        self._waiting: deque[Parcel] = deque()
        self._messages = 0
        self._characters = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def send(self, pack: Callable[[], Sequence[Outgoing]]) -> list[TaskId]:
        """Store messages durably, all or none; return their ids in the same order.

        Args:
            pack: makes the messages, when it is their turn.

        Raises:
            EncodeError: PostgreSQL cannot store one of them; and what ``pack`` raises.
            PgMqUnavailableError: they may or may not have been stored.
            PgMqError: they were refused.
        """
        if self._line or self._is_full():
            await self._stand_in_line()
        try:
            messages = pack()
            characters = sum(len(message.payload) + len(message.headers or "") for message in messages)
            parcel = Parcel(messages, characters, asyncio.get_running_loop().create_future())
            self._waiting.append(parcel)
            self._count(parcel)
        finally:
            self._let_in()
        self._send_soon()
        return await parcel.sent

    async def send_on(
        self, connection: AsyncCaller, pack: Callable[[], Sequence[Outgoing]], queue: str
    ) -> list[TaskId]:
        """Store messages by one statement on the caller's connection, and so in its transaction.

        Raises:
            ConfigError: the connection is of no kind that is supported.
            EncodeError, PgMqUnavailableError, PgMqError: as `send`.
        """
        return await send_asynchronously(connection, await self._ready(), pack(), queue)

    async def send_many(
        self, encode: Callable[[Any], Encoded], messages: Sequence[Any], delay: timedelta
    ) -> list[TaskId]:
        """Store many messages durably, all or none; return their ids in the same order.

        While the server works on some of them the next ones are encoded, and the event loop has its turn in
        between.

        Args:
            encode: makes payload and headers of one of the queue's type.
            messages: what to send.
            delay: the same for all.

        Raises:
            EncodeError: one of them has no JSON form, or PostgreSQL cannot store it.
            PgMqUnavailableError, PgMqError: as `send`.
        """
        statements = await self._ready()
        rows: list[Any] = []
        encoded, left = map(encode, messages), len(messages)
        async with self._lane.session() as connection:
            transaction = connection.transaction()
            await bounded(transaction.start())
            under_way: asyncio.Task[list[Any]] | None = None
            try:
                while part := await _part_of(encoded):
                    if under_way is not None:
                        rows += await under_way
                    sql, arguments = insert_part(statements, part, delay, left)
                    under_way = asyncio.create_task(bounded(connection.fetch(sql, *arguments)))
                    left -= len(part)
                if under_way is not None:
                    rows += await under_way
                await bounded(transaction.commit())
            except BaseException:
                if under_way is not None:
                    under_way.cancel()
                    await asyncio.gather(under_way, return_exceptions=True)
                await roll_back(connection, transaction)
                raise
        return new_ids(rows)

    async def close(self) -> None:
        """Send what is waiting."""
        while (under_way := self._under_way()) or self._line:
            if under_way:
                await asyncio.wait(under_way)
            else:
                await asyncio.sleep(0)  # who was let in begins to send

    def _under_way(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that send now."""
        return [] if self._sender is None else [self._sender]

    def _is_full(self) -> bool:
        return self._messages >= _MOST_MESSAGES or self._characters >= MOST_CHARACTERS

    async def _stand_in_line(self) -> None:
        """Wait until there is room, and everybody who came before has been let in."""
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            await place
        finally:
            # Not before: whoever comes meanwhile must still see that there is a line.
            self._line.remove(place)
            if place.cancelled():
                self._let_in()

    def _let_in(self) -> None:
        if self._line and not self._line[0].done() and not self._is_full():
            self._line[0].set_result(None)

    def _count(self, parcel: Parcel, sign: int = 1) -> None:
        """Count a parcel that waits to be sent, or one less."""
        self._messages += sign * len(parcel.messages)
        self._characters += sign * parcel.characters

    def _send_soon(self) -> None:
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_waiting(), name="apalis-pgmq sink")

    async def _send_waiting(self) -> None:
        try:
            while self._waiting:
                await self._send_together(self._take())
        finally:
            self._sender = None
            while self._waiting:
                parcel = self._waiting.popleft()
                self._count(parcel, -1)
                parcel.sent.cancel()
            self._let_in()

    def _take(self) -> list[Parcel]:
        """Take as many whole parcels as fit into one statement; leave out what nobody waits for."""
        parcels: list[Parcel] = []
        messages = characters = 0
        while self._waiting:
            parcel = self._waiting[0]
            messages += len(parcel.messages)
            characters += parcel.characters
            if parcels and (messages > _MOST_MESSAGES or characters > MOST_CHARACTERS):
                break
            self._waiting.popleft()
            self._count(parcel, -1)
            if not parcel.sent.done():
                parcels.append(parcel)
        self._let_in()
        return parcels

    async def _send_together(self, parcels: Sequence[Parcel]) -> None:
        if not parcels:
            return
        try:
            ids = await self._insert(parcels)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the parcels
            if len(parcels) == 1 or not self._concerns_one(error):
                self._give_up(parcels, error)
                return
            # One of them is at fault: the others must not suffer for it.
            middle = len(parcels) // 2
            await self._send_together(parcels[:middle])
            await self._send_together(parcels[middle:])
        except BaseException:
            for parcel in parcels:
                parcel.sent.cancel()
            raise
        else:
            deliver(parcels, ids)

    async def _insert(self, parcels: Sequence[Parcel]) -> list[TaskId]:
        return await self._insert_by(self._lane, parcels)

    async def _insert_by(self, lane: Lane, parcels: Sequence[Parcel]) -> list[TaskId]:
        statements = await self._ready()
        messages = [message for parcel in parcels for message in parcel.messages]
        sql, arguments = insert(statements, messages)
        return ids_of(messages, await lane.fetch(sql, *arguments))

    def _concerns_one(self, error: Exception) -> bool:
        """Tell whether a statement failed for what is in one of its messages."""
        return isinstance(error, EncodeError) or isinstance(error.__cause__, _OF_ONE_MESSAGE)

    def _give_up(self, parcels: Sequence[Parcel], error: Exception) -> None:
        """Tell those who wait for parcels what has become of them."""
        fail(parcels, error)


async def _part_of(encoded: Iterator[Encoded]) -> list[Encoded]:
    """Take as many messages as a statement is to send.

    Every now and then the event loop has its turn, also to write on what the socket did not take at once of the
    statement before.
    """
    part: list[Encoded] = []
    characters = 0
    while len(part) < PART and characters < MOST_CHARACTERS and (more := take(encoded, _TURN)):
        characters += sum(len(payload) for payload, _ in more)
        part += more
        await asyncio.sleep(0)
    return part


def deliver(parcels: Sequence[Parcel], ids: Sequence[TaskId]) -> None:
    """Tell those who wait for parcels their messages' ids."""
    start = 0
    for parcel in parcels:
        end = start + len(parcel.messages)
        if not parcel.sent.done():
            parcel.sent.set_result(list(ids[start:end]))
        start = end


def fail(parcels: Iterable[Parcel], error: Exception) -> None:
    """Tell those who wait for parcels what went wrong."""
    for parcel in parcels:
        if not parcel.sent.done():
            parcel.sent.set_exception(error)
