"""What all parts of the measurement share: the message, the error, and watching that things go on."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from apalis_pgmq.core import ApalisError

from ._stage import own_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from apalis_pgmq.core import Config

ROUNDS: Final = 2
"""How often each thing is measured, by turns with what it is held against."""

_FRAME: Final = 0.05
_PATIENCE: Final = 20.0
"""Seconds without any progress after which something is wrong."""

Tell: TypeAlias = "Callable[[str], object]"
"""Tells what is measured next. Nothing on the screen moves while it is: that would take processor time."""


class BenchError(ApalisError):
    """A measurement came to no result that could be believed."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is in the queues."""

    number: int


@dataclass(frozen=True, slots=True)
class Pair:
    """What was measured of apalis-pgmq, and of the bare loop beside it."""

    ours: float
    bare: float

    @property
    def ratio(self) -> float:
        """The former in terms of the latter."""
        return self.ours / self.bare

    @classmethod
    def middle(cls, pairs: Sequence[Pair]) -> Pair:
        """Return the medians of several."""
        return cls(
            statistics.median(pair.ours for pair in pairs), statistics.median(pair.bare for pair in pairs)
        )


def bench_queue(url: str) -> AbstractAsyncContextManager[Config]:
    """Have a queue of the measurement's own, without a dead-letter queue; it is dropped in the end."""
    return own_queue(url, "bench", dead_letter=None)


async def until(count: Callable[[], int], enough: int, what: str) -> None:
    """Wait until a count is high enough.

    Raises:
        BenchError: it did not grow for a long time.
    """
    before, since = -1, time.monotonic()
    while (now := count()) < enough:
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            raise BenchError(f"{what}: nothing happened for {_PATIENCE:g} s, at {now:,} of {enough:,}")
        await asyncio.sleep(_FRAME)
