"""Several workers together, through failures, to a clean end."""

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest

from apalis_pgmq import ApalisError, ConfigError, Monitor, Started, Worker, WorkerBuilder
from apalis_pgmq.worker import _monitor, default_should_restart

from .support import (
    PATIENCE,
    Email,
    Events,
    FaultyBackend,
    build,
    emails,
    eventually,
    memory,
    refused,
    within_patience,
)


async def nothing(message: Email) -> None: ...


def named(name: str, backend: Any, handler: Any = nothing, events: Events | None = None) -> Worker[Any]:
    return (
        WorkerBuilder(name)
        .backend(backend)
        .concurrency(1)
        .on_event(Events() if events is None else events)
        .build(handler)
    )


def failing(error: Exception, times: int = 1) -> FaultyBackend:
    """A queue whose first claims fail for good."""
    backend = FaultyBackend()
    backend.store.before["claim"].extend([error] * times)
    return backend


def quiet(**settings: Any) -> Monitor:
    return Monitor(handle_signals=False, **settings)


@pytest.fixture
def fast_restarts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Restart without delay; return the delays that were asked for."""
    asked = []

    class Recorded(_monitor.Backoff):
        def __init__(self, first: float, longest: float) -> None:
            asked.append((first, longest))
            super().__init__(first=0.001, longest=0.002)

    monkeypatch.setattr(_monitor, "Backoff", Recorded)
    return asked


async def ended(run: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(PATIENCE):
        await run


async def test_several_workers_run_until_stopped() -> None:
    backends = [memory(), memory(), memory()]
    monitor = quiet()
    for number, backend in enumerate(backends):
        await backend.push_many(emails(10))
        monitor.register(named(f"worker-{number}", backend))

    run = asyncio.create_task(monitor.run())
    await eventually(lambda: not any(backend.messages for backend in backends))
    assert not run.done()
    monitor.stop()
    await ended(run)


async def test_it_ends_when_every_worker_has_stopped_on_its_own() -> None:
    workers = [named("a", memory()), named("b", memory())]
    monitor = quiet()
    for worker in workers:
        monitor.register(worker)
        worker.stop()

    await ended(asyncio.create_task(monitor.run()))


def test_register_returns_the_monitor_and_keeps_the_order() -> None:
    first, second = named("a", memory()), named("b", memory())

    assert Monitor().register(first).register(second).workers == (first, second)


def test_a_second_worker_of_the_same_name_is_refused() -> None:
    monitor = Monitor().register(named("mail", memory()))

    with pytest.raises(ConfigError, match="named 'mail' is registered already"):
        monitor.register(named("mail", memory()))


async def test_a_monitor_without_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one worker"):
        await Monitor().run()


async def test_running_twice_at_the_same_time_is_refused() -> None:
    events = Events()
    monitor = quiet().register(named("a", memory(), events=events))
    run = asyncio.create_task(monitor.run())
    await eventually(lambda: events.of(Started))

    with pytest.raises(ApalisError, match="running already"):
        await monitor.run()

    monitor.stop()
    await ended(run)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "30s", True, None])
def test_a_bad_shutdown_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match=r"^shutdown_timeout "):
        Monitor(shutdown_timeout=timeout)


async def test_failures_are_raised_together_when_the_others_have_stopped() -> None:
    healthy = memory()
    first, second = refused(), refused()
    monitor = (
        quiet()
        .register(named("bad", failing(first)))
        .register(named("good", healthy))
        .register(named("worse", failing(second)))
    )
    run = asyncio.create_task(monitor.run())
    await healthy.push_many(emails(5))
    await eventually(lambda: not healthy.messages)
    for _ in range(50):
        await asyncio.sleep(0)
    await healthy.push_many(emails(5))
    await eventually(lambda: not healthy.messages)
    assert not run.done()

    monitor.stop()

    with pytest.raises(ExceptionGroup, match="workers failed") as caught:
        await ended(run)
    assert caught.value.exceptions == (first, second)


async def test_a_failed_worker_is_run_again(fast_restarts: list[tuple[float, float]]) -> None:
    error = ValueError("a bug")
    backend = failing(error, times=3)
    await backend.push(Email("ada"))
    asked = []

    def should_restart(worker: Worker[Any], failure: Exception, attempt: int) -> bool:
        asked.append((worker.name, failure, attempt))
        return True

    monitor = quiet(should_restart=should_restart).register(named("mail", backend))
    run = asyncio.create_task(monitor.run())
    await eventually(lambda: not backend.messages)
    monitor.stop()
    await ended(run)

    assert asked == [("mail", error, 1), ("mail", error, 2), ("mail", error, 3)]
    assert fast_restarts == [(1.0, 30.0)]


async def test_should_restart_may_refuse(fast_restarts: list[tuple[float, float]]) -> None:
    backend = failing(ValueError("a bug"), times=9)
    monitor = quiet(should_restart=lambda _worker, _error, attempt: attempt < 3)
    monitor.register(named("mail", backend))

    with pytest.raises(ExceptionGroup):
        await ended(asyncio.create_task(monitor.run()))

    assert backend.store.calls["claim"] == 3


async def test_stopping_does_not_wait_for_a_restart(caplog: pytest.LogCaptureFixture) -> None:
    monitor = quiet(should_restart=lambda *_: True)
    monitor.register(named("mail", failing(ValueError("a bug"), times=9)))
    with caplog.at_level(logging.ERROR, "apalis_pgmq"):
        run = asyncio.create_task(monitor.run())
        await eventually(lambda: "restart 1 in" in caplog.text)

    monitor.stop()

    await ended(run)


async def test_a_monitor_stopped_during_a_restart_can_be_run_again(caplog: pytest.LogCaptureFixture) -> None:
    backend = failing(ValueError("a bug"))
    await backend.push(Email("ada"))
    monitor = quiet(should_restart=lambda *_: True).register(named("mail", backend))
    with caplog.at_level(logging.ERROR, "apalis_pgmq"):
        run = asyncio.create_task(monitor.run())
        await eventually(lambda: "restart 1 in" in caplog.text)
    monitor.stop()
    await ended(run)

    again = asyncio.create_task(monitor.run())
    try:
        await eventually(lambda: not backend.messages or again.done())
    finally:
        monitor.stop()
        await ended(again)

    assert backend.messages == []


def test_the_default_restarts_ten_times_but_not_what_a_person_must_mend() -> None:
    worker = named("mail", memory())

    assert default_should_restart(worker, ValueError(), 1)
    assert default_should_restart(worker, ValueError(), 10)
    assert not default_should_restart(worker, ValueError(), 11)
    assert not default_should_restart(worker, ApalisError(), 1)


async def test_by_default_an_error_of_this_library_is_not_retried() -> None:
    backend = failing(refused())

    with pytest.raises(ExceptionGroup):
        await ended(asyncio.create_task(quiet().register(named("mail", backend)).run()))

    assert backend.store.calls["claim"] == 1


class Stubborn:
    """A handler that runs until it is cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = False

    async def __call__(self, message: Email) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True


async def test_stopping_waits_for_what_runs() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    started, release = asyncio.Event(), asyncio.Event()

    async def handler(message: Email) -> None:
        started.set()
        await release.wait()

    monitor = quiet().register(named("mail", backend, handler))
    run = asyncio.create_task(monitor.run())
    await within_patience(started)
    monitor.stop()
    for _ in range(50):
        await asyncio.sleep(0)
    assert not run.done()
    release.set()
    await ended(run)

    assert backend.messages == []


@pytest.mark.parametrize("patience", [0, 0.05, timedelta(milliseconds=50)])
async def test_what_outlasts_the_shutdown_timeout_is_cancelled_and_handed_back(
    patience: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = memory()
    await backend.push_many(emails(2))
    handler = Stubborn()
    monitor = quiet(shutdown_timeout=patience).register(named("mail", backend, handler))
    run = asyncio.create_task(monitor.run())
    await within_patience(handler.started)

    monitor.stop()
    await ended(run)

    assert handler.cancelled
    assert sorted(message.read_ct for message in backend.messages) == [0, 1]
    assert len(list(backend._queue.visible(10))) == 2
    assert "cancelling the handlers that still run in mail" in caplog.text


async def test_a_second_stop_hurries() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    handler = Stubborn()
    monitor = quiet(shutdown_timeout=3600).register(named("mail", backend, handler))
    run = asyncio.create_task(monitor.run())
    await within_patience(handler.started)

    monitor.stop()
    monitor.stop()
    await ended(run)

    assert handler.cancelled
    assert len(list(backend._queue.visible(10))) == 1


async def test_cancelling_run_cancels_the_workers() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    handler = Stubborn()
    run = asyncio.create_task(quiet().register(named("mail", backend, handler)).run())
    await within_patience(handler.started)

    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert handler.cancelled
    assert len(list(backend._queue.visible(10))) == 1


async def test_stop_without_a_run_has_no_effect() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    monitor = quiet().register(named("mail", backend))
    monitor.stop()

    run = asyncio.create_task(monitor.run())
    await eventually(lambda: not backend.messages)
    monitor.stop()
    await ended(run)


async def test_a_monitor_can_be_run_again() -> None:
    backend = memory()
    monitor = quiet().register(build(backend, nothing))
    for _ in range(2):
        await backend.push(Email("ada"))
        run = asyncio.create_task(monitor.run())
        await eventually(lambda: not backend.messages)
        monitor.stop()
        await ended(run)


async def test_a_monitor_outside_the_main_thread_leaves_signals_alone() -> None:
    backend = memory()
    await backend.push(Email("ada"))

    async def handler(message: Email) -> None:
        monitor.stop()

    monitor = Monitor().register(named("mail", backend, handler))

    await asyncio.to_thread(asyncio.run, monitor.run())

    assert backend.messages == []
