"""What a handler sets in context variables stays with its own message."""

import asyncio
from contextvars import Context, ContextVar, copy_context

import pytest

from apalis_pgmq import Next, Task, WorkerBuilder
from apalis_pgmq.worker._context import in_context

from .support import Email, build, emails, memory, run_until_empty

variable: ContextVar[str] = ContextVar("variable", default="unset")


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_nothing_leaks_from_one_message_to_the_next(concurrency: int) -> None:
    backend = memory()
    await backend.push_many(emails(20))
    found = []

    async def handler(message: Email) -> None:
        found.append(variable.get())
        variable.set(message.to)
        await asyncio.sleep(0)
        assert variable.get() == message.to

    await run_until_empty(backend, build(backend, handler, concurrency=concurrency))

    assert found == ["unset"] * 20


async def test_nothing_leaks_from_a_thread() -> None:
    backend = memory()
    await backend.push_many(emails(20))
    found = []

    def handler(message: Email) -> None:
        found.append(variable.get())
        variable.set(message.to)

    await run_until_empty(backend, build(backend, handler, concurrency=1))

    assert found == ["unset"] * 20


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_handler_sees_what_its_middleware_set(*, synchronous: bool) -> None:
    backend = memory()
    await backend.push_many(emails(3))
    found = []

    async def middleware(task: Task[Email], call_next: Next) -> object:
        variable.set(f"for {task.args.to}")
        return await call_next(task)

    async def handler(message: Email) -> None:
        found.append((message.to, variable.get()))

    def plain_handler(message: Email) -> None:
        found.append((message.to, variable.get()))

    builder = WorkerBuilder("worker").backend(backend).middleware(middleware)
    await run_until_empty(backend, builder.build(plain_handler if synchronous else handler))

    assert sorted(found) == [(number, f"for {number}") for number in "012"]


async def test_a_handler_sees_what_was_set_around_run() -> None:
    variable.set("around")
    backend = memory()
    await backend.push(Email("ada"))
    found = []

    async def handler(message: Email) -> None:
        found.append(variable.get())

    await run_until_empty(backend, build(backend, handler))

    assert found == ["around"]


async def test_in_context_returns_the_result() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert await in_context(Context(), work()) == "done"


async def test_in_context_each_step_runs_in_that_context_only() -> None:
    context = copy_context()

    async def work() -> None:
        variable.set("inside")
        await asyncio.sleep(0)
        assert variable.get() == "inside"

    await in_context(context, work())

    assert context[variable] == "inside"
    assert variable.get() == "unset"


async def test_in_context_an_exception_passes_through() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise LookupError("here")

    with pytest.raises(LookupError, match="here"):
        await in_context(copy_context(), work())


async def test_in_context_a_stop_iteration_of_the_coroutine_is_an_error_not_a_result() -> None:
    async def work() -> None:
        raise StopIteration(5)

    with pytest.raises(RuntimeError):
        await in_context(copy_context(), work())


async def test_in_context_cancellation_reaches_the_coroutine() -> None:
    started = asyncio.Event()
    cleaned = []

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def outer() -> None:
        await in_context(copy_context(), work())

    task = asyncio.create_task(outer())
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]


async def test_in_context_a_coroutine_may_swallow_a_cancellation() -> None:
    started = asyncio.Event()

    async def work() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "swallowed"
        return "never"

    async def outer() -> str:
        return await in_context(copy_context(), work())

    task = asyncio.create_task(outer())
    await started.wait()
    task.cancel()

    assert await task == "swallowed"


async def test_in_context_timeouts_work_inside() -> None:
    async def work() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await in_context(copy_context(), work())
