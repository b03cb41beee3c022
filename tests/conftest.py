"""A real PostgreSQL with real PGMQ for every test that asks for one."""

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from apalis_pgmq.delivery import _inbox
from apalis_pgmq.embedded import embedded_postgres
from apalis_pgmq.pgmq import PgMqBackend

pytest_plugins = ["tests.leaks"]


def pytest_report_header() -> str:
    return f"PostgreSQL: {'APALIS_PGMQ_URL' if os.environ.get('APALIS_PGMQ_URL') else 'embedded'}"


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """A server for the whole session; its default database is left without PGMQ."""
    with embedded_postgres() as url:
        yield url


def database_url(url: str, database: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@pytest.fixture
async def admin(server_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(server_url)
    yield connection
    await connection.close()


@pytest.fixture
async def new_database(
    admin: asyncpg.Connection, server_url: str
) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Makes empty databases, without PGMQ; returns their URLs."""
    names = []

    async def create() -> str:
        name = f"test_{uuid.uuid4().hex[:12]}"
        await admin.execute(f"CREATE DATABASE {name}")
        names.append(name)
        return database_url(server_url, name)

    yield create
    for name in names:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def pgmq_url(server_url: str) -> Iterator[str]:
    """A database that has PGMQ."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    url = database_url(server_url, name)

    async def create() -> None:
        connection = await asyncpg.connect(server_url)
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        async with PgMqBackend(url, "first", str):
            pass

    async def drop() -> None:
        connection = await asyncpg.connect(server_url)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await connection.close()

    asyncio.run(create())
    yield url
    asyncio.run(drop())


@pytest.fixture
async def db(pgmq_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A plain connection to the database with PGMQ, to look behind the library's back."""
    connection = await asyncpg.connect(pgmq_url)
    yield connection
    await connection.close()


_numbers = itertools.count(1)


@pytest.fixture
def queue() -> str:
    """A queue name that nobody has used."""
    return f"q{next(_numbers)}_{uuid.uuid4().hex[:6]}"


@pytest.fixture
def one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that starts claims one message more than it has handlers."""
    monkeypatch.setattr(_inbox, "_AHEAD_AT_FIRST", 1)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Wait until a condition holds, or fail."""

    async def wait(condition: Callable[[], object], within: float = 20.0) -> None:
        deadline = time.monotonic() + within
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return
            assert time.monotonic() < deadline, "the condition did not come true"
            await asyncio.sleep(0.01)

    return wait
