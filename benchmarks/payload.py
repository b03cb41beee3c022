"""The message that everybody is given; the standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Message:
    """An e-mail, about 120 bytes as JSON unless its body says otherwise.

    Attributes:
        number: tells messages apart.
        to: an address.
        subject: a line.
        body: as long as a measurement wants it.
    """

    number: int
    to: str
    subject: str
    body: str = "Hello"


def message(number: int, size: int = 0) -> Message:
    """Return the message of a number, with a body of ``size`` characters if that is given."""
    body = "x" * size if size else "Hello"
    return Message(number, f"user{number}@example.com", "Your weekly report is ready", body)


def encoded(number: int, size: int = 0) -> str:
    """Return it as JSON."""
    return json.dumps(asdict(message(number, size)))
