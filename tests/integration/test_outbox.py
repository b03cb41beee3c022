"""Sending in the caller's own transaction, of every kind that there is."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from apalis_pgmq import (
    Config,
    ConfigError,
    EncodeError,
    PgMqBackend,
    PgMqError,
    PgMqProducer,
    PgMqQueueMissingError,
    WorkerBuilder,
)

from .callers import KINDS, Caller, by_driver, django_connection
from .conftest import Email, Table, running

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def backend(pgmq_url: str, queue: str) -> AsyncIterator[PgMqBackend[Email]]:
    # A worker that polls once an hour is woken by what is announced, or not in the time of a test.
    async with PgMqBackend(pgmq_url, Config(queue, poll_interval=3600), Email) as backend:
        yield backend


@pytest.fixture(params=sorted(KINDS))
async def caller(
    request: pytest.FixtureRequest, pgmq_url: str, backend: PgMqBackend[Email], queue: str
) -> AsyncIterator[Caller]:
    # Nobody answers there: a producer that sends on others' connections only never connects.
    producer = PgMqProducer("postgresql://nobody@127.0.0.1:1/none", queue, Email)
    async with KINDS[request.param](pgmq_url, backend, producer) as caller:
        yield caller


async def sent(table: Table) -> list[str]:
    return [json.loads(row["message"])["to"] for row in await table.rows()]


async def test_a_commit_sends_and_wakes_a_worker(
    caller: Caller, backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    handled = []

    async def handle(message: Email) -> None:
        handled.append(message.to)

    worker = WorkerBuilder("w").backend(backend).build(handle)
    async with running(worker):
        await backend.push(Email("before"))
        await eventually(table.is_empty)
        await caller.begin()
        message_id = await caller.push(Email("ada"))
        assert await table.is_empty()
        assert handled == ["before"]
        await caller.commit()
        await eventually(lambda: handled == ["before", "ada"])
    assert message_id > 1


async def test_a_rollback_sends_nothing(caller: Caller, table: Table) -> None:
    await caller.begin()
    await caller.push(Email("never"))
    await caller.push_many([Email("never"), Email("ever")])
    await caller.roll_back()
    await caller.begin()
    await caller.push(Email("then"))
    await caller.commit()
    assert await sent(table) == ["then"]


async def test_savepoints_are_honoured(caller: Caller, table: Table) -> None:
    await caller.begin()
    await caller.push(Email("one"))
    with suppress(LookupError):
        async with caller.savepoint():
            await caller.push(Email("two"))
            raise LookupError
    async with caller.savepoint():
        await caller.push(Email("three"))
    await caller.push(Email("four"))
    await caller.commit()
    assert await sent(table) == ["one", "three", "four"]


async def test_what_is_sent_is_what_a_backend_sends(caller: Caller, table: Table) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    await caller.begin()
    ids = [
        await caller.push(Email("100 % ada $1 'ü'"), headers={"trace": "%s", "n": 2}, delay=1.5),
        *await caller.push_many([Email(str(number)) for number in range(2500)], headers={"a": None}),
        await caller.schedule(Email("later"), at),
    ]
    await caller.commit()
    rows = await table.rows()
    assert [row["msg_id"] for row in rows] == ids
    assert json.loads(rows[0]["message"]) == {"to": "100 % ada $1 'ü'", "subject": "s", "body": "b"}
    assert json.loads(rows[0]["headers"]) == {"trace": "%s", "n": 2}
    assert rows[0]["vt"] - rows[0]["enqueued_at"] == timedelta(seconds=1.5)
    assert [json.loads(row["message"])["to"] for row in rows[1:-1]] == [str(n) for n in range(2500)]
    assert {row["headers"] for row in rows[1:-1]} == {'{"a": null}'}
    assert (rows[-1]["vt"], rows[-1]["headers"]) == (at, None)


async def test_what_the_server_refuses_is_undone_by_a_savepoint(caller: Caller, table: Table) -> None:
    await caller.begin()
    await caller.push(Email("one"))
    with pytest.raises(EncodeError, match="cannot store the message") as caught:
        async with caller.savepoint():
            await caller.push(Email("\x00"))
    assert "\\u0000 cannot be converted" in str(caught.value)
    await caller.push(Email("two"))
    await caller.commit()
    assert await sent(table) == ["one", "two"]


async def test_what_the_server_refuses_aborts_the_transaction(caller: Caller, table: Table) -> None:
    await caller.begin()
    await caller.push(Email("never"))
    with pytest.raises(EncodeError):
        await caller.push(Email("\x00"))
    with pytest.raises(Exception, match=r"(?i)abort|rolled back|rollback|end of the 'atomic' block"):
        await caller.push(Email("never"))
    await caller.roll_back()
    await caller.begin()
    await caller.push(Email("then"))
    await caller.commit()
    assert await sent(table) == ["then"]


async def test_what_we_refuse_leaves_the_transaction_as_it_was(caller: Caller, table: Table) -> None:
    await caller.begin()
    await caller.push(Email("one"))
    with pytest.raises(EncodeError):
        await caller.push("not an email")
    with pytest.raises(EncodeError, match="headers"):
        await caller.push(Email("x"), headers={"x": object()})
    with pytest.raises(ConfigError, match="time zone"):
        await caller.schedule(Email("x"), datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point
    await caller.push(Email("two"))
    await caller.commit()
    assert await sent(table) == ["one", "two"]


async def test_a_dropped_queue_is_named(
    caller: Caller, backend: PgMqBackend[Email], db: asyncpg.Connection
) -> None:
    await caller.begin()
    await caller.push(Email("x"))
    await caller.roll_back()
    await db.execute("SELECT pgmq.drop_queue($1::text)", backend.queue)
    await caller.begin()
    with pytest.raises(PgMqQueueMissingError, match=backend.queue) as caught:
        await caller.push(Email("x"))
    assert "apalis-pgmq setup" in str(caught.value)
    await caller.roll_back()


async def test_a_lost_connection_is_told(
    caller: Caller, backend: PgMqBackend[Email], db: asyncpg.Connection, pgmq_url: str
) -> None:
    await caller.begin()
    await caller.push(Email("never"))
    await db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE state = 'idle in transaction' AND datname = current_database()"
    )
    with pytest.raises(PgMqError, match="unavailable"):
        await caller.push(Email("never"))


async def test_an_open_transaction_keeps_no_sender_and_no_worker_waiting(
    caller: Caller, backend: PgMqBackend[Email], pgmq_url: str, eventually: Eventually
) -> None:
    handled = set()

    async def handle(message: Email) -> None:
        handled.add(message.to)

    worker = WorkerBuilder("w").backend(backend).build(handle)
    async with running(worker):
        await caller.begin()
        await caller.push(Email("open"))
        async with asyncio.timeout(10):
            await asyncio.gather(*(send_alone(pgmq_url, backend.config, str(n)) for n in range(4)))
        await eventually(lambda: handled == {"0", "1", "2", "3"})
        await caller.commit()
        await eventually(lambda: "open" in handled)


async def send_alone(url: str, config: Config, to: str) -> None:
    async with PgMqBackend(url, config, Email) as other:
        await other.push(Email(to))


async def test_a_queue_that_is_not_announced_by_a_trigger_is_announced_all_the_same(
    caller: Caller, backend: PgMqBackend[Email], db: asyncpg.Connection, eventually: Eventually
) -> None:
    await db.execute(f"DROP TRIGGER apalis_pgmq_notify ON pgmq.q_{backend.queue}")
    await backend.setup()
    heard: list[Any] = []
    channel = f"pgmq.q_{backend.queue}.INSERT"
    await db.add_listener(channel, lambda *given: heard.append(given))
    await caller.begin()
    await caller.push(Email("x"))
    await db.execute("SELECT 1")
    assert not heard
    await caller.commit()
    await eventually(lambda: heard)
    await db.remove_listener(channel, heard.append)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
async def test_without_a_transaction_it_is_sent_at_once(
    driver: str, backend: PgMqBackend[Email], pgmq_url: str, table: Table
) -> None:
    producer = PgMqProducer("postgresql://nobody@127.0.0.1:1/none", backend.queue, Email)

    def send() -> None:
        engine = create_engine(by_driver(pgmq_url, driver), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            producer.push(Email("SQLAlchemy"), connection=connection)
        engine.dispose()
        with psycopg.connect(pgmq_url, autocommit=True) as connection:
            producer.push(Email("psycopg"), connection=connection)
        django = django_connection(pgmq_url)
        producer.push(Email("Django"), connection=django)
        django.close()

    await asyncio.to_thread(send)
    assert await sent(table) == ["SQLAlchemy", "psycopg", "Django"]


class TestKeys:
    """Keys are taken and freed with the caller's transaction."""

    async def test_a_rollback_frees_them_and_a_commit_keeps_them(
        self, caller: Caller, backend: PgMqBackend[Email], table: Table
    ) -> None:
        await backend.push(Email("first"), dedup_key="makes the table")
        at = datetime.now(UTC) + timedelta(hours=1)
        await caller.begin()
        gone = await caller.push(Email("never"), dedup_key="k", headers={"a": "%s"})
        assert await caller.push(Email("ever"), dedup_key="k") == gone  # it sees its own
        await caller.roll_back()
        await caller.begin()
        kept = await caller.push(Email("kept"), dedup_key="k", delay=1.5, headers={"a": "100 % $1"})
        ids = await caller.push_many(
            [Email("1"), Email("again"), Email("2"), Email("1")],
            dedup_key=lambda email: "k" if email.to == "again" else email.to,
            dedup_window=60,
        )
        later = await caller.schedule(Email("later"), at, dedup_key="l", dedup_window=timedelta(hours=2))
        assert await caller.schedule(Email("earlier"), 0, dedup_key="l") == later
        await caller.commit()
        assert kept > gone
        assert (ids[0], ids[1]) == (ids[3], kept)
        assert kept < ids[0] < ids[2] < later
        assert await backend.push(Email("late"), dedup_key="k") == kept
        assert await backend.push(Email("late"), dedup_key="l") == later
        rows = (await table.rows())[1:]
        assert [row["msg_id"] for row in rows] == [kept, ids[0], ids[2], later]
        assert [json.loads(row["message"])["to"] for row in rows] == ["kept", "1", "2", "later"]
        assert [json.loads(row["headers"]) for row in rows] == [
            {"a": "100 % $1", "x-dedup-key": "k"},
            {"x-dedup-key": "1"},
            {"x-dedup-key": "2"},
            {"x-dedup-key": "l"},
        ]
        assert rows[0]["vt"] - rows[0]["enqueued_at"] == timedelta(seconds=1.5)
        assert rows[3]["vt"] == at

    async def test_a_savepoint_frees_them_too(
        self, caller: Caller, backend: PgMqBackend[Email], table: Table
    ) -> None:
        await backend.push(Email("first"), dedup_key="makes the table")
        await caller.begin()
        with suppress(LookupError):
            async with caller.savepoint():
                await caller.push(Email("one"), dedup_key="k")
                raise LookupError
        await caller.push(Email("two"), dedup_key="k")
        await caller.commit()
        assert await sent(table) == ["first", "two"]

    async def test_a_commit_wakes_a_worker(
        self, caller: Caller, backend: PgMqBackend[Email], table: Table, eventually: Eventually
    ) -> None:
        handled = []

        async def handle(message: Email) -> None:
            handled.append(message.to)

        async with running(WorkerBuilder("w").backend(backend).build(handle)):
            await backend.push(Email("before"), dedup_key="b")
            await eventually(table.is_empty)
            await caller.begin()
            await caller.push(Email("ada"), dedup_key="a")
            await caller.commit()
            await eventually(lambda: handled == ["before", "ada"])


class TestKinds:
    """What is no connection to send on is refused with an error that says what is."""

    @pytest.mark.parametrize("connection", [object(), "postgresql://localhost/x", 7])
    async def test_anything_else_is_refused(self, backend: PgMqBackend[Email], connection: Any) -> None:
        with pytest.raises(ConfigError, match=r"an asyncpg.Connection, .* is needed, not a builtins"):
            await backend.push(Email("x"), connection=connection)
        producer = PgMqProducer("postgresql://localhost/x", backend.queue, Email)
        with pytest.raises(
            ConfigError, match=r"a psycopg or psycopg2 connection.* is needed, not a builtins"
        ):
            producer.push(Email("x"), connection=connection)

    async def test_synchronous_ones_would_block_the_loop(
        self, backend: PgMqBackend[Email], pgmq_url: str
    ) -> None:
        async with KINDS["psycopg"](pgmq_url, backend, None) as caller:
            with pytest.raises(ConfigError, match=r"psycopg.Connection is synchronous, .* event loop"):
                await backend.push(Email("x"), connection=caller.connection)

    @pytest.mark.parametrize("name", ["asyncpg", "asyncpg pool", "psycopg, async", "AsyncSession, asyncpg"])
    async def test_asynchronous_ones_are_for_a_backend(
        self, backend: PgMqBackend[Email], pgmq_url: str, name: str
    ) -> None:
        producer = PgMqProducer("postgresql://localhost/x", backend.queue, Email)
        async with KINDS[name](pgmq_url, backend, producer) as caller:
            with pytest.raises(ConfigError, match="is for asyncio, where PgMqBackend sends on it"):
                producer.push(Email("x"), connection=caller.connection)

    def test_other_databases_are_refused(self) -> None:
        import sqlalchemy

        producer = PgMqProducer("postgresql://localhost/x", "q", Email)
        with (
            sqlalchemy.create_engine("sqlite://").connect() as connection,
            pytest.raises(ConfigError, match=r"by sqlite\+pysqlite; postgresql\+psycopg"),
        ):
            producer.push(Email("x"), connection=connection)
