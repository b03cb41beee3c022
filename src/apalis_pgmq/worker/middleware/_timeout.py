"""A bound on how long a handler may run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from apalis_pgmq.core import duration

if TYPE_CHECKING:
    from apalis_pgmq.core import Duration, Task

    from ._base import Next


class Timeout:
    """Cancels a handler that runs too long and fails the attempt with `TimeoutError`.

    A synchronous handler cannot be cancelled: its attempt fails in time, its thread runs on.

    Args:
        limit: a `timedelta` or seconds, longer than zero.

    Raises:
        ConfigError: the limit is not a duration longer than zero.
    """

    def __init__(self, limit: Duration) -> None:
        self._seconds = duration("timeout", limit).total_seconds()

    async def __call__(self, task: Task[Any], call_next: Next) -> object:
        """Run the rest within the limit."""
        try:
            async with asyncio.timeout(self._seconds) as scope:
                return await call_next(task)
        except TimeoutError as error:
            if scope.expired():
                raise TimeoutError(f"the handler ran longer than {self._seconds:g} s") from error
            raise
