"""A queue's dead letters, as people and scripts see to them."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import DeadLetter, Redrive, TaskId, require_dead_letter_queue, whole_number

from ._errors import PgMqQueueMissingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from apalis_pgmq.core import Config

    from ._lanes import Lane
    from ._sql import Statements

_BEFORE_ALL: Final = TaskId(-(2**63))
_PURGED_AT_ONCE: Final = 1000


class DeadLetters:
    """Lists dead letters, puts them back and deletes them.

    Each batch is one statement, and so takes place whole or not at all: cancelled or cut off between two of
    them, nothing is lost and nothing is in both queues.

    Args:
        lane: the connection to work on.
        config: the queue's settings.
        ready: makes sure that the queue is there, and returns its statements.
        wake: is called when messages came into the queue.
    """

    def __init__(
        self,
        lane: Lane,
        config: Config,
        ready: Callable[[], Awaitable[Statements]],
        wake: Callable[[], None],
    ) -> None:
        self._lane = lane
        self._config = config
        self._ready = ready
        self._wake = wake

    async def page(self, limit: int, after: int | None) -> list[DeadLetter]:
        """Return dead letters, oldest first; see `PgMqBackend.dead_letters`."""
        require_dead_letter_queue(self._config)
        whole_number("limit", limit, least=0)
        start = _BEFORE_ALL if after is None else whole_number("after", after, least=_BEFORE_ALL)
        statements = await self._ready()
        try:
            rows = await self._lane.fetch(statements.dead_letters, start, limit)
        except PgMqQueueMissingError:
            return []
        return [DeadLetter.of(TaskId(msg_id), message, headers) for msg_id, message, headers in rows]

    async def redrive(self, ids: Iterable[int] | None, limit: int | None, rate: float | None) -> int:
        """Put dead letters back; see `PgMqBackend.redrive`."""
        require_dead_letter_queue(self._config)
        plan = Redrive(ids, limit, rate)
        statements = await self._ready()
        # What fails again while we are at it comes after this one: it is not put back for ever.
        newest = await self._newest(statements)
        if newest is None:
            return 0
        moved, pause, after, wanted = 0, 0.0, _BEFORE_ALL, plan.ids
        while (size := plan.batch(moved)) and wanted != ():
            await asyncio.sleep(pause)
            began = monotonic()
            if wanted is None:
                rows = await self._lane.fetch(statements.redrive, after, newest, size)
            else:
                rows = await self._lane.fetch(statements.redrive_ids, wanted[:size])
                wanted = wanted[size:]
            moved += len(rows)
            if rows:
                self._wake()
            if wanted is None and len(rows) < size:
                break
            after = max((TaskId(row[0]) for row in rows), default=after)
            pause = began + plan.pause(len(rows)) - monotonic()
        return moved

    async def purge(self) -> int:
        """Delete every dead letter; see `PgMqBackend.purge_dead_letters`."""
        require_dead_letter_queue(self._config)
        statements = await self._ready()
        newest = await self._newest(statements)
        if newest is None:
            return 0
        deleted, after = 0, _BEFORE_ALL
        while True:
            rows = await self._lane.fetch(statements.purge_dead_letters, after, newest, _PURGED_AT_ONCE)
            deleted += len(rows)
            if len(rows) < _PURGED_AT_ONCE:
                return deleted
            after = max(TaskId(row[0]) for row in rows)

    async def _newest(self, statements: Statements) -> TaskId | None:
        """Return the id of the newest dead letter; None if there is none, or no queue of them yet."""
        try:
            [row] = await self._lane.fetch(statements.newest_dead_letter)
        except PgMqQueueMissingError:
            return None
        return None if row[0] is None else TaskId(row[0])
