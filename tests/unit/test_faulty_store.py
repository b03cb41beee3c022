"""A store that is away, ambiguous or refuses: nothing is lost, nothing is lied about, everything ends."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from apalis_pgmq import (
    ApalisError,
    Attempt,
    DeadLettered,
    Failed,
    LeaseLost,
    Started,
    TaskId,
    Worker,
    WorkerBuilder,
)
from apalis_pgmq.delivery import Claim, _consumer

from .support import (
    PATIENCE,
    Email,
    Events,
    FaultyBackend,
    away,
    build,
    emails,
    eventually,
    refused,
    running,
)


async def nothing(message: Email) -> None: ...


def with_events(
    backend: FaultyBackend, handler: Any = nothing, *, concurrency: int = 10
) -> tuple[Worker[Any], Events]:
    events = Events()
    builder = WorkerBuilder("worker").backend(backend).concurrency(concurrency).on_event(events)
    return builder.build(handler), events


def messages(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


@pytest.mark.parametrize("statement", ["open", "claim", "finish"])
async def test_a_store_that_was_away_is_waited_for(statement: str, caplog: pytest.LogCaptureFixture) -> None:
    backend = FaultyBackend()
    backend.store.before[statement].extend([away()] * 3)
    await backend.push_many(emails(5))
    handled = []

    async def handler(message: Email) -> None:
        handled.append(message.to)

    with caplog.at_level(logging.INFO, "apalis_pgmq"):
        async with running(build(backend, handler)):
            await eventually(lambda: not backend.messages)

    assert sorted(handled) == ["0", "1", "2", "3", "4"]
    assert len(messages(caplog, "is unavailable")) == 1
    assert len(messages(caplog, "is available again")) == 1


async def test_acks_of_an_outage_are_stored_late_and_the_handler_runs_once() -> None:
    backend = FaultyBackend(visibility_timeout=30)
    await backend.push_many(emails(20))
    backend.store.always["finish"] = away()
    worker, events = with_events(backend)

    async with running(worker):
        await eventually(lambda: backend.store.calls["finish"] >= 2)
        assert len(backend.messages) == 20
        del backend.store.always["finish"]
        await eventually(lambda: not backend.messages)

    assert events.names.count("Succeeded") == 20
    assert not events.of(LeaseLost)


async def test_an_ack_that_was_carried_out_and_then_broke_is_not_a_lost_lease() -> None:
    backend = FaultyBackend()
    await backend.push_many(emails(5))
    backend.store.after["finish"].append(away())
    worker, events = with_events(backend)

    async with running(worker):
        await eventually(lambda: backend.store.calls["present"])
        await eventually(lambda: not backend.messages)

    assert not events.of(LeaseLost)


async def test_an_ack_that_broke_and_lost_its_lease_meanwhile_is_told() -> None:
    backend = FaultyBackend()
    await backend.push(Email("ada"))
    backend.store.before["finish"].append(away())
    worker, events = with_events(backend)

    async with running(worker):
        await eventually(lambda: backend.store.calls["finish"] == 1)
        backend.messages[0].read_ct += 1
        await eventually(lambda: events.of(LeaseLost))

    assert len(backend.messages) == 1


async def test_a_dead_lettering_that_was_carried_out_and_then_broke_is_told_once() -> None:
    backend = FaultyBackend(max_retries=0)
    await backend.push(Email("ada"))
    backend.store.after["bury"].append(away())

    async def handler(message: Email) -> None:
        raise ValueError

    worker, events = with_events(backend, handler)
    async with running(worker):
        await eventually(lambda: events.of(DeadLettered))

    assert len(await backend.dead_letters()) == 1
    assert len(events.of(DeadLettered)) == 1
    assert not events.of(LeaseLost)


async def test_a_hand_back_that_was_carried_out_and_then_broke_is_no_loss() -> None:
    backend = FaultyBackend()
    await backend.push(Email("ada"))
    backend.store.after["give_back"].append(away())
    lost: list[TaskId] = []
    events = Events()

    async with backend.poll(on_event=events, on_lost=lost.append) as consumer:
        task = await anext(consumer)
        consumer.stop()
        consumer.hand_back(task, spend_attempt=False)
        await eventually(lambda: backend.store.calls["give_back"] == 2)

    assert [message.read_ct for message in backend.messages] == [0]
    assert not lost
    assert not events.of(LeaseLost)


@pytest.mark.parametrize("statement", ["open", "claim", "finish", "extend"])
async def test_a_final_error_ends_the_worker(statement: str) -> None:
    backend = FaultyBackend(visibility_timeout=0.3)
    await backend.push(Email("ada"))
    error = refused()
    backend.store.always[statement] = error

    async def handler(message: Email) -> None:
        if statement == "extend":
            await eventually(lambda: backend.store.calls["extend"])

    worker, events = with_events(backend, handler)
    with pytest.raises(ApalisError) as caught:
        await asyncio.wait_for(worker.run(), PATIENCE)

    assert caught.value is error
    assert events[-1].error is error
    assert backend.store.closed


async def test_a_final_error_lets_running_handlers_finish() -> None:
    backend = FaultyBackend()
    await backend.push(Email("ada"))
    release = asyncio.Event()
    finished = []

    async def handler(message: Email) -> None:
        backend.store.always["claim"] = refused()
        await release.wait()
        finished.append(message)

    run = asyncio.create_task(build(backend, handler).run())
    await eventually(lambda: "claim" in backend.store.always)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not run.done()
    release.set()
    with pytest.raises(ApalisError, match="permission denied"):
        await asyncio.wait_for(run, PATIENCE)

    assert len(finished) == 1
    assert backend.messages == []


async def test_an_ack_refused_while_closing_fails_the_worker() -> None:
    backend = FaultyBackend()
    await backend.push(Email("ada"))
    backend.store.always["finish"] = refused()

    async def handler(message: Email) -> None:
        worker.stop()
        await asyncio.sleep(0)

    worker = build(backend, handler, concurrency=1)

    with pytest.raises(ApalisError, match="permission denied"):
        await asyncio.wait_for(worker.run(), PATIENCE)


async def test_closing_waits_for_an_outcome_that_is_being_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FaultyBackend()
    await backend.push(Email("ada"))
    storing, release = asyncio.Event(), asyncio.Event()
    store = backend.store.finish

    async def finish(claims: Sequence[Claim]) -> Any:
        storing.set()
        await release.wait()
        return await store(claims)

    monkeypatch.setattr(backend.store, "finish", finish)
    worker = build(backend, nothing)
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(storing.wait(), PATIENCE)
    worker.stop()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not backend.store.closed
    release.set()
    await asyncio.wait_for(run, PATIENCE)

    assert backend.messages == []


async def test_a_refusal_while_closing_does_not_wait_for_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_consumer, "_CLOSE_TIMEOUT", 3600)
    backend = FaultyBackend()
    await backend.push(Email("ada"))
    closing = asyncio.Event()
    refusing = refused()

    async def finish(claims: Sequence[Claim]) -> Any:
        await closing.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        raise refusing

    monkeypatch.setattr(backend.store, "finish", finish)

    async def handler(message: Email) -> None:
        worker.stop()
        closing.set()

    worker = build(backend, handler, concurrency=1)
    async with asyncio.timeout(5):
        await asyncio.gather(worker.run(), return_exceptions=True)


async def test_a_message_that_cannot_be_dead_lettered_stays_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = FaultyBackend(max_retries=0)
    await backend.push_many([Email("bad"), Email("good")])
    backend.store.always["bury"] = refused()

    async def handler(message: Email) -> None:
        if message.to == "bad":
            raise ValueError

    worker, events = with_events(backend, handler)
    async with running(worker):
        await eventually(lambda: len(backend.messages) == 1)
        await eventually(lambda: backend.store.calls["bury"])
        await eventually(lambda: "cannot be dead-lettered and stay in the queue" in caplog.text)
        await backend.push(Email("another good"))
        await eventually(lambda: len(backend.messages) == 1)

    assert backend.messages[0].payload == '{"to":"bad"}'
    assert "permission denied" in caplog.text
    assert events.of(Failed)
    assert not events.of(DeadLettered)


async def test_it_is_dead_lettered_once_that_is_possible() -> None:
    backend = FaultyBackend(max_retries=0, visibility_timeout=0.3)
    await backend.push(Email("bad"))
    backend.store.before["bury"].append(refused())
    handled = []

    async def handler(message: Email) -> None:
        handled.append(message)
        raise ValueError

    async with running(build(backend, handler)):
        await eventually(lambda: not backend.messages)

    assert len(handled) == 1
    [dead] = await backend.dead_letters()
    assert dead.reason == "deliveries-exhausted"


async def test_closing_with_an_unreachable_store_ends_within_its_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_consumer, "_CLOSE_TIMEOUT", 0.2)
    backend = FaultyBackend()
    await backend.push_many(emails(3))
    handled = []

    async def handler(message: Email) -> None:
        backend.store.always.update(dict.fromkeys(("finish", "claim", "give_back"), away()))
        handled.append(message)

    worker = build(backend, handler)
    run = asyncio.create_task(worker.run())
    await eventually(lambda: len(handled) == 3)
    worker.stop()
    await asyncio.wait_for(run, PATIENCE)

    assert backend.store.closed
    assert len(backend.messages) == 3
    assert "closed before 3 outcomes on queue emails could be stored" in caplog.text


async def test_closing_while_a_claim_hangs_ends_within_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_consumer, "_CLOSE_TIMEOUT", 0.2)
    backend = FaultyBackend()
    hangs = asyncio.Event()

    async def hang(limit: int) -> list[Claim]:
        hangs.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(backend.store, "claim", hang)

    async with running(build(backend, nothing)):
        await asyncio.wait_for(hangs.wait(), PATIENCE)

    assert backend.store.closed


async def test_what_a_claim_under_way_brings_while_stopping_is_handed_back_unspent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = FaultyBackend()
    await backend.push_many(emails(3))
    claiming, release = asyncio.Event(), asyncio.Event()
    claim = backend.store.claim

    async def slow(limit: int) -> list[Claim]:
        claims = await claim(limit)
        claiming.set()
        await release.wait()
        return claims

    monkeypatch.setattr(backend.store, "claim", slow)
    worker = build(backend, nothing)
    run = asyncio.create_task(worker.run())
    await asyncio.wait_for(claiming.wait(), PATIENCE)
    worker.stop()
    for _ in range(10):
        await asyncio.sleep(0)
    release.set()
    await asyncio.wait_for(run, PATIENCE)

    assert [message.read_ct for message in backend.messages] == [0, 0, 0]
    assert len(list(backend._queue.visible(10))) == 3


async def test_stopping_ends_the_wait_for_a_store_that_never_opens() -> None:
    backend = FaultyBackend()
    backend.store.always["open"] = away()

    async with running(build(backend, nothing)):
        await eventually(lambda: backend.store.calls["open"] >= 2)

    assert backend.store.closed


async def test_cancelling_ends_the_wait_for_a_store_that_never_opens() -> None:
    backend = FaultyBackend()
    backend.store.always["open"] = away()
    worker, events = with_events(backend)
    run = asyncio.create_task(worker.run())
    await eventually(lambda: backend.store.calls["open"])
    run.cancel()

    with pytest.raises(asyncio.CancelledError):
        await run

    assert backend.store.closed
    assert not events.of(Started)


@pytest.mark.parametrize("statement", ["open", "claim"])
async def test_a_hint_of_a_message_does_not_end_the_back_off_for_good(statement: str) -> None:
    backend = FaultyBackend()
    backend.store.always[statement] = away()

    async with running(build(backend, nothing)):
        await eventually(lambda: backend.store.calls[statement])
        await backend.push(Email("ada"))
        await asyncio.sleep(0.3)
        tried = backend.store.calls[statement]

    assert tried < 15


async def test_a_keepers_outage_loses_no_lease_that_still_stands() -> None:
    backend = FaultyBackend(visibility_timeout=0.9)
    await backend.push(Email("ada"))
    backend.store.before["extend"].append(away())

    async def handler(message: Email) -> None:
        await eventually(lambda: backend.store.calls["extend"] >= 3)

    worker, events = with_events(backend, handler)
    async with running(worker):
        await eventually(lambda: not backend.messages)

    assert not events.of(LeaseLost)


@pytest.mark.usefixtures("one_ahead")
async def test_a_buffered_message_whose_lease_ran_out_is_not_run() -> None:
    backend = FaultyBackend(visibility_timeout=0.3)
    await backend.push_many([Email("first"), Email("buffered")])
    backend.store.always["extend"] = away()
    deliveries = []

    async def handler(message: Email, attempt: Attempt) -> None:
        deliveries.append((message.to, attempt))
        if message.to == "first":
            await eventually(lambda: backend.messages[1].read_ct == 1)
            await eventually(lambda: backend.messages[1].vt < datetime.now(UTC))

    worker, events = with_events(backend, handler, concurrency=1)
    async with running(worker):
        await eventually(lambda: not backend.messages)

    assert deliveries == [("first", 1), ("buffered", 2)]
    assert [lost.id for lost in events.of(LeaseLost)] == [2]


async def test_losing_a_flood_of_late_acks_does_not_stop_the_claiming(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "apalis_pgmq")
    backend = FaultyBackend()
    release = asyncio.Event()
    handled = 0

    async def handler(message: Email) -> None:
        nonlocal handled
        handled += 1

    finish = backend.store.finish

    async def all_lost(claims: Sequence[Claim]) -> Any:
        await release.wait()
        for claim in claims:
            if (message := backend._queue.messages.pop(claim.id, None)) is not None:
                message.read_ct += 1
        return await finish(claims)

    monkeypatch.setattr(backend.store, "finish", all_lost)
    await backend.push_many(emails(9000))
    async with running(build(backend, handler, concurrency=100)):
        await eventually(lambda: handled > 4000)
        await asyncio.sleep(0.05)
        assert handled < 9000
        release.set()
        await eventually(lambda: handled == 9000, within=5)
