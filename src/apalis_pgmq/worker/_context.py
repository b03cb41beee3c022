"""Run a coroutine in a `contextvars` context of its own, without a task of its own."""

from __future__ import annotations

from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Generator
    from contextvars import Context

R = TypeVar("R")


@coroutine
def _drive(context: Context, coro: Coroutine[Any, Any, R]) -> Generator[Any, Any, R]:
    try:
        pending = context.run(coro.send, None)
        while True:
            try:
                value = yield pending
            except GeneratorExit:
                coro.close()
                raise
            except BaseException as error:  # noqa: BLE001 - cancellation passes through like the rest
                pending = context.run(coro.throw, error)
            else:
                pending = context.run(coro.send, value)
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]


def in_context(context: Context, coro: Coroutine[Any, Any, R]) -> Awaitable[R]:
    """Await ``coro`` so that each of its steps sees, and changes, only ``context``.

    Handlers share a few long-lived tasks: a task for each message would cost more than the rest of the
    dispatch. Without this, what one handler sets in a context variable (a log binding, a trace) would
    leak into the next message.
    """
    return _drive(context, coro)
