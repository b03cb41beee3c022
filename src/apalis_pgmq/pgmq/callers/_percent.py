"""Our statements for drivers and frameworks that know no ``$1``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARAMETER: Final = re.compile(r"\$(\d+)")


def percent(sql: str, arguments: Sequence[object]) -> tuple[str, dict[str, object]]:
    """Return a statement with ``%(p1)s`` for ``$1``, and its arguments by name.

    A ``$`` is nowhere else in our statements: PGMQ allows none in the name of a queue.
    """
    named = {f"p{number}": argument for number, argument in enumerate(arguments, 1)}
    return _PARAMETER.sub(r"%(p\1)s", sql.replace("%", "%%")), named
