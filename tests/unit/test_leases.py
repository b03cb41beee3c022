"""One owner at a time: leases are kept while a message is held, and lost without harm."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from time import monotonic

import pytest

from apalis_pgmq import Idle, LeaseLost, Stalled, Started, Succeeded, Task, TaskId, WorkerBuilder
from apalis_pgmq.delivery import GiveBack
from apalis_pgmq.memory._store import MemoryStore

from .support import (
    PATIENCE,
    Email,
    Events,
    build,
    emails,
    eventually,
    memory,
    running,
    steal,
    within_patience,
)

TIMEOUT = 0.3
"""For leases that are to be lost: short, so that the loss is soon found."""
KEPT = 0.9
"""For leases that are to be kept: long enough for a busy machine to extend them in time."""


async def test_a_handler_that_outlives_its_visibility_timeout_is_delivered_once() -> None:
    backend = memory(visibility_timeout=KEPT)
    await backend.push(Email("ada"))
    deliveries = []
    ends = []

    async def handler(message: Email, task: Task[Email]) -> None:
        deliveries.append(task.attempt)
        first_end = task.visible_until
        while len(ends) < 4:
            if task.visible_until not in (first_end, *ends):
                ends.append(task.visible_until)
            await asyncio.sleep(0.01)

    async with running(build(backend, handler), build(backend, handler)):
        await eventually(lambda: not backend.messages)

    assert deliveries == [1]
    assert ends == sorted(ends)


async def test_a_sync_handler_that_outlives_its_visibility_timeout_is_delivered_once() -> None:
    backend = memory(visibility_timeout=KEPT)
    await backend.push(Email("ada"))
    release = threading.Event()
    deliveries = []

    def handler(message: Email) -> None:
        deliveries.append(message)
        assert release.wait(PATIENCE)

    async with running(build(backend, handler), build(backend, handler)):
        await eventually(lambda: deliveries)
        first_end = backend.messages[0].vt
        await eventually(lambda: (backend.messages[0].vt - first_end).total_seconds() > 3 * KEPT)
        release.set()
        await eventually(lambda: not backend.messages)

    assert len(deliveries) == 1


@pytest.mark.usefixtures("one_ahead")
async def test_a_buffered_message_is_kept_too() -> None:
    backend = memory(visibility_timeout=KEPT)
    await backend.push_many(emails(2))
    release = asyncio.Event()
    attempts = []

    async def handler(message: Email, task: Task[Email]) -> None:
        attempts.append(task.attempt)
        await release.wait()

    async with running(build(backend, handler, concurrency=1)):
        await eventually(lambda: sum(message.read_ct for message in backend.messages) == 2)
        first_ends = [message.vt for message in backend.messages]
        await eventually(
            lambda: all(
                (message.vt - end).total_seconds() > 2 * KEPT
                for message, end in zip(backend.messages, first_ends, strict=True)
            )
        )
        release.set()
        await eventually(lambda: not backend.messages)

    assert attempts == [1, 1]


async def test_the_messages_of_a_dead_worker_come_back_within_their_visibility_timeout() -> None:
    backend = memory(visibility_timeout=TIMEOUT)
    message_id = await backend.push(Email("ada"))
    [message] = backend._queue.visible(1)
    message.read_ct += 1
    backend._queue.show(message, datetime.now(UTC) + backend.config.visibility_timeout)
    attempts = []

    async def handler(message: Email, task: Task[Email]) -> None:
        attempts.append((task.id, task.attempt))

    async with running(build(backend, handler)):
        await eventually(lambda: not backend.messages)

    assert attempts == [(message_id, 2)]


async def test_a_lost_lease_cancels_the_handler_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    backend = memory(visibility_timeout=TIMEOUT)
    message_id = await backend.push(Email("ada"))
    started, cancelled = asyncio.Event(), asyncio.Event()
    events = Events()

    async def handler(message: Email) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with running(WorkerBuilder("worker").backend(backend).on_event(events).build(handler)):
        await within_patience(started)
        steal(backend, message_id)
        with caplog.at_level(logging.WARNING, "apalis_pgmq"):
            await within_patience(cancelled)
            await eventually(lambda: events.of(LeaseLost))

    [lost] = events.of(LeaseLost)
    assert (lost.id, lost.attempt) == (message_id, 1)
    assert "Failed" not in events.names
    assert "lost the lease of message 1" in caplog.text
    assert [message.id for message in backend.messages] == [message_id]
    assert backend.messages[0].read_ct == 2


@pytest.mark.parametrize("outcome", ["ack", "failure"])
async def test_what_a_handler_does_after_losing_its_lease_changes_nothing(outcome: str) -> None:
    backend = memory(visibility_timeout=TIMEOUT, max_retries=0)
    message_id = await backend.push(Email("ada"))
    started, ended = asyncio.Event(), asyncio.Event()
    events = Events()

    async def handler(message: Email) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            if outcome == "failure":
                raise ValueError("late") from None

    async with running(WorkerBuilder("worker").backend(backend).on_event(events).build(handler)):
        await within_patience(started)
        steal(backend, message_id)
        await within_patience(ended)
        await backend.push(Email("next"))
        started.clear()
        await within_patience(started)
        steal(backend, message_id + 1)
        await eventually(lambda: len(events.of(LeaseLost)) == 2)

    assert [message.id for message in backend.messages] == [message_id, message_id + 1]
    assert await backend.dead_letters() == []
    assert not events.of(Succeeded)


@pytest.mark.parametrize(("claims_more", "later_by"), [(1, 60), (1, 0), (0, 60)])
async def test_the_ack_of_a_message_that_another_has_changes_nothing(claims_more: int, later_by: int) -> None:
    backend = memory()
    await backend.push(Email("ada"))
    events = Events()

    async def handler(message: Email) -> None:
        [stored] = backend.messages
        stored.read_ct += claims_more
        stored.vt += timedelta(seconds=later_by)

    async with running(WorkerBuilder("worker").backend(backend).on_event(events).build(handler)):
        await eventually(lambda: events.of(LeaseLost))

    assert len(backend.messages) == 1


async def test_a_worker_goes_on_after_a_lost_lease() -> None:
    backend = memory(visibility_timeout=TIMEOUT)
    first = await backend.push(Email("first"))
    started = asyncio.Event()
    done = []
    events = Events()

    async def handler(message: Email) -> None:
        if message.to == "first":
            started.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0.01)
        done.append(message.to)

    worker = WorkerBuilder("worker").backend(backend).concurrency(1).on_event(events).build(handler)
    async with running(worker):
        await within_patience(started)
        steal(backend, first)
        await backend.push_many(emails(20))
        await eventually(lambda: [message.id for message in backend.messages] == [first])

    assert len(done) == 20
    assert len(events.of(Started)) == 1


async def test_a_handler_that_hangs_beyond_max_lease_is_cancelled_and_its_message_delivered_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = memory(visibility_timeout=TIMEOUT, max_lease=TIMEOUT)
    await backend.push(Email("ada"))
    attempts = []

    async def handler(message: Email, task: Task[Email]) -> None:
        attempts.append(task.attempt)
        if task.attempt == 1:
            await asyncio.Event().wait()

    async with running(build(backend, handler)):
        await eventually(lambda: not backend.messages)

    assert attempts == [1, 2]
    assert "has been held for longer than max_lease" in caplog.text


async def test_a_blocked_event_loop_is_told(caplog: pytest.LogCaptureFixture) -> None:
    backend = memory(visibility_timeout=TIMEOUT)
    events = Events()

    async def nothing(message: Email) -> None: ...

    async with running(WorkerBuilder("worker").backend(backend).on_event(events).build(nothing)):
        await eventually(lambda: events.of(Idle))
        blocked_until = monotonic() + TIMEOUT
        while monotonic() < blocked_until:
            pass
        await eventually(lambda: events.of(Stalled))

    assert events.of(Stalled)[0].seconds > 0
    assert "something blocked the event loop for" in caplog.text


async def test_a_message_removed_by_hand_cancels_its_handler() -> None:
    backend = memory(visibility_timeout=TIMEOUT)
    message_id = await backend.push(Email("ada"))
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handler(message: Email) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with running(build(backend, handler)):
        await within_patience(started)
        del backend._queue.messages[message_id]
        await within_patience(cancelled)


async def test_a_worker_that_claims_its_own_message_again_goes_on_with_it() -> None:
    backend = memory(visibility_timeout=30)
    started = []
    release = asyncio.Event()

    async def handler(message: Email) -> None:
        started.append(message)
        await release.wait()

    worker = build(backend, handler)
    async with running(worker):
        await backend.push(Email("ada"))
        await eventually(lambda: started)
        [message] = backend.messages
        # As after an outage that was longer than the visibility timeout.
        backend._queue.show(message, message.vt - timedelta(seconds=60))
        await eventually(lambda: message.read_ct == 2)
        release.set()
        await eventually(lambda: not backend.messages)
    assert len(started) == 1
    assert (worker.stats.succeeded, worker.stats.leases_lost) == (1, 0)


async def test_a_worker_does_not_go_on_with_what_another_had_meanwhile() -> None:
    backend = memory(visibility_timeout=30)
    started = []
    release = asyncio.Event()

    async def handler(message: Email) -> None:
        started.append(message)
        if len(started) == 1:
            await release.wait()

    worker = build(backend, handler)
    async with running(worker):
        await backend.push(Email("ada"))
        await eventually(lambda: started)
        [message] = backend.messages
        message.read_ct += 1
        backend._queue.show(message, message.vt - timedelta(seconds=60))
        await eventually(lambda: not backend.messages)
    assert len(started) == 2
    assert worker.stats.leases_lost == 1


@pytest.mark.parametrize("give_back", ["retry", "hand_back"])
async def test_a_message_that_is_claimed_anew_before_its_return_is_known_is_handled(
    give_back: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = memory(visibility_timeout=30)
    original = MemoryStore.give_back
    answer = asyncio.Event()

    async def with_a_late_answer(self: MemoryStore, returns: Sequence[GiveBack]) -> AbstractSet[TaskId]:
        done = await original(self, returns)
        await answer.wait()
        return done

    monkeypatch.setattr(MemoryStore, "give_back", with_a_late_answer)
    await backend.push(Email("ada"))
    events = Events()
    async with backend.poll(on_event=events) as consumer:
        first = await anext(consumer)
        if give_back == "retry":
            consumer.retry(first, after=timedelta(0))
        else:
            consumer.hand_back(first, spend_attempt=False)
        async with asyncio.timeout(PATIENCE):
            second = await anext(consumer)
        answer.set()
        assert second.attempt == (2 if give_back == "retry" else 1)
        assert consumer.ack(second)
        await eventually(lambda: not backend.messages)
    assert not events.of(LeaseLost)
