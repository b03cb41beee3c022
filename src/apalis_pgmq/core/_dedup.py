"""Which messages count as the same when they are sent."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar

from ._durations import Duration, duration
from ._errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

DEDUP_HEADER: Final = "x-dedup-key"
"""The header that a message's key is kept in."""
_DEFAULT_WINDOW: Final = timedelta(minutes=5)
"""SQS's."""
_LONGEST_KEY: Final = 255


@dataclass(frozen=True, slots=True)
class DedupKeys:
    """The keys of the messages of one call, in their order, and for how long each is taken.

    Attributes:
        keys: one for each message.
        window: how long a key stands in the way of another message.
    """

    keys: Sequence[str]
    window: timedelta

    @classmethod
    def of_one(cls, key: str | None, window: Duration | None) -> DedupKeys | None:
        """Return the key that was given with one message; None if none was.

        Raises:
            ConfigError: it cannot be a key, or the window is no duration, or stands alone.
        """
        return None if (length := _window(key, window)) is None else cls([_checked(key)], length)

    @classmethod
    def of_many(
        cls, key: Callable[[T], str] | None, messages: Sequence[T], window: Duration | None
    ) -> DedupKeys | None:
        """Return the keys that a function gives to messages; None if there is no function.

        Raises:
            ConfigError: as `of_one`, or it is no function.
        """
        length = _window(key, window)
        if length is None or key is None:
            return None
        if not callable(key):
            raise ConfigError(
                f"dedup_key must be a function here, that returns the key of a message, not {key!r}"
            )
        return cls([_checked(key(message)) for message in messages], length)

    def headers(self, headers: Mapping[str, object] | None) -> list[dict[str, object]]:
        """Return the headers of each message: those given, and its key."""
        return [{**(headers or {}), DEDUP_HEADER: key} for key in self.keys]


def _window(key: object, window: Duration | None) -> timedelta | None:
    if key is None:
        if window is not None:
            raise ConfigError("dedup_window needs a dedup_key: without one every message is stored")
        return None
    return _DEFAULT_WINDOW if window is None else duration("dedup_window", window)


def _checked(key: object) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= _LONGEST_KEY:
        raise ConfigError(f"dedup_key must be a text of 1 to {_LONGEST_KEY} characters, not {key!r}")
    if "\0" in key or any("\ud800" <= character <= "\udfff" for character in key):
        raise ConfigError(f"dedup_key {key!r} has a character that PostgreSQL cannot store")
    return key
