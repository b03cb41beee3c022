"""Every error that the core raises, and the two that a handler raises.

::

    ApalisError
    ├── ConfigError (also ValueError)      a setting that cannot work
    ├── HandlerError (also TypeError)      a handler that cannot be called; raised by ``build``
    ├── CodecError
    │   ├── EncodeError                    a message that cannot be sent
    │   └── DecodeError                    a payload that is not of the message type
    ├── BackendUnavailableError            the backend does not answer now; trying later helps
    ├── LeaseLostError                 the message is another worker's by now; nothing was changed
    ├── AbortError                         raised by a handler: never run this message again
    └── RetryAfterError                    raised by a handler: run this message again after a delay

A backend adds its own below `ApalisError`; see ``apalis_pgmq.pgmq``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

LONGEST: Final = timedelta(days=3650)
"""The longest delay that anything here waits."""


class ApalisError(Exception):
    """The root of everything that this library raises on purpose."""


class ConfigError(ApalisError, ValueError):
    """A setting that cannot work: the text names the setting, the value and what is allowed."""


class HandlerError(ApalisError, TypeError):
    """A handler that no message could ever be given to, found when its worker is built."""


class CodecError(ApalisError):
    """A codec could not translate between a message and its payload."""


class EncodeError(CodecError):
    """A message that cannot be sent: it is not of the queue's type, or has no JSON form."""


class DecodeError(CodecError):
    """A payload that is not of the queue's message type; such a message is dead-lettered at once."""


class BackendUnavailableError(ApalisError):
    """The backend cannot be reached now.

    Workers wait and try again by themselves; a caller of ``push`` gets this error and decides.
    """


class LeaseLostError(ApalisError):
    """The message is not this worker's any more; what was about to change was not changed."""


class AbortError(ApalisError):
    """Raise it in a handler to give up on the message at once: no further attempt, dead-lettered."""


class RetryAfterError(ApalisError):
    """Raise it in a handler to have the message delivered again after ``delay``.

    It counts as an attempt: after ``max_retries`` retries the message is dead-lettered all the same.

    Args:
        delay: a `timedelta` or seconds; a negative one counts as zero, more than ten years as ten years.
        reason: what to put in logs, events and, in the end, the dead-letter headers.
    """

    def __init__(self, delay: timedelta | float, reason: str = "") -> None:
        if not isinstance(delay, timedelta):
            delay = timedelta(seconds=min(max(delay, 0), LONGEST.total_seconds()))
        self.delay = min(max(delay, timedelta(0)), LONGEST)
        super().__init__(reason or f"retry after {self.delay.total_seconds():g} s")


def error_text(error: BaseException) -> str:
    """Return an error's text, even of one whose ``__str__`` raises."""
    try:
        return str(error)
    except Exception as failure:  # noqa: BLE001 - telling of an error must not be the next one
        return f"<its text cannot be had: {type(failure).__name__}>"
