"""The settings of one queue, as a frozen value."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias

from ._durations import Duration, duration
from ._errors import ConfigError, EncodeError

OnSuccess: TypeAlias = Literal["delete", "archive"]
"""What becomes of a handled message: it is deleted, or moved to PGMQ's archive table."""

DeadLetterTarget: TypeAlias = Literal["queue", "archive"] | None
"""What becomes of a message that is given up: it is moved to ``<queue>_dlq`` or to PGMQ's archive table,
or (None) deleted."""

DEAD_LETTER_SUFFIX: Final = "_dlq"
MAX_QUEUE_NAME: Final = 47
"""PGMQ's own limit, in characters (``pgmq.validate_queue_name``)."""

_REFUSED = re.compile(r"\$|;|--|'|\x00")
_LONGEST_IDENTIFIER: Final = 63
_LONGEST_PREFIX: Final = "apalis_group_"
"""Of the names of what an ordered queue has in the database."""
_MAX_RETRIES: Final = 1_000_000
_MEBIBYTE: Final = 1024 * 1024
_MOST_BYTES: Final = 2**31 - 1
"""More than PostgreSQL stores in one value."""
_LONGEST_CHARACTER: Final = 4
"""Bytes of a character in UTF-8, at most."""


@dataclass(frozen=True, slots=True, init=False)
class Config:
    """How one queue is worked: its name, its timing and what becomes of its messages.

    A frozen value; the ``with_*`` methods return a changed copy. It goes wherever a queue name goes.

    Args:
        queue: the queue's name, checked by PGMQ's rules: 1 to 43 characters (PGMQ's 47 less the room
            for the dead-letter queue's suffix ``_dlq``, where there is one), without ``$``, ``;``, ``--``
            and ``'``.
        visibility_timeout: how long a claimed message stays invisible to others, 0.1 s to 7 days;
            the default is 30 s. A live worker extends it while it holds the message; the messages of
            a dead one return within this time.
        poll_interval: how long to wait before asking an empty queue again, 1 ms to 1 hour; the
            default is 100 ms. A queue that announces every insert is asked when something is announced or due.
        max_retries: how often a message that failed is delivered again, 0 to 1,000,000; the default
            is 5. A message is delivered at most ``1 + max_retries`` times, crashes included.
        on_success: ``"delete"`` (the default) or ``"archive"``: what becomes of a handled message.
        dead_letter: ``"queue"`` (the default), ``"archive"`` or None: what becomes of a message that is
            given up.
        max_lease: how long a worker may hold one message, lease extensions included; the default is 12 h
            (SQS's bound), None is without bound, less than the visibility timeout counts as that. A handler
            that hangs for longer is cancelled, and its message delivered again.
        max_payload: the most bytes of JSON that a message may have to be sent; the default is 1 MiB, None is
            without bound.
        claim_check_over: payloads of more bytes of JSON than that are kept in a table of their own, and come
            back from there before they are decoded; None, the default, keeps all in the queue. Workers need it
            before producers have it. In memory it changes nothing.
        ordered: True: of the messages of a *group* (``push(..., group="customer-42")``) one is worked at a time,
            in the order in which they were sent, by all workers together; see ``docs/ordering.md``. All workers
            of the queue must say so. False, the default: groups mean nothing.

    Raises:
        ConfigError: a value that cannot work; the text says what is allowed.
    """

    queue: str
    visibility_timeout: timedelta
    poll_interval: timedelta
    max_retries: int
    on_success: OnSuccess
    dead_letter: DeadLetterTarget
    max_lease: timedelta | None
    max_payload: int | None
    claim_check_over: int | None
    ordered: bool

    def __init__(
        self,
        queue: str,
        *,
        visibility_timeout: Duration = timedelta(seconds=30),
        poll_interval: Duration = timedelta(milliseconds=100),
        max_retries: int = 5,
        on_success: OnSuccess = "delete",
        dead_letter: DeadLetterTarget = "queue",
        max_lease: Duration | None = timedelta(hours=12),
        max_payload: int | None = _MEBIBYTE,
        claim_check_over: int | None = None,
        ordered: bool = False,
    ) -> None:
        checked: dict[str, Any] = {
            "queue": _queue_name(queue, has_dead_letter_queue=dead_letter == "queue"),
            "visibility_timeout": duration(
                "visibility_timeout",
                visibility_timeout,
                shortest=timedelta(milliseconds=100),
                longest=timedelta(days=7),
            ),
            "poll_interval": duration(
                "poll_interval",
                poll_interval,
                shortest=timedelta(milliseconds=1),
                longest=timedelta(hours=1),
            ),
            "max_retries": _retries(max_retries),
            "on_success": _on_success(on_success),
            "dead_letter": _dead_letter(dead_letter),
            "max_payload": _bytes("max_payload", max_payload),
            "claim_check_over": _bytes("claim_check_over", claim_check_over),
            "ordered": _ordered(ordered, queue),
        }
        checked["max_lease"] = None if max_lease is None else duration("max_lease", max_lease)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, queue_or_config: str | Config) -> Config:
        """Return the `Config` itself, or the default one for a queue name."""
        return queue_or_config if isinstance(queue_or_config, Config) else cls(queue_or_config)

    @property
    def dead_letter_queue(self) -> str:
        """The queue that messages are moved to when they are given up: ``<queue>_dlq``."""
        return self.queue + DEAD_LETTER_SUFFIX

    def with_visibility_timeout(self, visibility_timeout: Duration) -> Config:
        """Return a copy with another visibility timeout (a `timedelta` or seconds)."""
        return self._with(visibility_timeout=visibility_timeout)

    def with_poll_interval(self, poll_interval: Duration) -> Config:
        """Return a copy with another poll interval (a `timedelta` or seconds)."""
        return self._with(poll_interval=poll_interval)

    def with_max_retries(self, max_retries: int) -> Config:
        """Return a copy that allows another number of retries."""
        return self._with(max_retries=max_retries)

    def with_on_success(self, on_success: OnSuccess) -> Config:
        """Return a copy that deletes or archives what was handled."""
        return self._with(on_success=on_success)

    def with_dead_letter(self, dead_letter: DeadLetterTarget) -> Config:
        """Return a copy that moves what is given up elsewhere, or deletes it."""
        return self._with(dead_letter=dead_letter)

    def with_max_lease(self, max_lease: Duration | None) -> Config:
        """Return a copy with another bound on how long a message is held (a `timedelta` or seconds)."""
        return self._with(max_lease=max_lease)

    def with_max_payload(self, max_payload: int | None) -> Config:
        """Return a copy with another bound on what is sent (bytes of JSON)."""
        return self._with(max_payload=max_payload)

    def with_claim_check_over(self, claim_check_over: int | None) -> Config:
        """Return a copy that keeps payloads of more bytes of JSON in a table of their own."""
        return self._with(claim_check_over=claim_check_over)

    def with_ordered(self, ordered: bool = True) -> Config:  # noqa: FBT001, FBT002 - it says what it is
        """Return a copy that is worked in order within each group, or is not."""
        return self._with(ordered=ordered)

    def _with(self, **changes: Any) -> Config:
        return replace(self, **changes)


def checked_payload(payload: str, config: Config) -> str:
    """Return a payload that is not larger than the queue's config allows.

    Raises:
        EncodeError: it is; the text names its size, the limit and the queue.
    """
    limit = config.max_payload
    if limit is not None and len(payload) * _LONGEST_CHARACTER > limit:
        size = len(payload) if payload.isascii() else len(payload.encode("utf-8", "surrogatepass"))
        if size > limit:
            raise EncodeError(
                f"the message has {size:,} bytes as JSON, and queue {config.queue!r} takes at most {limit:,}; "
                "send a reference to large data, or raise max_payload"
            )
    return payload


def _queue_name(queue: object, *, has_dead_letter_queue: bool) -> str:
    if not isinstance(queue, str):
        raise ConfigError(f"queue must be a name or a Config, not {queue!r}")
    longest = MAX_QUEUE_NAME - (len(DEAD_LETTER_SUFFIX) if has_dead_letter_queue else 0)
    if not queue.strip():
        raise ConfigError("queue must not be empty")
    if len(queue) > longest:
        raise ConfigError(
            f"queue name {queue!r} has {len(queue)} characters; at most {longest} are allowed "
            f"(PGMQ's {MAX_QUEUE_NAME}"
            + (
                f", less {len(DEAD_LETTER_SUFFIX)} for {DEAD_LETTER_SUFFIX!r})"
                if has_dead_letter_queue
                else ")"
            )
        )
    table = "q_" + queue + (DEAD_LETTER_SUFFIX if has_dead_letter_queue else "")
    if len(table.encode("utf-8", "replace")) > _LONGEST_IDENTIFIER:
        # PostgreSQL would cut it off, and two queues could end up in one table.
        raise ConfigError(
            f"queue name {queue!r} is too long: PostgreSQL's names have 63 bytes, and its table's more"
        )
    if any(not one.isascii() and one.lower() != one for one in queue):
        raise ConfigError(
            f"queue name {queue!r} has upper-case letters beyond ASCII, which PostgreSQL and Python may lower differently"
        )
    if refused := _REFUSED.search(queue):
        raise ConfigError(
            f"queue name {queue!r} contains {refused.group()!r}; "
            "PGMQ refuses names with '$', ';', '--' or a single quote"
        )
    return queue


def _retries(max_retries: object) -> int:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int):
        raise ConfigError(f"max_retries must be a whole number, not {max_retries!r}")
    if not 0 <= max_retries <= _MAX_RETRIES:
        raise ConfigError(f"max_retries must be between 0 and {_MAX_RETRIES:,}, not {max_retries}")
    return max_retries


def _bytes(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be a whole number of bytes or None, not {value!r}")
    if not 1 <= value <= _MOST_BYTES:
        raise ConfigError(f"{name} must be from 1 to {_MOST_BYTES:,} bytes, not {value}")
    return value


def _ordered(ordered: object, queue: str) -> bool:
    if not isinstance(ordered, bool):
        raise ConfigError(f"ordered must be True or False, not {ordered!r}")
    if ordered and len(f"{_LONGEST_PREFIX}{queue}".encode("utf-8", "replace")) > _LONGEST_IDENTIFIER:
        raise ConfigError(
            f"queue name {queue!r} is too long for an ordered queue: PostgreSQL's names have 63 bytes, and "
            f"{_LONGEST_PREFIX!r} goes before it"
        )
    return ordered


def _on_success(on_success: object) -> OnSuccess:
    if on_success == "delete":
        return "delete"
    if on_success == "archive":
        return "archive"
    raise ConfigError(f"on_success must be 'delete' or 'archive', not {on_success!r}")


def _dead_letter(dead_letter: object) -> DeadLetterTarget:
    if dead_letter is None:
        return None
    if dead_letter == "queue":
        return "queue"
    if dead_letter == "archive":
        return "archive"
    raise ConfigError(f"dead_letter must be 'queue', 'archive' or None, not {dead_letter!r}")
