"""Middleware around the handler; the worker settles once, outside all of it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from apalis_pgmq import ConfigError, Next, Succeeded, Task, Timeout, WorkerBuilder

from .support import Email, Events, memory, run_until_empty


def noting(log: list[str], name: str):
    async def middleware(task: Task[Any], call_next: Next) -> object:
        log.append(f"{name} in")
        try:
            return await call_next(task)
        finally:
            log.append(f"{name} out")

    return middleware


async def work(handler: Any, *middleware: Any, max_retries: int = 0):
    backend = memory(max_retries=max_retries)
    await backend.push(Email("ada"))
    events = Events()
    builder = WorkerBuilder("worker").backend(backend).on_event(events)
    for layer in middleware:
        builder = builder.middleware(layer)
    await run_until_empty(backend, builder.build(handler))
    return backend, events


@pytest.mark.parametrize("synchronous", [False, True])
async def test_the_first_middleware_is_the_outermost(*, synchronous: bool) -> None:
    log: list[str] = []

    def handler(message: Email) -> None:
        log.append("handler")

    async def asynchronous(message: Email) -> None:
        log.append("handler")

    await work(handler if synchronous else asynchronous, noting(log, "a"), noting(log, "b"), noting(log, "c"))

    assert log == ["a in", "b in", "c in", "handler", "c out", "b out", "a out"]


async def test_a_middleware_that_raises_fails_the_attempt() -> None:
    async def refusing(task: Task[Any], call_next: Next) -> object:
        raise PermissionError("not on Sundays")

    handled = []

    async def handler(message: Email) -> None:
        handled.append(message)

    backend, _ = await work(handler, refusing)

    assert handled == []
    [dead] = await backend.dead_letters()
    assert dead.error_type == "PermissionError"


async def test_a_middleware_may_answer_in_the_handlers_place() -> None:
    async def answering(task: Task[Any], call_next: Next) -> object:
        return "cached"

    handled = []

    async def handler(message: Email) -> None:
        handled.append(message)

    backend, events = await work(handler, answering)

    assert handled == []
    assert await backend.dead_letters() == []
    assert events.of(Succeeded)[0].result == "cached"


async def test_a_middleware_may_replace_the_result() -> None:
    async def shouting(task: Task[Any], call_next: Next) -> object:
        return f"{await call_next(task)}!"

    async def handler(message: Email) -> str:
        return "sent"

    _, events = await work(handler, shouting)

    assert events.of(Succeeded)[0].result == "sent!"


async def test_a_middleware_may_swallow_a_failure() -> None:
    async def forgiving(task: Task[Any], call_next: Next) -> object:
        try:
            return await call_next(task)
        except ValueError:
            return None

    async def handler(message: Email) -> None:
        raise ValueError

    backend, _ = await work(handler, forgiving)

    assert await backend.dead_letters() == []


async def test_a_middleware_that_calls_twice_settles_once() -> None:
    handled = []

    async def again(task: Task[Any], call_next: Next) -> object:
        try:
            return await call_next(task)
        except ValueError:
            return await call_next(task)

    async def handler(message: Email) -> None:
        handled.append(message)
        if len(handled) == 1:
            raise ValueError

    backend, events = await work(handler, again)

    assert len(handled) == 2
    assert await backend.dead_letters() == []
    assert [name for name in events.names if name in ("Engaged", "Succeeded", "Failed")] == [
        "Engaged",
        "Succeeded",
    ]


async def test_a_middleware_may_be_an_object() -> None:
    class Counting:
        count = 0

        async def __call__(self, task: Task[Any], call_next: Next) -> object:
            self.count += 1
            return await call_next(task)

    counting = Counting()

    async def handler(message: Email) -> None: ...

    await work(handler, counting)

    assert counting.count == 1


async def test_timeout_cancels_a_handler_that_runs_too_long() -> None:
    cancelled = []

    async def handler(message: Email) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    backend, events = await work(handler, Timeout(0.02))

    assert cancelled == [True]
    [dead] = await backend.dead_letters()
    assert dead.error_type == "TimeoutError"
    assert dead.error == "the handler ran longer than 0.02 s"
    assert "Failed" in events.names


async def test_timeout_lets_a_handler_in_time_through() -> None:
    async def handler(message: Email) -> str:
        await asyncio.sleep(0)
        return "sent"

    _, events = await work(handler, Timeout(timedelta(minutes=1)))

    assert events.of(Succeeded)[0].result == "sent"


async def test_a_timeout_error_of_the_handlers_own_stays_its_own() -> None:
    async def handler(message: Email) -> None:
        raise TimeoutError("the mail server")

    backend, _ = await work(handler, Timeout(60))

    [dead] = await backend.dead_letters()
    assert dead.error == "the mail server"


@pytest.mark.parametrize("limit", [0, -1, float("nan"), "1s", True])
def test_a_bad_timeout_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigError, match=r"^timeout "):
        Timeout(limit)
