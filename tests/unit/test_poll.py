"""A consumer used directly, without a worker."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from apalis_pgmq import ConfigError, DeadLettered, DeadLetterReason

from .support import Email, Events, emails, eventually, memory, steal


async def test_tasks_are_acked_one_by_one() -> None:
    backend = memory()
    await backend.push_many(emails(10))
    seen = []

    async with backend.poll() as consumer:
        async for task in consumer:
            seen.append(task.args.to)
            consumer.ack(task)
            if len(seen) == 10:
                break
        await eventually(lambda: not backend.messages)

    assert seen == [str(number) for number in range(10)]


async def test_leaving_the_block_sees_every_ack_through() -> None:
    backend = memory()
    await backend.push_many(emails(3))

    async with backend.poll() as consumer:
        for _ in range(3):
            consumer.ack(await anext(consumer))

    assert backend.messages == []


async def test_leaving_the_block_hands_back_what_was_not_settled() -> None:
    backend = memory()
    await backend.push_many(emails(3))

    async with backend.poll(capacity=10) as consumer:
        await anext(consumer)

    assert [message.read_ct for message in backend.messages] == [1, 0, 0]
    assert len(list(backend._queue.visible(10))) == 3


async def test_leaving_the_block_by_an_exception_hands_back_too() -> None:
    backend = memory()
    await backend.push(Email("ada"))

    async def take_and_fail() -> None:
        async with backend.poll() as consumer:
            await anext(consumer)
            raise LookupError

    with pytest.raises(LookupError):
        await take_and_fail()

    assert len(list(backend._queue.visible(10))) == 1


async def test_retry_after_a_delay() -> None:
    backend = memory()
    await backend.push(Email("ada"))

    async with backend.poll() as consumer:
        before = datetime.now(UTC)
        consumer.retry(await anext(consumer), after=timedelta(hours=1))

    [message] = backend.messages
    assert message.vt - before >= timedelta(hours=1)
    assert message.read_ct == 1


async def test_retry_without_a_delay_waits_for_the_visibility_timeout() -> None:
    backend = memory(visibility_timeout=600)
    await backend.push(Email("ada"))

    async with backend.poll() as consumer:
        task = await anext(consumer)
        leased_until = backend.messages[0].vt
        consumer.retry(task)

    assert backend.messages[0].vt == leased_until


async def test_dead_letter() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    events = Events()
    error = ValueError("spam")

    async with backend.poll(worker="mine", on_event=events) as consumer:
        consumer.dead_letter(await anext(consumer), DeadLetterReason.ABORTED, error)
        await eventually(lambda: events.of(DeadLettered))

    assert backend.messages == []
    [dead] = await backend.dead_letters()
    assert (dead.reason, dead.error) == ("aborted", "spam")
    assert events.of(DeadLettered)[0].worker == "mine"


@pytest.mark.parametrize(("spend_attempt", "read_ct"), [(True, 1), (False, 0)])
async def test_hand_back_makes_visible_at_once(*, spend_attempt: bool, read_ct: int) -> None:
    backend = memory()
    await backend.push(Email("ada"))

    async with backend.poll() as consumer:
        task = await anext(consumer)
        consumer.stop()
        consumer.hand_back(task, spend_attempt=spend_attempt)

    [message] = backend._queue.visible(10)
    assert message.read_ct == read_ct


async def test_only_the_first_settlement_counts() -> None:
    backend = memory()
    await backend.push_many(emails(2))

    async with backend.poll() as consumer:
        acked, failed = await anext(consumer), await anext(consumer)
        consumer.ack(acked)
        consumer.retry(acked, after=timedelta(0))
        consumer.dead_letter(acked, DeadLetterReason.ABORTED)
        consumer.hand_back(acked, spend_attempt=False)
        consumer.ack(acked)
        consumer.retry(failed, after=timedelta(hours=1))
        consumer.ack(failed)

    assert [message.id for message in backend.messages] == [failed.id]
    assert await backend.dead_letters() == []


async def test_a_task_of_another_consumer_cannot_be_settled() -> None:
    backend = memory()
    await backend.push(Email("ada"))

    async with backend.poll() as first:
        task = await anext(first)
        async with backend.poll() as second:
            second.ack(task)
        assert len(backend.messages) == 1
        first.ack(task)

    assert backend.messages == []


async def test_a_delivery_that_was_lost_cannot_settle_the_next_one() -> None:
    backend = memory(visibility_timeout=0.3)
    message_id = await backend.push(Email("ada"))
    lost = []

    async with backend.poll(on_lost=lost.append) as consumer:
        first = await anext(consumer)
        steal(backend, message_id)
        await eventually(lambda: lost == [message_id])
        backend._queue.show(backend._queue.messages[message_id], datetime.now(UTC))
        consumer.poke()
        second = await anext(consumer)
        consumer.ack(first)
        consumer.retry(second, after=timedelta(hours=1))

    assert (first.attempt, second.attempt) == (1, 3)
    assert [message.id for message in backend.messages] == [message_id]


async def test_stop_ends_the_iteration_of_everybody() -> None:
    backend = memory()

    async def iterate(consumer) -> int:
        return len([task async for task in consumer])

    async with backend.poll() as consumer:
        takers = [asyncio.create_task(iterate(consumer)) for _ in range(3)]
        await asyncio.sleep(0)
        consumer.stop()
        consumer.stop()
        assert await asyncio.gather(*takers) == [0, 0, 0]


async def test_a_consumer_stopped_before_it_opens_yields_nothing() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    consumer = backend.poll()
    consumer.stop()

    async with consumer:
        assert [task async for task in consumer] == []

    assert backend.messages[0].read_ct == 0


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_that_takes_nothing_is_refused(capacity: int) -> None:
    with pytest.raises(ConfigError, match="capacity must be at least 1"):
        memory().poll(capacity=capacity)


async def test_a_backend_in_memory_can_take_the_place_of_one_that_is_opened() -> None:
    async with memory() as backend:
        await backend.setup()
        await backend.push(Email("ada"))
        await backend.close()

    assert len(backend.messages) == 1


async def test_messages_that_come_later_are_yielded() -> None:
    backend = memory(poll_interval=3600)

    async with backend.poll() as consumer:
        waiting = asyncio.create_task(anext(consumer))
        for _ in range(10):
            await asyncio.sleep(0)
        await backend.push(Email("ada"))
        task = await waiting
        consumer.ack(task)

    assert task.args == Email("ada")
