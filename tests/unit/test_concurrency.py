"""How many handlers run at once, on the event loop and in threads."""

import asyncio
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apalis_pgmq import Timeout, WorkerBuilder, WorkerContext

from .support import (
    PATIENCE,
    Email,
    build,
    emails,
    eventually,
    memory,
    run_until_empty,
    running,
    within_patience,
)


@settings(max_examples=25, deadline=None)
@given(
    concurrency=st.integers(1, 12),
    steps=st.lists(st.integers(0, 4), min_size=1, max_size=60),
)
def test_the_limit_is_never_exceeded(concurrency: int, steps: list[int]) -> None:
    async def scenario() -> None:
        backend = memory()
        await backend.push_many(emails(len(steps)))
        now = most = handled = 0

        async def handler(message: Email) -> None:
            nonlocal now, most, handled
            now += 1
            most = max(most, now)
            for _ in range(steps[int(message.to)]):
                await asyncio.sleep(0)
            now -= 1
            handled += 1

        await run_until_empty(backend, build(backend, handler, concurrency=concurrency))

        assert most <= concurrency
        assert handled == len(steps)

    asyncio.run(scenario())


@pytest.mark.parametrize("concurrency", [1, 2, 10, 50])
async def test_the_limit_is_reached(concurrency: int) -> None:
    backend = memory()
    await backend.push_many(emails(concurrency * 2))
    now = 0
    all_at_once = asyncio.Event()

    async def handler(message: Email) -> None:
        nonlocal now
        now += 1
        if now == concurrency:
            all_at_once.set()
        await all_at_once.wait()
        now -= 1

    async with running(build(backend, handler, concurrency=concurrency)):
        await within_patience(all_at_once)
        await eventually(lambda: not backend.messages)


async def test_the_limit_is_reached_again_after_quiet_times() -> None:
    backend = memory()
    now = 0
    full = asyncio.Event()

    async def handler(message: Email) -> None:
        nonlocal now
        now += 1
        if now == 5:
            full.set()
        await full.wait()
        now -= 1

    async with running(build(backend, handler, concurrency=5)):
        for _ in range(3):
            full.clear()
            for email in emails(5):
                await backend.push(email)
                await asyncio.sleep(0)
            await within_patience(full)
            await eventually(lambda: not backend.messages)


async def test_a_busy_worker_leaves_messages_to_others() -> None:
    backend = memory()
    await backend.push_many(emails(100))
    release = asyncio.Event()
    started = 0

    async def handler(message: Email) -> None:
        nonlocal started
        started += 1
        await release.wait()

    async with running(build(backend, handler, concurrency=3)):
        await eventually(lambda: started == 3)
        claimed = sum(message.read_ct for message in backend.messages)
        assert claimed <= 5
        release.set()
        await eventually(lambda: not backend.messages)


async def test_handlers_that_never_wait_let_the_event_loop_run() -> None:
    backend = memory()
    await backend.push_many(emails(2000))
    beats = 0

    async def heart() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1

    async def handler(message: Email) -> None:
        end = monotonic() + 0.0005
        while monotonic() < end:
            pass

    heart_task = asyncio.create_task(heart())
    await run_until_empty(backend, build(backend, handler))
    heart_task.cancel()

    assert beats > 50


async def test_sync_handlers_run_in_threads_as_many_as_the_limit() -> None:
    backend = memory()
    await backend.push_many(emails(12))
    lock = threading.Lock()
    threads: set[str] = set()
    now = most = 0
    together = threading.Barrier(3, timeout=PATIENCE)

    def handler(message: Email) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            threads.add(threading.current_thread().name)
        together.wait()
        with lock:
            now -= 1

    await run_until_empty(backend, build(backend, handler, concurrency=3))

    assert most == 3
    assert threading.current_thread().name not in threads
    assert len(threads) <= 3
    assert all(name.startswith("worker") for name in threads)
    assert await backend.dead_letters() == []


async def test_a_sync_handler_does_not_block_the_event_loop() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    release = threading.Event()
    started = threading.Event()

    def handler(message: Email) -> None:
        started.set()
        assert release.wait(PATIENCE)

    async with running(build(backend, handler)):
        await eventually(started.is_set)
        assert len(backend.messages) == 1
        release.set()
        await eventually(lambda: not backend.messages)


async def test_the_threads_end_with_the_worker() -> None:
    backend = memory()
    await backend.push_many(emails(5))

    def handler(message: Email) -> None: ...

    await run_until_empty(backend, build(backend, handler))

    await eventually(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("worker")]
    )


async def test_the_result_of_a_sync_handlers_failure() -> None:
    backend = memory(max_retries=0)
    await backend.push(Email("ada"))

    def handler(message: Email) -> None:
        raise LookupError("in a thread")

    await run_until_empty(backend, build(backend, handler))

    [dead] = await backend.dead_letters()
    assert dead.error_type == "LookupError"


async def test_slow_handlers_leave_the_rest_to_idle_workers() -> None:
    backend = memory()
    await backend.push_many(emails(6))
    release = asyncio.Event()
    handled_by: list[str] = []

    async def handler(message: Email, context: WorkerContext) -> None:
        handled_by.append(context.worker)
        await release.wait()

    workers = [
        WorkerBuilder(f"w{number}").backend(backend).concurrency(1).build(handler) for number in range(6)
    ]
    async with running(*workers):
        await eventually(lambda: len(handled_by) == 6)
        release.set()
        await eventually(lambda: not backend.messages)
    assert sorted(handled_by) == [f"w{number}" for number in range(6)]


async def test_a_thread_that_hangs_costs_its_slot_and_no_attempts() -> None:
    backend = memory(visibility_timeout=1.0, max_retries=0)
    hang = threading.Event()
    ran: list[str] = []

    def handler(message: Email) -> None:
        ran.append(message.to)
        if message.to == "0":
            assert hang.wait(PATIENCE)

    worker = WorkerBuilder("w").backend(backend).concurrency(1).middleware(Timeout(0.2)).build(handler)
    await backend.push_many(emails(3))
    async with running(worker):
        await eventually(lambda: worker.stats.failed == 1)
        # While its only thread hangs, the worker takes nothing whose time would then run out.
        await asyncio.sleep(0.5)
        assert ran == ["0"]
        assert [message.read_ct for message in backend.messages] == [0, 0]
        hang.set()
        await eventually(lambda: worker.stats.succeeded == 2)
    assert ran == ["0", "1", "2"]
    assert worker.stats.failed == 1


async def test_a_worker_whose_threads_all_hang_stops_all_the_same() -> None:
    backend = memory()
    hang = threading.Event()

    def handler(message: Email) -> None:
        assert hang.wait(PATIENCE)

    worker = WorkerBuilder("w").backend(backend).concurrency(1).middleware(Timeout(0.1)).build(handler)
    await backend.push(Email("x"))
    async with running(worker):
        await eventually(lambda: worker.stats.failed == 1)
    hang.set()


def test_a_thread_that_hangs_does_not_keep_the_process_from_ending(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(HANGING)
    done = subprocess.run(
        [sys.executable, program], timeout=PATIENCE, check=True, capture_output=True, text=True
    )
    assert done.stdout == "TimeoutError\n"


HANGING = """
import asyncio, time
from apalis_pgmq import Config, Failed, MemoryBackend, Timeout, WorkerBuilder

def handler(message: int) -> None:
    time.sleep(3600)

async def main() -> None:
    backend = MemoryBackend(Config("q"), int)
    def on_event(event) -> None:
        if isinstance(event, Failed):
            print(type(event.error).__name__)
            worker.stop()
    worker = WorkerBuilder("w").backend(backend).middleware(Timeout(0.1)).on_event(on_event).build(handler)
    await backend.push(1)
    await worker.run()

asyncio.run(main())
"""


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_handler_that_cancels_itself_fails_and_costs_nothing_else(*, at_once: bool) -> None:
    backend = memory(max_retries=0)

    async def handler(message: Email) -> None:
        if message.to != "0":
            return
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if at_once:
            await asyncio.sleep(1)

    worker = build(backend, handler, concurrency=1)
    await backend.push_many(emails(5))
    async with running(worker):
        await eventually(lambda: not backend.messages)
    # One that is over before the cancellation reaches it has done its work.
    assert (worker.stats.succeeded, worker.stats.failed) == ((4, 1) if at_once else (5, 0))


async def test_a_handler_that_takes_its_cancellation_back_costs_nothing() -> None:
    backend = memory()

    async def handler(message: Email) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1)

    worker = build(backend, handler, concurrency=2)
    await backend.push_many(emails(20))
    async with running(worker):
        await eventually(lambda: worker.stats.succeeded == 20)
