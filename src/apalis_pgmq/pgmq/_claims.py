"""Claiming: where to look for visible messages, and how long a queue can be left alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from apalis_pgmq.core import ApalisError
from apalis_pgmq.delivery import Claim, Claimed

from ._listener import talk_channel
from ._outlook import Outlook, until_due
from ._sql import HAVE_LOOK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apalis_pgmq.core import Config

    from ._lanes import Lane
    from ._listener import Subscription
    from ._sql import Statements

EVER: Final = datetime.min.replace(tzinfo=UTC)
"""asyncpg sends it as ``-infinity``."""
MANY: Final = 20
"""So many messages by one claim mean that more are on their way."""
OVERLAP: Final = timedelta(milliseconds=50)
"""How far behind the server's clock a claim begins at least: senders that began at the same time need not commit
at the same time."""
_SWEEP_INTERVAL: Final = 1.0
"""Seconds after which to look for what became visible late, before the place where claims begin."""
_LATENESS: Final = timedelta(seconds=2)
"""How late what is looked for may be, where looking from the beginning costs too much to be done each time."""
_CHEAP: Final = 0.05
"""Seconds of the server's that a look may cost."""
_SHARE: Final = 1 / 20
"""Of the time, for looks that cost more."""
FAREWELL: Final = 1.0
"""Seconds that telling the others may take at the end."""


class Claims:
    """The statements by which one consumer claims.

    Removed messages leave dead entries at the head of the index on ``vt``, most of all while some
    transaction keeps an old snapshot, and a claim has to step over all of them. Under load claims
    therefore begin where the last one ended. What becomes visible before that place (a message whose transaction
    committed late, or that another one had locked) is looked for once a second, beside the claims, and whenever a
    claim finds nothing; then they begin there. How far back is told by `_Looks`.

    Args:
        lane: the connections to claim on.
        config: the queue's settings.
        statements: those of the queue.
        subscription: tells whether inserts are announced.
    """

    def __init__(
        self, lane: Lane, config: Config, statements: Statements, subscription: Subscription
    ) -> None:
        self._lane = lane
        self._timeout = config.visibility_timeout
        self._statements = statements
        self._subscription = subscription
        self._talk = talk_channel(config.queue)
        self._is_busy = False
        self._was_full = False
        self._begin = EVER
        self._claimed_at = self._swept_at = monotonic()
        self._sweep: asyncio.Task[None] | None = None
        self._late: datetime | None = None
        self._looks = _Looks()
        self._outlook = Outlook(config)

    async def claim(self, limit: int) -> Claimed:
        """Lease up to ``limit`` visible messages."""
        if self._is_busy:
            claims = await self._claim_on(limit)
            if claims:
                return Claimed(claims)
        return await self._claim_rest(limit)

    async def close(self) -> None:
        """End what is under way, and have the others look: we alone may know what is due."""
        if self._sweep is not None:
            self._sweep.cancel()
            await asyncio.gather(self._sweep, return_exceptions=True)
        if self._subscription.is_heard and self._subscription.turn.has_company:
            with suppress(ApalisError, TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self._lane.fetch(HAVE_LOOK, self._talk)

    async def _claim_on(self, limit: int) -> list[Claim]:
        """Claim under load, from where the last claim ended."""
        now = monotonic()
        if now - self._claimed_at > _SWEEP_INTERVAL:
            # Not much of a load.
            self._begin = EVER
        elif self._begin != EVER and now - self._swept_at > _SWEEP_INTERVAL:
            self._swept_at = now
            if self._sweep is None or self._sweep.done():
                self._sweep = asyncio.create_task(self._look_back(self._begin), name="apalis-pgmq sweep")
        if self._late is not None:
            self._begin = min(self._begin, self._late)
            self._late = None
        rows = await self._lane.fetch(self._statements.claim, limit, self._timeout, self._begin)
        expires = now + self._timeout.total_seconds()
        # RETURNING promises no order.
        claims = [
            Claim(message_id, read_ct, row[5], expires, message, headers, enqueued_at)
            for row in rows
            for message_id, read_ct, message, headers, enqueued_at in zip(*row[:5], strict=True)
        ]
        claims.sort(key=attrgetter("id"))
        self._go_on(rows, is_busy=len(claims) >= MANY)
        return claims

    async def _claim_rest(self, limit: int) -> Claimed:
        """Claim where there may be little, from the beginning, and see how long to leave the queue alone."""
        turn = self._subscription.turn
        is_announced = self._subscription.is_announced
        began = monotonic()
        sql = self._statements.claim_rest
        ahead = self._outlook.ahead(is_announced=is_announced)
        begin = self._looks.begin(began)
        arguments: list[object] = [limit, self._timeout, begin, ahead]
        if turn.has_company:
            sql = self._statements.claim_telling
            arguments += [self._talk, not self._was_full]
        rows = await self._lane.fetch(sql, *arguments)
        turn.claimed(monotonic() - began)
        due, clock, took = rows[0][-3:]
        if rows[0]["msg_id"] is None:
            rows = []
        expires = began + self._timeout.total_seconds()
        claims = [Claim(row[0], row[1], row[2], expires, row[3], row[4], row[5]) for row in rows]
        claims.sort(key=attrgetter("id"))
        self._was_full = len(claims) == limit
        if not self._was_full:
            self._looks.made(begin, clock, took)
        self._go_on(rows, is_busy=self._was_full and len(claims) >= MANY)
        if self._was_full or (claims and not is_announced):
            return Claimed(claims)
        if claims:
            self._outlook.found(began)
        rest = self._outlook.rest(is_announced=is_announced)
        if begin != EVER:
            rest = min(rest, max(self._looks.due - monotonic(), 0.0))
        return Claimed(claims, until_due(rest, due))

    async def _look_back(self, begin: datetime) -> None:
        """See whether anything is visible before the place where claims begin, for the next claim to go back.

        Not for the one that is under way: where that one ends, it goes on.
        """
        since = self._looks.begin(monotonic())
        with suppress(ApalisError):  # the next claim finds out as well, and is tried again
            [(late, _, took)] = await self._lane.fetch(self._statements.late, since, begin)
            if late is None:
                self._looks.made(since, begin, took)
            else:
                self._late = late

    def _go_on(self, rows: Sequence[Any], *, is_busy: bool) -> None:
        self._claimed_at = monotonic()
        self._is_busy = is_busy
        if not self._is_busy:
            self._begin = EVER
            return
        now = rows[0]["vt"] - self._timeout
        self._begin = min(max(row["since"] for row in rows), now - OVERLAP)


class _Looks:
    """How far back to look for what has become visible late.

    To the very beginning, as long as that costs the server little. With so many dead entries that it does not,
    only a twentieth of the time is spent on that, and other looks begin a little before the last one.

    Attributes:
        due: when to look from the beginning again, by the monotonic clock, in seconds.
    """

    __slots__ = ("_is_cheap", "_seen", "due")

    def __init__(self) -> None:
        self._is_cheap = True
        self._seen = EVER
        self.due = 0.0

    def begin(self, now: float) -> datetime:
        """Return since when what is looked for has been visible, at the time ``now`` of the monotonic clock."""
        return EVER if self._is_cheap or now >= self.due else self._seen

    def made(self, begin: datetime, clock: datetime, took: float) -> None:
        """Take note of a look that has seen all that there was.

        Args:
            begin: where it began.
            clock: up to which time.
            took: the server's seconds.
        """
        self._seen = clock - _LATENESS
        if begin == EVER:
            self._is_cheap = took < _CHEAP
            self.due = monotonic() + took / _SHARE
