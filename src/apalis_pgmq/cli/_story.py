"""The program that the demonstration runs: a message type, a handler, and what it did."""

# No `from __future__ import annotations` here: the handler's are looked at while it runs.

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from apalis_pgmq.core import (
    Attempt,
    DeadLettered,
    DeadLetterReason,
    Event,
    Failed,
    RetryAfterError,
    Started,
    Succeeded,
    Task,
    TaskId,
)
from apalis_pgmq.worker import Data

BUSY: Final = "grace@busy.example"
UNKNOWN: Final = "nobody@example.com"
RETRY_AFTER: Final = 0.3
MAX_RETRIES: Final = 2


@dataclass(frozen=True, slots=True)
class EmailMessage:
    """What is in the queue."""

    to: str
    subject: str
    body: str


@dataclass(slots=True)
class Outbox:
    """Stands in for a mail server, and remembers what it was asked.

    Attributes:
        tried: how often each message was handed to the handler.
        sent: how often each message was sent.
    """

    tried: Counter[TaskId] = field(default_factory=Counter)
    sent: Counter[TaskId] = field(default_factory=Counter)


async def send_email(message: EmailMessage, task_id: TaskId, attempt: Attempt, outbox: Data[Outbox]) -> None:
    """Handle one message."""
    outbox.tried[task_id] += 1
    if message.to == BUSY and attempt == 1:
        raise RetryAfterError(RETRY_AFTER, "the mail server is busy")
    if message.to == UNKNOWN:
        raise RetryAfterError(RETRY_AFTER, "there is no such mailbox")
    outbox.sent[task_id] += 1


@dataclass(frozen=True, slots=True)
class Mail:
    """The messages of one run; two of them, some way into the queue, make trouble."""

    messages: Sequence[EmailMessage]
    busy: int
    unknown: int

    @classmethod
    def of(cls, count: int) -> "Mail":
        """Make ``count`` messages, at least two."""
        busy, unknown = count // 3, count // 3 + 1
        messages = [
            EmailMessage(f"user{number}@example.com", "Hello", f"You are reader number {number:,}.")
            for number in range(1, count + 1)
        ]
        messages[busy] = EmailMessage(BUSY, "Hello", "You are busy.")
        messages[unknown] = EmailMessage(UNKNOWN, "Hello", "Are you there?")
        return cls(messages, busy, unknown)


class Observer:
    """Listens to the worker: how far it is, and what became of the messages that failed.

    Attributes:
        ended: how many messages have come to their end.
        seconds: how long it took until all had succeeded that do so at once.
        failures: the failed attempts, by message.
        recovered: the messages that succeeded later, and when.

    Args:
        count: how many messages there are, the two that make trouble among them.
    """

    def __init__(self, count: int) -> None:
        self.ended = 0
        self.seconds = 0.0
        self.failures: defaultdict[TaskId, list[Failed]] = defaultdict(list)
        self.recovered: dict[TaskId, Attempt] = {}
        self._count = count
        self._at_once = 0
        self._started = 0.0

    @property
    def has_seen_all(self) -> bool:
        """Whether every message has come to its end."""
        return self.ended >= self._count

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case Started():
                self._started = time.monotonic()
            case Succeeded(attempt=1):
                self.ended += 1
                self._at_once += 1
                if self._at_once == self._count - 2:
                    self.seconds = time.monotonic() - self._started
            case Succeeded():
                self.ended += 1
                self.recovered[event.id] = event.attempt
            case Failed():
                self.failures[event.id].append(event)
            case DeadLettered():
                self.ended += 1


def faults(
    mail: Mail,
    ids: Sequence[TaskId],
    outbox: Outbox,
    letter: Task[EmailMessage],
    *,
    left: int,
    dead: int,
) -> list[str]:
    """Return what did not go as promised; nothing, if all is well.

    Args:
        mail: what was pushed.
        ids: the ids that it got.
        outbox: what was tried and sent.
        letter: the message in the dead-letter queue.
        left: how many messages are in the queue still.
        dead: how many are in the dead-letter queue.
    """
    unknown, busy = ids[mail.unknown], ids[mail.busy]
    tries = {unknown: 1 + MAX_RETRIES, busy: 2}
    found = []
    if unsent := sum(not outbox.sent[one] for one in ids if one != unknown):
        found.append(f"{unsent:,} messages were not sent")
    if twice := sum(count > 1 for count in outbox.sent.values()):
        found.append(f"{twice:,} messages were sent more than once")
    if strange := sum(outbox.tried[one] != tries.get(one, 1) for one in ids):
        found.append(f"{strange:,} messages were tried more or less often than they should")
    if foreign := len(outbox.tried.keys() - set(ids)):
        found.append(f"{foreign:,} messages were handled that nobody had pushed")
    if outbox.sent[unknown]:
        found.append("the message that should have failed was sent")
    if left:
        found.append(f"{left:,} messages are in the queue still")
    if dead != 1:
        found.append(f"{dead:,} messages are in the dead-letter queue instead of one")
    if letter.args != mail.messages[mail.unknown] or letter.headers.get("x-dead-letter-id") != unknown:
        found.append("the message in the dead-letter queue is another one")
    if letter.headers.get("x-dead-letter-reason") != DeadLetterReason.RETRIES_EXHAUSTED:
        found.append("the reason in the dead-letter queue is another one")
    return found
