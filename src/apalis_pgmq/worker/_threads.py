"""Threads for synchronous handlers."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


class Threads:
    """Up to a number of threads, started as they are needed.

    They are daemons: unlike those of a ``ThreadPoolExecutor``, one that hangs does not keep the process from
    ending.

    Args:
        name: begins their names.
        most: how many there are at most.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._started = 0
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def submit(self, call: Callable[[], R]) -> Future[R]:
        """Have a thread call it; to be called from one thread only."""
        future: Future[R] = Future()
        self._calls.put((future, call))
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """Have each thread end, now or when its call returns; not waited for."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001 - it belongs to who waits for the future
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            # An idle thread holds on to nothing.
            del item, future, call
            self._idle.release()
        # For the next one.
        self._calls.put(None)
