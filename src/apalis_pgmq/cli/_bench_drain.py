"""Draining a full queue, by a worker and by the bare loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apalis_pgmq.pgmq import BareQueue, PgMqBackend, PgMqQueues
from apalis_pgmq.worker import WorkerBuilder

from ._bench_common import ROUNDS, BenchError, Note, Pair, bench_queue, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from apalis_pgmq.core import Config

    from ._bench_common import Tell

    Work: TypeAlias = Callable[[str, Config, "Tally"], Awaitable[object]]

_FILL: Final = 10_000
"""Messages that are put into a queue by one statement."""
_UNTIL_REPORTED: Final = 0.3
"""Seconds that sessions are given to end, and to report what they have done."""


@dataclass(frozen=True, slots=True)
class Drain:
    """How a queue was drained.

    Attributes:
        rate: messages per second, from the first one handled to the last.
        cpu: microseconds of this process' processor time per message, from its start to its end.
        transactions: of the whole database, per message; None if the server does not tell.
    """

    rate: Pair
    cpu: Pair
    transactions: Pair | None


class Tally:
    """Counts what was handled, and when."""

    def __init__(self) -> None:
        self.handled = 0
        self._first = self._last = 0.0
        self._at_first = 0

    def add(self, count: int = 1) -> None:
        """Count some more."""
        self._last = time.monotonic()
        if not self.handled:
            self._first, self._at_first = self._last, count
        self.handled += count

    @property
    def rate(self) -> float:
        """Messages per second from the first call to the last; those of the first took no time."""
        return (self.handled - self._at_first) / max(self._last - self._first, 1e-9)


@dataclass(frozen=True, slots=True)
class _Run:
    rate: float
    cpu: float
    transactions: float | None


async def measure_drain(url: str, count: int, concurrency: int, tell: Tell) -> Drain:
    """Drain queues of ``count`` messages, by a worker and by the bare loop in turns.

    Raises:
        BenchError: a message was left, or handled twice.
        PgMqError: the server refuses or does not answer.
    """

    async def work(url: str, config: Config, tally: Tally) -> None:
        await _work(url, config, tally, count, concurrency)

    ours: list[_Run] = []
    bare: list[_Run] = []
    for number in range(ROUNDS):
        tell(f"draining {count:,} messages, round {number + 1} of {ROUNDS}")
        turns: list[tuple[Work, list[_Run]]] = [(work, ours), (_loop, bare)]
        for way, runs in turns if number % 2 == 0 else reversed(turns):
            runs.append(await _drain(url, count, way))
    pairs = list(zip(ours, bare, strict=True))
    transactions = [
        Pair(mine.transactions, its.transactions)
        for mine, its in pairs
        if mine.transactions is not None and its.transactions
    ]
    return Drain(
        Pair.middle([Pair(mine.rate, its.rate) for mine, its in pairs]),
        Pair.middle([Pair(mine.cpu, its.cpu) for mine, its in pairs]),
        Pair.middle(transactions) if transactions else None,
    )


async def _drain(url: str, count: int, work: Work) -> _Run:
    async with bench_queue(url) as config:
        async with PgMqBackend(url, config, Note) as backend:
            for numbers in _chunks(count):
                await backend.push_many(map(Note, numbers))
        async with BareQueue(url, config.queue) as bare:
            await bare.settle()
        before = await _transactions(url, config)
        tally = Tally()
        began = time.process_time()
        await work(url, config, tally)
        cpu = time.process_time() - began
        after = await _transactions(url, config)
        async with PgMqQueues(url) as queues:
            left = (await queues.metrics(config.queue)).length
    if left or tally.handled != count:
        raise BenchError(f"of {count:,} messages {tally.handled:,} were handled, and {left:,} were left")
    transactions = None if before is None or after is None else (after - before) / count
    return _Run(tally.rate, cpu / count * 1e6, transactions)


async def _work(url: str, config: Config, tally: Tally, count: int, concurrency: int) -> None:
    async def handle(_note: Note) -> None:
        tally.add()

    async with PgMqBackend(url, config, Note) as backend, asyncio.TaskGroup() as group:
        worker = WorkerBuilder("bench").backend(backend).concurrency(concurrency).build(handle)
        group.create_task(worker.run())
        await until(lambda: tally.handled, count, "the worker")
        worker.stop()


async def _loop(url: str, config: Config, tally: Tally) -> None:
    async with BareQueue(url, config.queue) as bare:
        await bare.drain(tally.add)


async def _transactions(url: str, config: Config) -> int | None:
    await asyncio.sleep(_UNTIL_REPORTED)
    async with BareQueue(url, config.queue) as bare:
        return await bare.transactions()


def _chunks(count: int) -> list[range]:
    return [range(first, min(first + _FILL, count)) for first in range(0, count, _FILL)]
