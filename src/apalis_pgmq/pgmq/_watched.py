"""Connections whose statements are watched: is the server still at work on what we wait for?"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    _Connection = asyncpg.Connection[Any]
else:
    _Connection = asyncpg.Connection  # not generic at run time


class WatchedConnection(_Connection):
    """A connection that has somebody look when a statement of the handler's takes long.

    A handler's statement may rightly take hours, so it has no time limit. But on a socket that has gone silent
    it would wait for ever, with its message's lease extended all the while.
    """

    __slots__ = ("_after", "_look", "_watching")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._after = 0.0
        self._look: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._watching = False

    def watch(self, after: float, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have ``look`` run whenever a statement takes longer than ``after`` seconds, until it has its answer."""
        self._after = after
        self._look = look

    async def execute(self, *args: Any, **kwargs: Any) -> str:
        """As in asyncpg."""
        with self._watched():
            return await super().execute(*args, **kwargs)

    async def executemany(self, *args: Any, **kwargs: Any) -> None:
        """As in asyncpg."""
        with self._watched():
            await super().executemany(*args, **kwargs)

    async def fetch(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As in asyncpg."""
        if self._look is None:  # what workers claim and settle with, at every message
            return await super().fetch(*args, **kwargs)
        with self._watched():
            return await super().fetch(*args, **kwargs)

    async def fetchmany(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As in asyncpg."""
        with self._watched():
            return await super().fetchmany(*args, **kwargs)

    async def fetchrow(self, *args: Any, **kwargs: Any) -> Any:
        """As in asyncpg."""
        with self._watched():
            return await super().fetchrow(*args, **kwargs)

    async def fetchval(self, *args: Any, **kwargs: Any) -> Any:
        """As in asyncpg."""
        with self._watched():
            return await super().fetchval(*args, **kwargs)

    @contextmanager
    def _watched(self) -> Generator[None]:
        if self._look is None or self._watching:
            yield
            return
        look = self._look
        looking: asyncio.Task[None] | None = None

        def begin() -> None:
            nonlocal looking
            looking = asyncio.create_task(look(), name="apalis-pgmq: look after a statement")

        self._watching = True
        timer = asyncio.get_running_loop().call_later(self._after, begin)
        try:
            yield
        finally:
            self._watching = False
            timer.cancel()
            if looking is not None:
                looking.cancel()
