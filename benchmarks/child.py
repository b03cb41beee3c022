"""What every measured process has in common.

The standard library only: peers run it in environments of their own.

A measured process is given its job as the first line on its standard input, a JSON object. It answers in
lines of JSON, each with an ``event``: ``ready`` when it could begin, then, once it has heard ``go``, the
``result``. When its standard input ends, its parent is gone, and it ends too.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import resource
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_STATUS = Path("/proc/self/status")


class Parent:
    """The harness, as a measured process sees it; make one per process."""

    def __init__(self) -> None:
        self._words: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._wake: Any = None
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def hear(self) -> dict[str, Any]:
        """Wait for the next line; blocks the thread."""
        return self._words.get()

    async def hear_soon(self) -> dict[str, Any]:
        """Wait for the next line, on the event loop."""
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(heard.set)
        try:
            while self._words.empty():
                await heard.wait()
                heard.clear()
        finally:
            self._wake = None
        return self._words.get()

    @staticmethod
    def tell(event: str, **facts: Any) -> None:
        """Send a line."""
        sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
        sys.stdout.flush()

    def _listen(self) -> None:
        # Not through sys.stdin: its lock, held by a daemon thread, would get in the way of the exit.
        rest = b""
        while chunk := os.read(0, 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._words.put(json.loads(line))
                if (wake := self._wake) is not None:
                    wake()
        os._exit(1)


class Meter:
    """The processor time and the memory of this process, from its making on."""

    def __init__(self) -> None:
        self._cpu = cpu_seconds()
        self._rss = rss_mb()

    def read(self) -> dict[str, float]:
        """Return processor seconds since the beginning, and resident memory in MB: then and at its peak."""
        return {"cpu": cpu_seconds() - self._cpu, "rss_before": self._rss, "rss_peak": peak_rss_mb()}


def cpu_seconds() -> float:
    """Return the processor time of this process so far, user and system, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def rss_mb() -> float:
    """Return the resident memory now, in MB; the peak where the system does not tell."""
    return _status("VmRSS") or peak_rss_mb()


def peak_rss_mb() -> float:
    """Return the peak of the resident memory, in MB."""
    # Not ru_maxrss on Linux: it is inherited from the process that started this one.
    if peak := _status("VmHWM"):
        return peak
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return kibibytes / 1024


def _status(name: str) -> float | None:
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return None


def serve(main: Callable[[Parent, dict[str, Any]], Coroutine[Any, Any, None]]) -> None:
    """Run a measured process on the event loop that its job asks for: asyncio's own, or uvloop."""
    parent = Parent()
    job = parent.hear()
    factory = None
    if job.get("loop") == "uvloop":
        import uvloop  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - only if asked for

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(parent, job))
