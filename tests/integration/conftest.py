from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
import pytest


@dataclass
class Email:
    to: str
    subject: str = "s"
    body: str = "b"


def as_role(url: str, role: str, password: str = "secret") -> str:
    """The same URL for another role."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


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
