"""What is known about a queue as a whole, and how it is to be made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from apalis_pgmq.core import ConfigError, duration, whole_number

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """A queue, as PGMQ has it in its list.

    Attributes:
        name: its name.
        is_partitioned: whether its tables are divided into partitions, by pg_partman.
        is_unlogged: whether its messages are lost when PostgreSQL crashes.
        created_at: when it was made.
    """

    name: str
    is_partitioned: bool
    is_unlogged: bool
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMetrics:
    """A queue's figures, as ``pgmq.metrics`` gives them.

    Attributes:
        queue: its name.
        length: how many messages are in it: waiting, delayed and in flight.
        visible_length: how many of them a worker could claim now.
        newest_age: since when the newest of them is there, to the second; None if there is none.
        oldest_age: the same for the oldest.
        total_messages: how many were sent to it ever, counted by the ids given out: what was rolled back or
            refused as a duplicate may count too.
        scraped_at: when this was so, by the server's clock.
    """

    queue: str
    length: int
    visible_length: int
    newest_age: timedelta | None
    oldest_age: timedelta | None
    total_messages: int
    scraped_at: datetime

    @classmethod
    def of(cls, row: Any) -> Self:
        """Return the metrics of a row of ``pgmq.metrics``."""
        return cls(
            queue=row["queue_name"],
            length=row["queue_length"],
            visible_length=row["queue_visible_length"],
            newest_age=_age(row["newest_msg_age_sec"]),
            oldest_age=_age(row["oldest_msg_age_sec"]),
            total_messages=row["total_messages"],
            scraped_at=row["scrape_time"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicBinding:
    """A queue that gets what is sent by the routing keys that match a pattern.

    Attributes:
        pattern: words with dots between them; ``*`` stands for one word, ``#`` for any number of characters.
        queue: the queue's name.
        bound_at: since when.
    """

    pattern: str
    queue: str
    bound_at: datetime


@dataclass(frozen=True, slots=True)
class Partitions:
    """How a partitioned queue is divided, and what of it is kept.

    Both are numbers of messages, counted by their ids, or both are times, by when they were sent.

    Args:
        interval: how much goes into one partition.
        retention: pg_partman's maintenance **drops partitions that are older than this, with all messages in
            them, handled or not**.

    Raises:
        ConfigError: not two whole numbers or two durations, or less is kept than one partition holds.
    """

    interval: int | timedelta = 10_000
    retention: int | timedelta = 100_000

    def __post_init__(self) -> None:
        if isinstance(self.interval, timedelta) and isinstance(self.retention, timedelta):
            duration("interval", self.interval, shortest=timedelta(seconds=1))
            enough = self.retention >= self.interval
        elif isinstance(self.interval, timedelta) or isinstance(self.retention, timedelta):
            raise ConfigError(
                "interval and retention must both be numbers of messages or both be timedeltas, "
                f"not {self.interval!r} and {self.retention!r}"
            )
        else:
            whole_number("interval", self.interval, least=1)
            enough = whole_number("retention", self.retention, least=1) >= self.interval
        if not enough:
            raise ConfigError(
                f"retention must be at least one interval, or messages go unhandled: {self.retention} is less "
                f"than {self.interval}"
            )

    @property
    def arguments(self) -> tuple[str, str]:
        """Interval and retention as ``pgmq.create_partitioned`` reads them."""
        return _text(self.interval), _text(self.retention)


def _text(amount: int | timedelta) -> str:
    return f"{amount.total_seconds():.0f} seconds" if isinstance(amount, timedelta) else str(amount)


def _age(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
