"""Durations and moments as users write them, made one thing."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from ._errors import LONGEST, ConfigError

Duration: TypeAlias = timedelta | float
"""A length of time: a `timedelta`, or a number of seconds."""


def duration(
    name: str,
    value: Duration,
    *,
    shortest: timedelta = timedelta(microseconds=1),
    longest: timedelta = LONGEST,
    allow_zero: bool = False,
) -> timedelta:
    """Return ``value`` as a `timedelta`, at microsecond precision (PostgreSQL's own).

    Args:
        name: how the user calls this setting, for the error text.
        value: a `timedelta` or seconds.
        shortest: the least that is allowed, zero aside.
        longest: the most that is allowed.
        allow_zero: whether zero is allowed too.

    Raises:
        ConfigError: not a duration, or out of range; the text says what is allowed.
    """
    if isinstance(value, timedelta):
        result = value
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or _is_not_finite(value):
        raise ConfigError(f"{name} must be a timedelta or a number of seconds, not {value!r}")
    else:
        try:
            result = timedelta(seconds=value)
        except OverflowError:
            result = timedelta.max if value > 0 else timedelta.min
    if allow_zero and not result:
        return result
    if result <= timedelta(0):
        at_least = "zero or more" if allow_zero else "longer than zero"
        raise ConfigError(f"{name} must be {at_least}, not {result.total_seconds():g} s")
    if result < shortest:
        raise ConfigError(
            f"{name} must be at least {shortest.total_seconds():g} s, not {result.total_seconds():g} s"
        )
    if result > longest:
        raise ConfigError(
            f"{name} must be at most {longest.total_seconds():g} s, not {result.total_seconds():g} s"
        )
    return result


def moment(name: str, value: datetime | Duration) -> datetime | timedelta:
    """Return when something is due: a moment with a time zone, or a delay.

    Args:
        name: how the user calls it, for the error text.
        value: a `datetime` with a time zone, or a duration from now; zero is allowed.

    Raises:
        ConfigError: neither, a `datetime` without a time zone, or more than ten years ahead.
    """
    if not isinstance(value, datetime):
        if isinstance(value, bool) or not isinstance(value, (timedelta, int, float)):
            raise ConfigError(f"{name} must be a datetime, a timedelta or a number of seconds, not {value!r}")
        return duration(name, value, allow_zero=True)
    if value.utcoffset() is None:
        raise ConfigError(
            f"{name} is a datetime without a time zone, {value.isoformat()}: give it one, with tzinfo=UTC, "
            "datetime.now(UTC) or, for local time, .astimezone()"
        )
    if value - datetime.now(UTC) > LONGEST:
        raise ConfigError(f"{name} must be at most {LONGEST.days} days ahead, not {value.isoformat()}")
    return value


def _is_not_finite(value: float) -> bool:
    # An int may be too large to be a float; it is finite all the same, and too long.
    return isinstance(value, float) and not math.isfinite(value)
