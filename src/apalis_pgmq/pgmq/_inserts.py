"""What is stored when messages are sent, and the statements that store it: the same for every driver."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from apalis_pgmq.core import TaskId

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from apalis_pgmq.delivery import Packer

    from ._sql import Statements

PART: Final = 1000
"""Messages of one call that are sent by one statement, if it has more: little enough for the event loop, and for the
socket to take at once."""
MANY: Final = 2 * PART
"""From so many messages by one call on, they are sent in parts."""

_MICROSECOND: Final = timedelta(microseconds=1)
_NO_DELAY: Final = timedelta(0)


class Outgoing(NamedTuple):
    """A message on its way into the queue.

    Attributes:
        payload: the message as JSON text.
        headers: its headers as JSON text, or None.
        delay: how long until it becomes visible.
        at: not before when it becomes visible, by the server's clock, or None.
    """

    payload: str
    headers: str | None
    delay: timedelta
    at: datetime | None = None


def outgoing(packer: Packer[Any], messages: Iterable[Any], due: datetime | timedelta) -> list[Outgoing]:
    """Return messages as they are stored.

    Args:
        packer: makes payload and headers.
        messages: of the queue's type.
        due: when they become visible: a moment or a delay.

    Raises:
        EncodeError: one of them cannot be sent.
    """
    delay, at = (_NO_DELAY, due) if isinstance(due, datetime) else (due, None)
    return [Outgoing(*packer.pack(message), delay, at) for message in messages]


def insert(statements: Statements, messages: Sequence[Outgoing]) -> tuple[str, tuple[object, ...]]:
    """Return the statement that stores messages, at least one, and its arguments."""
    first = messages[0]
    if first.at is None and all(one[1:] == first[1:] for one in messages):
        # As it mostly is: then there is less to send, and to take apart.
        return statements.insert_part, ([one.payload for one in messages], first.headers, first.delay, 0)
    return statements.insert, (
        [message.payload for message in messages],
        [message.headers for message in messages],
        [message.delay for message in messages],
        [message.at for message in messages],
    )


def insert_parts(
    statements: Statements, packer: Packer[Any], messages: Sequence[Any], delay: timedelta
) -> Iterator[tuple[str, tuple[object, ...]]]:
    """Make the statements that store many messages in one transaction, one after the other, and their arguments.

    Raises:
        EncodeError: one of the messages cannot be sent.
    """
    rest = iter(messages)
    following = len(messages)
    while part := [packer.pack(message) for message in islice(rest, PART)]:
        following -= len(part)
        headers = part[0][1]
        if all(one[1] == headers for one in part):
            yield statements.insert_part, ([payload for payload, _ in part], headers, delay, following)
        else:
            # As `insert_part` does: each a microsecond before the next one, those of later parts included.
            sooner = delay - following * _MICROSECOND
            yield insert(statements, [Outgoing(*packed, sooner) for packed in part])


def new_ids(rows: Iterable[Sequence[Any]]) -> list[TaskId]:
    """Return the ids that a statement, or several of one transaction, gave to messages, in their order.

    Ids are handed out in the order of insertion; RETURNING promises none.
    """
    return sorted(TaskId(row[0]) for row in rows)
