"""What the peers have in common; the standard library only."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from benchmarks.child import Meter, Parent
from benchmarks.payload import message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator


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


class Listen:
    """The phase in which a peer is idle but for a message now and then: notes when it starts on which.

    Args:
        parent: the harness.
    """

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._starts: list[tuple[int, float]] = []

    def started(self, number: int) -> None:
        """Note that the handler was started on a message."""
        self._starts.append((number, time.monotonic()))

    def end(self) -> None:
        """Send the result."""
        self._parent.tell("result", starts=self._starts)


class Turns:
    """The times at which a sender sends: random, with exponentially distributed gaps.

    Args:
        job: with ``rate``, per second, and ``seconds``.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        self._rate: float = job["rate"]
        self._seconds: float = job["seconds"]
        self._sent: list[tuple[int, float]] = []

    def fields(self) -> Iterator[tuple[float, dict[str, Any]]]:
        """Yield for each message how long to wait before it is sent, and its fields; ask for the next when it was."""
        chance = random.Random(1)  # noqa: S311 - the same gaps for everybody
        due = began = time.monotonic()
        while (due := due + chance.expovariate(self._rate)) < began + self._seconds:
            yield max(0.0, due - time.monotonic()), asdict(message(len(self._sent)))

    def sending(self) -> None:
        """Note that the next message is being sent."""
        self._sent.append((len(self._sent), time.monotonic()))

    def end(self, parent: Parent) -> None:
        """Send the result."""
        parent.tell("result", sent=self._sent)

    async def send_all(self, send: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
        """Send all by a coroutine function."""
        for wait, fields in self.fields():
            await asyncio.sleep(wait)
            self.sending()
            await send(fields)

    def send_all_blocking(self, send: Callable[[dict[str, Any]], object]) -> None:
        """Send all by a plain function."""
        for wait, fields in self.fields():
            time.sleep(wait)
            self.sending()
            send(fields)
