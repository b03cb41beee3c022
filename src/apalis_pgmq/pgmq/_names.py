"""The names of PGMQ's tables, and how names and texts become SQL."""

from __future__ import annotations

from typing import Final

SCHEMA: Final = "pgmq"
_LONGEST_CHANNEL: Final = 63
"""PostgreSQL's bound, in bytes."""


def quote(identifier: str) -> str:
    """Return an identifier as SQL. The one place where names become SQL."""
    return '"' + identifier.replace('"', '""') + '"'


def queue_table(queue: str) -> str:
    """Return the name of a queue's table, without schema; PGMQ lower-cases it."""
    return f"q_{queue}".lower()


def archive_table(queue: str) -> str:
    """Return the name of a queue's archive table, without schema; PGMQ lower-cases it."""
    return f"a_{queue}".lower()


def insert_channel(queue: str) -> str | None:
    """Return the channel on which inserts are announced, PGMQ's own; None if PostgreSQL took no such name."""
    channel = f"{SCHEMA}.{queue_table(queue)}.INSERT"
    return channel if len(channel.encode()) <= _LONGEST_CHANNEL else None


def literal(text: str) -> str:
    """Return a text as SQL."""
    return "'" + text.replace("'", "''") + "'"
