"""A PGMQ queue as a store of messages to claim and settle."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import BackendUnavailableError, TaskId, dead_letter_headers

from ._claims import Claims
from ._errors import PgMqQueueMissingError
from ._ordered import OrderedClaims
from ._setup import ensure_queue

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from collections.abc import Set as AbstractSet

    from apalis_pgmq.core import Config
    from apalis_pgmq.delivery import Burial, Claim, Claimed, GiveBack

    from ._connect import Connection
    from ._listener import Subscription
    from ._pool import PgMqPool
    from ._sql import Statements


_SHORTEST_TIMEOUT: Final = 1.0
"""Seconds that a statement may take in any case, however short the visibility timeout."""


class PgMqStore:
    """Claims on one connection and settles on another, so that neither waits for the other.

    All that is fenced is carried out in turn: an ack never runs beside the extension of the same lease,
    which would change ``vt`` under it.

    Args:
        pool: the connections.
        config: the queue's settings.
        ready: makes sure that the queue is there, and returns its statements.
    """

    def __init__(self, pool: PgMqPool, config: Config, ready: Callable[[], Awaitable[Statements]]) -> None:
        self._pool = pool
        self._config = config
        self._ready = ready
        self._statements: Statements
        self._claims: Claims | OrderedClaims | None = None
        self._wake: Callable[[], None]
        self._subscription: Subscription | None = None
        # A silent socket must be found out while there is still time to extend over another one.
        longest = max(_SHORTEST_TIMEOUT, config.visibility_timeout.total_seconds() / 3)
        self._settling = pool.settling.lane(config.queue, longest=longest)
        self._in_turn = asyncio.Lock()

    async def open(self, wake: Callable[[], None], load: Callable[[], float]) -> None:
        """Make sure that the queue is there, and listen for its messages."""
        self._statements = await self._ready()
        self._pool.engage()
        self._subscription = self._pool.listener.subscribe(self._config.queue, wake, load)
        self._wake = wake
        lane = self._pool.claiming.lane(self._config.queue)
        if self._config.ordered:
            self._claims = OrderedClaims(lane, self._config, self._statements, self._subscription)
        else:
            self._claims = Claims(lane, self._config, self._statements, self._subscription)

    async def close(self) -> None:
        """Let go of what only this consumer needs."""
        if self._claims is None or self._subscription is None:
            return
        claims, self._claims = self._claims, None
        try:
            await claims.close()
        finally:
            self._pool.listener.unsubscribe(self._subscription)
            await self._pool.release()

    async def claim(self, limit: int) -> Claimed:
        """Lease visible messages, oldest visibility first."""
        assert self._claims is not None
        try:
            return await self._claims.claim(limit)
        except BackendUnavailableError:
            self._pool.listener.suspect()
            raise

    async def extend(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Lease the claims for a whole visibility timeout from now.

        The new ``vt`` is reckoned from the old one by our own clock, not by the server: so we know what we
        wrote, even if the answer is lost with the connection.
        """
        async with self._fenced() as connection:
            expires = monotonic() + self._config.visibility_timeout.total_seconds()
            targets = {claim.id: claim.vt + timedelta(seconds=expires - claim.expires) for claim in claims}
            fence = Fence(claims)
            for claim in claims:
                claim.unsure_vts = (*claim.unsure_vts, targets[claim.id])
            rows = await connection.fetch(
                self._statements.extend, *fence.arrays, [targets[msg_id] for msg_id in fence.ids]
            )
        # Not before the block has ended: behind a pooler its end is the commit.
        kept = ids_of(rows)
        for claim in claims:
            if claim.id in kept:
                claim.vt = targets[claim.id]
                claim.expires = expires
                claim.unsure_vts = ()
                if claim.task is not None:
                    claim.task.visible_until = claim.vt
        return kept

    async def finish(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Delete or archive handled messages."""
        archive = self._config.on_success == "archive"
        sql = self._statements.archive if archive else self._statements.delete
        async with self._fenced() as connection:
            rows = await connection.fetch(sql, *Fence(claims).arrays)
        return self._freed(claims, ids_of(rows))

    async def give_back(self, returns: Sequence[GiveBack]) -> AbstractSet[TaskId]:
        """Make messages visible again."""
        by_id = {item.claim.id: item for item in returns}
        async with self._fenced() as connection:
            fence = Fence([item.claim for item in returns])
            rows = await connection.fetch(
                self._statements.give_back,
                *fence.arrays,
                [by_id[msg_id].delay for msg_id in fence.ids],
                [by_id[msg_id].refund for msg_id in fence.ids],
            )
        return self._freed([item.claim for item in returns], ids_of(rows))

    async def bury(self, burials: Sequence[Burial], worker: str) -> AbstractSet[TaskId]:
        """Give messages up, as the config says: to the dead-letter queue, which is made on first need."""
        buried = await self._give_up(burials, worker)
        return self._freed([burial.claim for burial in burials], buried)

    async def _give_up(self, burials: Sequence[Burial], worker: str) -> AbstractSet[TaskId]:
        if self._config.dead_letter is None:
            async with self._fenced() as connection:
                fence = Fence([burial.claim for burial in burials])
                return ids_of(await connection.fetch(self._statements.delete, *fence.arrays))
        if self._config.dead_letter == "archive":
            return await self._bury(self._statements.bury_in_archive, burials, worker)
        try:
            return await self._bury(self._statements.bury, burials, worker)
        except PgMqQueueMissingError:
            # It was never made, or somebody dropped it.
            async with self._in_turn:
                await ensure_queue(self._settling, self._config.dead_letter_queue)
            return await self._bury(self._statements.bury, burials, worker)

    async def present(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Return the ids that are still in the queue."""
        async with self._fenced() as connection:
            return ids_of(await connection.fetch(self._statements.present, [claim.id for claim in claims]))

    def _freed(self, claims: Sequence[Claim], settled: AbstractSet[TaskId]) -> AbstractSet[TaskId]:
        """Have what follows in the claims' groups claimed; return what was settled."""
        if isinstance(self._claims, OrderedClaims) and settled:
            self._claims.freed(claims)
            self._wake()
        return settled

    @asynccontextmanager
    async def _fenced(self) -> AsyncGenerator[Connection]:
        async with self._in_turn, self._settling.connection() as connection:
            yield connection

    async def _bury(self, sql: str, burials: Sequence[Burial], worker: str) -> AbstractSet[TaskId]:
        now = datetime.now(UTC)
        added = {
            burial.claim.id: json.dumps(
                dead_letter_headers(
                    reason=burial.reason.value,
                    queue=self._config.queue,
                    message_id=burial.claim.id,
                    attempts=burial.claim.read_ct,
                    worker=worker,
                    error=burial.error,
                    now=now,
                )
            )
            for burial in burials
        }
        async with self._fenced() as connection:
            fence = Fence([burial.claim for burial in burials])
            rows = await connection.fetch(sql, *fence.arrays, [added[msg_id] for msg_id in fence.ids])
        return ids_of(rows)


class Fence:
    """The arrays that name claims by all that their last writer knows; see `Statements`.

    A claim of which an extension is in doubt is named twice, by the old ``vt`` and by the new one; it can
    match only once.
    """

    __slots__ = ("arrays", "ids")

    def __init__(self, claims: Sequence[Claim]) -> None:
        self.ids = [claim.id for claim in claims]
        read_cts = [claim.read_ct for claim in claims]
        numbers: dict[datetime, int] = {}
        vt_numbers = [numbers.setdefault(claim.vt, len(numbers) + 1) for claim in claims]
        for claim in claims:
            for vt in claim.unsure_vts:
                self.ids.append(claim.id)
                read_cts.append(claim.read_ct)
                vt_numbers.append(numbers.setdefault(vt, len(numbers) + 1))
        self.arrays = (_as_text(self.ids), _as_text(read_cts), _as_text(vt_numbers), list(numbers))


def _as_text(numbers: Sequence[int]) -> str:
    """Return numbers as an array of PostgreSQL's."""
    return "{" + str(numbers)[1:-1] + "}"


def ids_of(rows: Sequence[Sequence[list[TaskId] | None]]) -> AbstractSet[TaskId]:
    """Return the ids that a statement says it has touched."""
    [row] = rows
    return frozenset(row[0] or ())
