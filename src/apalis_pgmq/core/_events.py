"""What a worker tells its listeners, as frozen values.

::

    Event
    ├── Started · Idle · Stalled · Stopped   about the worker
    └── MessageEvent                      about one message
        ├── Engaged                       a handler starts on it
        ├── Succeeded                     the handler returned
        ├── Failed                        the handler raised; says whether the message comes back
        ├── DeadLettered                  moved to the dead-letter queue
        └── LeaseLost                     another worker may have it now
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from datetime import timedelta

    from ._task import Attempt, TaskId


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """What all events tell: which worker, on which queue."""

    worker: str
    queue: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Started(Event):
    """The worker is ready and begins to claim messages; sent again after a pause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Idle(Event):
    """The queue has nothing to claim now and the worker holds nothing; sent once until that changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stalled(Event):
    """Something blocked the event loop for so long that leases could run out.

    Attributes:
        seconds: for how long.
    """

    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped(Event):
    """The worker claims no more and holds nothing any more; also sent when it pauses.

    Attributes:
        error: what ended it, or None if it was told to stop or pause.
    """

    error: BaseException | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MessageEvent(Event):
    """An event about one delivery of one message."""

    id: TaskId
    attempt: Attempt


@dataclass(frozen=True, kw_only=True, slots=True)
class Engaged(MessageEvent):
    """A handler starts on the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Succeeded(MessageEvent):
    """The handler returned.

    Attributes:
        result: what it returned.
        duration: how long it ran, middleware included, in seconds.
    """

    result: object
    duration: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed(MessageEvent):
    """The handler raised.

    Attributes:
        error: what it raised.
        duration: how long it ran, middleware included, in seconds.
        will_retry: whether the message is delivered again; if not, it is dead-lettered.
        retry_after: the delay that was asked for; None: when its visibility timeout ends.
    """

    error: BaseException
    duration: float
    will_retry: bool
    retry_after: timedelta | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLettered(MessageEvent):
    """The message was given up and is in the dead-letter queue.

    Attributes:
        reason: one of the `DeadLetterReason` values.
        error: what the last attempt raised, where there is something.
    """

    reason: str
    error: BaseException | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseLost(MessageEvent):
    """The message is not this worker's any more; whatever its handler still does changes nothing.

    It follows a stall longer than the visibility timeout, or somebody removing the message by hand.
    """


EventListener: TypeAlias = Callable[[Event], object]
"""A plain function that is given every event, on the event loop; it must not block."""
