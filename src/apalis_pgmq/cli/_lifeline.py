"""What ties a worker process to its supervisor: a pipe, of which the supervisor holds the other end.

It works the same on every platform, unlike signals, and the kernel closes it when the supervisor is
gone, however it went.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from ._exits import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from apalis_pgmq.worker import Monitor

STOP: Final = b"s"
HURRY: Final = b"h"

_SIGNAL_FIRST: Final = 0.25
"""Seconds that a signal sent to this process itself may take to arrive before the supervisor's word.

Service managers such as systemd signal every process of a service at once. The monitor must not
count one stop as two, which would cancel the running handlers."""

logger = logging.getLogger("apalis_pgmq")


class Lifeline:
    """The worker process's end of the pipe.

    Args:
        descriptor: the end to read from.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._released = threading.Event()
        self._cut = threading.Event()

    @classmethod
    def on_stdin(cls) -> Self:
        """Take the pipe that is the standard input, and leave an empty one for the program to read."""
        descriptor = os.dup(0)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        return cls(descriptor)

    def attach(self, monitor: Monitor) -> None:
        """Stop the monitor when the supervisor says so, or is gone. Call it on the event loop."""
        loop = asyncio.get_running_loop()

        def stop_unless_stopping() -> None:
            if any(worker.is_stopping for worker in monitor.workers):
                # Most likely the monitor was signalled; but it may be one worker that stops by itself.
                for worker in monitor.workers:
                    worker.stop()
            else:
                monitor.stop()

        def stop() -> None:
            loop.call_later(_SIGNAL_FIRST, stop_unless_stopping)

        def hurry() -> None:
            monitor.stop()
            monitor.stop()

        def listen() -> None:
            while word := os.read(self._descriptor, 1):
                _call(loop, hurry if word == HURRY else stop)
            _call(loop, self._say_gone)
            _call(loop, stop)
            self._cut.set()
            self._end_if_abandoned()

        threading.Thread(target=listen, name="apalis-pgmq lifeline", daemon=True).start()

    def release(self) -> None:
        """Say that the work is done: from now on nothing but a hanging thread keeps the process."""
        self._released.set()
        self._end_if_abandoned()

    def _end_if_abandoned(self) -> None:
        # The interpreter waits for the threads of synchronous handlers before it ends. With a supervisor
        # there is somebody to kill a process that hangs in one; without, nobody would.
        if self._cut.is_set() and self._released.is_set():
            logging.shutdown()
            os._exit(ExitCode.FAILED)

    @staticmethod
    def _say_gone() -> None:
        logger.warning("the supervising process is gone, stopping")


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # the loop is closed: there is nothing left to stop
        loop.call_soon_threadsafe(function)
