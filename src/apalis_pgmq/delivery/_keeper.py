"""Keeps the leases of everything that is held."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

from apalis_pgmq.core import BackendUnavailableError

from ._outage import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apalis_pgmq.core import TaskId

    from ._outage import Outage
    from ._store import Claim, Store


class LeaseKeeper:
    """The part of a consumer that extends leases: one statement per third of the visibility timeout.

    Every lease that is held then stands for at least two thirds of the visibility timeout whenever its turn
    comes, so that is how long the event loop may stall. A stall of more than a sixth is reported.

    Args:
        store: where to extend.
        held: every claim that is not settled in the store, running or buffered.
        lose: is given each claim that is not ours any more.
        overdue: is given each claim that has been held for longer than is allowed.
        stalled: is given the seconds for which something blocked the event loop.
        visibility_timeout: seconds.
        outage: shared by the parts of a consumer.
    """

    def __init__(
        self,
        store: Store,
        held: Mapping[TaskId, Claim],
        *,
        lose: Callable[[Claim], None],
        overdue: Callable[[Claim], None],
        stalled: Callable[[float], None],
        visibility_timeout: float,
        outage: Outage,
    ) -> None:
        self._store = store
        self._held = held
        self._lose = lose
        self._overdue = overdue
        self._stalled = stalled
        self._interval = visibility_timeout / 3
        self._outage = outage

    async def run(self) -> None:
        """Extend what is held, for ever."""
        backoff = Backoff(longest=self._interval)
        wait = self._interval
        while True:
            due = monotonic() + wait
            await asyncio.sleep(wait)
            now = monotonic()
            if now - due > self._interval / 2:
                self._stalled(now - due)
            overdue = [one for one in self._held.values() if one.let_go_at <= now and not one.leaving]
            for claim in overdue:
                self._overdue(claim)
            claims = [claim for claim in self._held.values() if not claim.leaving]
            try:
                if claims:
                    await self._extend(claims)
            except BackendUnavailableError as error:
                # Tried again soon, while the leases still stand; if not, the fence finds out what was lost.
                self._outage.begins("lease keeper", error)
                wait = backoff.delay()
            else:
                self._outage.is_over("lease keeper")
                backoff.reset()
                wait = self._interval

    async def _extend(self, claims: list[Claim]) -> None:
        kept = await self._store.extend(claims)
        for claim in claims:
            # Settled while we asked: not in the queue any more, but not lost either.
            gone = claim.id not in kept and not claim.leaving
            if gone and self._held.get(claim.id) is claim:
                self._lose(claim)
