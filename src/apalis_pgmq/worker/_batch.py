"""Several messages for one call of a handler."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, TypeVar, overload

if TYPE_CHECKING:
    from apalis_pgmq.core import Consumer, Task

T = TypeVar("T")


class Batch(Sequence["Task[T]"], Generic[T]):
    """What a batch handler is given: a sequence of tasks, and the means to tell them apart.

    When the handler returns, all tasks are done but those that it failed. When it raises, all are failed
    with that error but those that it marked as done. Each failed task is retried or dead-lettered on its own.
    """

    __slots__ = ("_done", "_failed", "_tasks")

    def __init__(self, tasks: Sequence[Task[T]]) -> None:
        self._tasks = tuple(tasks)
        self._done: set[int] = set()
        self._failed: dict[int, BaseException] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> Task[T]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Task[T], ...]: ...
    def __getitem__(self, index: int | slice) -> Task[T] | tuple[Task[T], ...]:
        return self._tasks[index]

    def __repr__(self) -> str:
        return f"<Batch of {len(self)}, {len(self._done)} done, {len(self._failed)} failed>"

    @property
    def messages(self) -> list[T]:
        """The messages themselves."""
        return [task.args for task in self._tasks]

    def done(self, task: Task[T]) -> None:
        """Mark a task as done, whatever becomes of the others."""
        self._failed.pop(id(task), None)
        self._done.add(id(task))

    def fail(self, task: Task[T], error: BaseException) -> None:
        """Fail one task. `AbortError` and `RetryAfterError` mean here what they mean when raised."""
        self._done.discard(id(task))
        self._failed[id(task)] = error

    def outcome(
        self, task: Task[T], raised: BaseException | None = None, *, rolled_back: bool = False
    ) -> BaseException | None:
        """Return what a task failed with, or None if it is done.

        Args:
            task: one of the batch.
            raised: what the handler raised; None if it returned.
            rolled_back: whether what was marked as done has been undone.
        """
        if id(task) in self._done and not rolled_back:
            return None
        return self._failed.get(id(task), raised)


async def gather(consumer: Consumer[T], *, size: int, wait: float) -> list[Task[T]]:
    """Take tasks, until there are ``size``, or ``wait`` seconds are over since the first, or there are no more.

    Raises:
        StopAsyncIteration: there is not even one.
    """
    tasks = [await anext(consumer)]
    try:
        async with asyncio.timeout(wait):
            while len(tasks) < size:
                tasks.append(await anext(consumer))
    except (TimeoutError, StopAsyncIteration):
        pass
    except BaseException:
        for task in tasks:
            consumer.hand_back(task, spend_attempt=False)
        raise
    # A lease may have been lost while the others came.
    return [task for task in tasks if consumer.holds(task)]
