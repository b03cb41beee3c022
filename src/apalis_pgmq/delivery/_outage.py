"""Waiting out a backend that is away: back-off with jitter, one log line per outage."""

from __future__ import annotations

import logging
import random
import time

logger = logging.getLogger("apalis_pgmq")


class Backoff:
    """Delays that double, each shortened at random by up to a half.

    Args:
        first: the first delay, in seconds.
        longest: where the doubling ends, in seconds.
    """

    def __init__(self, first: float = 0.05, longest: float = 2.0) -> None:
        self._first = self._next = first
        self._longest = longest

    def delay(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        current, self._next = self._next, min(self._next * 2, self._longest)
        # Spreads the reconnects of many workers; nothing secret about it.
        return current * random.uniform(0.5, 1.0)  # noqa: S311

    def reset(self) -> None:
        """Start again from the shortest delay."""
        self._next = self._first


class Outage:
    """What the parts of one consumer know together of an outage, so that it is logged once.

    It begins when the first part finds the backend away and is over when no part does any more.
    """

    def __init__(self, worker: str, queue: str) -> None:
        self._context = {"worker": worker, "queue": queue}
        self._since = 0.0
        self._cut_off: set[str] = set()

    def begins(self, part: str, error: Exception) -> None:
        """Log that the backend is away, unless that is known."""
        if not self._cut_off:
            self._since = time.monotonic()
            logger.warning(
                "worker %s: queue %s is unavailable, trying again until it answers: %s",
                self._context["worker"],
                self._context["queue"],
                error,
                extra=self._context,
            )
        self._cut_off.add(part)

    def is_over(self, part: str) -> None:
        """Log that the backend is back, if this part was the last to find it away."""
        if not self._cut_off:
            return
        self._cut_off.discard(part)
        if not self._cut_off:
            seconds = time.monotonic() - self._since
            logger.warning(
                "worker %s: queue %s is available again after %.1f s",
                self._context["worker"],
                self._context["queue"],
                seconds,
                extra={**self._context, "seconds": seconds},
            )
