"""What the peers have in common; the standard library only."""

from __future__ import annotations

import time
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from benchmarks.child import Meter, Parent
from benchmarks.payload import message

if TYPE_CHECKING:
    from collections.abc import Iterator


class Drain:
    """The timed phase: told of each message, it notices when all were handled.

    Args:
        parent: the harness.
        job: with ``messages``, how many there are.
    """

    def __init__(self, parent: Parent, job: dict[str, Any]) -> None:
        self._parent = parent
        self._expected: int = job["messages"]
        self._handled = 0
        self._first = 0.0
        self._last = 0.0
        self._meter = Meter()

    def begin(self) -> None:
        """Wait for the harness to say go; blocks."""
        self._parent.tell("ready")
        self._parent.hear()
        self._meter = Meter()

    async def begin_soon(self) -> None:
        """Wait for the harness to say go, on the event loop."""
        self._parent.tell("ready")
        await self._parent.hear_soon()
        self._meter = Meter()

    def handled(self) -> bool:
        """Note that a message was handled; return whether it was the last one."""
        self._last = time.monotonic()
        self._handled += 1
        if self._handled == 1:
            self._first = self._last
        return self._handled == self._expected

    @property
    def is_done(self) -> bool:
        """Whether all were handled."""
        return self._handled >= self._expected

    def end(self, *packages: str) -> None:
        """Send the result, with the versions of packages."""
        self._parent.tell(
            "result",
            **self._meter.read(),
            handled=self._handled,
            first=self._first,
            last=self._last,
            ended=time.monotonic(),
            versions={name: metadata.version(name) for name in packages},
        )


def arguments(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the fields of each message that a job asks for."""
    for number in range(job["messages"]):
        yield asdict(message(number))


def begin_preload(parent: Parent) -> None:
    """Wait for the harness to say go; blocks."""
    parent.tell("ready")
    parent.hear()


def end_preload(parent: Parent) -> None:
    """Say that all is enqueued."""
    parent.tell("result")
