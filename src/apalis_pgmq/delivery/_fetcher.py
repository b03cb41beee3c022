"""Claims messages whenever handlers can use them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from apalis_pgmq.core import BackendUnavailableError

from ._outage import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._inbox import Demand, Inbox
    from ._outage import Outage
    from ._store import Claim, Store


class Fetcher:
    """The part of a consumer that claims.

    It asks again at once as long as messages come; otherwise when the store said that it is time, or when
    poked.

    Attributes:
        is_full: whether it waits for handlers to take or settle messages.

    Args:
        store: where to claim.
        inbox: where claims go, for the question of how many are waiting.
        demand: says how many to claim.
        held: says how many claims are not settled yet.
        receive: is given what was claimed.
        on_empty: is called whenever the queue had nothing.
        outage: shared by the parts of a consumer.
    """

    def __init__(
        self,
        store: Store,
        inbox: Inbox,
        demand: Demand,
        *,
        held: Callable[[], int],
        receive: Callable[[Sequence[Claim]], None],
        on_empty: Callable[[], None],
        outage: Outage,
    ) -> None:
        self._store = store
        self._inbox = inbox
        self._demand = demand
        self._held = held
        self._receive = receive
        self._on_empty = on_empty
        self._outage = outage
        self._stopping = False
        self.is_full = False
        self._room = asyncio.Event()
        self._poked = asyncio.Event()

    def poke(self) -> None:
        """Ask the queue now, if it is being left alone because it was empty."""
        self._poked.set()

    def has_room(self) -> None:
        """Reckon again whether to claim, after messages were taken or settled; of use only while `is_full`."""
        self._room.set()

    def stop(self) -> None:
        """End `run` after the claim that is under way, whose messages must not be lost."""
        self._stopping = True
        self._room.set()
        self._poked.set()

    async def run(self) -> None:
        """Claim until stopped."""
        backoff = Backoff()
        while not self._stopping:
            limit = self._demand.limit(len(self._inbox.claims), self._held())
            if not limit:
                self._room.clear()
                self.is_full = True
                await self._room.wait()
                self.is_full = False
                continue
            # Cleared before asking: what is sent while we ask is not missed.
            self._poked.clear()
            try:
                claimed = await self._store.claim(limit)
            except BackendUnavailableError as error:
                self._outage.begins("fetcher", error)
                await self.back_off(backoff.delay())
                continue
            self._outage.is_over("fetcher")
            backoff.reset()
            claims = claimed.claims
            self._demand.claimed(len(claims), sum(len(claim.payload or "") for claim in claims))
            if claims:
                self._receive(claims)
            elif claimed.rest is not None:
                self._on_empty()
            if claimed.rest is not None:
                await self.pause(claimed.rest)

    async def back_off(self, seconds: float) -> None:
        """Wait that long, or until stopped or poked anew: an older poke must not make us hurry."""
        if not self._stopping:
            self._poked.clear()
            await self.pause(seconds)

    async def pause(self, seconds: float) -> None:
        """Wait that long, or until poked or stopped."""
        if self._stopping or self._poked.is_set():
            return
        # Cheaper than `asyncio.timeout`, on the way of a message to an idle worker.
        timer = asyncio.get_running_loop().call_later(seconds, self._poked.set)
        try:
            await self._poked.wait()
        finally:
            timer.cancel()
