"""Messages with a key are stored once within a window, whoever sends them and however many at once."""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from apalis_pgmq import (
    Config,
    ConfigError,
    EncodeError,
    MemoryBackend,
    PgMqBackend,
    PgMqPermissionError,
    PgMqPool,
    PgMqQueues,
    PgMqUnavailableError,
    Task,
    Transaction,
    WorkerBuilder,
)
from apalis_pgmq.pgmq import _connect, _keys, _sink
from apalis_pgmq.pgmq._bodies import Bodies
from apalis_pgmq.pgmq._keyed_sql import keyed_insert

from .conftest import Table, as_role, running
from .test_plans import nodes

Eventually = Callable[..., Awaitable[None]]
KEYS = "pgmq.apalis_pgmq_dedup"
ROLES = Path(__file__).parents[2] / "docs" / "sql"


@pytest.fixture
async def backend(pgmq_url: str, queue: str) -> AsyncIterator[PgMqBackend[str]]:
    async with PgMqBackend(pgmq_url, queue, str) as one:
        yield one


@pytest.fixture(params=["pgmq", "memory"])
async def any_backend(
    request: pytest.FixtureRequest, pgmq_url: str, queue: str
) -> AsyncIterator[PgMqBackend[str] | MemoryBackend[str]]:
    kind = {"pgmq": lambda: PgMqBackend(pgmq_url, queue, str), "memory": lambda: MemoryBackend(queue, str)}
    async with kind[request.param]() as one:
        yield one


async def drain(backend: PgMqBackend[str] | MemoryBackend[str], count: int) -> list[Task[str]]:
    """Claim and ack messages."""
    tasks: list[Task[str]] = []
    async with backend.poll() as consumer:
        async with asyncio.timeout(10):
            async for task in consumer:
                tasks.append(task)
                consumer.ack(task)
                if len(tasks) == count:
                    consumer.stop()
    return tasks


class TestEitherBackend:
    """What is the same with and without a database."""

    async def test_a_key_is_stored_once(self, any_backend: PgMqBackend[str] | MemoryBackend[str]) -> None:
        first = await any_backend.push("a", dedup_key="k", headers={"h": 1})
        assert await any_backend.push("b", dedup_key="k") == first
        second = await any_backend.push("c", dedup_key="l")
        third = await any_backend.push("d")
        assert len({first, second, third}) == 3
        tasks = await drain(any_backend, 3)
        assert [task.args for task in tasks] == ["a", "c", "d"]
        assert [dict(task.headers) for task in tasks] == [
            {"h": 1, "x-dedup-key": "k"},
            {"x-dedup-key": "l"},
            {},
        ]
        assert [task.id for task in tasks] == [first, second, third]

    async def test_also_after_it_was_handled(
        self, any_backend: PgMqBackend[str] | MemoryBackend[str]
    ) -> None:
        first = await any_backend.push("a", dedup_key="k")
        await drain(any_backend, 1)
        assert await any_backend.push("b", dedup_key="k") == first
        await any_backend.push("end")
        assert [task.args for task in await drain(any_backend, 1)] == ["end"]

    async def test_until_its_window_is_over(self, any_backend: PgMqBackend[str] | MemoryBackend[str]) -> None:
        window = timedelta(seconds=0.4)
        first = await any_backend.push("a", dedup_key="k", dedup_window=window)
        assert await any_backend.push("b", dedup_key="k", dedup_window=3600) == first
        await asyncio.sleep(0.5)  # the refused one has not made it longer
        second = await any_backend.push("c", dedup_key="k", dedup_window=window)
        assert second > first
        assert await any_backend.push("d", dedup_key="k") == second
        assert [task.args for task in await drain(any_backend, 2)] == ["a", "c"]

    async def test_many_with_a_function(self, any_backend: PgMqBackend[str] | MemoryBackend[str]) -> None:
        before = await any_backend.push("x1", dedup_key="x")
        ids = await any_backend.push_many(["a1", "b1", "a2", "x2", "c1"], dedup_key=lambda text: text[0])
        assert ids[0] == ids[2]
        assert ids[3] == before
        assert len(set(ids)) == 4
        assert ids[0] < ids[1] < ids[4]
        assert [task.args for task in await drain(any_backend, 4)] == ["x1", "a1", "b1", "c1"]

    async def test_a_window_counts_from_the_push_and_a_refused_delay_is_not_kept(
        self, any_backend: PgMqBackend[str] | MemoryBackend[str]
    ) -> None:
        first = await any_backend.push("a", dedup_key="k", dedup_window=0.3, delay=0.6)
        assert await any_backend.push("b", dedup_key="k") == first  # not visible at once either
        await asyncio.sleep(0.4)
        second = await any_backend.push("c", dedup_key="k", delay=0.5)  # though the first is not visible yet
        assert second > first
        assert [task.args for task in await drain(any_backend, 2)] == ["a", "c"]

    async def test_what_is_scheduled_has_keys_too(
        self, any_backend: PgMqBackend[str] | MemoryBackend[str]
    ) -> None:
        at = datetime.now(UTC) + timedelta(seconds=0.6)
        first = await any_backend.schedule("a", at, dedup_key="k", dedup_window=0.3)
        assert await any_backend.schedule("b", 0, dedup_key="k") == first
        assert await any_backend.push("c", dedup_key="k") == first
        await asyncio.sleep(0.35)
        second = await any_backend.schedule("d", at, dedup_key="k")  # though the first is not visible yet
        assert second > first
        tasks = await drain(any_backend, 2)
        assert [task.args for task in tasks] == ["a", "d"]
        assert datetime.now(UTC) >= at
        assert [dict(task.headers) for task in tasks] == [{"x-dedup-key": "k"}] * 2

    @pytest.mark.parametrize("kind", ["pgmq", "memory"])
    async def test_a_message_of_a_group_has_a_key_too(self, kind: str, pgmq_url: str, queue: str) -> None:
        config = Config(queue, ordered=True)
        ordered: PgMqBackend[str] | MemoryBackend[str] = (
            PgMqBackend(pgmq_url, config, str) if kind == "pgmq" else MemoryBackend(config, str)
        )
        async with ordered, ordered.poll() as consumer, asyncio.timeout(20):
            first = await ordered.push("a1", group="a", dedup_key="1")
            await ordered.push_many(["a2", "a1 again", "a3"], group="a", dedup_key=lambda text: text[1])
            assert await ordered.push("b1", group="b", dedup_key="1") == first  # keys are the queue's
            await ordered.push("b2", group="b", dedup_key="b2")
            order = []
            while len(order) < 4:
                task = await anext(consumer)
                # The head of its group, whatever is claimed beside it.
                order.append(task.args)
                assert task.headers["x-pgmq-group"] == task.args[0]
                assert task.headers["x-dedup-key"] in {"1", "2", "3", "b2"}
                await asyncio.sleep(0.05)
                other = consumer.take()
                assert other is None or other.args[0] != task.args[0]
                consumer.ack(task)
                if other is not None:
                    order.append(other.args)
                    consumer.ack(other)
            assert [one for one in order if one[0] == "a"] == ["a1", "a2", "a3"]
            assert "b2" in order

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\0b", "\ud800", 7])
    async def test_what_cannot_be_a_key_is_refused(
        self, any_backend: PgMqBackend[str] | MemoryBackend[str], key: str
    ) -> None:
        with pytest.raises(ConfigError, match="dedup_key"):
            await any_backend.push("a", dedup_key=key)
        with pytest.raises(ConfigError, match="dedup_key"):
            await any_backend.push_many(["a"], dedup_key=lambda _: key)

    async def test_what_makes_no_sense_is_refused(
        self, any_backend: PgMqBackend[str] | MemoryBackend[str]
    ) -> None:
        with pytest.raises(ConfigError, match="dedup_window needs a dedup_key"):
            await any_backend.push("a", dedup_window=60)
        with pytest.raises(ConfigError, match="dedup_window must be longer than zero"):
            await any_backend.push("a", dedup_key="k", dedup_window=0)
        with pytest.raises(ConfigError, match="dedup_key must be a function here"):
            await any_backend.push_many(["a"], dedup_key="k")  # type: ignore[arg-type]

    async def test_the_longest_key_of_the_widest_characters(
        self, any_backend: PgMqBackend[str] | MemoryBackend[str]
    ) -> None:
        key = "".join(chr(0x10000 + random.Random(1).randrange(2**16)) for _ in range(255))
        assert await any_backend.push("a", dedup_key=key) == await any_backend.push("b", dedup_key=key)


async def test_the_table_is_made_at_the_first_key_and_not_before(
    new_database: Callable[[], Awaitable[str]], queue: str
) -> None:
    url = await new_database()
    connection = await asyncpg.connect(url)
    try:
        async with PgMqBackend(url, queue, str) as backend:
            await backend.push("a")
            assert await connection.fetchval("SELECT to_regclass($1)", KEYS) is None
            first = await backend.push("a", dedup_key="k")
            assert await connection.fetchval("SELECT to_regclass($1)", KEYS) is not None
            assert await backend.push("a", dedup_key="k") == first
            # Somebody drops it: the push that finds out fails, the next one makes it anew.
            await connection.execute(f"DROP TABLE {KEYS}")
            with pytest.raises(Exception, match="apalis_pgmq_dedup"):
                await backend.push("a", dedup_key="k")
            assert await backend.push("a", dedup_key="k") > first
    finally:
        await connection.close()


async def test_many_processes_may_make_it_at_once(
    new_database: Callable[[], Awaitable[str]], queue: str
) -> None:
    url = await new_database()
    backends = [PgMqBackend(url, queue, str) for _ in range(8)]
    try:
        ids = await asyncio.gather(*(each.push("a", dedup_key="k") for each in backends))
    finally:
        for each in backends:
            await each.close()
    assert len(set(ids)) == 1


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[str, list[str]]]:
    """What each of 16 senders does: how it sends, and which keys."""
    keys = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6)
    ways = st.sampled_from(["push", "push_many", "commit", "roll back"])
    return [(draw(ways), draw(keys)) for _ in range(16)]


def test_sixteen_concurrent_senders_store_each_key_once(pgmq_url: str, queue: str) -> None:
    """Whether they push one by one, many at once, or in transactions that are committed or rolled back."""

    async def check(plan: list[tuple[str, list[str]]], number: int) -> None:
        name = f"{queue}_{number}"
        backends = [PgMqBackend(pgmq_url, name, str) for _ in range(4)]
        claimed: dict[str, set[int]] = {}

        async def send(position: int, way: str, keys: list[str]) -> None:
            backend = backends[position % len(backends)]
            if way == "push":
                ids = await asyncio.gather(*(backend.push(key, dedup_key=key) for key in keys))
            elif way == "push_many":
                ids = await backend.push_many(keys, dedup_key=str)
            else:
                connection = await asyncpg.connect(pgmq_url)
                try:
                    transaction = connection.transaction()
                    await transaction.start()
                    ids = await backend.push_many(keys, dedup_key=str, connection=connection)
                    await asyncio.sleep(0.01)
                    if way == "roll back":
                        await transaction.rollback()
                        return
                    await transaction.commit()
                finally:
                    await connection.close()
            for key, message_id in zip(keys, ids, strict=True):
                claimed.setdefault(key, set()).add(message_id)

        try:
            await backends[0].setup()
            await asyncio.gather(*(send(position, *each) for position, each in enumerate(plan)))
        finally:
            for backend in backends:
                await backend.close()
        connection = await asyncpg.connect(pgmq_url)
        rows = await connection.fetch(f"SELECT msg_id, message, headers FROM pgmq.q_{name}")
        await connection.execute("SELECT pgmq.drop_queue($1::text)", name)
        await connection.close()
        stored = {json.loads(row["message"]): {row["msg_id"]} for row in rows}
        assert len(rows) == len(stored)
        assert stored == claimed
        assert all(json.loads(row["headers"])["x-dedup-key"] == json.loads(row["message"]) for row in rows)

    numbers = iter(range(1000))

    # Not made smaller when they fail: the next time the senders may meet in another way.
    @settings(
        max_examples=15,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plans())
    def examples(plan: list[tuple[str, list[str]]]) -> None:
        asyncio.run(check(plan, next(numbers)))

    examples()


async def test_senders_of_the_same_keys_in_other_orders_do_not_block_each_other(
    pgmq_url: str, queue: str
) -> None:
    keys = [f"key {number}" for number in range(300)]
    backends = [PgMqBackend(pgmq_url, queue, str) for _ in range(8)]
    try:
        for backend in backends:
            await backend.setup()
        for round_ in range(5):
            shuffled = [random.Random(100 * round_ + n).sample(keys, len(keys)) for n in range(8)]
            results = await asyncio.gather(
                *(
                    backend.push_many(order, dedup_key=lambda key, round_=round_: f"{round_} {key}")
                    for backend, order in zip(backends, shuffled, strict=True)
                )
            )
            found = [dict(zip(order, ids, strict=True)) for order, ids in zip(shuffled, results, strict=True)]
            assert all(each == found[0] for each in found)
    finally:
        for backend in backends:
            await backend.close()


PROCESS = """
import asyncio, sys
from apalis_pgmq import PgMqBackend

async def main(url, queue):
    async with PgMqBackend(url, queue, str) as backend:
        print("ready", flush=True)
        sys.stdin.readline()
        for part in range(50):  # so that they meet again and again
            keys = [f"k{part}-{number}" for number in range(20)]
            print(*await asyncio.gather(*(backend.push(key, dedup_key=key) for key in keys)))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_store_each_key_once(pgmq_url: str, queue: str, table: Table) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROCESS,
            pgmq_url,
            queue,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    said = await asyncio.gather(*(process.communicate(b"\n") for process in processes))
    ids = [list(map(int, out.split())) for out, _ in said]
    assert all(each == ids[0] for each in ids)
    assert sorted(ids[0]) == [row["msg_id"] for row in await table.rows()]


class TestTransactions:
    """In the caller's own transaction."""

    async def test_a_rollback_frees_the_key(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, table: Table
    ) -> None:
        transaction = db.transaction()
        await transaction.start()
        first = await backend.push("a", dedup_key="k", connection=db)
        assert await backend.push("b", dedup_key="k", connection=db) == first  # it sees its own
        await transaction.rollback()
        second = await backend.push("c", dedup_key="k")
        assert second > first
        assert [row["message"] for row in await table.rows()] == ['"c"']

    @pytest.mark.parametrize("commits", [True, False])
    async def test_another_sender_waits_for_its_end(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, table: Table, *, commits: bool
    ) -> None:
        transaction = db.transaction()
        await transaction.start()
        first = await backend.push("a", dedup_key="k", connection=db)
        waiting = asyncio.create_task(backend.push("b", dedup_key="k"))
        await backend.push("without a key, it does not wait")
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await (transaction.commit() if commits else transaction.rollback())
        assert (await waiting == first) is commits
        assert {row["message"] for row in await table.rows()} - {'"without a key, it does not wait"'} == {
            '"a"' if commits else '"b"'
        }

    async def test_who_waits_takes_no_connection_from_pushes_without_a_key(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        async with PgMqPool(pgmq_url, size=1) as pool, PgMqBackend(pool, queue, str) as backend:
            async with db.transaction():
                first = await backend.push("a", dedup_key="k", connection=db)
                waiting = asyncio.create_task(backend.push("b", dedup_key="k"))
                await asyncio.sleep(0.3)
                async with asyncio.timeout(5):
                    await backend.push("c")
                assert not waiting.done()
            assert await waiting == first

    async def test_also_for_a_key_that_had_expired(
        self, backend: PgMqBackend[str], db: asyncpg.Connection
    ) -> None:
        old = await backend.push("a", dedup_key="k", dedup_window=0.05)
        await asyncio.sleep(0.1)
        transaction = db.transaction()
        await transaction.start()
        taken = await backend.push("b", dedup_key="k", connection=db)
        waiting = asyncio.create_task(backend.push("c", dedup_key="k"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await transaction.rollback()
        assert await waiting > taken > old

    async def test_one_that_cannot_see_who_took_the_key_is_told_to_try_again(
        self, backend: PgMqBackend[str], db: asyncpg.Connection
    ) -> None:
        await backend.push("a", dedup_key="other")
        transaction = db.transaction(isolation="repeatable_read")
        await transaction.start()
        await db.execute("SELECT FROM pg_class LIMIT 1")
        await backend.push("a", dedup_key="k")
        with pytest.raises(PgMqUnavailableError, match="could not serialize"):
            await backend.push("b", dedup_key="k", connection=db)
        await transaction.rollback()

    async def test_of_two_that_wait_for_each_other_one_is_told_to_try_again(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, pgmq_url: str, table: Table
    ) -> None:
        await backend.push("first", dedup_key="first")
        other = await asyncpg.connect(pgmq_url)

        async def take(connection: asyncpg.Connection, *keys: str) -> None:
            async with connection.transaction():
                for key in keys:
                    await backend.push(key, dedup_key=key, connection=connection)
                    await asyncio.sleep(0.2)

        try:
            results = await asyncio.gather(take(db, "k", "l"), take(other, "l", "k"), return_exceptions=True)
        finally:
            await other.close()
        assert sorted(type(each).__name__ for each in results) == ["NoneType", "PgMqUnavailableError"]
        assert await table.count() == 3

    async def test_a_handler_sends_once(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection, eventually: Eventually
    ) -> None:
        async with (
            PgMqBackend(pgmq_url, queue, int) as numbers,
            PgMqBackend(pgmq_url, f"{queue}_out", int) as out,
        ):

            async def handle(number: int, tx: Transaction) -> None:
                await tx.push(out, number, dedup_key=f"{number % 3}")
                await tx.push_many(out, [number], dedup_key=lambda each: f"{each % 3}", dedup_window=60)
                await tx.schedule(out, number, timedelta(hours=1), dedup_key=f"{number % 3}")

            await numbers.push_many(range(12))
            async with running(WorkerBuilder("w").backend(numbers).concurrency(4).build(handle)):
                await eventually(Table(db, queue).is_empty)
        assert await Table(db, f"{queue}_out").count() == 3


async def test_queues_have_keys_of_their_own(
    backend: PgMqBackend[str], pgmq_url: str, queue: str, table: Table
) -> None:
    async with PgMqBackend(pgmq_url, f"{queue}_2", str) as other:
        assert await backend.push("a", dedup_key="k") == 1
        assert await other.push("a", dedup_key="k") == 1
        assert await other.push("b", dedup_key="k") == 1
        assert await other.push("b") == 2
    assert await table.count() == 1


async def test_a_dropped_queue_takes_its_keys_along(
    backend: PgMqBackend[str], pgmq_url: str, queue: str, table: Table, db: asyncpg.Connection
) -> None:
    for text in "abc":
        await backend.push(text, dedup_key=text)
    await db.execute("SELECT pgmq.drop_queue($1::text)", queue)
    await backend.setup()
    assert await backend.push("c", dedup_key="c") == 1
    assert [row["message"] for row in await table.rows()] == ['"c"']
    shown = await db.fetchval(f"SELECT queue::text FROM {KEYS} WHERE key = 'c' ORDER BY expires_at DESC")
    assert shown == f"pgmq.q_{queue}"


async def test_a_purged_queue_does_not(backend: PgMqBackend[str], pgmq_url: str, queue: str) -> None:
    first = await backend.push("a", dedup_key="k")
    async with PgMqQueues(pgmq_url) as queues:
        await queues.purge(queue)
    assert await backend.push("a", dedup_key="k") == first


async def test_a_bad_message_neither_takes_its_key_nor_harms_those_beside_it(
    backend: PgMqBackend[str], db: asyncpg.Connection, queue: str, table: Table
) -> None:
    results = await asyncio.gather(
        backend.push("first", dedup_key="first"),
        backend.push("a", dedup_key="a"),
        backend.push("\0", dedup_key="bad"),
        backend.push("b", dedup_key="b"),
        return_exceptions=True,
    )
    assert [type(each) is EncodeError for each in results] == [False, False, True, False]
    await backend.push("good", dedup_key="bad")
    assert {row["message"] for row in await table.rows()} == {'"first"', '"a"', '"b"', '"good"'}


async def test_pushes_with_keys_share_statements(
    backend: PgMqBackend[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.push("a", dedup_key="a")
    sizes: list[int] = []
    insert = backend._keyed_sink._insert

    async def watched(parcels: list[object]) -> list[int]:
        sizes.append(len(parcels))
        return await insert(parcels)  # type: ignore[arg-type,return-value]

    monkeypatch.setattr(backend._keyed_sink, "_insert", watched)
    ids = await asyncio.gather(*(backend.push("x", dedup_key=f"{number % 50}") for number in range(100)))
    assert sum(sizes) == 100
    assert len(sizes) <= 2
    assert len(set(ids)) == 50


async def test_pushes_with_keys_wait_for_the_disk(backend: PgMqBackend[str]) -> None:
    [row] = await backend._keyed_sink._lane.fetch("SHOW synchronous_commit")
    assert row[0] == "on"


async def test_a_queue_that_announces_nothing_has_pushes_with_keys_announced_all_the_same(
    pgmq_url: str, queue: str, db: asyncpg.Connection
) -> None:
    async with PgMqQueues(pgmq_url) as queues:
        await queues.create(queue, notify=False)
    heard = asyncio.Event()
    await db.add_listener(f"pgmq.q_{queue}.INSERT", lambda *_: heard.set())
    async with PgMqBackend(pgmq_url, queue, str) as backend, asyncio.timeout(10):
        await backend.push("a", dedup_key="k")
        await heard.wait()


async def test_a_large_payload_is_set_aside_unless_its_key_is_taken(
    pgmq_url: str, queue: str, db: asyncpg.Connection
) -> None:
    async with PgMqBackend(pgmq_url, Config(queue, claim_check_over=1000), str) as backend:
        first = await backend.push("a" * 2000, dedup_key="k")
        assert await backend.push("b" * 2000, dedup_key="k") == first
        await backend.push_many(["c", "d" * 2000, "e" * 2000], dedup_key=lambda text: text[0].upper())
        assert await db.fetchval(f"SELECT count(*) FROM pgmq.b_{queue}") == 3
        tasks = await drain(backend, 4)
    assert [task.args for task in tasks] == ["a" * 2000, "c", "d" * 2000, "e" * 2000]
    assert [task.headers["x-dedup-key"] for task in tasks] == ["k", "C", "D", "E"]
    assert await db.fetchval(f"SELECT count(*) FROM pgmq.b_{queue}") == 0


async def test_any_name_of_a_queue_will_do(pgmq_url: str, queue: str, db: asyncpg.Connection) -> None:
    name = f'{queue} "Mixed"\\.é'
    async with PgMqBackend(pgmq_url, name, str) as backend:
        first = await backend.push("a", dedup_key="k")
        assert await backend.push_many(["b", "c"], dedup_key=lambda text: "k" if text == "b" else text) == [
            first,
            first + 1,
        ]
    assert await Table(db, name.replace('"', '""')).count() == 2


@pytest.mark.parametrize("analyzed", [False, True])
async def test_keys_are_looked_up_by_an_index(
    backend: PgMqBackend[str], db: asyncpg.Connection, queue: str, *, analyzed: bool
) -> None:
    await backend.push("a", dedup_key="k")
    table = f"pgmq.q_{queue}"
    async with db.transaction():
        await db.execute(
            f"INSERT INTO {KEYS} SELECT $1::text::regclass, 'k' || n, n, now() + interval '1 h' "
            "FROM generate_series(1, 20000) AS n",
            table,
        )
    if analyzed:
        await db.execute(f"ANALYZE {KEYS}")
    await db.execute(f"PREPARE keyed AS {keyed_insert(table, None, Bodies())}")
    await db.execute("SET plan_cache_mode = force_generic_plan")
    arrays = "ARRAY['1'], ARRAY['{}'], ARRAY[interval '0'], ARRAY[NULL::timestamptz], ARRAY['k1'], ARRAY[interval '1 h']"
    plan = json.loads(await db.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE keyed({arrays})"))[0]["Plan"]
    scans = [node for node in nodes(plan) if node.get("Relation Name") == "apalis_pgmq_dedup"]
    assert {node["Node Type"] for node in scans} == {"Index Scan", "ModifyTable"}
    assert {node.get("Index Name") for node in scans} == {"apalis_pgmq_dedup_pkey", None}


async def test_ten_thousand_keys_at_once_take_no_square_of_time(
    backend: PgMqBackend[str], table: Table
) -> None:
    async with asyncio.timeout(10):
        ids = await backend.push_many(map(str, range(10_000)), dedup_key=str)
        assert await backend.push_many(map(str, range(10_000)), dedup_key=str) == ids
    assert ids == sorted(set(ids))
    rows = await table.rows()
    assert [row["message"] for row in rows] == [f'"{number}"' for number in range(10_000)]
    assert [row["msg_id"] for row in sorted(rows, key=lambda row: row["vt"])] == ids


class TestWaiting:
    """A key that is being taken in somebody's open transaction holds up its own pushes, and no others."""

    @pytest.mark.parametrize("commits", [True, False])
    async def test_the_others_go_on(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, table: Table, *, commits: bool
    ) -> None:
        transaction = db.transaction()
        await transaction.start()
        taken = await backend.push("taken", dedup_key="7", connection=db)
        pushes = [
            asyncio.create_task(backend.push(f"{number % 20}", dedup_key=f"{number % 20}"))
            for number in range(60)
        ]
        many = asyncio.create_task(backend.push_many(["m", "7", "n"], dedup_key=str))
        others = [push for number, push in enumerate(pushes) if number % 20 != 7]
        async with asyncio.timeout(8):
            await asyncio.gather(*others)
            # What comes later with that key waits too, without a try of its own.
            pushes.append(asyncio.create_task(backend.push("7", dedup_key="7")))
            await asyncio.gather(*(backend.push("x", dedup_key=f"later {number}") for number in range(20)))
        waiting = [*pushes[7::20], pushes[-1], many]
        assert not any(push.done() for push in waiting)
        assert await table.count() == 19 + 20 + 1  # its own look sees what it has not committed
        await (transaction.commit() if commits else transaction.rollback())
        async with asyncio.timeout(8):
            [(m, of_seven, n), *sevens] = [await many, *[await pushes[number] for number in (7, 27, 47, -1)]]
        assert set(sevens) == {of_seven}
        assert (of_seven == taken) is commits
        assert len({m, n, of_seven}) == 3
        assert await table.count() == 19 + 20 + 3
        assert backend._keyed_sink._messages == 0
        assert not backend._keyed_sink._held_back

    async def test_who_waits_too_long_is_told_and_the_rest_is_stored(
        self,
        backend: PgMqBackend[str],
        db: asyncpg.Connection,
        table: Table,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(_connect, "_STATEMENT_TIMEOUT", 3.0)
        await backend.push("first", dedup_key="first")
        async with db.transaction():
            await backend.push("taken", dedup_key="k", connection=db)
            async with asyncio.timeout(8):
                results = await asyncio.gather(
                    *(backend.push(key, dedup_key=key) for key in "akbkc"), return_exceptions=True
                )
        assert [isinstance(one, PgMqUnavailableError) for one in results] == [False, True, False, True, False]
        assert await backend.push("k", dedup_key="k") < await backend.push("d", dedup_key="d")
        assert await table.count() == 6
        assert backend._keyed_sink._messages == 0

    async def test_more_keys_than_connections(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection, table: Table
    ) -> None:
        async with PgMqPool(pgmq_url, size=1) as pool, PgMqBackend(pool, queue, str) as backend:
            async with db.transaction():
                taken = await backend.push_many("abc", dedup_key=str, connection=db)
                waiting = [asyncio.create_task(backend.push(key, dedup_key=key)) for key in "abcd"]
                async with asyncio.timeout(8):
                    await waiting[3]
                assert not any(push.done() for push in waiting[:3])
            async with asyncio.timeout(8):
                assert await asyncio.gather(*waiting[:3]) == taken
        assert await table.count() == 4

    async def test_a_table_that_is_locked_for_a_moment_fails_nobody(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, table: Table
    ) -> None:
        await backend.push("first", dedup_key="first")
        async with db.transaction():
            await db.execute(f"LOCK TABLE pgmq.q_{backend.queue}")
            pushes = [asyncio.create_task(backend.push(str(n), dedup_key=str(n))) for n in range(30)]
            await asyncio.sleep(1.5)
            assert not any(push.done() for push in pushes)
        async with asyncio.timeout(8):
            await asyncio.gather(*pushes)
        assert await table.count() == 31

    async def test_closing_waits_for_it(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection, table: Table
    ) -> None:
        transaction = db.transaction()
        await transaction.start()
        async with PgMqBackend(pgmq_url, queue, str) as backend:
            await backend.push("taken", dedup_key="k", connection=db)
            pushes = [asyncio.create_task(backend.push("a", dedup_key="k")) for _ in range(3)]
            await asyncio.sleep(0.5)
            closing = asyncio.create_task(backend.close())
            await asyncio.sleep(0.2)
            assert not closing.done()
            await transaction.rollback()
            async with asyncio.timeout(8):
                await closing
            assert len({push.result() for push in pushes}) == 1
        assert await table.count() == 1

    async def test_pushes_beyond_the_bound_stand_in_line(
        self,
        backend: PgMqBackend[str],
        db: asyncpg.Connection,
        table: Table,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(_sink, "_MOST_MESSAGES", 4)
        await backend.push("first", dedup_key="first")
        transaction = db.transaction()
        await transaction.start()
        taken = await backend.push("taken", dedup_key="k", connection=db)
        pushes = [asyncio.create_task(backend.push("a", dedup_key="k")) for _ in range(20)]
        await asyncio.sleep(2)
        # One waits, some follow it, and the others stand in line.
        assert 4 <= backend._keyed_sink._messages <= 8
        assert len(backend._keyed_sink._line) == 20 - 1 - backend._keyed_sink._messages
        await transaction.commit()
        async with asyncio.timeout(8):
            assert set(await asyncio.gather(*pushes)) == {taken}
        assert backend._keyed_sink._messages == 0
        assert await table.count() == 2


class TestTidying:
    """What has expired does not pile up."""

    async def test_expired_keys_are_deleted_and_no_others(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, queue: str, eventually: Eventually
    ) -> None:
        await backend.push("stays", dedup_key="stays")
        await db.execute(
            f"INSERT INTO {KEYS} SELECT $1::text::regclass, 'old ' || n, n, now() - interval '1 s' "
            "FROM generate_series(1, 3500) AS n",
            f"pgmq.q_{queue}",
        )
        await asyncio.sleep(_keys._TIDY_INTERVAL)

        async def left() -> list[str]:
            rows = await db.fetch(
                f"SELECT key FROM {KEYS} WHERE queue = $1::text::regclass", f"pgmq.q_{queue}"
            )
            return sorted(row[0] for row in rows)

        async def is_tidy() -> bool:
            return await left() == ["new", "stays"]

        await backend.push("new", dedup_key="new")
        await eventually(is_tidy)

    async def test_closing_waits_for_it(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection, backend: PgMqBackend[str]
    ) -> None:
        await backend.push("a", dedup_key="old", dedup_window=0.01)
        await asyncio.sleep(0.1)
        async with PgMqBackend(pgmq_url, queue, str) as brief:
            await brief.push("b", dedup_key="new")
        rows = await db.fetch(f"SELECT key FROM {KEYS} WHERE queue = $1::text::regclass", f"pgmq.q_{queue}")
        assert [row[0] for row in rows] == ["new"]

    async def test_it_waits_for_nobody(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, queue: str
    ) -> None:
        await backend.push("a", dedup_key="old", dedup_window=0.01)
        await asyncio.sleep(0.1)
        async with db.transaction():
            await backend.push("b", dedup_key="old", connection=db)
            async with asyncio.timeout(5):
                await backend._keyed_sink._tidy()
        assert await db.fetchval(
            f"SELECT msg_id FROM {KEYS} WHERE key = 'old' AND queue = $1::text::regclass", f"pgmq.q_{queue}"
        )

    async def test_what_senders_left_is_swept(
        self, new_database: Callable[[], Awaitable[str]], queue: str
    ) -> None:
        url = await new_database()
        async with PgMqQueues(url) as queues:
            assert await queues.sweep_keys() == 0
            await queues.create(queue, dedup=True)
            connection = await asyncpg.connect(url)
            await connection.execute(
                f"INSERT INTO {KEYS} SELECT $1::text::regclass, n::text, n, "
                "now() + CASE WHEN n > 12500 THEN 1 ELSE -1 END * interval '1 h' FROM generate_series(1, 12600) AS n",
                f"pgmq.q_{queue}",
            )
            assert await queues.sweep_keys() == 12500
            assert await connection.fetchval(f"SELECT min(msg_id) FROM {KEYS}") == 12501
            await connection.close()


class TestRoles:
    """Who may send with a key."""

    @pytest.fixture
    async def producer(
        self, new_database: Callable[[], Awaitable[str]], queue: str
    ) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
        """A database of its own, and a login that is what ``roles.sql`` calls a producer."""
        url = await new_database()
        async with PgMqQueues(url) as queues:
            for name in (queue, f"{queue}_dlq"):
                await queues.create(name)
        connection = await asyncpg.connect(url)
        await connection.execute((ROLES / "roles.sql").read_text().replace("emails", queue))
        await connection.execute(
            f"CREATE ROLE login_{queue} LOGIN PASSWORD 'secret' IN ROLE {queue}_producer"
        )
        yield as_role(url, f"login_{queue}"), connection
        roles = [f"login_{queue}", *(f"{queue}_{kind}" for kind in ("producer", "worker", "operator"))]
        for role in roles:
            await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()

    async def test_what_it_may_not_do_is_told_with_what_to_do(
        self, producer: tuple[str, asyncpg.Connection], queue: str
    ) -> None:
        url, owner = producer
        async with PgMqBackend(url, queue, str) as backend:
            with pytest.raises(PgMqPermissionError, match=r"may not make it.*setup QUEUE --dedup"):
                await backend.push("a", dedup_key="k")
            await backend.push("a")
            async with PgMqQueues(owner_url(owner, url)) as queues:
                assert not await queues.create(queue, dedup=True)
            with pytest.raises(PgMqPermissionError, match="a sender with dedup_key needs SELECT, INSERT"):
                await backend.push("a", dedup_key="k")
            await owner.execute((ROLES / "dedup.sql").read_text().replace("emails", queue))
            first = await backend.push("a", dedup_key="k")
            assert await backend.push("b", dedup_key="k") == first

    async def test_a_sender_that_may_not_delete_keys_says_so(
        self, producer: tuple[str, asyncpg.Connection], queue: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        url, owner = producer
        async with PgMqQueues(owner_url(owner, url)) as queues:
            await queues.create(queue, dedup=True)
        await owner.execute((ROLES / "dedup.sql").read_text().replace("emails", queue))
        await owner.execute(f"REVOKE DELETE ON {KEYS} FROM {queue}_producer")
        async with PgMqBackend(url, queue, str) as backend:
            await backend.push("a", dedup_key="k")
        assert "expired keys of deduplication stay" in caplog.text


def owner_url(owner: asyncpg.Connection, url: str) -> str:
    """The same database's URL for the role of the tests."""
    return as_role(url, "postgres", owner._params.password)
