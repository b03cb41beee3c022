"""Slices of the event loop's time, so that starting many handlers does not keep it from everything else."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Final

_SLICE: Final = 0.002
"""Seconds for which handlers are started one after the other before the event loop has its turn."""
_STARTS: Final = 50
"""How many dispatchers, at most, that wait for this go on in one turn of it."""


class Slices:
    """When dispatchers may start handlers: in slices, between which the event loop has its turn.

    Attributes:
        end: when this slice ends, by the monotonic clock, in seconds.
    """

    def __init__(self) -> None:
        self.end = 0.0
        self._is_new = False
        self._in_line: deque[asyncio.Future[None]] = deque()

    async def next(self) -> None:
        """Let others have the event loop, before one more handler is started."""
        while monotonic() > self.end:
            turn = asyncio.get_running_loop().create_future()
            self._in_line.append(turn)
            if len(self._in_line) == 1:
                asyncio.get_running_loop().call_soon(self._next_in_line)
            await turn
            if self._is_new:
                self._is_new = False
                self.end = monotonic() + _SLICE

    def _next_in_line(self) -> None:
        """Have a few dispatchers go on: many handlers that end at once do not start on their next messages at once."""
        self._is_new = True
        woken = 0
        while self._in_line and woken < _STARTS:
            turn = self._in_line.popleft()
            if not turn.done():
                turn.set_result(None)
                woken += 1
        if self._in_line:
            asyncio.get_running_loop().call_soon(self._next_in_line)
