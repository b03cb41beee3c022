"""Keeps the leases of everything that is held."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from apalis_pgmq.core import BackendUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apalis_pgmq.core import TaskId

    from ._outage import Outage
    from ._store import Claim, Store


class LeaseKeeper:
    """The part of a consumer that extends leases: one statement per third of the visibility timeout.

    Args:
        store: where to extend.
        held: every claim that is not settled in the store, running or buffered.
        lose: is given each claim that is not ours any more.
        visibility_timeout: seconds.
        outage: shared by the parts of a consumer.
    """

    def __init__(
        self,
        store: Store,
        held: Mapping[TaskId, Claim],
        *,
        lose: Callable[[Claim], None],
        visibility_timeout: float,
        outage: Outage,
    ) -> None:
        self._store = store
        self._held = held
        self._lose = lose
        self._visibility_timeout = visibility_timeout
        self._outage = outage

    async def run(self) -> None:
        """Extend what is due, for ever."""
        interval = self._visibility_timeout / 3
        while True:
            await asyncio.sleep(interval)
            soon = time.monotonic() + self._visibility_timeout * 2 / 3
            due = [claim for claim in self._held.values() if claim.expires < soon]
            if not due:
                self._outage.is_over("lease keeper")
                continue
            try:
                kept = await self._store.extend(due)
            except BackendUnavailableError as error:
                # Tried again at the next turn; the fence finds out what was lost meanwhile.
                self._outage.begins("lease keeper", error)
                continue
            self._outage.is_over("lease keeper")
            for claim in due:
                # Settled while we asked: not in the queue any more, but not lost either.
                if claim.id not in kept and self._held.get(claim.id) is claim:
                    self._lose(claim)
