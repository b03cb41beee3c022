"""How a handler is called: on the event loop or in a thread, in a transaction or not, inside middleware."""

from __future__ import annotations

import asyncio
from collections import deque
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
from ._threads import Threads
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
        self._threads: Threads | None = None
        self._abandoned: set[asyncio.Future[Any]] = set()
        self._benched: deque[asyncio.Future[None]] = deque()
        self._batch_size = 1
        self._consumer: Consumer[Any] | None = None
        self._removed: set[int] = set()

    def open(self, name: str, concurrency: int, batch_size: int) -> None:
        """Make ready for calls, ``concurrency`` at a time, each with up to ``batch_size`` messages."""
        self._batch_size = batch_size
        if not self.is_async:
            self._threads = Threads(name, concurrency)

    def serve(self, consumer: Consumer[Any] | None) -> None:
        """Say whose tasks will come."""
        self._consumer = consumer
        if consumer is not None:
            consumer.adjust_capacity(-len(self._abandoned) * self._batch_size)

    def close(self) -> None:
        """End the threads, not waiting for one that hangs: that must not hang the event loop."""
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        self._abandoned.clear()

    @property
    def lacks_threads(self) -> bool:
        """Whether there are more threads that run what nobody waits for than callers that wait for them."""
        return len(self._abandoned) > len(self._benched)

    async def threads_back(self, consumer: Consumer[Any]) -> None:
        """Wait until a thread is back, or for the consumer's end.

        To take a message without a thread to run it would only let its time run out.
        """
        back = asyncio.get_running_loop().create_future()
        ended = asyncio.ensure_future(consumer.ended())
        self._benched.append(back)
        try:
            await asyncio.wait([back, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if back in self._benched:
                self._benched.remove(back)

    def _abandon(self, call: asyncio.Future[Any]) -> None:
        """A thread cannot be stopped: it counts as busy for as long as it runs on."""
        self._abandoned.add(call)
        call.add_done_callback(self._is_back)
        if self._consumer is not None:
            self._consumer.adjust_capacity(-self._batch_size)

    def _is_back(self, call: asyncio.Future[Any]) -> None:
        if not call.cancelled():
            # What it raised is nobody's concern any more; asyncio need not complain.
            call.exception()
        if call not in self._abandoned:
            return
        self._abandoned.discard(call)
        if self._consumer is not None:
            self._consumer.adjust_capacity(self._batch_size)
        if len(self._benched) > len(self._abandoned):
            self._benched.popleft().set_result(None)

    async def _run(self, task: Task[Any]) -> object:
        return await self._chain(task)

    async def _in_thread(self, task: Task[Any]) -> object:
        assert self._threads is not None
        call = self._threads.submit(partial(copy_context().run, self._call_plainly, task))
        running = asyncio.wrap_future(call)
        try:
            result = await asyncio.shield(running)
        except asyncio.CancelledError:
            if not call.cancel() and not running.done():
                self._abandon(running)
            raise
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
