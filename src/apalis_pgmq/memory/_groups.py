"""Which message of a group is next, in memory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from apalis_pgmq.core import GROUP_HEADER, headers_of

if TYPE_CHECKING:
    from collections.abc import Container

    from apalis_pgmq.core import TaskId


class Groups:
    """The messages of each group, in the order of their ids.

    In memory the order of ids is that in which messages come, so the head of a group is its lowest id.

    Args:
        present: tells which messages are still there.
    """

    def __init__(self, present: Container[TaskId]) -> None:
        self._present = present
        self._lines: dict[str, deque[TaskId]] = {}

    def add(self, message_id: TaskId, headers: str | None) -> str | None:
        """Add a message to the line of its group; return the group, None if it has none."""
        group = headers_of(headers).get(GROUP_HEADER)
        if group is None:
            return None
        self._lines.setdefault(str(group), deque()).append(message_id)
        return str(group)

    def head(self, group: str) -> TaskId | None:
        """Return the message that is next in a group; None if there is none."""
        line = self._lines.get(group)
        while line:
            if line[0] in self._present:
                return line[0]
            line.popleft()
        self._lines.pop(group, None)
        return None
