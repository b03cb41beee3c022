"""How messages become payloads."""

from __future__ import annotations

from typing import Protocol, TypeVar

T = TypeVar("T")


class Codec(Protocol[T]):
    """Translates between messages and JSON text, the payload of a PGMQ message."""

    def encode(self, message: T) -> str:
        """Return the message as JSON text.

        Raises:
            EncodeError: the message is of another type, or has no JSON form.
        """
        ...

    def decode(self, payload: str) -> T:
        """Return the message that the JSON text stands for.

        Raises:
            DecodeError: the payload is not a message of this type; the text says why, for a person.
        """
        ...
