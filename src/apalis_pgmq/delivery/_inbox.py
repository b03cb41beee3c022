"""Claimed messages that wait for a handler, and the reckoning of how many more to claim."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._store import Claim

_HORIZON: Final = 0.1
"""For how many seconds of work to have messages ready. Longer would keep them from idle workers."""
_AHEAD_AT_FIRST: Final = 0
"""How many to have ready as long as nothing is known of the speed."""
_MOST_AHEAD: Final = 1000
"""The most messages to have ready, whatever the speed."""
_SHRINKING: Final = 0.9
_MOST_CHARACTERS: Final = 16 * 1024 * 1024
"""The same for their text, as far as sizes can be foreseen."""
_MOST_UNSTORED: Final = 4000
"""Settlements that may wait to be stored before no more is claimed."""


class Inbox:
    """A queue of claims with one producer, the fetcher, and many takers, the handlers.

    Attributes:
        claims: what is there to take, oldest first.
        closed: whether nothing will come any more.
    """

    def __init__(self) -> None:
        self.claims: deque[Claim] = deque()
        self._takers: deque[asyncio.Future[None]] = deque()
        self.closed = False

    def put(self, claims: Iterable[Claim]) -> None:
        """Add claims and wake as many waiting takers."""
        before = len(self.claims)
        self.claims.extend(claims)
        self._wake(len(self.claims) - before)

    async def arrival(self) -> None:
        """Wait until there may be a claim to take, or the inbox is closed."""
        if self.claims or self.closed:
            return
        taker = asyncio.get_running_loop().create_future()
        self._takers.append(taker)
        try:
            await taker
        except asyncio.CancelledError:
            # Woken and cancelled at once: the claim that woke us is another taker's then.
            if taker.done() and not taker.cancelled():
                self._wake(1)
            else:
                # Unless it was passed over already, as one that is done.
                with suppress(ValueError):
                    self._takers.remove(taker)
            raise

    def close(self) -> list[Claim]:
        """End the waiting of every taker; return what nobody took."""
        self.closed = True
        left = list(self.claims)
        self.claims.clear()
        self._wake(len(self._takers))
        return left

    def _wake(self, count: int) -> None:
        while count and self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(None)
                count -= 1


class Demand:
    """How many messages to claim next.

    Enough for every free handler, and beyond that for `_HORIZON` seconds at the speed at which
    messages were taken lately: slow handlers hold nothing in reserve, which idle workers could have, and fast
    ones large batches, unless messages are so large that few of them fill the memory that is meant for them.

    Args:
        capacity: how many handlers may run at once; may be changed.
        clock: returns seconds, monotonic.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self._clock = clock
        self._ahead = _AHEAD_AT_FIRST
        self._taken = 0
        self._size = 0.0
        self._since = clock()
        self.running = 0

    @property
    def low_water(self) -> int:
        """How few buffered messages make it worth claiming again."""
        return self._ahead // 2

    def load(self) -> float:
        """Return how many of the handlers are at work, as a share."""
        return min(self.running / self.capacity, 1.0) if self.capacity > 0 else 1.0

    def took(self) -> None:
        """Count a message that a handler took."""
        self._taken += 1
        self.running += 1

    def limit(self, buffered: int, held: int) -> int:
        """Return how many messages to claim now, perhaps 0.

        Args:
            buffered: claimed, but not taken yet.
            held: all that is claimed and not settled in the store.
        """
        room = max(0, self.capacity - self.running) + self._ahead - buffered
        unstored = held - buffered - self.running
        if buffered > self.low_water or unstored > _MOST_UNSTORED:
            return 0
        return min(max(0, room), self.capacity + _MOST_AHEAD)

    def claimed(self, messages: int, characters: int) -> None:
        """Reckon speed and size anew, after each claim.

        Args:
            messages: how many were claimed.
            characters: the length of their text.
        """
        if messages:
            # Grows at once, and shrinks slowly.
            self._size = max(characters / messages, self._size * _SHRINKING)
        now = self._clock()
        elapsed = now - self._since
        if elapsed <= 0:
            return
        most = min(_MOST_AHEAD, int(_MOST_CHARACTERS / max(self._size, 1.0)))
        self._ahead = min(int(self._taken / elapsed * _HORIZON), most)
        self._taken = 0
        self._since = now
