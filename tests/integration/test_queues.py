"""Queues as a whole: made, dropped, emptied, listed, measured; and the kinds that PGMQ has."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import asyncpg
import pytest

from apalis_pgmq import (
    Config,
    ConfigError,
    Failed,
    LeaseLost,
    PgMqBackend,
    PgMqError,
    PgMqPermissionError,
    PgMqPool,
    PgMqQueueMissingError,
    PgMqQueues,
    Transaction,
    WorkerBuilder,
)
from apalis_pgmq.core import OnSuccess
from apalis_pgmq.pgmq import Partitions
from apalis_pgmq.pgmq._pool import _CLAIMING
from apalis_pgmq.pgmq._sql import Statements

from .conftest import Table, as_role, running
from .test_plans import STATEMENTS, nodes

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def queues(pgmq_url: str) -> AsyncIterator[PgMqQueues]:
    async with PgMqQueues(pgmq_url) as one:
        yield one


async def has_trigger(db: asyncpg.Connection, queue: str) -> bool:
    return await db.fetchval(
        "SELECT count(*) FROM pg_trigger WHERE tgname = 'apalis_pgmq_notify' AND tgrelid = $1::text::regclass",
        f"pgmq.q_{queue}",
    )


class TestCreate:
    async def test_makes_a_queue_once(self, queues: PgMqQueues, queue: str, db: asyncpg.Connection) -> None:
        assert await queues.create(queue) is True
        assert await has_trigger(db, queue)
        assert await queues.create(queue) is False

    async def test_installs_pgmq_where_there_is_none(
        self, new_database: Callable[[], Awaitable[str]], queue: str
    ) -> None:
        async with PgMqQueues(await new_database()) as queues:
            assert await queues.all() == []
            assert await queues.metrics_of_all() == []
            assert not await queues.drop(queue)
            assert await queues.create(queue)

    async def test_gives_a_queue_that_is_there_its_trigger(
        self, queues: PgMqQueues, queue: str, db: asyncpg.Connection
    ) -> None:
        await db.execute("SELECT pgmq.create($1)", queue)
        assert not await queues.create(queue, notify=False)
        assert not await has_trigger(db, queue)
        assert not await queues.create(queue)
        assert await has_trigger(db, queue)

    async def test_many_at_once_make_one(self, pgmq_url: str, queue: str) -> None:
        async with PgMqQueues(pgmq_url) as one, PgMqQueues(pgmq_url) as other:
            made = await asyncio.gather(*(each.create(queue) for each in (one, other) * 5))
        assert sorted(made) == [False] * 9 + [True]

    async def test_what_cannot_be_finished_is_not_begun(
        self, queues: PgMqQueues, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        role = f"role_{queue}"
        await db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        await db.execute(f"GRANT USAGE ON SCHEMA pgmq TO {role}")
        try:
            async with PgMqQueues(as_role(pgmq_url, role)) as theirs:
                with pytest.raises(PgMqPermissionError, match=f"may not create queue '{queue}'"):
                    await theirs.create(queue)
        finally:
            await db.execute(f"DROP OWNED BY {role}")
            await db.execute(f"DROP ROLE {role}")
        assert queue not in {info.name for info in await queues.all()}

    async def test_another_kind_than_what_is_there_is_refused(self, queues: PgMqQueues, queue: str) -> None:
        await queues.create(queue)
        with pytest.raises(PgMqError, match="there already, but plain and not unlogged"):
            await queues.create(queue, unlogged=True)
        with pytest.raises(PgMqError, match="there already, but plain and not partitioned"):
            await queues.create(queue, partitions=Partitions())
        with pytest.raises(ConfigError, match="not both"):
            await queues.create(queue, unlogged=True, partitions=Partitions())

    async def test_partitions_take_pg_partman(self, queues: PgMqQueues, queue: str) -> None:
        with pytest.raises(PgMqError, match=r"pg_partman is not in this database.*CREATE EXTENSION"):
            await queues.create(queue, partitions=Partitions(timedelta(days=1), timedelta(days=7)))
        assert queue not in {info.name for info in await queues.all()}


@pytest.mark.parametrize(
    ("interval", "retention", "text"),
    [
        (10, timedelta(days=1), "must both be"),
        (timedelta(days=1), 10, "must both be"),
        (10, 9, "at least one interval"),
        (timedelta(days=2), timedelta(days=1), "at least one interval"),
        (0, 1, "interval must be between 1"),
        (timedelta(0), timedelta(days=1), "interval must be longer than zero"),
        (True, 1, "whole number"),
    ],
)
def test_partitions_that_make_no_sense_are_refused(
    interval: int | timedelta, retention: int | timedelta, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        Partitions(interval, retention)


def test_partitions_are_told_to_pgmq_in_its_words() -> None:
    assert Partitions(100, 1000).arguments == ("100", "1000")
    assert Partitions(timedelta(hours=1), timedelta(days=1)).arguments == ("3600 seconds", "86400 seconds")


async def test_a_queue_is_dropped_with_its_archive(
    queues: PgMqQueues, queue: str, db: asyncpg.Connection
) -> None:
    await queues.create(queue)
    assert await queues.drop(queue) is True
    assert await queues.drop(queue) is False
    for prefix in "qa":
        assert await db.fetchval("SELECT to_regclass($1)", f"pgmq.{prefix}_{queue}") is None


async def test_queues_are_listed(queues: PgMqQueues, queue: str) -> None:
    before = datetime.now(UTC) - timedelta(minutes=1)
    await queues.create(queue)
    await queues.create(f"{queue}_u", unlogged=True)
    mine = [info for info in await queues.all() if info.name.startswith(queue)]
    assert [(info.name, info.is_unlogged, info.is_partitioned) for info in mine] == [
        (queue, False, False),
        (f"{queue}_u", True, False),
    ]
    assert all(before < info.created_at < datetime.now(UTC) + timedelta(minutes=1) for info in mine)


class TestMetrics:
    async def test_of_a_queue(
        self, queues: PgMqQueues, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        async with PgMqBackend(pgmq_url, queue, int) as backend:
            empty = await queues.metrics(queue)
            assert (empty.length, empty.visible_length, empty.total_messages) == (0, 0, 0)
            assert (empty.newest_age, empty.oldest_age) == (None, None)
            await backend.push_many([1, 2, 3])
            await backend.push(4, delay=3600)
        await db.execute(
            f"UPDATE pgmq.q_{queue} SET enqueued_at = now() - interval '1 h' WHERE message = '2'"
        )
        await db.execute(f"DELETE FROM pgmq.q_{queue} WHERE message = '1'")
        found = await queues.metrics(queue)
        assert (found.queue, found.length, found.visible_length, found.total_messages) == (queue, 3, 2, 4)
        assert found.newest_age is not None
        assert found.oldest_age is not None
        assert timedelta(0) <= found.newest_age < timedelta(minutes=1)
        assert timedelta(minutes=59) < found.oldest_age < timedelta(minutes=61)
        assert abs(found.scraped_at - datetime.now(UTC)) < timedelta(minutes=1)
        everything = {each.queue: each for each in await queues.metrics_of_all()}
        assert everything[queue].length == 3

    async def test_one_that_cannot_be_measured_does_not_hide_the_others(
        self, queues: PgMqQueues, queue: str, db: asyncpg.Connection, caplog: pytest.LogCaptureFixture
    ) -> None:
        broken = f"{queue}_broken"
        await queues.create(queue)
        await queues.create(broken)
        await db.execute(f"DROP TABLE pgmq.q_{broken}, pgmq.a_{broken}")
        try:
            found = {each.queue: each for each in await queues.metrics_of_all()}
            assert found[queue].length == 0
            assert broken not in found
            assert f"queue {broken} is not measured" in caplog.text
        finally:
            await db.execute("DELETE FROM pgmq.meta WHERE queue_name = $1", broken)

    async def test_of_a_queue_that_is_not_there(self, queues: PgMqQueues, queue: str) -> None:
        with pytest.raises(PgMqQueueMissingError, match=f"queue '{queue}' is not there"):
            await queues.metrics(queue)


class TestPurge:
    async def test_deletes_all_and_counts_them(
        self, queues: PgMqQueues, pgmq_url: str, queue: str, table: Table
    ) -> None:
        async with PgMqBackend(pgmq_url, queue, int) as backend:
            await backend.push_many(range(10))
            await backend.push(10, delay=60)
            assert await queues.purge(queue) == 11
            assert await table.is_empty()
            assert await queues.purge(queue) == 0
            await backend.push(11)
            assert await table.count() == 1

    async def test_counts_what_is_sent_at_the_same_moment(
        self, queues: PgMqQueues, queue: str, db: asyncpg.Connection
    ) -> None:
        await queues.create(queue)
        async with db.transaction():
            await db.execute("SELECT pgmq.send($1::text, '1'::jsonb)", queue)
            purging = asyncio.create_task(queues.purge(queue))
            await asyncio.sleep(0.2)
            assert not purging.done()
        assert await purging == 1

    async def test_a_worker_loses_what_it_holds(
        self, queues: PgMqQueues, pgmq_url: str, queue: str, eventually: Eventually
    ) -> None:
        started = asyncio.Event()
        events: list[object] = []

        async def handle(_: int) -> None:
            started.set()
            await asyncio.sleep(60)

        async with PgMqBackend(pgmq_url, Config(queue, visibility_timeout=0.5), int) as backend:
            await backend.push(1)
            async with running(WorkerBuilder("w").backend(backend).on_event(events.append).build(handle)):
                await started.wait()
                assert await queues.purge(queue) == 1
                await eventually(lambda: [event for event in events if isinstance(event, LeaseLost)])
        assert not [event for event in events if isinstance(event, Failed)]

    async def test_a_queue_that_is_not_there(self, queues: PgMqQueues, queue: str) -> None:
        with pytest.raises(PgMqQueueMissingError, match=f"queue '{queue}' is not there"):
            await queues.purge(queue)


async def test_pools_stay_open(pgmq_url: str, queue: str) -> None:
    async with PgMqPool(pgmq_url) as shared, asyncpg.create_pool(pgmq_url, min_size=1, max_size=2) as pool:
        for each in (shared, pool):
            async with PgMqQueues(each) as queues:
                await queues.create(queue)
        assert await pool.fetchval("SELECT 1") == 1
        async with PgMqBackend(shared, queue, int) as backend:
            await backend.push(1)


async def make_partitioned(db: asyncpg.Connection, queue: str, column: str) -> None:
    """What ``pgmq.create_partitioned`` makes, with what pg_partman would have made: the tests' server has none.

    PGMQ makes one index, on the column that decides about the partition, and no primary key.
    """
    bounds = {
        "msg_id": ["MINVALUE", "11", "21", "MAXVALUE"],
        "enqueued_at": ["MINVALUE", "now()", "now() + interval '1 day'", "MAXVALUE"],
    }[column]
    for prefix, more, by in (
        ("q", "", column),
        ("a", ", archived_at timestamptz DEFAULT now() NOT NULL", column.replace("enqueued", "archived")),
    ):
        identity = "GENERATED BY DEFAULT AS IDENTITY" if prefix == "q" else "NOT NULL"
        name = f"pgmq.{prefix}_{queue}"
        await db.execute(
            f"""
            CREATE TABLE {name} (
                msg_id bigint {identity}, read_ct int DEFAULT 0 NOT NULL,
                enqueued_at timestamptz DEFAULT now() NOT NULL, last_read_at timestamptz,
                vt timestamptz NOT NULL, message jsonb, headers jsonb{more}
            ) PARTITION BY RANGE ({by})
            """
        )
        for number, (least, most) in enumerate(pairwise(bounds)):
            await db.execute(
                f"CREATE TABLE {name}_p{number} PARTITION OF {name} FOR VALUES FROM ({least}) TO ({most})"
            )
        await db.execute(f"CREATE INDEX {prefix}_{queue}_part_idx ON {name} ({by})")
    await db.execute(
        "INSERT INTO pgmq.meta (queue_name, is_partitioned, is_unlogged) VALUES ($1, true, false)", queue
    )


@pytest.fixture(params=["unlogged", "by id", "by time"])
async def kind(
    request: pytest.FixtureRequest, db: asyncpg.Connection, queues: PgMqQueues, queue: str
) -> AsyncIterator[str]:
    """A queue of each special kind."""
    if request.param == "unlogged":
        await queues.create(queue, unlogged=True)
    else:
        await make_partitioned(db, queue, "msg_id" if request.param == "by id" else "enqueued_at")
        await queues.create(queue, tune=True)
    yield request.param
    await db.execute(f"DROP TABLE pgmq.q_{queue}, pgmq.a_{queue}")
    await db.execute("DELETE FROM pgmq.meta WHERE queue_name = $1", queue)


@pytest.mark.usefixtures("kind")
class TestKinds:
    """A queue that is not a plain table does all that a plain one does."""

    @pytest.mark.parametrize("on_success", ["delete", "archive"])
    async def test_is_worked(
        self, pgmq_url: str, queue: str, table: Table, eventually: Eventually, on_success: OnSuccess
    ) -> None:
        handled: list[int] = []

        async def handle(number: int) -> None:
            if number % 10 == 0:
                raise ValueError(number)
            await asyncio.sleep(0.01)
            handled.append(number)

        config = Config(queue, max_retries=0, on_success=on_success)
        async with PgMqBackend(pgmq_url, config, int) as backend:
            ids = await backend.push_many(range(30))
            assert ids == sorted(ids)
            async with running(WorkerBuilder("w").backend(backend).concurrency(5).build(handle)):
                await eventually(lambda: len(handled) == 27)
                await eventually(table.is_empty)
            assert len(handled) == len(set(handled))
            assert len(await table.dead()) == 3
            assert len(await table.archived()) == (27 if on_success == "archive" else 0)
            assert await backend.redrive() == 3
            assert await table.count() == 3

    async def test_is_claimed_by_several_at_once(
        self, pgmq_url: str, queue: str, table: Table, eventually: Eventually
    ) -> None:
        handled: list[int] = []

        async def handle(number: int) -> None:
            await asyncio.sleep(0)
            handled.append(number)

        async with PgMqBackend(pgmq_url, queue, int) as one, PgMqBackend(pgmq_url, queue, int) as other:
            await one.push_many(range(500))
            async with (
                running(WorkerBuilder("one").backend(one).build(handle)),
                running(WorkerBuilder("other").backend(other).build(handle)),
            ):
                await eventually(table.is_empty)
        assert sorted(handled) == list(range(500))

    async def test_effects_and_removal_are_committed_together(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection, table: Table, eventually: Eventually
    ) -> None:
        await db.execute(f"CREATE TABLE effects_{queue} (number int)")

        async def handle(number: int, tx: Transaction) -> None:
            await tx.connection.execute(f"INSERT INTO effects_{queue} VALUES ($1)", number)

        async with PgMqBackend(pgmq_url, queue, int) as backend:
            await backend.push_many(range(20))
            async with running(WorkerBuilder("w").backend(backend).build(handle)):
                await eventually(table.is_empty)
        rows = await db.fetch(f"SELECT number FROM effects_{queue} ORDER BY number")
        assert [row[0] for row in rows] == list(range(20))

    async def test_announces_inserts_of_others(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        heard = asyncio.Event()
        await db.add_listener(f"pgmq.q_{queue}.INSERT", lambda *_: heard.set())
        async with asyncio.timeout(10):
            sender = await asyncpg.connect(pgmq_url)
            await sender.execute("SELECT pgmq.send($1::text, '1'::jsonb)", queue)
            await heard.wait()
            await sender.close()

    async def test_takes_a_key_once(self, pgmq_url: str, queue: str, table: Table) -> None:
        async with PgMqBackend(pgmq_url, queue, int) as backend:
            ids = await backend.push_many(range(30), dedup_key=lambda number: f"{number % 15}")
            assert ids[:15] == ids[15:]
            assert await backend.push(1, dedup_key="1") == ids[1]
            assert await table.count() == 15
            assert await backend.push(1) > ids[-1]

    async def test_is_measured_and_emptied(self, queues: PgMqQueues, pgmq_url: str, queue: str) -> None:
        async with PgMqBackend(pgmq_url, queue, int) as backend:
            await backend.push_many(range(25))
        assert (await queues.metrics(queue)).length == 25
        assert await queues.purge(queue) == 25


@pytest.mark.parametrize("column", ["msg_id", "enqueued_at"])
async def test_the_partitions_of_a_tuned_queue_are_read_by_an_index(
    queues: PgMqQueues, pgmq_url: str, queue: str, db: asyncpg.Connection, column: str
) -> None:
    await make_partitioned(db, queue, column)
    await db.execute(
        f"INSERT INTO pgmq.q_{queue} (vt, message) SELECT now(), '1'::jsonb FROM generate_series(1, 5000)"
    )
    await db.execute(f"ANALYZE pgmq.q_{queue}")
    statements = Statements.of(queue, f"{queue}_dlq", has_last_read_at=True, is_announced=True)
    connection = await asyncpg.connect(pgmq_url)

    async def kinds(name: str) -> set[str]:
        sql = f"EXPLAIN (FORMAT JSON) EXECUTE {name}({STATEMENTS[name]})"
        plan = json.loads(await connection.fetchval(sql))[0]["Plan"]
        return {node["Node Type"] for node in nodes(plan)}

    try:
        for setting, value in _CLAIMING.items():
            await connection.execute("SELECT set_config($1, $2, false)", setting, value)
        for name in ("claim", "late", "extend", "delete"):
            await connection.execute(f"PREPARE {name} AS {getattr(statements, name)}")
        # As PGMQ leaves it: every claim sorts the whole queue.
        assert "Sort" in await kinds("claim")
        await queues.create(queue, tune=True)
        for name in ("claim", "late", "extend", "delete"):
            assert not {"Seq Scan", "Bitmap Heap Scan", "Sort"} & await kinds(name), name
        options = await db.fetch(
            "SELECT reloptions FROM pg_class WHERE relname LIKE $1 AND relkind = 'r'", f"q_{queue}_p%"
        )
        assert len(options) == 3
        assert all("autovacuum_vacuum_threshold=10000" in row[0] for row in options)
    finally:
        await connection.close()
        await db.execute(f"DROP TABLE pgmq.q_{queue}, pgmq.a_{queue}")
        await db.execute("DELETE FROM pgmq.meta WHERE queue_name = $1", queue)


PARTMAN = """
CREATE SCHEMA partman;
CREATE TABLE partman.part_config (
    parent_table text, control text, partition_interval text, premake int, retention text,
    retention_keep_table bool, retention_keep_index bool, automatic_maintenance text
);
CREATE FUNCTION partman.create_parent(
    p_parent_table text, p_control text, p_interval text, p_premake int DEFAULT 4, p_type text DEFAULT 'range'
) RETURNS bool LANGUAGE plpgsql AS $$
BEGIN
    IF p_control = 'msg_id' THEN
        PERFORM p_interval::bigint;
    ELSE
        PERFORM p_interval::interval;
    END IF;
    EXECUTE format('CREATE TABLE %s_default PARTITION OF %s DEFAULT', p_parent_table, p_parent_table);
    INSERT INTO partman.part_config VALUES (p_parent_table, p_control, p_interval, p_premake);
    RETURN true;
END $$;
SET allow_system_table_mods = on;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
VALUES (987654, 'pg_partman', 10, 'partman'::regnamespace, false, '5.2.0');
"""
"""What PGMQ asks of pg_partman, in a few lines: one partition, and its table of settings."""


@pytest.mark.parametrize(
    ("partitions", "expected"),
    [
        (Partitions(500, 5000), ("msg_id", "500", "5000")),
        (
            Partitions(timedelta(hours=1), timedelta(days=2)),
            ("enqueued_at", "3600 seconds", "172800 seconds"),
        ),
    ],
)
async def test_a_partitioned_queue_is_made_and_dropped_where_pg_partman_is(
    new_database: Callable[[], Awaitable[str]],
    queue: str,
    partitions: Partitions,
    expected: tuple[str, str, str],
) -> None:
    url = await new_database()
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(PARTMAN)
        async with PgMqQueues(url) as queues, PgMqPool(url) as pool:
            assert await queues.create(queue, partitions=partitions, tune=True) is True
            assert await queues.create(queue, partitions=partitions) is False
            with pytest.raises(PgMqError, match="partitioned and not unlogged"):
                await queues.create(queue, unlogged=True)
            [info] = await queues.all()
            assert info.is_partitioned
            row = await connection.fetchrow(
                "SELECT control, partition_interval, retention FROM partman.part_config WHERE parent_table = $1",
                f"pgmq.q_{queue}",
            )
            assert tuple(row) == expected
            indexes = await connection.fetch(
                "SELECT indexname FROM pg_indexes WHERE tablename = $1", f"q_{queue}"
            )
            assert {f"q_{queue}_vt_idx", f"q_{queue}_msg_id_idx"} <= {row[0] for row in indexes}
            assert await has_trigger(connection, queue)
            backend = PgMqBackend(pool, queue, int)
            await backend.push_many(range(5))
            assert (await queues.metrics(queue)).length == 5
            assert await queues.drop(queue)
            assert await queues.all() == []
            assert await connection.fetchval("SELECT count(*) FROM partman.part_config") == 0
    finally:
        await connection.close()
