"""What is stored when messages are sent, and the statements that store it: the same for every driver."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from apalis_pgmq.core import TaskId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from apalis_pgmq.core import DedupKeys

    from ._sql import Statements

PART: Final = 1000
"""Messages of one call that are sent by one statement, if it has many more."""
MOST_CHARACTERS: Final = 16 * 1024 * 1024
"""The same for their text."""
MANY: Final = 2 * PART
"""From so many messages by one call on, they are sent in parts."""

_NO_DELAY: Final = timedelta(0)

Encoded: TypeAlias = tuple[str, str | None]
"""A message's payload, and its headers or None, as JSON text."""
Encoder: TypeAlias = "Callable[[Mapping[str, object] | None], Callable[[Any], Encoded]]"
"""Returns, for headers, what makes payload and headers of messages that are sent with them."""


class Outgoing(NamedTuple):
    """A message on its way into the queue.

    Attributes:
        payload: the message as JSON text.
        headers: its headers as JSON text, or None.
        delay: how long until it becomes visible.
        at: not before when it becomes visible, by the server's clock, or None.
        key: it is not stored if another message has this key; None: it has none.
        window: for how long the key is taken.
    """

    payload: str
    headers: str | None
    delay: timedelta
    at: datetime | None = None
    key: str | None = None
    window: timedelta = _NO_DELAY


def packing(
    encoder: Encoder,
    messages: Iterable[Any],
    due: datetime | timedelta,
    headers: Mapping[str, object] | None,
    keys: DedupKeys | None,
) -> Callable[[], list[Outgoing]]:
    """Return what makes of messages, when it is their turn, what is stored.

    Args:
        encoder: the queue's.
        messages: what to send, of the queue's type.
        due: when they become visible: a moment or a delay.
        headers: those of each message.
        keys: the key of each; None: they have none.

    Raises:
        EncodeError: the headers have no JSON form. What is returned raises it for a message that cannot be sent.
    """
    delay, at = (_NO_DELAY, due) if isinstance(due, datetime) else (due, None)
    if keys is None:
        encode = encoder(headers)
        return lambda: [Outgoing(*encode(message), delay, at) for message in messages]
    each = list(zip(messages, keys.keys, map(encoder, keys.headers(headers)), strict=True))
    window = keys.window
    return lambda: [Outgoing(*encode(message), delay, at, key, window) for message, key, encode in each]


def insert(statements: Statements, messages: Sequence[Outgoing]) -> tuple[str, tuple[object, ...]]:
    """Return the statement that stores messages, at least one, and its arguments.

    Either all of them have keys or none has.
    """
    if messages[0].key is not None:
        payloads, headers, delays, moments, keys, windows = map(list, zip(*messages, strict=True))
        return statements.insert_keyed, (payloads, headers, delays, moments, keys, windows)
    delay = messages[0].delay
    if all(one.at is None and one.delay == delay for one in messages):
        # As it mostly is: then there is less to send, and to take apart.
        return insert_part(statements, [one[:2] for one in messages], delay, len(messages))
    return statements.insert, (
        [message.payload for message in messages],
        [message.headers for message in messages],
        [message.delay for message in messages],
        [message.at for message in messages],
    )


def ids_of(messages: Sequence[Outgoing], rows: Iterable[Sequence[Any]]) -> list[TaskId]:
    """Return the ids of messages, in their order, from what the statement of `insert` has returned for them.

    That of a message whose key was taken is the id of the message that has it.
    """
    if messages[0].key is None:
        return new_ids(rows)
    ids = {key: TaskId(message_id) for key, message_id in rows}
    return [ids[message.key] for message in messages]


def take(encoded: Iterator[Encoded], most: int = PART) -> list[Encoded]:
    """Take some of many messages as they are encoded: what one statement is to send, or less; nothing at the end."""
    part: list[Encoded] = []
    characters = 0
    for one in islice(encoded, most):
        part.append(one)
        characters += len(one[0])
        if characters >= MOST_CHARACTERS:
            break
    return part


def insert_part(
    statements: Statements, part: Sequence[Encoded], delay: timedelta, left: int
) -> tuple[str, tuple[object, ...]]:
    """Return the statement that stores a part of what is sent in one transaction, and its arguments.

    Args:
        statements: those of the queue.
        part: its messages, at least one.
        delay: of all.
        left: how many are not sent yet, this part included.
    """
    # In JSON a line break can only be white space. Text travels sooner than an array, at whose elements drivers
    # look one by one.
    lines = "\n".join([payload.replace("\n", " ") for payload, _ in part])
    first = part[0][1]
    if all(headers == first for _, headers in part):
        return statements.insert_part, (lines, first, delay, left)
    each = "\n".join([headers or "" for _, headers in part])
    return statements.insert_part_each, (lines, each, delay, left)


def new_ids(rows: Iterable[Sequence[Any]]) -> list[TaskId]:
    """Return the ids that a statement, or several of one transaction, gave to messages, in their order.

    Ids are handed out in the order of insertion; RETURNING promises none.
    """
    return sorted(TaskId(one) for row in rows for one in row[0] or ())
