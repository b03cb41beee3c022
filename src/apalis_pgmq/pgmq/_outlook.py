"""How long a queue can be left alone."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from apalis_pgmq.core import Config

SHORTEST_OUTLOOK: Final = 1.0
LONGEST_OUTLOOK: Final = 30.0
"""Seconds for which a queue is left alone that announces every insert; the time doubles from the one to the
other as long as little comes. Never for longer than a lease: what a worker that dies has claimed since we looked
is then seen before it is due."""
_AFTER_DUE: Final = 0.001
"""Seconds after which what is due is sure to be visible."""


class Outlook:
    """For how many seconds one consumer leaves its queue alone after a claim that has seen all that there was.

    That is also how far ahead a claim looks for what falls due.

    Args:
        config: the queue's settings.

    Attributes:
        seconds: how long it would be now, were every insert announced.
    """

    def __init__(self, config: Config) -> None:
        self._poll_interval = config.poll_interval.total_seconds()
        self._longest = min(config.visibility_timeout.total_seconds(), LONGEST_OUTLOOK)
        self._found_at = monotonic()
        self.seconds = min(SHORTEST_OUTLOOK, self._longest)

    def ahead(self, *, is_announced: bool) -> float:
        """Return how far ahead to look for what falls due."""
        return self.seconds if is_announced else self._poll_interval

    def found(self, began: float) -> None:
        """Take note of messages that were found by a claim which began then, by the monotonic clock, in seconds."""
        if began - self._found_at < SHORTEST_OUTLOOK:
            # Each message leaves a dead entry where its lease would have ended, to be stepped over.
            self.seconds = min(SHORTEST_OUTLOOK, self._longest)
        self._found_at = began

    def rest(self, *, is_announced: bool) -> float:
        """Return how long to leave the queue alone; the next time may be longer."""
        rest = self.ahead(is_announced=is_announced)
        if is_announced:
            self.seconds = min(2 * self.seconds, self._longest)
        return rest


def until_due(rest: float, due: float | None) -> float:
    """Return how long to leave a queue alone of which the next message is due in ``due`` seconds, if one is."""
    return rest if due is None else min(rest, max(due, 0.0) + _AFTER_DUE)
