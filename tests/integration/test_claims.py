"""Claims that begin where the last one ended lose nothing, and leave nothing behind for long."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from apalis_pgmq import Config, PgMqBackend, PgMqPool, WorkerBuilder
from apalis_pgmq.pgmq import _claims
from apalis_pgmq.pgmq._claims import Claims
from apalis_pgmq.pgmq._listener import Subscription

from .conftest import Email, running
from .resting import Catcher, raw_insert

Eventually = Callable[..., Awaitable[None]]

BACKLOG = 1000
LATEST = 2.5
"""Seconds from when a message is visible: it is looked for every second."""


class Stream:
    """Messages that never cease, and how they were claimed."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.others = Catcher()
        self.handled = 0
        self.bounded = 0
        self.unbounded = 0

    async def __call__(self, message: Email) -> None:
        if message.to != "stream":
            await self.others(message)
        self.handled += 1
        await asyncio.sleep(0.01)

    async def got(self, to: str) -> None:
        """Wait for another message, which is visible by now, or is soon."""
        await self.others.got(to, within=LATEST)


@pytest.fixture
async def stream(
    pgmq_url: str, queue: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> AsyncIterator[Stream]:
    """A worker that is kept busy for the length of the test, and never finds its queue empty."""
    stream = Stream(queue)
    claim_on, claim_rest = Claims._claim_on, Claims._claim_rest

    async def on(claims: Claims, limit: int) -> Any:
        stream.bounded += claims._begin != _claims.EVER
        return await claim_on(claims, limit)

    async def rest(claims: Claims, limit: int) -> Any:
        stream.unbounded += 1
        return await claim_rest(claims, limit)

    async def produce(backend: PgMqBackend[Email]) -> None:
        sent = 0
        while True:
            if sent - stream.handled < BACKLOG:
                await backend.push_many([Email("stream")] * 100)
                sent += 100
            else:
                await asyncio.sleep(0.002)

    monkeypatch.setattr(Claims, "_claim_on", on)
    monkeypatch.setattr(Claims, "_claim_rest", rest)
    async with (
        PgMqBackend(pgmq_url, Config(queue, visibility_timeout=60), Email) as backend,
        running(WorkerBuilder("w").backend(backend).concurrency(50).build(stream)),
    ):
        producer = asyncio.create_task(produce(backend))
        try:
            await eventually(lambda: stream.bounded >= 10)
            stream.bounded = stream.unbounded = 0
            yield stream
            assert not producer.done()
            assert stream.bounded > 5 * stream.unbounded, "the queue was empty now and then"
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)


async def test_what_turns_visible_late_is_found_under_load(stream: Stream, db: asyncpg.Connection) -> None:
    for number in range(4):
        await raw_insert(db, stream.queue, f"late {number}", vt="now() - interval '1 h'")
        await stream.got(f"late {number}")


async def test_many_that_turn_visible_late_are_all_found_under_load(
    stream: Stream, db: asyncpg.Connection
) -> None:
    await db.execute(
        f"INSERT INTO pgmq.q_{stream.queue} (vt, message) SELECT now() - interval '1 h', "
        "jsonb_build_object('to', 'late ' || n) FROM generate_series(1, 300) AS n"
    )
    await asyncio.gather(*(stream.got(f"late {number}") for number in range(1, 301)))


async def test_a_transaction_that_commits_late_is_found_under_load(
    stream: Stream, db: asyncpg.Connection
) -> None:
    async with db.transaction():
        await raw_insert(db, stream.queue, "raw")
        await db.execute(
            "SELECT pgmq.send($1::text, jsonb_build_object('to', 'sent'), NULL::jsonb, 0::int)", stream.queue
        )
        await asyncio.sleep(2)
        assert not stream.others.at
    await stream.got("raw")
    await stream.got("sent")


class TestManyDeadEntries:
    """Where looking from the beginning is expensive, it is done now and then only."""

    @pytest.fixture(autouse=True)
    def expensive(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_claims, "_CHEAP", -1.0)

    async def test_what_is_a_little_late_is_found_as_ever(
        self, stream: Stream, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_claims, "_SHARE", 1e-9)  # never again
        await asyncio.sleep(2)
        for number in range(2):
            await raw_insert(db, stream.queue, f"late {number}", vt="now() - interval '0.5 s'")
            await stream.got(f"late {number}")
        ancient = await raw_insert(db, stream.queue, "ancient", vt="now() - interval '1 h'")
        await asyncio.sleep(LATEST)
        assert "ancient" not in stream.others.at
        await db.execute(f"DELETE FROM pgmq.q_{stream.queue} WHERE msg_id = $1", ancient)

    async def test_what_is_very_late_is_found_as_well(
        self, stream: Stream, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_claims, "_SHARE", 1 / 1000)
        await asyncio.sleep(2)
        await raw_insert(db, stream.queue, "ancient", vt="now() - interval '1 h'")
        await stream.others.got("ancient", within=20)

    async def test_so_it_is_by_an_idle_worker(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_claims, "_SHARE", 1 / 1000)
        catcher = Catcher()
        async with PgMqBackend(pgmq_url, queue, Email) as backend, running(catcher.worker(backend)):
            for number in range(3):
                await backend.push(Email(f"now {number}"))
                await raw_insert(db, queue, f"ancient {number}", vt="now() - interval '1 h'")
                await catcher.got(f"now {number}")
                await catcher.got(f"ancient {number}", within=20)


async def test_a_lease_that_ends_is_found_under_load(stream: Stream, db: asyncpg.Connection) -> None:
    for number in range(2):
        lost = await raw_insert(db, stream.queue, f"lost {number}", vt="now() + interval '1 h'", read_ct=1)
        await db.execute(
            f"UPDATE pgmq.q_{stream.queue} SET vt = now() + interval '1 s' WHERE msg_id = $1", lost
        )
        await asyncio.sleep(0.9)
        assert f"lost {number}" not in stream.others.at
        await stream.got(f"lost {number}")


async def test_delayed_messages_fall_due_under_load(
    stream: Stream, pgmq_url: str, queue: str, db: asyncpg.Connection
) -> None:
    async with PgMqBackend(pgmq_url, queue, Email) as other:
        for number in range(3):
            await other.push(Email(f"due {number}"), delay=0.5 + 0.5 * number)
    began = time.monotonic()
    for number in range(3):
        await stream.others.got(f"due {number}", within=0.5 + 0.5 * number + LATEST)
        assert stream.others.at[f"due {number}"][0] - began > 0.3 + 0.5 * number


def _claims_of(pool: PgMqPool, backend: PgMqBackend[Email], *, is_announced: bool = False) -> Claims:
    subscription = Subscription(backend.queue, lambda: None, lambda: 0.0)
    subscription.is_heard = subscription.is_announced = is_announced
    assert backend._statements is not None
    return Claims(pool.claiming.lane(backend.queue), backend.config, backend._statements, subscription)


@pytest.fixture
async def two(pgmq_url: str, queue: str) -> AsyncIterator[tuple[PgMqBackend[Email], Claims, Claims]]:
    """A queue, and two that claim from it."""
    async with PgMqPool(pgmq_url) as pool, PgMqBackend(pool, queue, Email) as backend:
        pair = _claims_of(pool, backend), _claims_of(pool, backend, is_announced=True)
        yield backend, *pair
        for one in pair:
            await one.close()


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_comes_in_whatever_order_is_claimed_once(
    two: tuple[PgMqBackend[Email], Claims, Claims],
    db: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """Old and new messages, in transactions that commit in another order than they began in."""
    backend, *both = two
    chance = random.Random(seed)
    # Often enough for a short test.
    monkeypatch.setattr(_claims, "_SWEEP_INTERVAL", 0.01)
    claimed: Counter[int] = Counter()
    open_one = db.transaction()
    await open_one.start()
    is_open = True
    bounded = 0

    async def claim(one: Claims) -> int:
        nonlocal bounded
        bounded += one._is_busy and one._begin != _claims.EVER
        limit = chance.choice([1, 5, 20, 50, 100])
        got = (await one.claim(limit)).claims
        assert len(got) <= limit
        claimed.update(one.id for one in got)
        return len(got)

    for _ in range(60):
        match chance.randrange(6):
            case 0:
                await backend.push_many([Email("new")] * chance.randrange(1, 150))
            case 1:
                async with backend._pool.sending.lane("").connection() as connection:
                    old = f"now() - interval '{chance.randrange(1, 5000)} ms'"
                    await raw_insert(connection, backend.queue, "old", vt=old)
            case 2 if is_open:
                await raw_insert(db, backend.queue, "late", vt="now() - interval '1 ms'")
                if chance.random() < 0.3:
                    await open_one.commit()
                    is_open = False
            case 3:
                await asyncio.gather(*map(claim, both))
            case _:
                await claim(chance.choice(both))
    if is_open:
        await open_one.commit()
    # Empty is what both find empty, however busy they were.
    while await claim(both[0]) + await claim(both[1]):
        pass
    there = {row[0] for row in await db.fetch(f"SELECT msg_id FROM pgmq.q_{backend.queue}")}
    assert claimed == Counter(there)
    assert bounded


async def test_20_000_messages_of_one_time_are_each_claimed_once_and_in_order(
    two: tuple[PgMqBackend[Email], Claims, Claims], db: asyncpg.Connection
) -> None:
    backend, first, second = two
    await db.execute(
        "SELECT pgmq.send_batch($1::text, array_agg(jsonb_build_object('to', n::text)), 0::int) "
        "FROM generate_series(1, 20000) AS n",
        backend.queue,
    )
    assert await db.fetchval(f"SELECT count(DISTINCT vt) FROM pgmq.q_{backend.queue}") == 1
    claimed: list[int] = []
    while claims := (await first.claim(700)).claims:
        claimed += [claim.id for claim in claims]
        claimed += [claim.id for claim in (await second.claim(300)).claims]
    assert len(claimed) == len(set(claimed)) == 20_000
    assert claimed == sorted(claimed)


async def test_a_claim_goes_on_where_the_last_one_ended(
    two: tuple[PgMqBackend[Email], Claims, Claims], db: asyncpg.Connection
) -> None:
    """So it does not see what is before, until it looks back."""
    backend, first, _ = two
    await backend.push_many([Email("new")] * 200)
    await asyncio.sleep(0.1)
    assert len((await first.claim(50)).claims) == 50
    old = await raw_insert(db, backend.queue, "old", vt="now() - interval '1 h'")
    assert old not in {claim.id for claim in (await first.claim(50)).claims}
    # Nothing is left but this one: it looks from the beginning.
    claims = (await first.claim(150)).claims
    ids = {claim.id for claim in claims} | {claim.id for claim in (await first.claim(150)).claims}
    assert old in ids


async def test_a_lull_ends_the_load(
    two: tuple[PgMqBackend[Email], Claims, Claims], db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, first, _ = two
    await backend.push_many([Email("new")] * 200)
    assert len((await first.claim(50)).claims) == 50
    monkeypatch.setattr(first, "_claimed_at", first._claimed_at - 2)
    old = await raw_insert(db, backend.queue, "old", vt="now() - interval '1 h'")
    assert old in {claim.id for claim in (await first.claim(50)).claims}
