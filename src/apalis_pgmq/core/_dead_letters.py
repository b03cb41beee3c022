"""Dead letters: what a person sees of them, what their headers say, and how they are put back."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from ._errors import ConfigError, error_text
from ._task import TaskId

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._config import Config

DEAD_LETTER_PREFIX: Final = "x-dead-letter-"
"""How the headers begin that burying adds and putting back removes."""
REDRIVE_COUNT: Final = "x-redrive-count"
"""The header that says how often a message was put back."""

_LONGEST_TEXT: Final = 2000
"""Characters of an error's text that go into the headers."""
_LARGEST_BATCH: Final = 100
"""Messages that are put back by one statement: few enough for messages of a megabyte each."""
_STEPS_PER_SECOND: Final = 10
_COUNT = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetter:
    """A message in a dead-letter queue.

    Anybody can put messages there: what their headers do not say, or say in another form, is None.

    Attributes:
        id: its id in the dead-letter queue, to page by and to put it back by.
        payload: the message as JSON text, as it was sent; it need not be of the queue's type.
        headers: all of its headers, the message's own and those that tell why it is here.
        reason: one of the `DeadLetterReason` values.
        error: the text of what the last attempt raised.
        error_type: the name of its class.
        attempts: how often it was delivered.
        original_id: the id that it had in its queue.
        queue: the queue that it was in.
        enqueued_at: when it was sent, with time zone.
        dead_lettered_at: when it was given up, with time zone.
        worker: who gave it up.
    """

    id: TaskId
    payload: str
    headers: Mapping[str, object]
    reason: str | None
    error: str | None
    error_type: str | None
    attempts: int | None
    original_id: TaskId | None
    queue: str | None
    enqueued_at: datetime | None
    dead_lettered_at: datetime | None
    worker: str | None

    @classmethod
    def of(cls, message_id: TaskId, payload: str | None, headers: str | None) -> DeadLetter:
        """Return what a message in a dead-letter queue tells.

        Args:
            message_id: its id there.
            payload: the message as JSON text; None, a message that SQL sent as NULL, is ``"null"``.
            headers: its headers as JSON text, or None.
        """
        told = headers_of(headers)
        original_id = _number(told, "id")
        return cls(
            id=message_id,
            payload="null" if payload is None else payload,
            headers=told,
            reason=_text(told, "reason"),
            error=_text(told, "error"),
            error_type=_text(told, "error-type"),
            attempts=_number(told, "attempts"),
            original_id=None if original_id is None else TaskId(original_id),
            queue=_text(told, "queue"),
            enqueued_at=_time(told, "enqueued-at"),
            dead_lettered_at=_time(told, "at"),
            worker=_text(told, "worker"),
        )


@runtime_checkable
class SupportsDeadLetters(Protocol):
    """The capability to show what was given up, to put it back, and to delete it."""

    async def dead_letters(self, limit: int = 100, after: int | None = None) -> list[DeadLetter]:
        """Return dead letters, oldest first.

        Args:
            limit: at most so many.
            after: only those with a greater id: the last one of the page before.
        """
        ...

    async def redrive(
        self, ids: Iterable[int] | None = None, *, limit: int | None = None, rate: float | None = None
    ) -> int:
        """Put dead letters back into their queue, to be delivered anew; return how many were moved.

        Args:
            ids: which ones, by their ids in the dead-letter queue; None: all that are there now.
            limit: at most so many, oldest first; None: no limit.
            rate: at most so many per second; None: as fast as it goes.
        """
        ...

    async def purge_dead_letters(self) -> int:
        """Delete every dead letter; return how many there were."""
        ...


def dead_letter_headers(
    *,
    reason: str,
    queue: str,
    message_id: int,
    attempts: int,
    worker: str,
    error: BaseException | None,
    now: datetime,
) -> dict[str, object]:
    """Return the headers that tell why a message is a dead letter, all but when it was sent.

    Args:
        reason: one of the `DeadLetterReason` values.
        queue: the queue that it was in.
        message_id: its id there.
        attempts: how often it was delivered.
        worker: who gives it up.
        error: what the last attempt raised, where there is something.
        now: the time, with time zone.
    """
    headers: dict[str, object] = {
        "x-dead-letter-reason": reason,
        "x-dead-letter-queue": queue,
        "x-dead-letter-id": message_id,
        "x-dead-letter-attempts": attempts,
        "x-dead-letter-at": now.isoformat(),
        "x-dead-letter-worker": _storable(worker),
    }
    if error is not None:
        headers["x-dead-letter-error-type"] = _storable(type(error).__qualname__)
        headers["x-dead-letter-error"] = _storable(error_text(error))
    return headers


def redriven_headers(headers: Mapping[str, object]) -> dict[str, object]:
    """Return a dead letter's headers as its message has them when it is put back: its own, and a count."""
    own = {name: value for name, value in headers.items() if not name.startswith(DEAD_LETTER_PREFIX)}
    count = _COUNT.fullmatch(str(own.get(REDRIVE_COUNT)))
    own[REDRIVE_COUNT] = 1 if count is None else int(count[0]) + 1
    return own


def headers_of(text: str | None) -> dict[str, object]:
    """Return headers from JSON text; none where it is no object, or one that Python cannot read."""
    try:
        headers = json.loads(text or "null")
    except (ValueError, RecursionError):
        # A number of more digits than Python reads, or nested too deeply: both fit into jsonb.
        return {}
    return headers if isinstance(headers, dict) else {}


def require_dead_letter_queue(config: Config) -> None:
    """Refuse where dead letters go elsewhere.

    Raises:
        ConfigError: the config's ``dead_letter`` is not ``"queue"``.
    """
    if config.dead_letter != "queue":
        fate = "go to PGMQ's archive table" if config.dead_letter == "archive" else "are deleted"
        raise ConfigError(
            f"queue {config.queue!r} has no dead-letter queue: its config says "
            f"dead_letter={config.dead_letter!r}, so messages that are given up {fate}"
        )


def whole_number(name: str, value: int, *, least: int) -> int:
    """Return a whole number of 64 bits.

    Raises:
        ConfigError: it is none, or less than ``least``; the text names the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number, not {value!r}")
    if not least <= value < 2**63:
        raise ConfigError(f"{name} must be between {least} and {2**63 - 1}, not {value}")
    return value


@dataclass(frozen=True, slots=True, init=False)
class Redrive:
    """Which dead letters to put back, and how fast.

    Args:
        ids: which ones; None: all.
        limit: at most so many; None: no limit.
        rate: at most so many per second; None: as fast as it goes.

    Raises:
        ConfigError: a value that cannot work.
    """

    ids: tuple[TaskId, ...] | None
    limit: int | None
    rate: float | None

    def __init__(self, ids: Iterable[int] | None, limit: int | None, rate: float | None) -> None:
        wanted = None
        if ids is not None:
            checked = {TaskId(whole_number("a dead letter's id", one, least=-(2**63))) for one in ids}
            wanted = tuple(sorted(checked))
        if limit is not None:
            whole_number("limit", limit, least=0)
        if rate is not None and (
            isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf
        ):
            raise ConfigError(f"rate must be a number of messages per second above zero, not {rate!r}")
        object.__setattr__(self, "ids", wanted)
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "rate", rate)

    def batch(self, moved: int) -> int:
        """Return how many to put back at once after so many were; 0 if that is all."""
        size = _LARGEST_BATCH
        if self.rate is not None:
            size = min(size, max(1, int(self.rate // _STEPS_PER_SECOND)))
        return size if self.limit is None else min(size, self.limit - moved)

    def pause(self, moved: int) -> float:
        """Return the seconds from the start of a batch that put back so many to that of the next one."""
        return 0.0 if self.rate is None else moved / self.rate


def _text(headers: Mapping[str, object], name: str) -> str | None:
    value = headers.get(DEAD_LETTER_PREFIX + name)
    return value if isinstance(value, str) else None


def _number(headers: Mapping[str, object], name: str) -> int | None:
    value = headers.get(DEAD_LETTER_PREFIX + name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _time(headers: Mapping[str, object], name: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(_text(headers, name) or "")
    except ValueError:
        return None
    return None if time.tzinfo is None else time


def _storable(text: str) -> str:
    """Return text as PostgreSQL can store it in jsonb: no NUL, no lone surrogates, not without end."""
    return text[:_LONGEST_TEXT].encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
