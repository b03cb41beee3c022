"""SIGINT and SIGTERM on an event loop, on every platform."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

logger = logging.getLogger("apalis_pgmq")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals(on_signal: Callable[[], object]) -> Generator[Callable[[], None]]:
    """Have ``on_signal`` called on the running event loop for each SIGINT and SIGTERM within the block.

    Afterwards everything is as it was. In another than the main thread it does nothing: Python delivers
    signals to that one only.

    Yields:
        A function that puts everything back as it was at once, so that the next signal ends the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    loop = asyncio.get_running_loop()

    def received(signum: int) -> None:
        logger.info("received %s, stopping", signal.Signals(signum).name)
        on_signal()

    # By `signal.signal`, since Windows has no `loop.add_signal_handler`.
    before = {
        signum: signal.signal(signum, lambda number, _frame: loop.call_soon_threadsafe(received, number))
        for signum in _SIGNALS
    }

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    try:
        yield restore
    finally:
        restore()
