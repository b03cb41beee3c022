"""Message groups: the header that names one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ._errors import EncodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

GROUP_HEADER: Final = "x-pgmq-group"
"""The header that PGMQ's own grouped reads go by (``pgmq.read_grouped``, 1.9 and later)."""


def with_group(headers: Mapping[str, object] | None, group: str | None) -> Mapping[str, object] | None:
    """Return headers that name a message's group.

    Args:
        headers: the message's own; they may name the same group already.
        group: the name, not empty; None changes nothing.

    Raises:
        EncodeError: the group is no such text, or the headers name another one.
    """
    if group is None:
        return headers
    if not isinstance(group, str) or not group:
        raise EncodeError(f"a message's group must be a text that is not empty, not {group!r}")
    own = dict(headers or {})
    if own.setdefault(GROUP_HEADER, group) != group:
        raise EncodeError(
            f"group={group!r} and the header {GROUP_HEADER!r}, which says {own[GROUP_HEADER]!r}, name two groups: "
            "leave one of them out"
        )
    return own
