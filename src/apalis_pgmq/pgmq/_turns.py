"""Whose turn it is when a message is announced to many idle workers.

All of them hear the announcement, and one of them is enough. So they answer in turn: the first at once,
each other a little later, unless the message was taken by then. That has to be proven: an announcement
carries the number of the transaction that sent (`pg_current_xact_id`), and whoever claims and finds fewer
messages than it asked for tells the snapshot that it saw (`pg_current_snapshot`). If the transaction is
visible in it, its messages are taken, and the others can stay where they are. Whatever proves nothing, an
announcement of PGMQ's own say, only makes them answer needlessly.

What nobody announces is when a message falls due that was sent with a delay, or whose lease ends. Whoever claims looks for
that, and tells it as well: then each of the others looks a little after, in turn, unless it is told something newer
by then.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_SHORTEST_STEP: Final = 0.01
_LONGEST_STEP: Final = 0.05
"""Seconds from one turn to the next: long enough for a claim to be made and told."""
_LAST_TURN: Final = 20
"""Whoever comes after this one comes with it."""
_MOST_PENDING: Final = 1000
"""Announcements that are kept for proof; beyond that there is none."""
_MOST_DIGITS: Final = 20
"""Of a transaction's number: it has 64 bits."""

DRAINED: Final = "drained "
"""Begins what is told by whoever claimed all that was visible; in how many seconds the next message is due (``-``: not
soon) and its snapshot follow."""
LOOK: Final = "look "
"""Begins what is told by whoever claimed as much as it could; the number of its transaction follows. It may have no
time any more for what falls due, of which it alone may know."""
HERE: Final = "here"
"""Is told now and then by all but the first in turn, so that the first knows that it is not alone."""

_SECONDS: Final = re.compile(r"\d{1,3}(\.\d*)?")
_SNAPSHOT: Final = re.compile(r"(\d+):(\d+):((?:\d+,)*\d+)?")


class Turn:
    """One worker's place among those of a queue.

    Args:
        wake: is called when it is this one's turn.
        load: returns how busy the worker is, from 0 to 1; the busy let the idle go first.
        company_lasts: seconds for which a sign of others counts.
    """

    def __init__(self, wake: Callable[[], None], load: Callable[[], float], *, company_lasts: float) -> None:
        self._wake = wake
        self._load = load
        self._company_lasts = company_lasts
        self._company_until = -1.0
        self._step = _SHORTEST_STEP
        self._pending: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._when_due: asyncio.TimerHandle | None = None
        self._is_provable = True
        self.rank: int | None = None

    @property
    def has_company(self) -> bool:
        """Whether there are others, as far as is known."""
        return bool(self.rank) or monotonic() < self._company_until

    def claimed(self, seconds: float) -> None:
        """Take note of how long a claim takes here, which others should wait for."""
        self._step = min(max(3 * seconds, _SHORTEST_STEP), _LONGEST_STEP)

    def announced(self, transaction: str) -> None:
        """A message has been sent by a transaction, whose number it is, if it is one."""
        is_number = transaction.isdecimal() and len(transaction) <= _MOST_DIGITS
        if is_number and len(self._pending) < _MOST_PENDING:
            self._pending.add(int(transaction))
        else:
            self._is_provable = False
        if self._timer is None:
            if delay := self._delay():
                self._timer = asyncio.get_running_loop().call_later(delay, self.now)
            else:
                self.now()

    def told(self, text: str) -> None:
        """Another, or this one itself, has told the others something."""
        if text == HERE:
            self._company_until = monotonic() + self._company_lasts
        elif text.startswith(LOOK):
            self.announced(text.removeprefix(LOOK))
        elif text.startswith(DRAINED):
            due, _, snapshot = text.removeprefix(DRAINED).partition(" ")
            self._expect(due)
            if self._timer is not None and self._is_provable:
                with suppress(ValueError):
                    if all(map(visible_in(snapshot), self._pending)):
                        self._forget()

    def now(self) -> None:
        """Do not wait any longer."""
        self._forget()
        self._wake()

    def close(self) -> None:
        """Wake nobody any more."""
        self._forget()
        self._expect("-")

    def _expect(self, due: str) -> None:
        """Have a look when a message is due, should whoever told of it be gone by then."""
        if self._when_due is not None:
            self._when_due.cancel()
            self._when_due = None
        if _SECONDS.fullmatch(due):
            wait = float(due) + self._step + self._delay()
            self._when_due = asyncio.get_running_loop().call_later(wait, self.now)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pending.clear()
        self._is_provable = True

    def _delay(self) -> float:
        if not self.has_company:
            return 0.0
        turn = (_LAST_TURN if self.rank is None else self.rank) + self._load() * _LAST_TURN / 2
        return self._step * min(turn, _LAST_TURN)


def visible_in(snapshot: str) -> Callable[[int], bool]:
    """Return the function that tells whether a committed transaction is visible in a snapshot.

    Args:
        snapshot: as text, ``xmin:xmax:xip,...`` (PostgreSQL's ``pg_snapshot``).

    Raises:
        ValueError: it is none.
    """
    if (match := _SNAPSHOT.fullmatch(snapshot)) is None:
        raise ValueError(f"not a snapshot: {snapshot!r}")
    xmin, xmax = int(match[1]), int(match[2])
    running = frozenset(map(int, match[3].split(","))) if match[3] else frozenset()
    return lambda transaction: transaction < xmin or (transaction < xmax and transaction not in running)
