"""Workers that are left alone until something wakes them, and a look at what they did meanwhile."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from apalis_pgmq import PgMqBackend, Worker, WorkerBuilder
from apalis_pgmq.pgmq import _outlook
from apalis_pgmq.pgmq._claims import Claims
from apalis_pgmq.pgmq._listener import Subscription

from .conftest import Email

PROMPT = 3.0
"""Seconds in which what is awaited comes, on a busy machine too; what nobody announces takes far longer."""
NEVER = 3600
"""A poll interval that helps nobody."""


class Catcher:
    """A handler that remembers when it had what."""

    def __init__(self) -> None:
        self.at: dict[str, list[float]] = defaultdict(list)
        self._arrivals: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def __call__(self, message: Email) -> None:
        self.at[message.to].append(time.monotonic())
        self._arrivals[message.to].set()

    async def got(self, to: str, within: float = PROMPT) -> float:
        """Wait for a message; return when it came, by the monotonic clock."""
        try:
            await asyncio.wait_for(self._arrivals[to].wait(), within)
        except TimeoutError:
            pytest.fail(f"{to!r} did not come within {within} s")
        return self.at[to][0]

    def worker(self, backend: PgMqBackend[Email], name: str = "w", concurrency: int = 5) -> Worker[Email]:
        return WorkerBuilder(name).backend(backend).concurrency(concurrency).build(self)


def subscriptions(backend: PgMqBackend[Email]) -> list[Subscription]:
    return list(backend._pool.listener._subscriptions)


class Rest:
    """Counts the claims of all workers of the process, and waits until none of them claims any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._under_way = 0
        self._last = time.monotonic()
        claim_rest, claim_on = Claims._claim_rest, Claims._claim_on

        def counted(
            claim: Callable[[Claims, int], Awaitable[Any]],
        ) -> Callable[[Claims, int], Awaitable[Any]]:
            async def wrapper(claims: Claims, limit: int) -> Any:
                self.count += 1
                self._under_way += 1
                try:
                    return await claim(claims, limit)
                finally:
                    self._under_way -= 1
                    self._last = time.monotonic()

            return wrapper

        monkeypatch.setattr(Claims, "_claim_rest", counted(claim_rest))
        monkeypatch.setattr(Claims, "_claim_on", counted(claim_on))

    async def __call__(
        self, *backends: PgMqBackend[Email], announced: bool = True, quiet: float = 0.2
    ) -> None:
        """Wait until the workers of these hear of messages, have looked, and rest."""
        async with asyncio.timeout(30):
            while True:
                heard = [
                    one.is_announced if announced else one.is_heard
                    for backend in backends
                    for one in subscriptions(backend)
                ]
                is_quiet = not self._under_way and time.monotonic() - self._last > quiet
                if len(heard) >= len(backends) and all(heard) and is_quiet and self.count:
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch) -> Rest:
    """Workers of a queue that announces its messages leave it alone for half a minute from the first look on."""
    monkeypatch.setattr(_outlook, "SHORTEST_OUTLOOK", 30.0)
    return Rest(monkeypatch)


async def raw_insert(
    db: asyncpg.Connection, queue: str, to: str, *, vt: str = "now()", read_ct: int = 0
) -> int:
    """Send as a program does that does not know us, without PGMQ's functions."""
    number: int = await db.fetchval(
        f'INSERT INTO pgmq."q_{queue.lower()}" (vt, read_ct, message) '
        f"VALUES ({vt}, $2::int, jsonb_build_object('to', $1::text)) RETURNING msg_id",
        to,
        read_ct,
    )
    return number


async def pgmq_send(db: asyncpg.Connection, queue: str, to: str) -> None:
    await db.execute(
        "SELECT pgmq.send($1::text, jsonb_build_object('to', $2::text), NULL::jsonb, 0::int)", queue, to
    )
