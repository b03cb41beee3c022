"""The errors of other drivers, as ours would raise them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from apalis_pgmq.pgmq._errors import DRIVER_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator

_BY_STATE: Final = {
    kind.sqlstate: kind
    for kind in vars(asyncpg).values()
    if isinstance(kind, type) and issubclass(kind, asyncpg.PostgresError) and kind.sqlstate
}
"""What to raise for an SQLSTATE; one that ends with 000 stands for its class."""


def driver_error(error: BaseException) -> tuple[Exception, BaseException] | None:
    """Return the asyncpg error that says the same as an error of another driver, and that driver's own error.

    The frameworks' wrappers are looked into; their texts may show the parameters of the statement. None: it is no
    error of the database, such as what SQLAlchemy says of a session that waits for its rollback.
    """
    chain = list(_inwards(error))
    for one in chain:
        if isinstance(one, DRIVER_ERRORS):
            return one, one
    for one in chain:
        state = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        if isinstance(state, str):
            kind = _BY_STATE.get(state) or _BY_STATE.get(state[:2] + "000") or asyncpg.PostgresError
            diagnosis = getattr(one, "diag", None)
            same = kind(getattr(diagnosis, "message_primary", None) or str(one))
            same.detail = getattr(diagnosis, "message_detail", None)
            return same, one
    innermost = chain[-1]
    # PEP 249's names. Without an SQLSTATE it is not the server that speaks.
    names = {kind.__name__ for kind in type(innermost).__mro__ if kind.__module__.startswith("psycopg")}
    if names & {"OperationalError", "InterfaceError"}:
        return asyncpg.InterfaceError(str(innermost)), innermost
    if "DataError" in names:
        return asyncpg.DataError(str(innermost)), innermost
    return None


def _inwards(error: BaseException) -> Iterator[BaseException]:
    """Go from what a framework raises to what its driver has raised."""
    inner: BaseException | None = error
    seen: set[int] = set()
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        original = getattr(inner, "orig", None)
        inner = original if isinstance(original, BaseException) else inner.__cause__
