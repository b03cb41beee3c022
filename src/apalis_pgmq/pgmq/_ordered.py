"""Claiming in order: of each group its head, and nothing of a group whose head is not visible."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from apalis_pgmq.core import ApalisError, TaskId
from apalis_pgmq.delivery import Claim, Claimed

from ._claims import EVER, FAREWELL, MANY, OVERLAP
from ._listener import talk_channel
from ._ordered_sql import free as free_statement
from ._outlook import LONGEST_OUTLOOK, Outlook, until_due
from ._sql import HAVE_LOOK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from apalis_pgmq.core import Config

    from ._lanes import Lane
    from ._listener import Subscription
    from ._sql import Statements

_FIRST_LOOK: Final = 100
_LOOK: Final = 1000
"""How many visible messages one statement looks at, for heads among them; less at first, unless more are wanted: mostly
there are no more."""
_LONGEST_CLAIM: Final = 0.2
"""Seconds after which a claim that has found nothing yet lets the fetcher see whether it is to stop."""
_MOST: Final = 500
"""Messages by one statement: they come in one array, which has 1 GiB at most."""
_SHARE_OF_PASSES: Final = 1 / 20
"""Of a worker's time that looking at all visible messages may take, where there are many."""
_SHORTEST_INTERVAL: Final = 1.0
_KEPT_FREE: Final = 0.5
"""Seconds for which we alone know of what follows in a group that we worked."""
_BEGINNING: Final = (EVER, 0)


class OrderedClaims:
    """The statements by which one consumer claims from an ordered queue.

    Visible messages are looked at in the order of their ``vt``, from the place where the last look ended. What
    was passed over, because something of its group comes before it, lies behind that place from then on; when it
    becomes the head of its group, the database makes it visible anew, before the place no more. Now and then, and
    always while a single statement is enough for it, all that is visible is looked at from the beginning: so
    is found what became visible late.

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
        self._statement = statements.claim
        self._free_statement = free_statement(config.queue)
        self._subscription = subscription
        self._talk = talk_channel(config.queue)
        self._outlook = Outlook(config)
        self._place = _BEGINNING
        self._was_full = False
        self._pass = _Pass()
        self._pass_due = 0.0
        self._freed: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._freeing: asyncio.Task[None] | None = None

    async def claim(self, limit: int) -> Claimed:
        """Lease up to ``limit`` heads, those that have been visible for longest first."""
        began = monotonic()
        while True:
            claimed = await self._look(limit)
            if claimed.claims or claimed.rest is not None or monotonic() - began > _LONGEST_CLAIM:
                return claimed

    def freed(self, claims: Iterable[Claim]) -> None:
        """Claim what follows in the groups of these messages, which have been removed.

        If there is no claim soon, for want of room, others may have it.
        """
        self._freed.update(claim.group for claim in claims if claim.group is not None)
        if self._freed and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_KEPT_FREE, self._kept_for_long)

    async def close(self) -> None:
        """Leave to others what follows, and have them look: we alone may know what is due."""
        self._stop_timer()
        if self._freeing is not None:
            await asyncio.gather(self._freeing, return_exceptions=True)
        with suppress(ApalisError, TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self._leave_to_others()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _kept_for_long(self) -> None:
        self._timer = None
        if self._freeing is None or self._freeing.done():
            self._freeing = asyncio.create_task(self._leave_to_others(), name="apalis-pgmq freed groups")

    async def _leave_to_others(self) -> None:
        groups, self._freed = list(self._freed), set()
        with suppress(ApalisError):  # the next pass finds them
            if groups:
                await self._lane.fetch(self._free_statement, groups)
            if self._subscription.is_heard and self._subscription.turn.has_company:
                await self._lane.fetch(HAVE_LOOK, self._talk)

    async def _look(self, limit: int) -> Claimed:
        turn, is_announced = self._subscription.turn, self._subscription.is_announced
        began = monotonic()
        if began >= self._pass_due:
            self._pass_due, self._pass, self._place = math.inf, _Pass(), _BEGINNING
        freed, self._freed = list(self._freed), set()
        self._stop_timer()
        try:
            [row] = await self._lane.fetch(
                self._statement,
                min(limit, _MOST),
                self._timeout,
                *self._place,
                _LOOK if self._pass.statements else max(_FIRST_LOOK, limit),
                self._outlook.ahead(is_announced=is_announced),
                self._talk if turn.has_company else None,
                not self._was_full,
                freed,
            )
        except BaseException:
            self._freed.update(freed)
            raise
        now = monotonic()
        turn.claimed(now - began)
        self._pass.count(now - began)
        claims = _claims(row, began + self._timeout.total_seconds())
        recent = (row["clock"] - OVERLAP, 0)
        self._was_full = not row["at_end"] and bool(claims)
        if not row["at_end"]:
            self._place = min((row["place"], row["place_id"]), recent)
            return Claimed(claims)
        self._place = recent
        if claims:
            self._outlook.found(began)
        if self._pass_due == math.inf:
            self._pass_due = now + self._pause(len(claims))
        if claims and not is_announced:
            return Claimed(claims)
        rest = self._outlook.rest(is_announced=is_announced)
        if self._pass_due > now:
            rest = min(rest, self._pass_due - now)
        return Claimed(claims, until_due(rest, row["due"]))

    def _pause(self, claimed: int) -> float:
        """Return how long after this pass the next one is due, in seconds."""
        if self._pass.statements == 1 and claimed < MANY:
            return 0.0
        least = max(_SHORTEST_INTERVAL, self._pass.seconds / _SHARE_OF_PASSES, self._outlook.seconds)
        return min(least, LONGEST_OUTLOOK)


class _Pass:
    """What looking at all that is visible takes.

    Attributes:
        statements: how many there were.
        seconds: how long they took.
    """

    __slots__ = ("seconds", "statements")

    def __init__(self) -> None:
        self.statements = 0
        self.seconds = 0.0

    def count(self, seconds: float) -> None:
        """Add one statement."""
        self.statements += 1
        self.seconds += seconds


def _claims(row: Any, expires: float) -> list[Claim]:
    columns = tuple(row[name] for name in ("ids", "read_cts", "payloads", "headers", "enqueued", "groups"))
    if columns[0] is None:
        return []
    vt = row["vt"]
    claims = [
        Claim(TaskId(msg_id), read_ct, vt, expires, message, headers, enqueued, group=group)
        for msg_id, read_ct, message, headers, enqueued, group in zip(*columns, strict=True)
    ]
    claims.sort(key=attrgetter("id"))
    return claims
