"""Every kind of connection that messages can be sent on, as a test sees it: begin, send, savepoint, commit, roll back.

Synchronous ones live in a thread of their own, as they do in programs.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import psycopg
import psycopg2
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from apalis_pgmq import PgMqBackend, PgMqProducer, TaskId


class Caller:
    """A connection in the hands of a program.

    Args:
        connection: what is given to `push`.
        call: awaits what a function of the connection returns, in the right thread.
        send: `push` of a backend or producer.
        begin, commit, roll_back: of a transaction.
        savepoint: a context manager, synchronous or not, whichever the connection is.
        execute: carries out a statement.
    """

    def __init__(
        self,
        connection: Any,
        *,
        send: Any,
        begin: Callable[[], Any],
        commit: Callable[[], Any],
        roll_back: Callable[[], Any],
        savepoint: Callable[[], Any],
        execute: Callable[[str], Any],
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.connection = connection
        self._send = send
        self._begin = begin
        self._commit = commit
        self._roll_back = roll_back
        self._savepoint = savepoint
        self._execute = execute
        self._thread = thread

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._thread is None:
            result = function(*args, **kwargs)
            return await result if asyncio.iscoroutine(result) else result
        call = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def push(self, message: Any, **more: Any) -> TaskId:
        return await self._call(self._send.push, message, connection=self.connection, **more)

    async def push_many(self, messages: list[Any], **more: Any) -> list[TaskId]:
        return await self._call(self._send.push_many, messages, connection=self.connection, **more)

    async def schedule(self, message: Any, at: Any, **more: Any) -> TaskId:
        return await self._call(self._send.schedule, message, at, connection=self.connection, **more)

    async def begin(self) -> None:
        await self._call(self._begin)

    async def commit(self) -> None:
        await self._call(self._commit)

    async def roll_back(self) -> None:
        await self._call(self._roll_back)

    async def execute(self, sql: str) -> None:
        await self._call(self._execute, sql)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        block = await self._call(self._savepoint)
        if isinstance(block, AbstractContextManager):
            await self._call(block.__enter__)
            try:
                yield
            except BaseException as error:
                await self._call(block.__exit__, type(error), error, error.__traceback__)
                raise
            else:
                await self._call(block.__exit__, None, None, None)
        else:
            async with block:
                yield


def nothing() -> None:
    """Transactions begin by themselves."""


Open = Callable[[str, PgMqBackend[Any], PgMqProducer[Any]], Any]
KINDS: dict[str, Open] = {}


def kind(name: str) -> Callable[[Open], Open]:
    def register(function: Open) -> Open:
        KINDS[name] = asynccontextmanager(function)
        return function

    return register


def by_driver(url: str, driver: str) -> str:
    return f"postgresql+{driver}" + url[url.index("://") :]


def of_asyncpg(connection: Any, backend: PgMqBackend[Any]) -> Caller:
    open_ones = []

    async def begin() -> None:
        open_ones.append(connection.transaction())
        await open_ones[-1].start()

    return Caller(
        connection,
        send=backend,
        begin=begin,
        commit=lambda: open_ones.pop().commit(),
        roll_back=lambda: open_ones.pop().rollback(),
        savepoint=connection.transaction,
        execute=connection.execute,
    )


@kind("asyncpg")
async def _asyncpg(url: str, backend: PgMqBackend[Any], _: object) -> AsyncIterator[Caller]:
    connection = await asyncpg.connect(url)
    yield of_asyncpg(connection, backend)
    await connection.close()


@kind("asyncpg pool")
async def _asyncpg_pool(url: str, backend: PgMqBackend[Any], _: object) -> AsyncIterator[Caller]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        yield of_asyncpg(connection, backend)


@kind("psycopg, async")
async def _psycopg_async(url: str, backend: PgMqBackend[Any], _: object) -> AsyncIterator[Caller]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield Caller(
            connection,
            send=backend,
            begin=nothing,
            commit=connection.commit,
            roll_back=connection.rollback,
            savepoint=connection.transaction,
            execute=connection.execute,
        )


def _alchemy_async(driver: str, what: str) -> Open:
    async def opened(url: str, backend: PgMqBackend[Any], _: object) -> AsyncIterator[Caller]:
        engine = create_async_engine(by_driver(url, driver), poolclass=NullPool)
        made: Any = AsyncSession(engine) if what == "AsyncSession" else AsyncConnection(engine)
        async with made as connection:
            yield Caller(
                connection,
                send=backend,
                begin=nothing,
                commit=connection.commit,
                roll_back=connection.rollback,
                savepoint=connection.begin_nested,
                execute=lambda sql: connection.execute(text(sql)),
            )
        await engine.dispose()

    return opened


for _driver in ("asyncpg", "psycopg"):
    for _what in ("AsyncSession", "AsyncConnection"):
        kind(f"{_what}, {_driver}")(_alchemy_async(_driver, _what))


@kind("Session in run_sync, asyncpg")
async def _run_sync(url: str, _: object, producer: PgMqProducer[Any]) -> AsyncIterator[Caller]:
    """Synchronous code of SQLAlchemy's that is run over an asynchronous session."""
    engine = create_async_engine(by_driver(url, "asyncpg"), poolclass=NullPool)
    async with AsyncSession(engine) as session:

        class Send:
            """`PgMqProducer`, as such code calls it."""

            async def push(self, message: Any, *, connection: AsyncSession, **more: Any) -> Any:
                return await connection.run_sync(
                    lambda inner: producer.push(message, connection=inner, **more)
                )

            async def push_many(self, messages: Any, *, connection: AsyncSession, **more: Any) -> Any:
                return await connection.run_sync(
                    lambda inner: producer.push_many(messages, connection=inner, **more)
                )

            async def schedule(self, message: Any, at: Any, *, connection: AsyncSession, **more: Any) -> Any:
                return await connection.run_sync(
                    lambda inner: producer.schedule(message, at, connection=inner, **more)
                )

        yield Caller(
            session,
            send=Send(),
            begin=nothing,
            commit=session.commit,
            roll_back=session.rollback,
            savepoint=session.begin_nested,
            execute=lambda sql: session.execute(text(sql)),
        )
    await engine.dispose()


Opened = AbstractContextManager[dict[str, Any]]


def synchronous(name: str) -> Callable[[Callable[[str], Iterator[dict[str, Any]]]], None]:
    """Register what makes the arguments of a `Caller`; it is run in the thread of the connection."""

    def register(function: Callable[[str], Iterator[dict[str, Any]]]) -> None:
        async def opened(url: str, _: object, producer: PgMqProducer[Any]) -> AsyncIterator[Caller]:
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(1) as thread:
                stack = ExitStack()
                arguments = await loop.run_in_executor(
                    thread, stack.enter_context, contextmanager(function)(url)
                )
                try:
                    yield Caller(send=producer, thread=thread, **arguments)
                finally:
                    await loop.run_in_executor(thread, stack.close)

        kind(name)(opened)

    return register


@synchronous("psycopg")
def _psycopg(url: str) -> Iterator[dict[str, Any]]:
    with psycopg.connect(url) as connection:
        yield {
            "connection": connection,
            "begin": nothing,
            "commit": connection.commit,
            "roll_back": connection.rollback,
            "savepoint": connection.transaction,
            "execute": connection.execute,
        }


@synchronous("psycopg2")
def _psycopg2(url: str) -> Iterator[dict[str, Any]]:
    connection = psycopg2.connect(url)

    def execute(sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    @contextmanager
    def savepoint() -> Iterator[None]:
        execute("SAVEPOINT here")
        try:
            yield
        except BaseException:
            execute("ROLLBACK TO SAVEPOINT here")
            raise
        execute("RELEASE SAVEPOINT here")

    yield {
        "connection": connection,
        "begin": nothing,
        "commit": connection.commit,
        "roll_back": connection.rollback,
        "savepoint": savepoint,
        "execute": execute,
    }
    connection.close()


def _alchemy(driver: str, what: str) -> Callable[[str], Iterator[dict[str, Any]]]:
    def opened(url: str) -> Iterator[dict[str, Any]]:
        engine = create_engine(by_driver(url, driver), poolclass=NullPool)
        connection: Any
        if what == "Session":
            connection = Session(engine)
        elif what == "Connection":
            connection = engine.connect()
        else:
            connection = scoped_session(sessionmaker(engine))
        yield {
            "connection": connection,
            "begin": nothing,
            "commit": connection.commit,
            "roll_back": connection.rollback,
            "savepoint": connection.begin_nested,
            "execute": lambda sql: connection.execute(text(sql)),
        }
        connection.close()
        engine.dispose()

    return opened


for _what in ("Session", "Connection", "scoped_session"):
    for _driver in ("psycopg", "psycopg2"):
        synchronous(f"{_what}, {_driver}")(_alchemy(_driver, _what))


def django_connection(url: str) -> Any:
    """Django's connection of this thread to a database."""
    import django
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={})
        django.setup()
    parts = urlsplit(url)
    wrapper: Any = importlib.import_module("django.db.backends.postgresql.base").DatabaseWrapper
    defaults = {
        "TIME_ZONE": None,
        "CONN_HEALTH_CHECKS": False,
        "CONN_MAX_AGE": 0,
        "AUTOCOMMIT": True,
        "OPTIONS": {},
    }
    where = {
        "NAME": parts.path[1:],
        "USER": parts.username,
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname,
        "PORT": parts.port,
    }
    return wrapper({**defaults, **where}, alias="default")


@synchronous("Django")
def _django(url: str) -> Iterator[dict[str, Any]]:
    from django.db import connections, transaction

    connection = django_connection(url)
    connections["default"] = connection
    blocks = []

    def begin() -> None:
        blocks.append(transaction.atomic())
        blocks[-1].__enter__()

    def roll_back() -> None:
        transaction.set_rollback(True)
        blocks.pop().__exit__(None, None, None)

    def execute(sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    from django.db import connection as proxy

    yield {
        "connection": proxy,
        "begin": begin,
        "commit": lambda: blocks.pop().__exit__(None, None, None),
        "roll_back": roll_back,
        "savepoint": transaction.atomic,
        "execute": execute,
    }
    connection.close()
    del connections["default"]
