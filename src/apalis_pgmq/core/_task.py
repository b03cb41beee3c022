"""One delivery of one message."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Generic, NewType, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

T_co = TypeVar("T_co", covariant=True)

TaskId = NewType("TaskId", int)
"""A message's id, unique and growing within its queue (PGMQ's ``msg_id``)."""

Attempt = NewType("Attempt", int)
"""Which delivery of the message this is: 1 the first time (PGMQ's ``read_ct``)."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True, eq=False)
class Task(Generic[T_co]):
    """A message as it was delivered: its arguments and what is known of the delivery.

    Made by a backend; a test of a handler can make one by hand from ``args`` alone.

    Attributes:
        args: the message itself, decoded and validated.
        id: the message's id within its queue.
        attempt: which delivery this is, from 1.
        headers: the message's headers, empty where it was sent without.
        enqueued_at: when it was sent, by PostgreSQL's clock, with time zone.
        visible_until: when the current lease ends, by PostgreSQL's clock; it moves on while the lease
            is extended.
        queue: the queue that it was claimed from.
    """

    args: T_co
    id: TaskId = TaskId(0)
    attempt: Attempt = Attempt(1)
    headers: Mapping[str, object] = field(default_factory=dict)
    enqueued_at: datetime = field(default_factory=_now)
    visible_until: datetime = field(default_factory=_now)
    queue: str = ""
