"""Settling tasks, and telling of it: each task exactly once."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from apalis_pgmq.core import DeadLettered, Engaged, Failed, LeaseLost, RetryAfterError, Succeeded, error_text

from ._calling import NotCommittedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apalis_pgmq.core import Config, Consumer, Event, EventListener, Task

    from ._retry import RetryPolicy

logger = logging.getLogger("apalis_pgmq")


_SOON: Final = timedelta(seconds=1)
"""When to try again what the database could not do."""


@dataclass(slots=True)
class WorkerStats:
    """What a worker has done since it was built, in messages.

    Attributes:
        succeeded: the handler returned, and the message was still ours.
        failed: attempts that ended with an error.
        dead_lettered: messages given up.
        leases_lost: leases that ran out or were taken away while the message was held.
    """

    succeeded: int = 0
    failed: int = 0
    dead_lettered: int = 0
    leases_lost: int = 0


class Outcomes:
    """Decides what becomes of tasks, counts, logs and tells listeners.

    Attributes:
        are_observed: whether there are listeners.

    Args:
        worker: the worker's name.
        config: of the queue.
        policy: judges errors.
        listeners: are given every event.
    """

    def __init__(
        self, worker: str, config: Config, policy: RetryPolicy, listeners: Sequence[EventListener]
    ) -> None:
        self._worker = worker
        self._queue = config.queue
        self._max_retries = config.max_retries
        self._policy = policy
        self._listeners = tuple(listeners)
        self.are_observed = bool(listeners)
        self._stats = WorkerStats()

    @property
    def stats(self) -> WorkerStats:
        """A copy of the counts as they are now."""
        return replace(self._stats)

    def engaged(self, task: Task[Any]) -> None:
        """A handler starts on a task."""
        if self.are_observed:
            self.emit(Engaged(worker=self._worker, queue=self._queue, id=task.id, attempt=task.attempt))

    def succeeded(
        self, consumer: Consumer[Any], task: Task[Any], result: object, duration: float, *, removed: bool
    ) -> None:
        """The handler returned; its message is removed, unless that was done in its transaction."""
        if not removed and not consumer.ack(task):
            return
        self._stats.succeeded += 1
        if self.are_observed:
            self.emit(
                Succeeded(
                    worker=self._worker,
                    queue=self._queue,
                    id=task.id,
                    attempt=task.attempt,
                    result=result,
                    duration=duration,
                )
            )

    def failed(self, consumer: Consumer[Any], task: Task[Any], error: BaseException, duration: float) -> None:
        """The handler raised; its message is retried or given up."""
        if isinstance(error, NotCommittedError):
            self._not_committed(consumer, task, error)
            return
        reason, after = self._policy.judge(error, attempt=task.attempt, max_retries=self._max_retries)
        if reason is None:
            is_ours = consumer.retry(task, after=after)
        else:
            is_ours = consumer.dead_letter(task, reason, error)
        if not is_ours:
            return
        self._stats.failed += 1
        asked_for = isinstance(error, RetryAfterError) and reason is None
        logger.log(
            logging.INFO if asked_for else logging.WARNING,
            "worker %s: attempt %d of message %d on queue %s failed after %.3f s%s: %s: %s",
            self._worker,
            task.attempt,
            task.id,
            self._queue,
            duration,
            "" if reason is None else ", the last one",
            type(error).__name__,
            error_text(error),
            extra={"worker": self._worker, "queue": self._queue, "id": task.id, "attempt": task.attempt},
            # Where it went wrong is worth its lines once, not at every retry.
            exc_info=error if task.attempt == 1 and not asked_for else None,
        )
        if self.are_observed:
            self.emit(
                Failed(
                    worker=self._worker,
                    queue=self._queue,
                    id=task.id,
                    attempt=task.attempt,
                    error=error,
                    duration=duration,
                    will_retry=reason is None,
                    retry_after=after,
                )
            )

    def _not_committed(self, consumer: Consumer[Any], task: Task[Any], error: NotCommittedError) -> None:
        """Not the handler's failure: its message comes back, and the policy has no say."""
        spend_attempt = error.ran and not error.is_lost
        if consumer.hand_back(task, spend_attempt=spend_attempt, after=_SOON):
            logger.warning(
                "worker %s: message %d on queue %s was not handled in a transaction, it is tried again: %s",
                self._worker,
                task.id,
                self._queue,
                error,
                extra={"worker": self._worker, "queue": self._queue, "id": task.id},
            )

    def observe(self, event: Event) -> None:
        """Take note of an event of the consumer's, and pass it on."""
        if isinstance(event, DeadLettered):
            self._stats.dead_lettered += 1
        elif isinstance(event, LeaseLost):
            self._stats.leases_lost += 1
        self.emit(event)

    def emit(self, event: Event) -> None:
        """Give an event to every listener; one that raises does not hurt the worker."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception(
                    "worker %s: a listener failed on %s",
                    self._worker,
                    type(event).__name__,
                    extra={"worker": self._worker, "queue": self._queue},
                )
