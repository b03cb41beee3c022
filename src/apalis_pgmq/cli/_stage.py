"""What the demonstration and the measurement both work with: queues of their own, a clock, a quiet log."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

from apalis_pgmq.core import Config
from apalis_pgmq.pgmq import PgMqQueues

from ._exits import show_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

_KEPT_LOG_LINES: Final = 10


class Clock:
    """Tells how long things took, in seconds."""

    def __init__(self) -> None:
        self._begin = self._lap = time.monotonic()

    def lap(self) -> float:
        """Return the time since the last lap."""
        before, self._lap = self._lap, time.monotonic()
        return self._lap - before

    def total(self) -> float:
        """Return the time since the beginning."""
        return time.monotonic() - self._begin


@asynccontextmanager
async def own_queue(url: str, purpose: str, **settings: Any) -> AsyncGenerator[Config]:
    """Have a queue that nobody else uses, with its dead-letter queue; both are dropped in the end.

    Args:
        url: the database.
        purpose: a word that goes into the queue's name.
        settings: of its `Config`.

    Yields:
        The config; the queue itself is made by its first use.
    """
    config = Config(f"apalis_pgmq_{purpose}_{secrets.token_hex(4)}", **settings)
    try:
        yield config
    finally:
        async with PgMqQueues(url) as queues:
            for queue in (config.queue, config.dead_letter_queue):
                await queues.drop(queue)


@contextmanager
def log_aside() -> Iterator[None]:
    """Keep log lines off the screen, which tells the same in its own words; show them if it fails."""
    logger = logging.getLogger("apalis_pgmq")
    aside = _Aside()
    logger.addHandler(aside)
    try:
        yield
    except Exception:
        for line in aside.lines:
            show_error(line)
        raise
    finally:
        logger.removeHandler(aside)


class _Aside(logging.Handler):
    """Keeps the last few lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=_KEPT_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
