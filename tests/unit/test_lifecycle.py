"""Starting, pausing, stopping and cancelling a worker."""

import asyncio
import contextlib
import threading

import pytest

from apalis_pgmq import ApalisError, Started, Stopped, Worker, WorkerBuilder, WorkerContext

from .support import (
    PATIENCE,
    Email,
    Events,
    build,
    emails,
    eventually,
    memory,
    running,
    within_patience,
)


async def nothing(message: Email) -> None: ...


async def run(worker: Worker[Email]) -> None:
    async with asyncio.timeout(PATIENCE):
        await worker.run()


async def test_a_handler_may_stop_its_worker() -> None:
    backend = memory()
    await backend.push_many(emails(20))
    handled = []
    stopping = []

    async def handler(message: Email, context: WorkerContext) -> None:
        handled.append(message.to)
        if len(handled) == 3:
            context.stop()
            stopping.append(context.is_stopping)
            await asyncio.sleep(0.01)

    await run(build(backend, handler, concurrency=1))

    assert handled == ["0", "1", "2"]
    assert stopping == [True]
    assert [message.read_ct for message in backend.messages] == [0] * 17


async def test_a_sync_handler_may_stop_its_worker() -> None:
    backend = memory()
    await backend.push_many(emails(2))

    def handler(message: Email, context: WorkerContext) -> None:
        context.stop()

    await run(build(backend, handler, concurrency=1))

    assert len(backend.messages) == 1


async def test_another_thread_may_stop_a_worker() -> None:
    started = asyncio.Event()
    builder = WorkerBuilder("worker").backend(memory())
    worker = builder.on_event(lambda event: started.set()).build(nothing)
    task = asyncio.create_task(worker.run())
    await within_patience(started)

    await asyncio.to_thread(worker.stop)

    async with asyncio.timeout(PATIENCE):
        await task


async def test_a_stop_before_run_makes_it_return_at_once() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    worker = build(backend, nothing)

    worker.stop()
    assert worker.is_stopping
    await run(worker)

    assert len(backend.messages) == 1
    assert not worker.is_stopping


async def test_stopping_finishes_what_runs() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    started, release = asyncio.Event(), asyncio.Event()

    async def handler(message: Email) -> None:
        started.set()
        await release.wait()

    worker = build(backend, handler)
    task = asyncio.create_task(worker.run())
    await within_patience(started)
    worker.stop()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    release.set()
    await task

    assert backend.messages == []


@pytest.mark.usefixtures("one_ahead")
@pytest.mark.parametrize("synchronous", [False, True])
async def test_stopping_hands_back_at_once_what_was_not_started(*, synchronous: bool) -> None:
    backend = memory()
    await backend.push_many(emails(2))
    release = threading.Event()
    started = threading.Event()

    def handler(message: Email) -> None:
        started.set()
        assert release.wait(PATIENCE)

    async def asynchronous(message: Email) -> None:
        started.set()
        await eventually(release.is_set)

    worker = build(backend, handler if synchronous else asynchronous, concurrency=1)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: started.is_set() and backend.messages[1].read_ct == 1)

    worker.stop()

    await eventually(lambda: backend.messages[1].read_ct == 0)
    assert [message.id for message in backend._queue.visible(10)] == [2]
    assert not task.done()
    release.set()
    await task
    assert [message.id for message in backend.messages] == [2]


async def test_pausing_hands_back_what_was_not_started_and_finishes_what_runs() -> None:
    backend = memory()
    await backend.push_many(emails(3))
    started, release = asyncio.Event(), asyncio.Event()
    handled = []
    events = Events()

    async def handler(message: Email) -> None:
        started.set()
        await release.wait()
        handled.append(message.to)

    worker = WorkerBuilder("worker").backend(backend).concurrency(1).on_event(events).build(handler)
    async with running(worker):
        await within_patience(started)
        worker.pause()
        assert worker.is_paused
        await eventually(lambda: [message.read_ct for message in backend.messages] == [1, 0, 0])
        release.set()
        await eventually(lambda: events.of(Stopped))
        assert handled == ["0"]
        assert [message.read_ct for message in backend.messages] == [0, 0]

        worker.resume()
        assert not worker.is_paused
        await eventually(lambda: not backend.messages)

    assert sorted(handled) == ["0", "1", "2"]
    assert len(events.of(Started)) == 2


async def test_a_paused_worker_can_be_stopped() -> None:
    events = Events()
    worker = WorkerBuilder("worker").backend(memory()).on_event(events).build(nothing)
    async with running(worker):
        await eventually(lambda: events.of(Started))
        worker.pause()
        await eventually(lambda: events.of(Stopped))


async def test_a_worker_paused_before_run_starts_when_resumed() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    worker = build(backend, nothing)
    worker.pause()
    async with running(worker):
        for _ in range(20):
            await asyncio.sleep(0)
        assert [message.read_ct for message in backend.messages] == [0]
        worker.resume()
        await eventually(lambda: not backend.messages)


async def test_a_handler_may_pause_its_worker() -> None:
    backend = memory()
    await backend.push_many(emails(2))
    handled = []

    async def handler(message: Email, context: WorkerContext) -> None:
        context.pause()
        handled.append(message.to)

    worker = build(backend, handler, concurrency=1)
    async with running(worker):
        await eventually(lambda: handled == ["0"])
        await eventually(lambda: len(backend.messages) == 1)
        worker.resume()
        await eventually(lambda: not backend.messages)


async def test_pausing_and_resuming_at_once_loses_nothing() -> None:
    backend = memory()
    await backend.push_many(emails(200))
    handled = []

    async def handler(message: Email) -> None:
        handled.append(int(message.to))
        await asyncio.sleep(0.001)

    worker = build(backend, handler, concurrency=3)
    async with running(worker):
        while backend.messages:
            worker.pause()
            await asyncio.sleep(0)
            worker.resume()
            await asyncio.sleep(0.002)

    assert sorted(handled) == list(range(200))


async def test_a_worker_can_be_run_again() -> None:
    backend = memory()
    worker = build(backend, nothing)
    for _ in range(3):
        await backend.push(Email("ada"))
        async with running(worker):
            await eventually(lambda: not backend.messages)


async def test_a_sync_worker_can_be_run_again() -> None:
    backend = memory()

    def handler(message: Email) -> None: ...

    worker = build(backend, handler)
    for _ in range(2):
        await backend.push(Email("ada"))
        async with running(worker):
            await eventually(lambda: not backend.messages)


async def test_running_twice_at_the_same_time_is_refused() -> None:
    events = Events()
    worker = WorkerBuilder("mail").backend(memory()).on_event(events).build(nothing)
    async with running(worker):
        await eventually(lambda: events.of(Started))
        with pytest.raises(ApalisError, match="worker 'mail' is running already"):
            await worker.run()
        assert not events.of(Stopped)


@pytest.mark.usefixtures("one_ahead")
async def test_cancelling_run_cancels_the_handlers_and_hands_their_messages_back() -> None:
    backend = memory()
    await backend.push_many(emails(5))
    started, cancelled = [], []

    async def handler(message: Email) -> None:
        started.append(message)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(message)
            raise

    task = asyncio.create_task(build(backend, handler, concurrency=2).run())
    await eventually(lambda: len(started) == 2 and backend.messages[2].read_ct == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(cancelled) == 2
    assert sorted(message.read_ct for message in backend.messages) == [0, 0, 0, 1, 1]
    assert len(list(backend._queue.visible(10))) == 5


async def test_cancelling_run_leaves_a_sync_handlers_message_to_its_visibility_timeout() -> None:
    backend = memory(visibility_timeout=600)
    await backend.push(Email("ada"))
    started, release = threading.Event(), threading.Event()

    def handler(message: Email) -> None:
        started.set()
        release.wait(PATIENCE)

    task = asyncio.create_task(build(backend, handler).run())
    await eventually(started.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()

    assert len(backend.messages) == 1
    assert list(backend._queue.visible(10)) == []


async def test_a_handler_that_swallows_the_cancellation_takes_no_new_messages() -> None:
    backend = memory()
    await backend.push_many(emails(10))
    started = asyncio.Event()
    handled = []

    async def handler(message: Email) -> None:
        handled.append(message.to)
        started.set()
        if len(handled) == 1:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.sleep(0.01)

    task = asyncio.create_task(build(backend, handler, concurrency=1).run())
    await within_patience(started)
    task.cancel()
    await asyncio.wait([task], timeout=PATIENCE)

    assert task.cancelled()
    assert handled == ["0"]
    assert len(backend.messages) == 9
    assert all(message.read_ct == 0 for message in backend.messages)


async def test_a_cancelled_run_can_be_followed_by_another() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    started = asyncio.Event()
    may_finish = False

    async def handler(message: Email) -> None:
        started.set()
        if not may_finish:
            await asyncio.Event().wait()

    worker = build(backend, handler)
    task = asyncio.create_task(worker.run())
    await within_patience(started)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    may_finish = True
    async with running(worker):
        await eventually(lambda: not backend.messages)


async def test_no_task_is_left_behind() -> None:
    backend = memory()
    await backend.push_many(emails(50))
    before = asyncio.all_tasks()

    async with running(build(backend, nothing)):
        await eventually(lambda: not backend.messages)

    assert asyncio.all_tasks() == before
