"""A worker: takes tasks from a backend, runs the handler, settles the outcome."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from apalis_pgmq.core import (
    AbortError,
    ApalisError,
    DeadLetterReason,
    Engaged,
    Failed,
    RetryAfterError,
    Started,
    Stopped,
    Succeeded,
    SupportsInjection,
)

from ._context import in_context
from ._inject import bind
from .middleware import wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apalis_pgmq.core import Backend, Consumer, Event, EventListener, Task, TaskId

    from .middleware import Middleware

T = TypeVar("T")

logger = logging.getLogger("apalis_pgmq")

_SLICE: Final = 0.002
"""Seconds after which handlers that never wait are made to let the event loop run."""


class WorkerContext:
    """A handler's view of the worker that runs it; ask for it by type annotation."""

    __slots__ = ("_worker",)

    def __init__(self, worker: Worker[Any]) -> None:
        self._worker = worker

    @property
    def worker(self) -> str:
        """The worker's name."""
        return self._worker.name

    @property
    def is_stopping(self) -> bool:
        """Whether the worker was told to stop; a long handler may look, and finish early."""
        return self._worker.is_stopping

    def stop(self) -> None:
        """Stop the worker; the handlers that run, this one included, are finished first."""
        self._worker.stop()

    def pause(self) -> None:
        """Pause the worker, until something calls its `Worker.resume`."""
        self._worker.pause()


class Worker(Generic[T]):
    """Works a queue; made by `WorkerBuilder.build`.

    `run` it directly or register it with a `Monitor`. A stopped worker can be run again.
    """

    def __init__(
        self,
        name: str,
        backend: Backend[T],
        handler: Callable[..., Any],
        *,
        is_async: bool,
        concurrency: int,
        data: Sequence[object],
        middleware: Sequence[Middleware],
        listeners: Sequence[EventListener],
    ) -> None:
        self.name = name
        self.concurrency = concurrency
        self._backend = backend
        self._queue = backend.config.queue
        self._max_retries = backend.config.max_retries
        self._listeners = tuple(listeners)
        self._is_async = is_async
        context = WorkerContext(self)
        injectables = backend.injectables() if isinstance(backend, SupportsInjection) else {}
        self._bound = bind(
            handler,
            message_type=backend.message_type,
            data=data,
            provided={WorkerContext: lambda _task: context, **injectables},
        )
        self._call = wrap(self._bound if is_async else self._in_thread, middleware)
        # Without middleware nothing stands between the dispatch and an asynchronous handler.
        self._begin = self._bound if is_async and not middleware else self._run
        self._threads: ThreadPoolExecutor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event
        self._consumer: Consumer[T] | None = None
        self._is_stopping = False
        self._is_paused = False
        self._running: dict[TaskId, asyncio.Task[Any]] = {}
        self._lost: set[asyncio.Task[Any]] = set()
        self._dispatchers = 0
        self._waiting = 0
        self._slice_ends = 0.0
        self._failure: Exception | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether the worker was told to stop and has not come to its end yet."""
        return self._is_stopping

    @property
    def is_paused(self) -> bool:
        """Whether the worker was told to pause."""
        return self._is_paused

    def stop(self) -> None:
        """End `run`: claim no more, hand back what was not started, finish what runs.

        A plain call, from anywhere: a handler, a signal handler, another thread. Called before `run`, it
        makes that return at once.
        """
        self._is_stopping = True
        self._tell_loop()

    def pause(self) -> None:
        """Claim no more until `resume`: what was not started is handed back, what runs is finished.

        A plain call, from anywhere.
        """
        self._is_paused = True
        self._tell_loop()

    def resume(self) -> None:
        """Go on after `pause`. A plain call, from anywhere."""
        self._is_paused = False
        self._tell_loop()

    async def run(self) -> None:
        """Work the queue until `stop`.

        A database that is away is waited for. Cancelling cancels the running handlers and hands their
        messages back.

        Raises:
            ApalisError: the backend failed in a way that waiting does not mend (the queue was dropped, a
                permission is missing), or the worker runs already.
        """
        if self._loop is not None:
            raise ApalisError(f"worker {self.name!r} is running already")
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        if not self._is_async:
            self._threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix=self.name)
        try:
            while not self._is_stopping:
                if self._is_paused:
                    await self._changed.wait()
                    self._changed.clear()
                else:
                    await self._work()
        finally:
            self._loop = None
            self._is_stopping = False
            if self._threads is not None:
                # Not waited for: a thread that hangs must not hang the event loop.
                self._threads.shutdown(wait=False, cancel_futures=True)
                self._threads = None

    async def _work(self) -> None:
        """Work until stopped or paused."""
        error: BaseException | None = None
        self._failure = None
        self._consumer = self._backend.poll(
            worker=self.name,
            capacity=self.concurrency,
            on_event=self._emit if self._listeners else None,
            on_lost=self._cancel_lost,
        )
        try:
            async with self._consumer as consumer:
                self._emit(Started(worker=self.name, queue=self._queue))
                async with asyncio.TaskGroup() as group:
                    self._dispatchers = 1
                    self._waiting = 0
                    group.create_task(self._dispatch(consumer, group))
            error = self._failure
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._consumer = None
            self._emit(Stopped(worker=self.name, queue=self._queue, error=error))
        if error is not None:
            raise error

    async def _dispatch(self, consumer: Consumer[T], group: asyncio.TaskGroup) -> None:
        """Take and handle one task after the other; see to it that another dispatcher stands ready.

        There are never more dispatchers than ``concurrency``, and never many more than are needed:
        handlers that do not wait are run one after the other by the same two.
        """
        me = asyncio.current_task()
        assert me is not None
        while not me.cancelling():
            self._waiting += 1
            try:
                task = await anext(consumer)
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001 - raised again by `_work`, when handlers are done
                self._failure = error
                return
            finally:
                self._waiting -= 1
            if not self._waiting and self._dispatchers < self.concurrency:
                self._dispatchers += 1
                group.create_task(self._dispatch(consumer, group))
            await self._handle(consumer, task, me)
            if monotonic() > self._slice_ends:
                await asyncio.sleep(0)
                self._slice_ends = monotonic() + _SLICE

    async def _handle(self, consumer: Consumer[T], task: Task[T], me: asyncio.Task[Any]) -> None:
        """Run the handler on a task and settle it, exactly once, whatever happens."""
        self._running[task.id] = me
        if self._listeners:
            self._emit(Engaged(worker=self.name, queue=self._queue, id=task.id, attempt=task.attempt))
        started = monotonic()
        try:
            result = await in_context(copy_context(), self._begin(task))
        except asyncio.CancelledError as error:
            if me in self._lost:
                return
            if not me.cancelling():
                # The handler's own affair: it awaited something that was cancelled.
                self._failed(consumer, task, error, monotonic() - started)
                return
            self._interrupted(consumer, task)
            raise
        except Exception as error:  # noqa: BLE001 - handlers may raise anything
            if me not in self._lost:
                self._failed(consumer, task, error, monotonic() - started)
        else:
            consumer.ack(task)
            if self._listeners and me not in self._lost:
                self._emit(
                    Succeeded(
                        worker=self.name,
                        queue=self._queue,
                        id=task.id,
                        attempt=task.attempt,
                        result=result,
                        duration=monotonic() - started,
                    )
                )
        finally:
            if self._running.get(task.id) is me:
                del self._running[task.id]
            if me in self._lost:
                # That cancellation was for the handler alone; the dispatcher goes on.
                self._lost.discard(me)
                me.uncancel()

    async def _run(self, task: Task[T]) -> object:
        return await self._call(task)

    async def _in_thread(self, task: Task[T]) -> object:
        assert self._loop is not None
        assert self._threads is not None
        result = await self._loop.run_in_executor(
            self._threads, partial(copy_context().run, self._bound, task)
        )
        # A plain function may still return a coroutine: one wrapped by a decorator does.
        return await result if isawaitable(result) else result

    def _failed(self, consumer: Consumer[T], task: Task[T], error: BaseException, duration: float) -> None:
        reason: DeadLetterReason | None = None
        if isinstance(error, AbortError):
            reason = DeadLetterReason.ABORTED
        elif task.attempt > self._max_retries:
            reason = DeadLetterReason.RETRIES_EXHAUSTED
        after = error.delay if isinstance(error, RetryAfterError) and reason is None else None
        if reason is None:
            consumer.retry(task, after=after)
        else:
            consumer.dead_letter(task, reason, error)
        logger.warning(
            "worker %s: attempt %d of message %d on queue %s failed after %.3f s%s: %r",
            self.name,
            task.attempt,
            task.id,
            self._queue,
            duration,
            "" if reason is None else ", the last one",
            error,
            extra={"worker": self.name, "queue": self._queue, "id": task.id, "attempt": task.attempt},
            # Where it went wrong is worth its lines once, not at every retry.
            exc_info=error if task.attempt == 1 and not isinstance(error, RetryAfterError) else None,
        )
        if self._listeners:
            self._emit(
                Failed(
                    worker=self.name,
                    queue=self._queue,
                    id=task.id,
                    attempt=task.attempt,
                    error=error,
                    duration=duration,
                    will_retry=reason is None,
                    retry_after=after,
                )
            )

    def _interrupted(self, consumer: Consumer[T], task: Task[T]) -> None:
        """The worker is being cancelled while the handler runs."""
        if self._is_async:
            consumer.hand_back(task, spend_attempt=True)
            return
        # A thread cannot be cancelled. While it runs on nobody else should start on the message: it is
        # left to its visibility timeout.
        consumer.retry(task)
        logger.warning(
            "worker %s: message %d on queue %s is left to its visibility timeout, "
            "since its synchronous handler may still be running",
            self.name,
            task.id,
            self._queue,
            extra={"worker": self.name, "queue": self._queue, "id": task.id},
        )

    def _cancel_lost(self, task_id: TaskId) -> None:
        dispatcher = self._running.get(task_id)
        if dispatcher is not None and dispatcher not in self._lost:
            self._lost.add(dispatcher)
            dispatcher.cancel(f"the lease of message {task_id} was lost")

    def _tell_loop(self) -> None:
        """Have `_apply` called on the event loop, from whichever thread this is."""
        loop = self._loop
        if loop is not None:
            loop.call_soon_threadsafe(self._apply)

    def _apply(self) -> None:
        self._changed.set()
        if self._consumer is not None and (self._is_stopping or self._is_paused):
            self._consumer.stop()

    def _emit(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception(
                    "worker %s: a listener failed on %s",
                    self.name,
                    type(event).__name__,
                    extra={"worker": self.name, "queue": self._queue},
                )
