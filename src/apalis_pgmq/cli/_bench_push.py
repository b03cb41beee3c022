"""How many messages can be sent, and what the server itself allows."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from apalis_pgmq.pgmq import BareQueue, PgMqBackend, PgMqQueues

from ._bench_common import ROUNDS, Note, Pair, bench_queue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._bench_common import Tell

SENDERS: Final = 16

_PAYLOAD: Final = '{"number": 0}'
_SAMPLES: Final = 100
_SAMPLING: Final = 2.0
"""Seconds after which no further sample is taken."""


@dataclass(frozen=True, slots=True)
class Push:
    """How many messages per second were sent durably.

    Attributes:
        single: one by one, by so many coroutines over one backend, and over as many connections.
        many: all by one call, beside the same connections.
    """

    single: Pair
    many: Pair


@dataclass(frozen=True, slots=True)
class Server:
    """What the server allows.

    Attributes:
        version: such as 18.1.
        round_trip: milliseconds of ``SELECT 1``.
        commit: milliseconds of the least transaction that waits for the disk.
    """

    version: str
    round_trip: float
    commit: float


async def measure_server(url: str, tell: Tell) -> Server:
    """Measure what every statement has to wait for.

    Raises:
        PgMqError: the server refuses or does not answer.
    """
    tell("asking the server for next to nothing")
    async with bench_queue(url) as config:
        async with PgMqQueues(url) as queues:
            await queues.create(config.queue, notify=False)
        async with BareQueue(url, config.queue) as bare:
            return Server(
                bare.server_version, await _milliseconds(bare.round_trip), await _milliseconds(bare.commit)
            )


async def measure_push(url: str, count: int, seconds: float, tell: Tell) -> Push:
    """Send by apalis-pgmq and by bare inserts in turns, so long by each, and ``count`` messages at once.

    Raises:
        PgMqError: the server refuses or does not answer.
    """
    ours: list[float] = []
    bare: list[float] = []
    many: list[float] = []
    async with AsyncExitStack() as stack:
        mine = await stack.enter_async_context(bench_queue(url))
        its = await stack.enter_async_context(bench_queue(url))
        backend = await stack.enter_async_context(PgMqBackend(url, mine, Note))
        # Without the trigger: a bare insert announces itself.
        async with PgMqQueues(url) as queues:
            await queues.create(its.queue, notify=False)
        loops = [await stack.enter_async_context(BareQueue(url, its.queue)) for _ in range(SENDERS)]

        async def push() -> None:
            await backend.push(Note(0))

        def insert(connection: BareQueue) -> Callable[[], Awaitable[object]]:
            return lambda: connection.insert(_PAYLOAD)

        ways: list[tuple[Sequence[Callable[[], Awaitable[object]]], list[float]]] = [
            ([push] * SENDERS, ours),
            ([insert(connection) for connection in loops], bare),
        ]
        for senders, _ in ways:
            await asyncio.gather(*(send() for send in senders))  # opens connections, prepares statements
        for number in range(ROUNDS):
            tell(f"sending by {SENDERS} at a time, and {count:,} at once, round {number + 1} of {ROUNDS}")
            for senders, rates in ways if number % 2 == 0 else reversed(ways):
                rates.append(await _rate(senders, seconds / ROUNDS))
            notes = [Note(one) for one in range(count)]
            began = time.monotonic()
            await backend.push_many(notes)
            many.append(count / (time.monotonic() - began))
    limit = statistics.median(bare)
    return Push(Pair(statistics.median(ours), limit), Pair(statistics.median(many), limit))


async def _rate(senders: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> float:
    """Have each send one after the other for so long; return how many per second that made."""
    sent = 0
    began = time.monotonic()

    async def keep_sending(send: Callable[[], Awaitable[object]]) -> None:
        nonlocal sent
        while time.monotonic() < began + seconds:
            await send()
            sent += 1

    async with asyncio.TaskGroup() as group:
        for send in senders:
            group.create_task(keep_sending(send))
    return sent / (time.monotonic() - began)


async def _milliseconds(ask: Callable[[], Awaitable[object]]) -> float:
    await ask()  # prepares the statement
    taken: list[float] = []
    until = time.monotonic() + _SAMPLING
    while not taken or (len(taken) < _SAMPLES and time.monotonic() < until):
        began = time.monotonic()
        await ask()
        taken.append((time.monotonic() - began) * 1000)
    return statistics.median(taken)
