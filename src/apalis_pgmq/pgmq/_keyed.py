"""Sends messages that have a key, each key once in a while."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

import asyncpg

from ._connect import statement_seconds, statement_timeout
from ._errors import PgMqUnavailableError
from ._keyed_sql import HAS_KEYS
from ._keys import Keys, ensure_keys, tidy
from ._sink import Parcel, Sink, deliver, fail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from apalis_pgmq.core import TaskId

    from ._inserts import Outgoing
    from ._lanes import Lane
    from ._sql import Statements
    from .callers import AsyncCaller


class KeyedSink(Sink):
    """The part of a backend that sends messages which have keys: as `Sink`, one statement per batch of pushes.

    The table of the keys is made when it is first needed. What has expired is deleted beside the pushes, once a
    second while there are any.

    A key that is being taken in somebody's open transaction has to be waited for. The statement of a batch does not
    wait for long: it fails, is cut in halves until the push is found that has the key, and that one waits by itself.
    Other pushes with the same key wait for it, the rest go on.

    Args:
        lane: the connection to send on, where the server gives up soon what it cannot lock.
        patient: a connection to wait on.
        ready: makes sure that the queue is there, and returns its statements.
    """

    def __init__(self, lane: Lane, patient: Lane, ready: Callable[[], Awaitable[Statements]]) -> None:
        super().__init__(lane, self._prepare)
        self._patient = patient
        self._ready_queue = ready
        self._keys = Keys()
        self._began = 0.0
        self._held_back: dict[str | None, list[Parcel]] = {}
        self._waits: set[asyncio.Task[None]] = set()
        self._tidying: asyncio.Task[None] | None = None

    async def send_on(
        self, connection: AsyncCaller, pack: Callable[[], Sequence[Outgoing]], queue: str
    ) -> list[TaskId]:
        """Store messages, but those whose key is taken, on the caller's connection."""
        await self._ready()
        with self._keys.used():
            ids = await super().send_on(connection, pack, queue)
        self._tidy_soon()
        return ids

    async def close(self) -> None:
        """Send what is waiting, and finish deleting."""
        await super().close()
        if self._tidying is not None:
            await asyncio.wait([self._tidying])

    async def _prepare(self) -> Statements:
        statements = await self._ready_queue()
        if not self._keys.are_there:
            if not await self._lane.fetch(HAS_KEYS):
                # Where it may wait for others that set up.
                async with self._patient.connection() as connection:
                    await ensure_keys(connection)
            self._keys.are_there = True
        return statements

    def _under_way(self) -> list[asyncio.Task[Any]]:
        return [*super()._under_way(), *self._waits]

    def _take(self) -> list[Parcel]:
        self._began = monotonic()
        return super()._take()

    async def _send_together(self, parcels: Sequence[Parcel]) -> None:
        await super()._send_together([parcel for parcel in parcels if not self._hold_back(parcel)])

    async def _insert_by(self, lane: Lane, parcels: Sequence[Parcel]) -> list[TaskId]:
        await self._ready()
        with self._keys.used():
            ids = await super()._insert_by(lane, parcels)
        self._tidy_soon()
        return ids

    def _concerns_one(self, error: Exception) -> bool:
        return super()._concerns_one(error) or self._may_wait(error)

    def _give_up(self, parcels: Sequence[Parcel], error: Exception) -> None:
        if len(parcels) == 1 and self._may_wait(error):
            self._wait_alone(parcels[0])
        else:
            super()._give_up(parcels, error)

    def _may_wait(self, error: Exception) -> bool:
        """Tell whether it failed for a lock, and there is time left to find out who needs it."""
        has_time = monotonic() - self._began < statement_seconds()
        return has_time and isinstance(error.__cause__, asyncpg.LockNotAvailableError)

    def _hold_back(self, parcel: Parcel) -> bool:
        """Have a parcel follow the one that waits for one of its keys, if there is one."""
        for message in parcel.messages:
            if message.key in self._held_back:
                self._held_back[message.key].append(parcel)
                self._count(parcel)
                return True
        return False

    def _wait_alone(self, parcel: Parcel) -> None:
        followers: list[Parcel] = []
        # None of its keys is waited for already: it would have been held back.
        self._held_back.update((message.key, followers) for message in parcel.messages)
        waiting = asyncio.create_task(self._wait(parcel, followers), name="apalis-pgmq waits for a key")
        self._waits.add(waiting)
        waiting.add_done_callback(self._waits.discard)

    async def _wait(self, parcel: Parcel, followers: list[Parcel]) -> None:
        goes_on = False
        try:
            ids = await self._insert_patiently(parcel)
        except PgMqUnavailableError as error:
            # The others would wait as long again.
            fail([parcel, *followers], error)
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits for the parcel
            fail([parcel], error)
            goes_on = True
        except BaseException:
            for one in (parcel, *followers):
                one.sent.cancel()
            raise
        else:
            deliver([parcel], ids)
            goes_on = True
        finally:
            for message in parcel.messages:
                self._held_back.pop(message.key, None)
            if goes_on and followers:
                self._waiting.extendleft(reversed(followers))
                self._send_soon()
            elif followers:
                for one in followers:
                    self._count(one, -1)
                self._let_in()

    async def _insert_patiently(self, parcel: Parcel) -> list[TaskId]:
        try:
            async with statement_timeout():
                return await self._insert_by(self._patient, [parcel])
        except TimeoutError as error:
            # All of the connections are waiting already.
            raise self._patient.translate(error) from error

    def _tidy_soon(self) -> None:
        if self._tidying is None and self._keys.are_due():
            self._tidying = asyncio.create_task(self._tidy(), name="apalis-pgmq dedup")

    async def _tidy(self) -> None:
        try:
            await tidy(self._lane.fetch)
        finally:
            self._tidying = None
