"""What a worker needs of a backend, and what a backend may offer beside."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from ._config import Config
    from ._durations import Duration
    from ._events import Event
    from ._task import Task, TaskId

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class DeadLetterReason(StrEnum):
    """Why a message was given up; the value is what its headers say."""

    RETRIES_EXHAUSTED = "retries-exhausted"
    """The handler raised on the last attempt that ``max_retries`` allows."""
    DELIVERIES_EXHAUSTED = "deliveries-exhausted"
    """Claimed more often than ``max_retries`` allows: its workers died, or their leases ran out."""
    ABORTED = "aborted"
    """The handler raised `AbortError`."""
    UNDECODABLE = "undecodable"
    """The payload is not a message of the queue's type."""


class Consumer(Protocol[T_co]):
    """An open claim on a queue: tasks come out, what became of them goes in.

    An asynchronous iterator; several coroutines may iterate over the same one. It ends after `stop`,
    never because the queue is empty. Use it as an asynchronous context manager: leaving the block hands
    back what was not settled and sees every settlement through.

    The settling methods are plain calls that return at once; the consumer carries them out in batches.
    Each takes effect only while the task's lease stands; it returns whether, as far as is known by then, the
    task was still there to be settled.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Task[T_co]: ...

    def take(self) -> Task[T_co] | None:
        """Return the next task if there is one to be had without waiting, and None otherwise."""
        ...

    def ack(self, task: Task[Any]) -> bool:
        """Settle a handled task: its message is deleted or archived."""
        ...

    def retry(self, task: Task[Any], *, after: timedelta | None = None) -> bool:
        """Give a failed task back: visible after the delay, or when its visibility timeout ends."""
        ...

    def dead_letter(
        self, task: Task[Any], reason: DeadLetterReason, error: BaseException | None = None
    ) -> bool:
        """Give the task up: its message moves to the dead-letter queue."""
        ...

    def hand_back(self, task: Task[Any], *, spend_attempt: bool, after: timedelta = timedelta(0)) -> bool:
        """Give an unfinished task back, visible after the delay; what never ran need not spend an attempt."""
        ...

    def holds(self, task: Task[Any]) -> bool:
        """Tell whether a task that was taken is still ours to settle."""
        ...

    def stop(self) -> None:
        """Claim no more and hand back at once what was claimed but not taken; the iteration ends."""
        ...

    def adjust_capacity(self, by: int) -> None:
        """Work more, or fewer, tasks at the same time from now on."""
        ...

    async def ended(self) -> None:
        """Wait until no more tasks will come: it was stopped, or has failed."""
        ...


class Backend(Protocol[T_co]):
    """A queue of messages that a worker can work."""

    @property
    def config(self) -> Config:
        """The queue's settings."""
        ...

    @property
    def message_type(self) -> Any:
        """The type of the queue's messages, as given."""
        ...

    def poll(
        self,
        *,
        worker: str = ...,
        capacity: int = ...,
        on_event: Callable[[Event], None] | None = ...,
        on_lost: Callable[[TaskId], None] | None = ...,
    ) -> Consumer[T_co]:
        """Open a claim on the queue.

        Args:
            worker: who claims, for events, logs and dead-letter headers.
            capacity: how many tasks will be worked at the same time, at most.
            on_event: is given the events that the consumer causes: idle, dead-lettered, lease lost.
            on_lost: is given the id of each taken task whose lease was lost.
        """
        ...


class Sink(Protocol[T_contra]):
    """The capability to send."""

    async def push(
        self,
        message: T_contra,
        *,
        delay: Duration = ...,
        headers: Mapping[str, object] | None = ...,
        group: str | None = ...,
    ) -> TaskId:
        """Send one message, perhaps of a group; return its id when it is durably stored."""
        ...

    async def push_many(
        self,
        messages: Iterable[T_contra],
        *,
        delay: Duration = ...,
        headers: Mapping[str, object] | None = ...,
        group: str | None = ...,
    ) -> list[TaskId]:
        """Send messages, all or none; return their ids in the same order."""
        ...


@runtime_checkable
class SupportsSetup(Protocol):
    """The capability to prepare what the queue needs."""

    async def setup(self) -> None:
        """Make the queue ready for use; safe to call again, and from many processes at once."""
        ...


@runtime_checkable
class SupportsTransactions(Protocol):
    """The capability to handle a message in a transaction of the store that it is in."""

    @property
    def transaction_type(self) -> type:
        """What a handler asks for, by type annotation, to be run in a transaction."""
        ...

    async def transact(
        self,
        consumer: Any,
        tasks: Callable[[], Sequence[Task[Any]]],
        body: Callable[[object], Awaitable[object]],
    ) -> object:
        """Run ``body`` in a transaction and commit it together with the removal of the tasks' messages.

        Args:
            consumer: whose tasks they are; it was opened by `Backend.poll` of this backend.
            tasks: is called after ``body`` and returns the tasks that are done.
            body: is given the transaction.

        Raises:
            LeaseLostError: a message was not ours any more; everything was rolled back.
        """
        ...


@runtime_checkable
class SupportsInjection(Protocol):
    """The capability to offer values of its own to handlers, by type annotation."""

    def injectables(self) -> Mapping[type, Callable[[Task[Any]], object]]:
        """Return, for each type that a handler may ask for, how to make it from the task."""
        ...
