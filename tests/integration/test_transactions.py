"""Handlers in transactions: their effects and the removal of their message, together or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from apalis_pgmq import (
    AbortError,
    Attempt,
    Batch,
    Config,
    Event,
    HandlerError,
    LeaseLost,
    MemoryBackend,
    Next,
    PgMqBackend,
    RetryAfterError,
    Succeeded,
    Task,
    Timeout,
    Transaction,
    WorkerBuilder,
)
from apalis_pgmq.pgmq import _connect
from tests.chaos.proxy import Proxy

from .conftest import Email, Table
from .test_delivery import Running

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def effects(db: asyncpg.Connection, queue: str) -> AsyncIterator[str]:
    """A table for what handlers do."""
    await db.execute(f"CREATE TABLE effects_{queue} (who text)")
    yield f"effects_{queue}"
    await db.execute(f"DROP TABLE effects_{queue}")


@pytest.fixture(params=["url", "pool"])
async def backend(request: pytest.FixtureRequest, pgmq_url: str, queue: str):
    config = Config(queue, visibility_timeout=1, poll_interval=0.02, max_retries=2)
    if request.param == "url":
        async with PgMqBackend(pgmq_url, config, Email) as backend:
            yield backend
    else:
        async with (
            asyncpg.create_pool(pgmq_url, min_size=0, max_size=30) as pool,
            PgMqBackend(pool, config, Email) as backend,
        ):
            yield backend


async def who(db: asyncpg.Connection, effects: str) -> list[str]:
    return [row[0] for row in await db.fetch(f"SELECT who FROM {effects} ORDER BY who")]


async def test_effects_and_removal_are_committed_together(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    events: list[Event] = []
    inside = asyncio.Event()
    release = asyncio.Event()

    async def handler(message: Email, tx: Transaction) -> str:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", message.to)
        inside.set()
        await release.wait()
        return "done"

    worker = WorkerBuilder("w").backend(backend).on_event(events.append).build(handler)
    async with Running(worker):
        await backend.push(Email("ada"))
        await inside.wait()
        assert await who(db, effects) == []
        assert await table.count() == 1
        release.set()
        await eventually(table.is_empty)
        assert await who(db, effects) == ["ada"]
        await eventually(lambda: any(isinstance(event, Succeeded) for event in events))
    assert worker.stats.succeeded == 1
    assert worker.stats.leases_lost == 0


async def test_what_a_failing_handler_did_is_rolled_back(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    attempts = []

    async def handler(message: Email, tx: Transaction) -> None:
        attempts.append(message)
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", f"try {len(attempts)}")
        if len(attempts) == 1:
            raise RetryAfterError(0)

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("ada"))
        await eventually(table.is_empty)
    assert await who(db, effects) == ["try 2"]


async def test_giving_up_rolls_back_and_dead_letters(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")
        raise AbortError("no")

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("ada"))
        await eventually(table.dead)
    assert await who(db, effects) == []


async def test_a_statement_that_fails_fails_the_handler_even_if_it_looks_away(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    attempts = []

    async def handler(message: Email, tx: Transaction) -> None:
        attempts.append(message)
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")
        if len(attempts) == 1:
            with pytest.raises(asyncpg.DivisionByZeroError):
                await tx.connection.execute("SELECT 1 / 0")

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("ada"))
        await eventually(table.is_empty)
    assert len(attempts) == 2
    assert await who(db, effects) == ["x"]


@pytest.mark.parametrize("taken", ["read_ct = read_ct + 1, vt = now() + interval '1 h'", "vt = vt + '1 ms'"])
async def test_a_lost_lease_rolls_back(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    effects: str,
    table: Table,
    eventually: Eventually,
    taken: str,
) -> None:
    events: list[Event] = []

    async def handler(message: Email, tx: Transaction) -> None:
        if message.to == "theirs":
            return
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")
        await db.execute(f'UPDATE pgmq.q_{queue} SET {taken}, message = \'{{"to": "theirs"}}\'')

    async with PgMqBackend(pgmq_url, Config(queue, visibility_timeout=3600), Email) as backend:
        worker = WorkerBuilder("w").backend(backend).on_event(events.append).build(handler)
        async with Running(worker):
            await backend.push(Email("ours"))
            await eventually(lambda: any(isinstance(event, LeaseLost) for event in events))
            assert await table.count() == 1
            # The dispatcher lives on.
            await db.execute(f"UPDATE pgmq.q_{queue} SET vt = now()")
            await eventually(table.is_empty)
    assert await who(db, effects) == []
    assert worker.stats.leases_lost == 1


async def test_extensions_go_on_meanwhile_and_do_not_clash(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    async def handler(message: Email, tx: Transaction) -> None:
        # Ends of handlers spread over several turns of the lease keeper.
        await asyncio.sleep(0.9 + int(message.to) * 0.02)
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", message.to)

    worker = WorkerBuilder("w").backend(backend).concurrency(20).build(handler)
    async with Running(worker):
        await backend.push_many(Email(str(number)) for number in range(20))
        await eventually(table.is_empty)
    assert len(await who(db, effects)) == 20
    assert worker.stats.leases_lost == 0
    assert worker.stats.failed == 0


async def test_an_extension_that_is_under_way_is_waited_for(
    pgmq_url: str, queue: str, db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    inside, release = asyncio.Event(), asyncio.Event()

    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")
        inside.set()
        await release.wait()

    async def is_waiting(verb: str) -> bool:
        return await db.fetchval(
            "SELECT count(*) > 0 FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND query ~ $1 AND datname = current_database()",
            rf"{verb}.*q_{queue}",
        )

    async with PgMqBackend(pgmq_url, Config(queue, visibility_timeout=15), Email) as backend:
        worker = WorkerBuilder("w").backend(backend).build(handler)
        async with Running(worker):
            await backend.push(Email("x"))
            await inside.wait()
            other = await asyncpg.connect(pgmq_url)
            lock = other.transaction()
            await lock.start()
            await other.execute(f"SELECT FROM pgmq.q_{queue} FOR UPDATE")
            # The keeper queues up for the row first, the removal behind it.
            await eventually(lambda: is_waiting("UPDATE pgmq"))
            release.set()
            await eventually(lambda: is_waiting("DELETE FROM"))
            await lock.rollback()
            await eventually(table.is_empty)
            await other.close()
    assert await who(db, effects) == ["x"]
    assert (worker.stats.succeeded, worker.stats.failed, worker.stats.leases_lost) == (1, 0, 0)


async def test_pushes_within_are_sent_on_commit_only(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    seen = []

    async def handler(message: Email, tx: Transaction) -> None:
        seen.append(message.to)
        if message.to == "first":
            ids = await tx.push_many(backend, [Email("lost"), Email("lost")])
            assert len(ids) == 2
            raise AbortError("no")
        if message.to == "second":
            await tx.push(backend, Email("third"), headers={"by": "second"})

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("first"))
        await backend.push(Email("second"))
        await eventually(lambda: "third" in seen)
        await eventually(table.is_empty)
    assert sorted(seen) == ["first", "second", "third"]


async def test_push_on_the_callers_connection_joins_its_transaction(
    backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table, pgmq_url: str
) -> None:
    other = await asyncpg.connect(pgmq_url)
    transaction = other.transaction()
    await transaction.start()
    await backend.push(Email("x"), connection=other)
    assert await table.is_empty()
    await transaction.rollback()
    assert await table.is_empty()
    async with other.transaction():
        await backend.push_many([Email("x"), Email("y")], connection=other)
    assert await table.count() == 2
    await other.close()


async def test_archiving_takes_part(
    pgmq_url: str, queue: str, db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")

    backend = PgMqBackend(pgmq_url, Config(queue, on_success="archive"), Email)
    async with backend, Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("x"))
        await eventually(table.archived)
    assert await table.is_empty()
    assert await who(db, effects) == ["x"]


async def test_a_commit_that_is_cut_off_is_found_not_to_have_taken_place(
    pgmq_url: str, queue: str, db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    # The connection is cut by the commit itself: whether it took place has to be found out. Here it did not.
    await db.execute(
        f"CREATE FUNCTION cut_{queue}() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.who = 'cut' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; "
        "RETURN NULL; END $$"
    )
    await db.execute(
        f"CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON {effects} DEFERRABLE INITIALLY DEFERRED "
        f"FOR EACH ROW EXECUTE FUNCTION cut_{queue}()"
    )
    attempts = []

    async def handler(message: Email, tx: Transaction) -> None:
        attempts.append(message)
        text = "cut" if len(attempts) == 1 else "kept"
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", text)

    try:
        backend = PgMqBackend(pgmq_url, Config(queue, visibility_timeout=1), Email)
        async with backend, Running(WorkerBuilder("w").backend(backend).build(handler)):
            await backend.push(Email("x"))
            await eventually(table.is_empty)
    finally:
        await db.execute(f"DROP FUNCTION cut_{queue} CASCADE")
    assert await who(db, effects) == ["kept"]


async def test_a_commit_whose_answer_is_lost_is_found_to_have_taken_place(
    backend: PgMqBackend[Email],
    db: asyncpg.Connection,
    effects: str,
    table: Table,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit = asyncpg.transaction.Transaction.commit

    async def commit_and_lose_the_answer(self: asyncpg.transaction.Transaction) -> None:
        await commit(self)
        self._connection.terminate()
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")

    worker = WorkerBuilder("w").backend(backend).build(handler)
    monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", commit_and_lose_the_answer)
    async with Running(worker):
        await backend.push(Email("x"))
        await eventually(lambda: worker.stats.succeeded == 1)
    assert await table.is_empty()
    assert await who(db, effects) == ["x"]
    assert (worker.stats.failed, worker.stats.leases_lost) == (0, 0)


async def test_batches_commit_together(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    sizes = []

    async def handler(batch: Batch[Email], tx: Transaction) -> None:
        sizes.append(len(batch))
        for task in batch:
            if task.args.to == "bad":
                batch.fail(task, AbortError("bad"))
            else:
                await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", task.args.to)
        if any(task.args.to == "9" and task.attempt == 1 for task in batch):
            raise RetryAfterError(0)

    await backend.push_many([*(Email(str(number)) for number in range(10)), Email("bad")])
    worker = WorkerBuilder("w").backend(backend).batch(4, wait=0.05).concurrency(1).build(handler)
    async with Running(worker):
        await eventually(table.is_empty)
    assert await who(db, effects) == [str(number) for number in range(10)]
    assert max(sizes) == 4
    assert len(await table.dead()) == 1


async def test_cancelling_the_worker_rolls_back(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table
) -> None:
    inside = asyncio.Event()

    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")
        inside.set()
        await asyncio.sleep(60)

    await backend.push(Email("x"))
    run = asyncio.create_task(WorkerBuilder("w").backend(backend).build(handler).run())
    await inside.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert await who(db, effects) == []
    [row] = await table.rows()
    assert row["vt"] <= await db.fetchval("SELECT now()")


def test_a_synchronous_handler_cannot_have_one() -> None:
    backend = PgMqBackend("postgresql://localhost/x", "q", Email)

    def handler(message: Email, tx: Transaction) -> None: ...

    with pytest.raises(HandlerError, match="async def"):
        WorkerBuilder("w").backend(backend).build(handler)


def test_a_backend_without_transactions_has_none() -> None:
    async def handler(message: Email, tx: Transaction) -> None: ...

    with pytest.raises(HandlerError, match="nobody provides parameter 'tx'"):
        WorkerBuilder("w").backend(MemoryBackend("q", Email)).build(handler)


async def test_a_middleware_that_answers_instead_of_the_handler_has_the_message_acked(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    async def middleware(task: Task[Email], call_next: Next) -> object:
        if task.args.to == "skip":
            return "skipped"
        try:
            return await call_next(task)
        except ValueError:
            return "forgiven"

    async def handler(message: Email, tx: Transaction) -> None:
        raise ValueError

    worker = WorkerBuilder("w").backend(backend).middleware(middleware).build(handler)
    async with Running(worker):
        await backend.push_many([Email("skip"), Email("raise")])
        await eventually(table.is_empty)
    assert worker.stats.succeeded == 2
    assert await table.dead() == []


async def test_a_pool_without_a_free_connection_is_not_the_handlers_fault(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connect, "_CONNECT_TIMEOUT", 0.2)
    attempts = []

    async def handler(message: Email, tx: Transaction, attempt: Attempt) -> None:
        attempts.append(attempt)
        await asyncio.sleep(0.5)

    config = Config(queue, max_retries=0, poll_interval=0.02)
    async with (
        asyncpg.create_pool(pgmq_url, min_size=0, max_size=4) as pool,
        PgMqBackend(pool, config, Email) as backend,
    ):
        await backend.push_many([Email(str(number)) for number in range(6)])
        worker = WorkerBuilder("w").backend(backend).retry(retry_on=ConnectionError).build(handler)
        async with Running(worker):
            await eventually(table.is_empty)
    assert attempts == [1] * 6
    assert await table.dead() == []


async def test_one_lost_message_does_not_fail_the_rest_of_its_batch(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    runs = []
    inside, release = asyncio.Event(), asyncio.Event()

    async def handler(batch: Batch[Email], tx: Transaction) -> None:
        runs.append(sorted(batch.messages, key=lambda message: message.to))
        for message in batch.messages:
            await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", message.to)
        inside.set()
        await release.wait()

    await backend.push_many([Email(to) for to in ("a", "b", "c")])
    worker = (
        WorkerBuilder("w")
        .backend(backend)
        .retry(retry_on=ConnectionError)
        .batch(3)
        .concurrency(1)
        .build(handler)
    )
    async with Running(worker):
        await inside.wait()
        await db.execute(f"DELETE FROM pgmq.q_{table.queue} WHERE msg_id = 2")
        release.set()
        await eventually(table.is_empty)
    assert await who(db, effects) == ["a", "c"]
    assert await table.dead() == []


async def test_a_higher_isolation_of_the_database_does_not_matter(
    backend: PgMqBackend[Email],
    db: asyncpg.Connection,
    effects: str,
    table: Table,
    eventually: Eventually,
    pgmq_url: str,
) -> None:
    database = await db.fetchval("SELECT current_database()")
    await db.execute(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")

    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ('x')")
        await asyncio.sleep(0.7)

    try:
        worker = WorkerBuilder("w").backend(backend).build(handler)
        async with Running(worker):
            await backend.push(Email("x"))
            await eventually(table.is_empty)
    finally:
        await db.execute(f"ALTER DATABASE {database} RESET default_transaction_isolation")
    assert await who(db, effects) == ["x"]
    assert worker.stats.failed == 0


async def test_a_connection_that_goes_silent_before_the_commit_does_not_keep_the_message_locked(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    effects: str,
    table: Table,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_connect, "_STATEMENT_TIMEOUT", 1.0)
    async with (
        Proxy(pgmq_url) as proxy,
        PgMqBackend(proxy.url, Config(queue, visibility_timeout=1), Email) as backend,
    ):
        # The message is removed and its row locked, and nobody will ever commit.
        proxy.silence_after("bound AS")

        async def handler(message: Email, attempt: Attempt, tx: Transaction) -> None:
            await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", f"attempt {attempt}")

        async with Running(WorkerBuilder("w").backend(backend).build(handler)):
            await backend.push(Email("x"))
            await eventually(table.is_empty, within=20)
    assert len(await who(db, effects)) == 1
    assert await who(db, effects) != ["attempt 1"]


async def test_what_fails_at_the_commit_is_judged_by_its_type(
    backend: PgMqBackend[Email], db: asyncpg.Connection, effects: str, table: Table, eventually: Eventually
) -> None:
    await db.execute(f"ALTER TABLE {effects} ADD CONSTRAINT once UNIQUE (who) DEFERRABLE INITIALLY DEFERRED")
    await db.execute(f"INSERT INTO {effects} VALUES ('x')")

    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", message.to)

    worker = WorkerBuilder("w").backend(backend).retry(abort_on=asyncpg.UniqueViolationError).build(handler)
    async with Running(worker):
        await backend.push(Email("x"))
        await eventually(table.dead)
    assert worker.stats.failed == 1
    assert await who(db, effects) == ["x"]


async def test_a_timeout_during_a_commit_that_succeeds_comes_too_late(
    backend: PgMqBackend[Email],
    db: asyncpg.Connection,
    effects: str,
    table: Table,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    commit = asyncpg.transaction.Transaction.commit
    events: list[Event] = []

    async def commit_slowly(self: asyncpg.transaction.Transaction) -> None:
        await asyncio.sleep(0.5)
        await commit(self)

    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", message.to)

    builder = (
        WorkerBuilder("w").backend(backend).concurrency(1).middleware(Timeout(0.3)).on_event(events.append)
    )
    monkeypatch.setattr(asyncpg.transaction.Transaction, "commit", commit_slowly)
    worker = builder.build(handler)
    async with Running(worker):
        await backend.push(Email("x"))
        await eventually(lambda: worker.stats.succeeded == 1)
        # The dispatcher is as good as before.
        await backend.push(Email("y"))
        await eventually(lambda: worker.stats.succeeded == 2)
    assert len([event for event in events if isinstance(event, Succeeded)]) == 2
    assert worker.stats.failed == 0
    assert await table.is_empty()
    assert await who(db, effects) == ["x", "y"]


async def test_a_handler_does_not_wait_for_ever_on_a_connection_that_went_silent(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    effects: str,
    table: Table,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_connect, "_STATEMENT_TIMEOUT", 1.0)
    async with (
        Proxy(pgmq_url) as proxy,
        PgMqBackend(proxy.url, Config(queue, visibility_timeout=3), Email) as backend,
    ):
        proxy.silence_after(effects)

        async def handler(message: Email, attempt: Attempt, tx: Transaction) -> None:
            await tx.connection.execute(f"INSERT INTO {effects} VALUES ($1)", f"attempt {attempt}")

        async with Running(WorkerBuilder("w").backend(backend).retry(0.1).build(handler)):
            await backend.push(Email("x"))
            await eventually(table.is_empty, within=15)
    assert await who(db, effects) == ["attempt 2"]
    assert "has gone silent" in caplog.text


async def test_the_server_looks_after_the_client_of_a_transaction(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    """One that is gone for good must not keep its locks for hours: within a minute it is found out."""
    found: list[int] = []

    async def handler(message: Email, tx: Transaction) -> None:
        found.extend(
            [
                int(await tx.connection.fetchval(f"SELECT current_setting('tcp_keepalives_{name}')"))
                for name in ("idle", "interval", "count")
            ]
        )

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("x"))
        await eventually(table.is_empty)
    idle, interval, count = found
    assert 0 < idle + interval * count <= 60


async def test_a_statement_that_takes_long_is_left_alone(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connect, "_STATEMENT_TIMEOUT", 0.6)
    async with PgMqBackend(pgmq_url, Config(queue, visibility_timeout=3), Email) as backend:

        async def handler(message: Email, tx: Transaction) -> None:
            await tx.connection.execute("SELECT pg_sleep(3)")
            # Nor does the connection suffer from waiting for the handler.
            await asyncio.sleep(2)
            await tx.connection.execute("SELECT 1")

        worker = WorkerBuilder("w").backend(backend).build(handler)
        async with Running(worker):
            await backend.push(Email("x"))
            await eventually(table.is_empty)
    assert (worker.stats.succeeded, worker.stats.failed) == (1, 0)
