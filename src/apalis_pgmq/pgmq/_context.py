"""What a handler can learn of its message from PGMQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from apalis_pgmq.core import TaskId


@dataclass(frozen=True, slots=True)
class PgMqContext:
    """The PGMQ side of a delivery; ask for it by type annotation.

    Attributes:
        queue: the queue's name.
        msg_id: PGMQ's id of the message.
        read_count: PGMQ's ``read_ct``: how often the message was claimed, this time included.
        headers: the message's headers; empty where it was sent without.
        enqueued_at: when it was sent, by PostgreSQL's clock, with time zone.
        visible_until: when the lease ended as the handler started (PGMQ's ``vt``); a lease that is
            extended shows in `Task.visible_until`.
    """

    queue: str
    msg_id: TaskId
    read_count: int
    headers: Mapping[str, object]
    enqueued_at: datetime
    visible_until: datetime
