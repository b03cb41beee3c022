"""The buffer between claiming and handling: no claim lost, no wake-up lost."""

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apalis_pgmq import Attempt, TaskId
from apalis_pgmq.delivery import Claim
from apalis_pgmq.delivery._inbox import Demand, Inbox

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def claims(*ids: int) -> list[Claim]:
    return [Claim(TaskId(one), Attempt(1), NOW, 0.0, "{}", None, NOW) for one in ids]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def take(inbox: Inbox) -> int | None:
    """Wait as a handler does; None once the inbox is closed."""
    while not inbox.claims:
        if inbox.closed:
            return None
        await inbox.arrival()
    return inbox.claims.popleft().id


async def test_first_in_first_out() -> None:
    inbox = Inbox()
    inbox.put(claims(1, 2))
    inbox.put(claims(3))

    assert len(inbox.claims) == 3
    assert [await take(inbox) for _ in range(3)] == [1, 2, 3]
    assert not inbox.claims


async def test_as_many_takers_wake_as_claims_came() -> None:
    inbox = Inbox()
    takers = [asyncio.create_task(inbox.arrival()) for _ in range(3)]
    await turns()

    inbox.put(claims(1, 2))
    await turns()

    assert [taker.done() for taker in takers] == [True, True, False]
    inbox.close()
    await asyncio.gather(*takers)


async def test_a_taker_does_not_wait_for_what_is_there() -> None:
    inbox = Inbox()
    inbox.put(claims(1))

    await asyncio.wait_for(inbox.arrival(), 1)


async def test_a_cancelled_taker_is_not_woken_in_anothers_place() -> None:
    inbox = Inbox()
    cancelled, waiting = (asyncio.create_task(take(inbox)) for _ in range(2))
    await turns()
    cancelled.cancel()
    await turns()

    inbox.put(claims(1))

    assert await asyncio.wait_for(waiting, 1) == 1


async def test_the_wake_up_of_a_taker_that_is_cancelled_at_once_goes_to_another() -> None:
    inbox = Inbox()
    woken, waiting = (asyncio.create_task(take(inbox)) for _ in range(2))
    await turns()

    inbox.put(claims(1))
    woken.cancel()

    assert await asyncio.wait_for(waiting, 1) == 1
    with pytest.raises(asyncio.CancelledError):
        await woken


async def test_a_taker_cancelled_before_it_is_woken_is_passed_over() -> None:
    inbox = Inbox()
    cancelled, waiting = (asyncio.create_task(take(inbox)) for _ in range(2))
    await turns()

    cancelled.cancel()
    inbox.put(claims(1))

    assert await asyncio.wait_for(waiting, 1) == 1


@pytest.mark.parametrize("filled", [False, True])
async def test_close_returns_what_is_left_and_wakes_everybody(*, filled: bool) -> None:
    inbox = Inbox()
    takers = [asyncio.create_task(take(inbox)) for _ in range(3)]
    await turns()
    if filled:
        inbox.put(claims(1, 2))

    left = inbox.close()

    assert [claim.id for claim in left] == ([1, 2] if filled else [])
    assert await asyncio.wait_for(asyncio.gather(*takers), 1) == [None] * 3
    await asyncio.wait_for(inbox.arrival(), 1)


@given(st.lists(st.sampled_from(["put", "taker", "cancel first", "cancel last", "turn"]), max_size=40))
def test_no_claim_waits_while_a_taker_does(steps: list[str]) -> None:
    async def scenario() -> None:
        inbox = Inbox()
        takers: list[asyncio.Task[int | None]] = []
        put = 0
        for step in steps:
            if step == "put":
                put += 1
                inbox.put(claims(put))
            elif step == "taker":
                takers.append(asyncio.create_task(take(inbox)))
            elif step == "turn":
                await asyncio.sleep(0)
            elif waiting := [taker for taker in takers if not taker.done()]:
                waiting[0 if step == "cancel first" else -1].cancel()
        await turns(10)

        waits = any(not taker.done() for taker in takers)
        assert not (len(inbox.claims) and waits)
        left = inbox.close()
        results = await asyncio.gather(*takers, return_exceptions=True)
        taken = [result for result in results if isinstance(result, int)]
        assert sorted([*taken, *(claim.id for claim in left)]) == list(range(1, put + 1))

    asyncio.run(scenario())


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_fresh_demand_fills_every_handler() -> None:
    assert Demand(10, Clock()).limit(buffered=0, held=0) == 10


def test_demand_asks_for_what_is_free() -> None:
    demand = Demand(3, Clock())
    demand.took()
    demand.took()

    assert demand.limit(buffered=0, held=2) == 1
    demand.running -= 1
    assert demand.limit(buffered=0, held=1) == 2


def test_demand_is_none_while_enough_is_buffered() -> None:
    assert Demand(3, Clock()).limit(buffered=1, held=1) == 0


def test_slow_handlers_hold_nothing_in_reserve() -> None:
    clock = Clock()
    demand = Demand(1, clock)
    for _ in range(5):
        demand.took()
        demand.running -= 1
        clock.now += 10
        demand.claimed(0, 0)

    assert demand.limit(buffered=0, held=0) == 1
    demand.took()
    assert demand.limit(buffered=0, held=1) == 0


def test_fast_handlers_get_large_batches() -> None:
    clock = Clock()
    demand = Demand(1, clock)
    for _ in range(500):
        demand.took()
        demand.running -= 1
    clock.now += 0.1
    demand.claimed(0, 0)

    assert 500 <= demand.limit(buffered=0, held=0) <= 503
    assert demand.limit(buffered=249, held=249) >= 251
    assert demand.limit(buffered=255, held=255) == 0


def test_large_messages_are_not_held_in_reserve() -> None:
    clock = Clock()
    demand = Demand(1, clock)
    for _ in range(500):
        demand.took()
        demand.running -= 1
    clock.now += 0.1
    demand.claimed(10, 10 * 4 * 1024 * 1024)

    assert demand.limit(buffered=0, held=0) == 1 + 4

    for _ in range(100):
        for _ in range(500):
            demand.took()
            demand.running -= 1
        clock.now += 0.1
        demand.claimed(10, 1000)

    assert demand.limit(buffered=0, held=0) >= 500


@given(
    capacity=st.integers(1, 1000),
    taken=st.integers(0, 10**6),
    elapsed=st.floats(0, 100),
    buffered=st.integers(0, 5000),
    running=st.integers(0, 1000),
    unstored=st.integers(0, 10000),
)
def test_demand_is_bounded(
    capacity: int, taken: int, elapsed: float, buffered: int, running: int, unstored: int
) -> None:
    clock = Clock()
    demand = Demand(capacity, clock)
    demand._taken = taken
    demand.running = min(running, capacity)
    clock.now += elapsed
    demand.claimed(0, 0)

    limit = demand.limit(buffered=buffered, held=buffered + demand.running + unstored)

    assert 0 <= limit <= capacity + 1000
    if unstored > 4000:
        assert limit == 0
    elif buffered == 0:
        assert limit >= capacity - demand.running
