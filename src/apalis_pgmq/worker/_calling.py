"""How a handler is called: on the event loop or in a thread, in a transaction or not, inside middleware."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from apalis_pgmq.core import (
    ApalisError,
    BackendUnavailableError,
    HandlerError,
    LeaseLostError,
    SupportsInjection,
    SupportsTransactions,
)

from ._batch import Batch
from ._inject import bind, describe
from .middleware import wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from apalis_pgmq.core import Backend, Consumer, Task

    from .middleware import Middleware, Next


class NotCommittedError(ApalisError):
    """A transaction could not be had or committed, for no fault of the handler's; all was rolled back.

    Attributes:
        ran: whether the handler was called.
        is_lost: whether it was because a message was not ours any more.
    """

    def __init__(self, error: ApalisError, *, ran: bool) -> None:
        self.ran = ran
        self.is_lost = isinstance(error, LeaseLostError)
        super().__init__(str(error))


class Calling:
    """A handler, ready to be called with a task alone; all that can be resolved early has been.

    Args:
        handler: what to call.
        backend: where the tasks come from.
        is_async: whether it is a coroutine function.
        takes_batch: whether it takes a `Batch` rather than a message.
        data: what `Data` parameters can ask for.
        context: what a `WorkerContext` parameter is given.
        middleware: goes around the handler, the first one outermost.

    Raises:
        HandlerError: the handler asks for what nobody provides.
    """

    def __init__(
        self,
        handler: Callable[..., Any],
        backend: Backend[Any],
        *,
        is_async: bool,
        takes_batch: bool,
        data: Sequence[object],
        context: object,
        middleware: Sequence[Middleware],
    ) -> None:
        self.is_async = is_async
        self._takes_batch = takes_batch
        self._transactions = backend if isinstance(backend, SupportsTransactions) else None
        self._bound = bind(
            handler,
            message_type=Batch if takes_batch else backend.message_type,
            data=data,
            of_worker={type(context): context},
            of_task=backend.injectables() if isinstance(backend, SupportsInjection) else {},
            transaction_type=None if self._transactions is None else self._transactions.transaction_type,
            takes_batch=takes_batch,
        )
        self.is_transactional = self._bound.wants_transaction
        if self.is_transactional and not is_async:
            raise HandlerError(
                f"{describe(handler)} asks for a transaction, so it must be an 'async def': "
                "its connection belongs to the event loop"
            )
        self._call = self._bound.call
        inner: Next
        if self.is_transactional:
            inner = self._in_transaction
        elif is_async:
            inner = self._call
        else:
            inner = self._in_thread
        self._chain = wrap(inner, middleware)
        # Without middleware nothing stands between the dispatch and an asynchronous handler.
        self.begin: Callable[[Task[Any]], Coroutine[Any, Any, object]] = (
            self._call if inner is self._call and not middleware else self._run
        )
        self._threads: ThreadPoolExecutor | None = None
        self._consumer: Consumer[Any] | None = None
        self._removed: set[int] = set()

    def open(self, name: str, concurrency: int) -> None:
        """Make ready for calls, ``concurrency`` at a time."""
        if not self.is_async:
            self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix=name)

    def serve(self, consumer: Consumer[Any] | None) -> None:
        """Say whose tasks will come."""
        self._consumer = consumer

    def close(self) -> None:
        """End the threads, not waiting for one that hangs: that must not hang the event loop."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def _run(self, task: Task[Any]) -> object:
        return await self._chain(task)

    async def _in_thread(self, task: Task[Any]) -> object:
        assert self._threads is not None
        result = await asyncio.get_running_loop().run_in_executor(
            self._threads, partial(copy_context().run, self._call_plainly, task)
        )
        # A plain function may still return a coroutine: one wrapped by a decorator does.
        return await result if isawaitable(result) else result

    def _call_plainly(self, task: Task[Any]) -> object:
        try:
            return self._call(task)
        except StopIteration as error:
            # No future can carry it, so that the dispatcher would wait for ever.
            raise RuntimeError("the handler raised StopIteration") from error

    async def _in_transaction(self, task: Task[Any]) -> object:
        assert self._transactions is not None

        removed: Sequence[Task[Any]] = ()
        raised: BaseException | None = None
        ran = False

        def done() -> Sequence[Task[Any]]:
            nonlocal removed
            removed = (
                [one for one in task.args if task.args.outcome(one) is None] if self._takes_batch else [task]
            )
            return removed

        async def body(transaction: object) -> object:
            nonlocal raised, ran
            ran = True
            try:
                return await self._bound.call_in(task, transaction)
            except BaseException as error:
                raised = error
                raise

        try:
            result = await self._transactions.transact(self._consumer, done, body)
        except (BackendUnavailableError, LeaseLostError) as error:
            if error is raised:
                raise
            raise NotCommittedError(error, ran=ran) from error
        self._removed.update(map(id, removed))
        return result

    def take_removed(self, task: Task[Any]) -> bool:
        """Tell whether the task's message was removed in a transaction; forget it."""
        if id(task) in self._removed:
            self._removed.discard(id(task))
            return True
        return False
