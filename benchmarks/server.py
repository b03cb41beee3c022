"""The PostgreSQL server under measurement, and the databases that each measurement has to itself."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from dataclasses import dataclass
from importlib import metadata, resources
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from apalis_pgmq import PgMqBackend
from apalis_pgmq.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_preload_libraries": "pg_stat_statements",
    "max_connections": "300",
}
"""The settings of a server that the harness starts; nothing is faster than it is safe."""

QUEUE: Final = "bench"
"""The queue that every database of a measurement has, empty."""

TABLE: Final = f"pgmq.q_{QUEUE}"
CHANNEL: Final = f"pgmq.q_{QUEUE}.INSERT"

_PREFIX: Final = "apalis_bench"
_PATIENCE: Final = 30.0
_COUNT_SECONDS: Final = 0.2


class ServerError(Exception):
    """The server is not as the harness needs it."""


@dataclass(frozen=True, slots=True)
class Database:
    """A database of a measurement's own."""

    name: str
    url: str


class Server:
    """A server with a template that has PGMQ; made by `open_server`.

    The harness's own connection is to another database, so that what it does is not counted.
    """

    def __init__(self, url: str, admin: asyncpg.Connection, template: str) -> None:
        self._url = url
        self._template = template
        self.admin = admin
        self.has_statements = False

    @contextlib.asynccontextmanager
    async def database(self, *, pgmq: bool = True) -> AsyncGenerator[Database]:
        """Have a new database, with PGMQ and the queue in it unless told otherwise; it is dropped at the end."""
        name = f"{_PREFIX}_{uuid.uuid4().hex[:12]}"
        template = self._template if pgmq else "template0"
        await self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield Database(name, on_database(self._url, name))
        finally:
            await self.admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def settle(self, database: Database) -> None:
        """Bring the server into the state that every timed part begins in.

        Nobody is connected, everything is written, and the planner knows the tables, as it does in a
        database that has been used for a while.
        """
        await self.left(database)
        connection = await asyncpg.connect(database.url)
        try:
            await connection.execute("VACUUM (ANALYZE)")
        finally:
            await connection.close()
        await self.left(database)
        await self.admin.execute("CHECKPOINT")

    async def left(self, database: Database) -> None:
        """Wait until nobody is connected to a database; then its statistics are complete."""
        async with asyncio.timeout(_PATIENCE):
            while await self.connections(database):  # noqa: ASYNC110 - only the server knows
                await asyncio.sleep(0.02)

    async def connections(self, database: Database) -> int:
        """Return how many clients are connected to a database."""
        return await self._count(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'",
            database.name,
        )

    @contextlib.asynccontextmanager
    async def counting_connections(self, database: Database) -> AsyncGenerator[list[int]]:
        """Have counted, again and again, how many clients are connected to a database; never empty."""
        seen = [await self.connections(database)]

        async def count() -> None:
            while True:
                await asyncio.sleep(_COUNT_SECONDS)
                seen.append(await self.connections(database))

        counting = asyncio.create_task(count())
        try:
            yield seen
        finally:
            counting.cancel()
            await asyncio.wait([counting])

    async def transactions(self, database: Database) -> int:
        """Return how many transactions were committed in a database that everybody has `left`."""
        return await self._count("SELECT xact_commit FROM pg_stat_database WHERE datname = $1", database.name)

    async def statements(self, database: Database, like: str = "%") -> int:
        """Return how many statements whose text is like a pattern a database has carried out.

        Raises:
            ServerError: the server does not count them.
        """
        if not self.has_statements:
            raise ServerError("the server does not load pg_stat_statements (shared_preload_libraries)")
        return await self._count(
            "SELECT coalesce(sum(s.calls), 0)::bigint FROM pg_stat_statements AS s "
            "JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = $1 AND s.query ILIKE $2",
            database.name,
            like,
        )

    async def _count(self, sql: str, *arguments: object) -> int:
        return int(await self.admin.fetchval(sql, *arguments))

    async def facts(self) -> dict[str, object]:
        """Return what the numbers depend on: versions, settings, and what a commit takes."""
        settings = await self.admin.fetch(
            "SELECT name, current_setting(name) AS value FROM pg_settings "
            "WHERE name = ANY ($1::text[]) ORDER BY name",
            [*SETTINGS, "shared_buffers", "max_wal_size", "wal_sync_method", "autovacuum"],
        )
        return {
            "postgresql": await self.admin.fetchval("SHOW server_version"),
            "pgmq": await self._pgmq_version(),
            "settings": {row["name"]: row["value"] for row in settings},
            "commit_ms": await self._commit_ms(),
        }

    async def _pgmq_version(self) -> str:
        connection = await asyncpg.connect(on_database(self._url, self._template))
        try:
            extension = await connection.fetchval(
                "SELECT extversion FROM pg_extension WHERE extname = 'pgmq'"
            )
        finally:
            await connection.close()
        if extension is not None:
            return f"{extension} (extension)"
        version = resources.files("pgmq").joinpath("sql/VERSION").read_text(encoding="utf-8").strip()
        return f"{version} (SQL of the package pgmq {metadata.version('pgmq')})"

    async def _commit_ms(self) -> float:
        """The median of a hundred commits of one row each, one after the other, in milliseconds."""
        await self.admin.execute("CREATE TABLE commits (n int)")
        loop = asyncio.get_running_loop()
        took = []
        for n in range(100):
            began = loop.time()
            await self.admin.execute("INSERT INTO commits VALUES ($1)", n)
            took.append(loop.time() - began)
        await self.admin.execute("DROP TABLE commits")
        return round(sorted(took)[50] * 1000, 3)


@contextlib.asynccontextmanager
async def open_server(url: str | None) -> AsyncGenerator[Server]:
    """Have a server to measure on: one of the harness's own, or the one at ``url``.

    Of a server at a URL the role must be a superuser. Only databases made here are touched.
    """
    with contextlib.ExitStack() as stack:
        if url is None:
            url = stack.enter_context(EmbeddedServer(settings=SETTINGS)).url
        async with contextlib.AsyncExitStack() as made:
            names = [f"{_PREFIX}_{kind}_{uuid.uuid4().hex[:8]}" for kind in ("harness", "template")]
            first = await asyncpg.connect(url)
            made.push_async_callback(first.close)
            for name in names:
                await first.execute(f"CREATE DATABASE {name} TEMPLATE template0")
                made.push_async_callback(first.execute, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            async with PgMqBackend(on_database(url, names[1]), QUEUE, str):
                pass
            admin = await asyncpg.connect(on_database(url, names[0]))
            made.push_async_callback(admin.close)
            server = Server(url, admin, names[1])
            loaded = await admin.fetchval("SHOW shared_preload_libraries")
            if "pg_stat_statements" in loaded:
                await admin.execute("CREATE EXTENSION pg_stat_statements")
                server.has_statements = True
            yield server


def on_database(url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
