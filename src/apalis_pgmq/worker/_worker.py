"""A worker: takes tasks from a backend, runs the handler, settles the outcome."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from apalis_pgmq.core import ApalisError, Started, Stopped, Task

from ._batch import Batch, gather
from ._calling import Calling
from ._context import in_context
from ._outcomes import Outcomes
from ._slices import Slices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from apalis_pgmq.core import Backend, Consumer, EventListener, TaskId

    from ._outcomes import WorkerStats
    from ._retry import RetryPolicy
    from .middleware import Middleware

T = TypeVar("T")

logger = logging.getLogger("apalis_pgmq")


class Batching(NamedTuple):
    """How many messages make a batch, and how many seconds to wait for them."""

    size: int
    wait: float


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
        backend: Backend[Any],
        handler: Callable[..., Any],
        *,
        is_async: bool,
        concurrency: int,
        batching: Batching | None,
        policy: RetryPolicy,
        cancel_on_lost_lease: bool,
        data: Sequence[object],
        middleware: Sequence[Middleware],
        listeners: Sequence[EventListener],
    ) -> None:
        self.name = name
        self.concurrency = concurrency
        self._backend = backend
        self._queue = backend.config.queue
        self._batching = batching
        self._cancel_on_lost_lease = cancel_on_lost_lease
        self._outcomes = Outcomes(name, backend.config, policy, listeners)
        self._calling = Calling(
            handler,
            backend,
            is_async=is_async,
            takes_batch=batching is not None,
            data=data,
            context=WorkerContext(self),
            middleware=middleware,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Event
        self._consumer: Consumer[Any] | None = None
        self._is_stopping = False
        self._is_paused = False
        self._running: dict[TaskId, asyncio.Task[Any]] = {}
        self._lost: set[asyncio.Task[Any]] = set()
        self._dispatchers = 0
        self._waiting = 0
        self._slices: Slices
        self._failure: Exception | None = None
        self._gathering: asyncio.Lock
        self._owner: asyncio.Task[Any]
        self._owner_cancelling = 0

    @property
    def is_stopping(self) -> bool:
        """Whether the worker was told to stop and has not come to its end yet."""
        return self._is_stopping

    @property
    def is_paused(self) -> bool:
        """Whether the worker was told to pause."""
        return self._is_paused

    @property
    def stats(self) -> WorkerStats:
        """What the worker has done so far, as a copy."""
        return self._outcomes.stats

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
        self._calling.open(self.name, self.concurrency, 1 if self._batching is None else self._batching.size)
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
            self._calling.close()

    async def _work(self) -> None:
        """Work until stopped or paused."""
        error: BaseException | None = None
        self._failure = None
        self._slices = Slices()
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        # What its owner was cancelled for before, and did not mind, is none of our business.
        self._owner_cancelling = owner.cancelling()
        self._consumer = self._backend.poll(
            worker=self.name,
            capacity=self.concurrency * (1 if self._batching is None else self._batching.size),
            on_event=self._outcomes.observe,
            on_lost=self._on_lost,
        )
        self._calling.serve(self._consumer)
        try:
            async with self._consumer as consumer:
                self._outcomes.emit(Started(worker=self.name, queue=self._queue))
                async with asyncio.TaskGroup() as group:
                    self._dispatchers = self._waiting = 1
                    self._gathering = asyncio.Lock()
                    group.create_task(self._dispatch(consumer, group))
            error = self._failure
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._consumer = None
            self._calling.serve(None)
            self._outcomes.emit(Stopped(worker=self.name, queue=self._queue, error=error))
        if error is not None:
            raise error

    async def _dispatch(self, consumer: Consumer[Any], group: asyncio.TaskGroup) -> None:
        """Take and handle one task, or batch, after the other; see to it that another dispatcher stands ready.

        There are never more dispatchers than ``concurrency``, and never many more than are needed:
        handlers that do not wait are run one after the other by the same two.
        """
        me = asyncio.current_task()
        assert me is not None
        task: Task[Any] | None = None
        tasks: list[Task[Any]] = []
        while not self._is_cancelled:
            if self._calling.lacks_threads:
                self._waiting -= 1
                self._have_another(consumer, group)
                await self._calling.threads_back(consumer)
                self._waiting += 1
            try:
                if monotonic() > self._slices.end:
                    await self._slices.next()
                if self._batching is not None:
                    tasks = await self._gather(consumer, self._batching)
                elif (task := consumer.take()) is None:
                    task = await anext(consumer)
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001 - raised again by `_work`, when handlers are done
                self._failure = error
                return
            finally:
                self._waiting -= 1
            if not self._waiting:
                self._have_another(consumer, group)
            if task is not None:
                await self._handle(consumer, task, me)
            elif tasks:
                await self._handle_batch(consumer, tasks, me)
            self._waiting += 1

    def _have_another(self, consumer: Consumer[Any], group: asyncio.TaskGroup) -> None:
        """Start one more dispatcher, unless there are as many as there may be."""
        if self._dispatchers < self.concurrency:
            self._dispatchers += 1
            self._waiting += 1  # from now on, though it begins only later
            group.create_task(self._dispatch(consumer, group))

    async def _handle(self, consumer: Consumer[Any], task: Task[Any], me: asyncio.Task[Any]) -> None:
        """Run the handler on a task and settle it, exactly once, whatever happens."""
        self._running[task.id] = me
        self._outcomes.engaged(task)
        started = monotonic()
        try:
            result = await in_context(copy_context(), self._calling.begin(task))
        except asyncio.CancelledError as error:
            if me in self._lost:
                return
            if self._is_cancelled:
                self._interrupted(consumer, [task])
                raise
            # The handler's own affair: it awaited something that was cancelled, or cancelled itself.
            self._outcomes.failed(consumer, task, error, monotonic() - started)
        except Exception as error:  # noqa: BLE001 - handlers may raise anything
            self._outcomes.failed(consumer, task, error, monotonic() - started)
        else:
            removed = self._calling.is_transactional and self._calling.take_removed(task)
            self._outcomes.succeeded(consumer, task, result, monotonic() - started, removed=removed)
        finally:
            if self._running.get(task.id) is me:
                del self._running[task.id]
            # Nearly always there is nothing to let go of, and no call to be made for it.
            if me.cancelling() or self._lost:
                await self._let_go(me)

    async def _handle_batch(
        self, consumer: Consumer[Any], tasks: Sequence[Task[Any]], me: asyncio.Task[Any]
    ) -> None:
        """Run the handler on a batch and settle each of its tasks, exactly once, whatever happens."""
        batch = Batch(tasks)
        for task in tasks:
            self._running[task.id] = me
            self._outcomes.engaged(task)
        call = Task(batch, tasks[0].id, max(task.attempt for task in tasks), queue=self._queue)
        started = monotonic()
        raised: BaseException | None = None
        result: object = None
        try:
            result = await in_context(copy_context(), self._calling.begin(call))
        except asyncio.CancelledError as error:
            if me not in self._lost and self._is_cancelled:
                if not self._calling.is_transactional:
                    for task in tasks:
                        if batch.outcome(task, error) is None:  # marked as done
                            self._outcomes.succeeded(
                                consumer, task, None, monotonic() - started, removed=False
                            )
                self._interrupted(consumer, tasks)
                raise
            raised = error
        except Exception as error:  # noqa: BLE001 - handlers may raise anything
            raised = error
        finally:
            await self._let_go(me, tasks)
        elapsed = monotonic() - started
        transactional = self._calling.is_transactional
        for task in tasks:
            failure = batch.outcome(task, raised, rolled_back=transactional and raised is not None)
            if failure is None:
                removed = self._calling.take_removed(task)
                self._outcomes.succeeded(consumer, task, result, elapsed, removed=removed)
            else:
                self._outcomes.failed(consumer, task, failure, elapsed)

    async def _gather(self, consumer: Consumer[Any], batching: Batching) -> list[Task[Any]]:
        """Take a batch; if the worker is to stop by then, hand it back instead."""
        # One at a time: two that gather at once would share what comes between them.
        async with self._gathering:
            tasks = await gather(consumer, size=batching.size, wait=batching.wait)
        if self._is_stopping or self._is_paused:
            for task in tasks:
                consumer.hand_back(task, spend_attempt=False)
            return []
        return tasks

    async def _let_go(self, me: asyncio.Task[Any], tasks: Sequence[Task[Any]] = ()) -> None:
        """The handler has ended: whatever cancelled it alone does not concern the dispatcher."""
        for task in tasks:
            if self._running.get(task.id) is me:
                del self._running[task.id]
        self._lost.discard(me)
        if me.cancelling() and not self._is_cancelled:
            # The lease was lost, or the handler cancelled itself; perhaps it has not come to an await since.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            while me.cancelling():
                me.uncancel()

    @property
    def _is_cancelled(self) -> bool:
        """Whether the task that runs the worker is being cancelled, and all dispatchers with it."""
        return self._owner.cancelling() > self._owner_cancelling

    def _interrupted(self, consumer: Consumer[Any], tasks: Sequence[Task[Any]]) -> None:
        """The worker is being cancelled while the handler runs."""
        for task in tasks:
            if self._calling.is_async:
                consumer.hand_back(task, spend_attempt=True)
                continue
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

    def _on_lost(self, task_id: TaskId) -> None:
        """The lease of a task was lost; cancel its handler, unless others of its batch are still ours."""
        dispatcher = self._running.pop(task_id, None)
        if dispatcher is None or dispatcher in self._lost or not self._cancel_on_lost_lease:
            return
        if self._batching is None or dispatcher not in self._running.values():
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
