"""Batch handlers."""

import asyncio
import time

import pytest

from apalis_pgmq import (
    AbortError,
    Attempt,
    Batch,
    Config,
    ConfigError,
    Data,
    Event,
    Failed,
    HandlerError,
    LeaseLost,
    MemoryBackend,
    Next,
    RetryAfterError,
    Succeeded,
    Task,
    WorkerBuilder,
    WorkerContext,
)

from .support import eventually, steal


@pytest.fixture
def backend() -> MemoryBackend[int]:
    return MemoryBackend(Config("q", visibility_timeout=30, poll_interval=0.01, max_retries=2), int)


def test_a_batch_is_a_sequence_of_tasks() -> None:
    tasks = [Task(number) for number in range(3)]
    batch = Batch(tasks)
    assert list(batch) == tasks
    assert (len(batch), batch[1], batch[1:]) == (3, tasks[1], tuple(tasks[1:]))
    assert batch.messages == [0, 1, 2]


def test_the_last_word_on_a_task_counts() -> None:
    task = Task(1)
    batch = Batch([task])
    error = ValueError()
    batch.done(task)
    batch.fail(task, error)
    assert batch.outcome(task) is error
    batch.done(task)
    assert batch.outcome(task, raised=error) is None
    assert batch.outcome(task, raised=error, rolled_back=True) is error


async def test_messages_are_handled_together_and_removed(backend: MemoryBackend[int]) -> None:
    sizes: list[int] = []
    handled: list[int] = []

    async def handler(batch: Batch[int]) -> None:
        sizes.append(len(batch))
        handled.extend(batch.messages)
        if len(handled) == 25:
            worker.stop()

    worker = WorkerBuilder("w").backend(backend).concurrency(2).batch(10, wait=0.1).build(handler)
    await backend.push_many(range(25))
    async with asyncio.timeout(20):
        await worker.run()
    assert sorted(handled) == list(range(25))
    assert max(sizes) == 10
    assert backend.messages == []
    assert worker.stats.succeeded == 25


async def test_a_batch_does_not_wait_for_ever_to_be_full(backend: MemoryBackend[int]) -> None:
    handled: list[int] = []

    async def handler(batch: Batch[int]) -> None:
        handled.extend(batch.messages)

    worker = WorkerBuilder("w").backend(backend).batch(100, wait=0.05).build(handler)
    run = asyncio.create_task(worker.run())
    await backend.push(1)
    await eventually(lambda: handled == [1])
    worker.stop()
    await run


async def test_single_messages_can_fail(backend: MemoryBackend[int]) -> None:
    events: list[Event] = []
    attempts: list[tuple[int, int]] = []

    async def handler(batch: Batch[int]) -> None:
        for task in batch:
            attempts.append((task.args, task.attempt))
            if task.args == 1 and task.attempt == 1:
                batch.fail(task, RetryAfterError(0))
            if task.args == 2:
                batch.fail(task, AbortError("no"))

    worker = WorkerBuilder("w").backend(backend).batch(10).on_event(events.append).build(handler)
    run = asyncio.create_task(worker.run())
    await backend.push_many(range(4))
    await eventually(lambda: not backend.messages)
    worker.stop()
    await run
    assert attempts.count((1, 1)) == attempts.count((1, 2)) == 1
    assert len(attempts) == 5
    assert sorted(event.id for event in events if isinstance(event, Succeeded)) == [1, 2, 4]
    assert sorted(event.id for event in events if isinstance(event, Failed)) == [2, 3]
    assert worker.stats.dead_lettered == 1


async def test_an_exception_fails_those_that_are_not_done(backend: MemoryBackend[int]) -> None:
    seen: list[list[int]] = []

    async def handler(batch: Batch[int]) -> None:
        seen.append(sorted(batch.messages))
        if len(seen) == 1:
            batch.done(batch[0])
            raise RetryAfterError(0)

    worker = WorkerBuilder("w").backend(backend).concurrency(1).batch(3).build(handler)
    run = asyncio.create_task(worker.run())
    await backend.push_many(range(3))
    await eventually(lambda: not backend.messages)
    worker.stop()
    await run
    assert seen == [[0, 1, 2], [1, 2]]


async def test_synchronous_batch_handlers_and_injection(backend: MemoryBackend[int]) -> None:
    seen: list[object] = []

    def handler(batch: Batch[int], text: Data[str], worker: WorkerContext) -> None:
        time.sleep(0.01)
        seen.append((batch.messages, text, worker.worker))
        worker.stop()

    await backend.push(7)
    worker = WorkerBuilder("w").backend(backend).data("hello").batch(1).build(handler)
    async with asyncio.timeout(20):
        await worker.run()
    assert seen == [([7], "hello", "w")]


async def test_middleware_sees_the_batch_as_one_task(backend: MemoryBackend[int]) -> None:
    seen: list[object] = []

    async def middleware(task: Task[Batch[int]], call_next: Next) -> object:
        seen.append(task.args.messages)
        return await call_next(task)

    async def handler(batch: Batch[int]) -> None:
        worker.stop()

    await backend.push_many([1, 2])
    worker = WorkerBuilder("w").backend(backend).batch(2).middleware(middleware).build(handler)
    async with asyncio.timeout(20):
        await worker.run()
    assert seen == [[1, 2]]


async def test_what_belongs_to_one_task_cannot_be_asked_for(backend: MemoryBackend[int]) -> None:
    async def handler(batch: Batch[int], attempt: Attempt) -> None: ...

    with pytest.raises(HandlerError, match="attempt"):
        WorkerBuilder("w").backend(backend).batch(2).build(handler)


async def test_a_handler_of_single_messages_is_refused(backend: MemoryBackend[int]) -> None:
    async def handler(message: int) -> None: ...

    with pytest.raises(HandlerError, match="messages are Batch"):
        WorkerBuilder("w").backend(backend).batch(2).build(handler)  # type: ignore[arg-type]


async def test_stopping_hands_back_a_batch_that_was_not_full_yet(backend: MemoryBackend[int]) -> None:
    async def handler(batch: Batch[int]) -> None:
        raise AssertionError

    worker = WorkerBuilder("w").backend(backend).batch(10, wait=60).build(handler)
    run = asyncio.create_task(worker.run())
    await backend.push(1)
    await eventually(lambda: backend.messages[0].read_ct == 1)
    worker.stop()
    async with asyncio.timeout(20):
        await run
    assert [message.read_ct for message in backend.messages] == [0]


async def test_cancelling_hands_back_a_batch_that_was_not_full_yet(backend: MemoryBackend[int]) -> None:
    async def handler(batch: Batch[int]) -> None:
        raise AssertionError

    worker = WorkerBuilder("w").backend(backend).batch(10, wait=60).build(handler)
    run = asyncio.create_task(worker.run())
    await backend.push(1)
    await eventually(lambda: backend.messages[0].read_ct == 1)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert [message.read_ct for message in backend.messages] == [0]


async def test_a_batch_is_cancelled_only_when_all_its_leases_are_lost() -> None:
    backend = MemoryBackend(Config("q", visibility_timeout=0.3, poll_interval=0.01), int)
    events: list[Event] = []
    started, release = asyncio.Event(), asyncio.Event()
    outcomes: list[str] = []

    async def handler(batch: Batch[int]) -> None:
        started.set()
        try:
            await release.wait()
            outcomes.append("finished")
        except asyncio.CancelledError:
            outcomes.append("cancelled")
            raise

    def lost() -> int:
        return sum(isinstance(event, LeaseLost) for event in events)

    worker = (
        WorkerBuilder("w").backend(backend).concurrency(1).batch(2).on_event(events.append).build(handler)
    )
    await backend.push_many([1, 2])
    run = asyncio.create_task(worker.run())
    await started.wait()
    first, second = backend.messages
    del backend._queue.messages[first.id]  # somebody removed it by hand
    await eventually(lambda: lost() == 1)
    assert outcomes == []
    del backend._queue.messages[second.id]
    await eventually(lambda: outcomes == ["cancelled"])
    started.clear()
    release.set()
    await backend.push(3)
    await eventually(lambda: outcomes == ["cancelled", "finished"] and not backend.messages)
    worker.stop()
    await run


async def test_a_handler_may_finish_although_its_lease_is_lost() -> None:
    backend = MemoryBackend(Config("q", visibility_timeout=0.3, poll_interval=0.01), int)
    events: list[Event] = []
    started, release = asyncio.Event(), asyncio.Event()
    finished: list[int] = []

    async def handler(message: int) -> None:
        started.set()
        await release.wait()
        finished.append(message)

    build = WorkerBuilder("w").backend(backend).on_lost_lease("finish").on_event(events.append)
    worker = build.build(handler)
    await backend.push(1)
    run = asyncio.create_task(worker.run())
    await started.wait()
    backend._queue.messages.clear()
    await eventually(lambda: worker.stats.leases_lost == 1)
    release.set()
    await eventually(lambda: finished == [1])
    worker.stop()
    await run
    assert not [event for event in events if isinstance(event, (Succeeded, Failed))]
    assert worker.stats.succeeded == 0


@pytest.mark.parametrize(("size", "wait"), [(0, 1), (-1, 1), (10_001, 1), (True, 1), (1, -1), (1, "x")])
def test_nonsense_batches_are_refused(size: int, wait: float) -> None:
    with pytest.raises(ConfigError):
        WorkerBuilder("w").batch(size, wait)


def test_nonsense_actions_on_a_lost_lease_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_lost_lease"):
        WorkerBuilder("w").on_lost_lease("ignore")  # type: ignore[arg-type]


async def test_what_comes_slowly_fills_one_batch_after_the_other(backend: MemoryBackend[int]) -> None:
    sizes: list[int] = []

    async def handler(batch: Batch[int]) -> None:
        sizes.append(len(batch))
        await asyncio.sleep(0.05)

    worker = WorkerBuilder("w").backend(backend).concurrency(4).batch(5, wait=30).build(handler)
    run = asyncio.create_task(worker.run())
    for number in range(20):
        await backend.push(number)
        await asyncio.sleep(0.005)
    await eventually(lambda: not backend.messages)
    worker.stop()
    await run
    assert sizes == [5, 5, 5, 5]


async def test_what_was_lost_while_a_batch_was_gathered_is_not_in_it() -> None:
    backend = MemoryBackend(Config("q", visibility_timeout=0.3, poll_interval=0.01), int)
    seen: list[int] = []
    events: list[Event] = []

    async def handler(batch: Batch[int]) -> None:
        seen.extend(batch.messages)

    worker = WorkerBuilder("w").backend(backend).batch(3, wait=30).on_event(events.append).build(handler)
    run = asyncio.create_task(worker.run())
    stolen = await backend.push(1)
    await backend.push(2)
    await eventually(lambda: [message.read_ct for message in backend.messages] == [1, 1])
    steal(backend, stolen)
    await eventually(lambda: [event for event in events if isinstance(event, LeaseLost)])
    await backend.push(3)
    await eventually(lambda: seen == [2, 3])
    worker.stop()
    await run
