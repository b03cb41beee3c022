"""How soon an idle worker starts on a message, and how soon the bare loop does."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import Idle
from apalis_pgmq.pgmq import BareQueue, PgMqBackend
from apalis_pgmq.worker import WorkerBuilder

from ._bench_common import ROUNDS, BenchError, Note, Pair, bench_queue, until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from apalis_pgmq.core import Event

    from ._bench_common import Tell

RATE: Final = 30.0
"""Messages per second, at random times."""
PERCENTS: Final = (50, 95, 99)

_SHORTEST: Final = 5
"""Messages of which percentiles are taken, at least."""


@dataclass(frozen=True, slots=True)
class Latency:
    """How long messages waited, from the return of `push` to the start of their handlers.

    Attributes:
        messages: how many were sent to each.
        percentiles: in milliseconds, by their percents.
    """

    messages: Pair
    percentiles: dict[int, Pair]


class _Contender:
    """Notes when messages were sent to a queue, and when somebody started on them."""

    def __init__(self, name: str, backend: PgMqBackend[Note]) -> None:
        self.name = name
        self._backend = backend
        self._sent: dict[int, float] = {}
        self._started: dict[int, float] = {}

    async def warm_up(self) -> None:
        """Send a message that does not count, and wait for it."""
        await self._backend.push(Note(-1))
        await until(lambda: len(self._started), 1, self.name)
        self._started.clear()

    async def send(self, seconds: float, chance: random.Random) -> None:
        """Send messages for so long."""
        due = began = time.monotonic()
        while (due := due + chance.expovariate(RATE)) < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            number = len(self._sent)
            await self._backend.push(Note(number))
            self._sent[number] = time.monotonic()

    def start(self, numbers: Iterable[int]) -> None:
        """Take note that handlers start."""
        now = time.monotonic()
        for number in numbers:
            self._started.setdefault(number, now)

    async def waits(self) -> list[float]:
        """Return how long each message waited, in milliseconds, once all have been started on."""
        await until(lambda: len(self._started), len(self._sent), self.name)
        return [(self._started[number] - at) * 1000 for number, at in self._sent.items()]


async def measure_latency(url: str, concurrency: int, seconds: float, tell: Tell) -> Latency:
    """Send to an idle worker and to the bare loop in turns, so long to each.

    Raises:
        BenchError: a message was not started on, or too few were sent.
        PgMqError: the server refuses or does not answer.
    """
    tell(f"sending {RATE:g} messages/s to idle receivers, {seconds:g} s to each")
    chance = random.Random(1)  # noqa: S311 - the same gaps in every run
    async with (
        bench_queue(url) as mine,
        bench_queue(url) as its,
        # Not the worker's own backend: a push through that one wakes it without the server.
        PgMqBackend(url, mine, Note) as to_ours,
        PgMqBackend(url, its, Note) as to_bare,
        PgMqBackend(url, mine, Note) as worked,
        BareQueue(url, its.queue) as loop,
    ):
        ours, bare = _Contender("the worker", to_ours), _Contender("the bare loop", to_bare)

        def start_bare(payloads: Sequence[str]) -> None:
            bare.start([json.loads(payload)["number"] for payload in payloads])

        async with _idle_worker(worked, ours, concurrency), loop.listening(start_bare):
            for contender in (ours, bare):
                await contender.warm_up()
            for number in range(ROUNDS):
                for contender in (ours, bare) if number % 2 == 0 else (bare, ours):
                    await contender.send(seconds / ROUNDS, chance)
            mine_waited, its_waited = await ours.waits(), await bare.waits()
    if min(len(mine_waited), len(its_waited)) < _SHORTEST:
        raise BenchError("too few messages were sent to tell a latency: take more --seconds")
    return Latency(
        Pair(len(mine_waited), len(its_waited)),
        {
            percent: Pair(_percentile(mine_waited, percent), _percentile(its_waited, percent))
            for percent in PERCENTS
        },
    )


@asynccontextmanager
async def _idle_worker(
    backend: PgMqBackend[Note], contender: _Contender, concurrency: int
) -> AsyncGenerator[None]:
    idle = 0

    def observe(event: Event) -> None:
        nonlocal idle
        idle += isinstance(event, Idle)

    async def handle(note: Note) -> None:
        contender.start([note.number])

    worker = WorkerBuilder("bench").backend(backend).concurrency(concurrency).on_event(observe).build(handle)
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        await until(lambda: idle, 1, contender.name)
        yield
        worker.stop()


def _percentile(values: list[float], percent: float) -> float:
    """Return a percentile, interpolated."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
