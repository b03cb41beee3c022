"""psycopg 3's connections: its raw cursors take ``$1`` parameters, and so our statements as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from ._kinds import AsyncFetch, Rows, SyncFetch


def fetch_synchronously(connection: psycopg.Connection[Any]) -> SyncFetch:
    """Return how to send a statement on a connection."""
    from psycopg import RawCursor  # noqa: PLC0415 - who has a connection of its has psycopg
    from psycopg.rows import tuple_row  # noqa: PLC0415

    def fetch(sql: str, arguments: Sequence[object]) -> Rows:
        with RawCursor(connection, row_factory=tuple_row) as cursor:
            cursor.execute(sql.encode(), arguments)
            return cursor.fetchall()

    return fetch


def fetch_asynchronously(connection: psycopg.AsyncConnection[Any]) -> AsyncFetch:
    """Return how to send a statement on a connection."""
    from psycopg import AsyncRawCursor  # noqa: PLC0415 - who has a connection of its has psycopg
    from psycopg.rows import tuple_row  # noqa: PLC0415

    async def fetch(sql: str, arguments: Sequence[object]) -> Rows:
        async with AsyncRawCursor(connection, row_factory=tuple_row) as cursor:
            await cursor.execute(sql.encode(), arguments)
            return await cursor.fetchall()

    return fetch
