import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from apalis_pgmq import PgMqQueues, Worker
from apalis_pgmq.pgmq import _connect


@dataclass
class Email:
    to: str
    subject: str = "s"
    body: str = "b"


def as_role(url: str, role: str, password: str = "secret") -> str:
    """The same URL for another role."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


@asynccontextmanager
async def running(worker: Worker[Any]) -> AsyncIterator[None]:
    """Run a worker for the length of a block, then stop it and see that it ends well."""
    run = asyncio.create_task(worker.run())
    try:
        yield
        worker.stop()
        async with asyncio.timeout(30):
            await run
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement counts as lost after a second."""
    monkeypatch.setattr(_connect, "_STATEMENT_TIMEOUT", 1.0)
    monkeypatch.setattr(_connect, "_CONNECT_TIMEOUT", 1.0)
    monkeypatch.setattr(_connect, "_RELEASE_TIMEOUT", 0.2)


async def sweep_bodies(url: str, queue: str) -> int:
    """Delete what is left of large payloads whose messages are gone."""
    async with PgMqQueues(url) as queues:
        return await queues.sweep_bodies(queue)


class Table:
    """A look at a queue's tables behind the library's back."""

    def __init__(self, db: asyncpg.Connection, queue: str) -> None:
        self.db = db
        self.queue = queue

    async def rows(self, prefix: str = "q", suffix: str = "") -> list[asyncpg.Record]:
        name = f"{prefix}_{self.queue}{suffix}".lower()
        if await self.db.fetchval("SELECT to_regclass($1)", f'pgmq."{name}"') is None:
            return []
        return await self.db.fetch(f'SELECT * FROM pgmq."{name}" ORDER BY msg_id')

    async def count(self) -> int:
        return len(await self.rows())

    async def is_empty(self) -> bool:
        return not await self.rows()

    async def dead(self) -> list[asyncpg.Record]:
        return await self.rows(suffix="_dlq")

    async def archived(self) -> list[asyncpg.Record]:
        return await self.rows(prefix="a")


@pytest.fixture
def table(db: asyncpg.Connection, queue: str) -> Table:
    return Table(db, queue)
