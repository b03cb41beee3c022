"""What becomes of a message whose handler raised."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, NamedTuple, TypeAlias

from apalis_pgmq.core import AbortError, ConfigError, DeadLetterReason, Duration, RetryAfterError, duration

logger = logging.getLogger("apalis_pgmq")

DelayFunction: TypeAlias = Callable[[BaseException, int], Duration | None]
"""Returns how long to wait after an error on the given attempt (from 1), a `timedelta` or seconds; None:
until the visibility timeout ends."""

_LONGEST: Final = timedelta(days=365)


class Verdict(NamedTuple):
    """Why to give a message up, or when to deliver it again; None: when its visibility timeout ends."""

    reason: DeadLetterReason | None
    after: timedelta | None


class Exponential:
    """Delays that grow from attempt to attempt: ``first``, ``first * factor``, and so on.

    Args:
        first: the delay after the first attempt, a `timedelta` or seconds; the default is 1 s.
        factor: by what each further delay is multiplied, at least 1; the default is 2.
        longest: where the growth ends, a `timedelta` or seconds; the default is 1 h.
        jitter: the share of each delay that is left to chance, 0 to 1, so that messages that failed
            together do not return together; the default is 0.2: between 80 and 100 % of the delay.

    Raises:
        ConfigError: a value that cannot work.
    """

    def __init__(
        self,
        first: Duration = 1,
        *,
        factor: float = 2.0,
        longest: Duration = timedelta(hours=1),
        jitter: float = 0.2,
    ) -> None:
        self._first = duration("first", first).total_seconds()
        self._longest = duration("longest", longest, longest=_LONGEST).total_seconds()
        if factor < 1:
            raise ConfigError(f"factor must be at least 1, not {factor!r}")
        if not 0 <= jitter <= 1:
            raise ConfigError(f"jitter must be between 0 and 1, not {jitter!r}")
        self._factor = factor
        self._jitter = jitter

    def __call__(self, _error: BaseException, attempt: int) -> timedelta:
        """Return the delay after the given attempt."""
        try:
            full = min(self._first * self._factor ** (attempt - 1), self._longest)
        except OverflowError:
            full = self._longest
        # Spreads the retries; nothing secret about it.
        return timedelta(seconds=full * random.uniform(1 - self._jitter, 1))  # noqa: S311


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Judges errors.

    A handler's own word goes first: `AbortError` and `RetryAfterError` mean what they say.

    Attributes:
        delay: how long until the next attempt; None: until the visibility timeout ends.
        retry_on: errors to try again after.
        abort_on: errors not to try again after, even if they are among ``retry_on``.
    """

    delay: DelayFunction | timedelta | None = None
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    abort_on: tuple[type[BaseException], ...] = ()

    def judge(self, error: BaseException, *, attempt: int, max_retries: int) -> Verdict:
        """Return what becomes of a message whose handler raised ``error`` on the given attempt."""
        asked_for = isinstance(error, RetryAfterError)
        wanted = asked_for or (
            isinstance(error, self.retry_on) and not isinstance(error, (AbortError, *self.abort_on))
        )
        if not wanted:
            return Verdict(DeadLetterReason.ABORTED, None)
        if attempt > max_retries:
            return Verdict(DeadLetterReason.RETRIES_EXHAUSTED, None)
        if isinstance(error, RetryAfterError):
            return Verdict(None, error.delay)
        return Verdict(None, self._delay_after(error, attempt))

    def _delay_after(self, error: BaseException, attempt: int) -> timedelta | None:
        if not callable(self.delay):
            return self.delay
        try:
            delay = self.delay(error, attempt)
            return None if delay is None else duration("the retry delay", delay, allow_zero=True)
        except Exception:
            logger.exception("the retry delay could not be reckoned; the visibility timeout serves instead")
            return None


DEFAULT_POLICY: Final = RetryPolicy()
"""Try again after every error, when the visibility timeout ends."""


def retry_policy(
    delay: Duration | DelayFunction | None,
    retry_on: type[BaseException] | tuple[type[BaseException], ...],
    abort_on: type[BaseException] | tuple[type[BaseException], ...],
) -> RetryPolicy:
    """Return the policy for what a user wrote.

    Raises:
        ConfigError: a value that cannot work.
    """
    return RetryPolicy(
        delay
        if delay is None or callable(delay)
        else duration("delay", delay, allow_zero=True, longest=_LONGEST),
        _types("retry_on", retry_on),
        _types("abort_on", abort_on),
    )


def _types(name: str, value: object) -> tuple[type[BaseException], ...]:
    types = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in types):
        raise ConfigError(f"{name} must be an exception type or a tuple of them, not {value!r}")
    return types
