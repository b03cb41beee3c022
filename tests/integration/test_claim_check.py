"""Large payloads lie beside the queue, come back, and go with their messages."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from apalis_pgmq import (
    AbortError,
    Compression,
    Config,
    EncodeError,
    Encryption,
    JsonCodec,
    KeyRing,
    LayeredCodec,
    PgMqBackend,
    PgMqPermissionError,
    Transaction,
    WorkerBuilder,
)
from apalis_pgmq.pgmq import PgMqQueues, _body_table
from apalis_pgmq.pgmq._inserts import MANY

from .conftest import Email, Table, as_role, running, sweep_bodies

Eventually = Callable[..., Awaitable[None]]

_PLANNING_SQL = (
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off"
)
SMALL = Email("ada")
LARGE = Email("grace", body="x" * 5000)


def opened(url: str, queue: str, *, codec: Any = None, **settings: Any) -> PgMqBackend[Email]:
    settings = {"claim_check_over": 1000, "poll_interval": 0.02, "max_retries": 0, **settings}
    return PgMqBackend(url, Config(queue, **settings), Email, codec=codec)


@pytest.fixture
async def backend(pgmq_url: str, queue: str) -> AsyncIterator[PgMqBackend[Email]]:
    async with opened(pgmq_url, queue) as backend:
        yield backend


class Bodies:
    """A look at the table of large payloads."""

    def __init__(self, db: asyncpg.Connection, queue: str) -> None:
        self.db = db
        self.queue = queue

    async def all(self) -> list[Any]:
        rows = await self.db.fetch(f"SELECT body FROM pgmq.b_{self.queue} ORDER BY created_at, id")
        return [json.loads(row["body"]) for row in rows]

    async def count(self) -> int:
        return len(await self.all())


@pytest.fixture
def bodies(db: asyncpg.Connection, queue: str) -> Bodies:
    return Bodies(db, queue)


async def work(
    backend: PgMqBackend[Email], eventually: Eventually, table: Table, error: Exception | None = None
) -> list[Email]:
    """Let a worker of one handler empty the queue; return what it was given, in that order."""
    messages: list[Email] = []

    async def handler(message: Email) -> None:
        messages.append(message)
        if error is not None:
            raise error

    async with running(WorkerBuilder("worker").backend(backend).concurrency(1).build(handler)):
        await eventually(table.is_empty)
    return messages


async def test_only_large_payloads_are_kept_beside_the_queue_and_go_with_their_messages(
    backend: PgMqBackend[Email], table: Table, bodies: Bodies, eventually: Eventually
) -> None:
    await backend.push(SMALL, headers={"k": 1})
    await backend.push(LARGE, headers={"k": 1})
    await backend.push(LARGE)
    small, large, bare = await table.rows()
    assert json.loads(small["headers"]) == {"k": 1}
    assert large["message"] == bare["message"] == "null"
    assert json.loads(large["headers"]).keys() == {"k", "x-claim-check"}
    assert json.loads(bare["headers"]).keys() == {"x-claim-check"}
    assert [body["to"] for body in await bodies.all()] == ["grace", "grace"]
    assert await work(backend, eventually, table) == [SMALL, LARGE, LARGE]
    assert await bodies.count() == 0


async def test_the_bound_is_bytes_and_not_reached_by_what_has_just_as_many(
    pgmq_url: str, queue: str, bodies: Bodies
) -> None:
    size = len(JsonCodec(Email).encode(Email("é")).encode())
    async with opened(pgmq_url, queue, claim_check_over=size) as backend:
        await backend.push(Email("é"))
        assert await bodies.count() == 0
        await backend.push(Email("éa"))
        assert await bodies.count() == 1


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("count", [7, MANY + 500])
@pytest.mark.parametrize("codec", [None, LayeredCodec(JsonCodec(Email), Compression(min_size=3000))])
async def test_many_are_sent_and_handled_in_order(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    table: Table,
    bodies: Bodies,
    eventually: Eventually,
    *,
    announced: bool,
    count: int,
    codec: Any,
) -> None:
    await db.execute("SELECT pgmq.create($1::text)", queue)
    sent = [Email(str(n), body="x" * (0, 2000, 4000)[n % 3]) for n in range(count)]
    async with opened(pgmq_url, queue, codec=codec) as backend:
        if announced:
            async with PgMqQueues(pgmq_url) as queues:
                await queues.create(queue)
            await backend.setup()
        await backend.push_many(sent, headers={"k": 1})
        kept = sum(len(message.body) > 1000 for message in sent)
        if codec is not None:
            kept = sum(len(message.body) == 2000 for message in sent)
        assert await bodies.count() == kept
        assert all(json.loads(row["headers"])["k"] == 1 for row in await table.rows())
        assert await work(backend, eventually, table) == sent
        assert await bodies.count() == 0


async def test_encrypted_payloads_may_be_large_too(
    pgmq_url: str, queue: str, table: Table, bodies: Bodies, eventually: Eventually
) -> None:
    codec = LayeredCodec(JsonCodec(Email), Encryption(KeyRing({"a": b"a" * 32})))
    async with opened(pgmq_url, queue, codec=codec) as backend:
        await backend.push(LARGE)
        assert "grace" not in str(await bodies.all())
        assert await work(backend, eventually, table) == [LARGE]


class TestOneTransaction:
    async def test_a_push_that_is_rolled_back_leaves_nothing(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table, bodies: Bodies
    ) -> None:
        transaction = db.transaction()
        await transaction.start()
        await backend.push(LARGE, connection=db)
        assert await bodies.count() == 1
        await transaction.rollback()
        assert await bodies.count() == await table.count() == 0

    async def test_a_push_that_is_refused_leaves_nothing(
        self, backend: PgMqBackend[Email], table: Table, bodies: Bodies
    ) -> None:
        with pytest.raises(EncodeError):
            await backend.push_many([LARGE, Email("\0")])
        assert await bodies.count() == await table.count() == 0

    @pytest.mark.parametrize("archive", [True, False])
    async def test_a_handlers_transaction_removes_both_or_neither(
        self,
        pgmq_url: str,
        queue: str,
        table: Table,
        bodies: Bodies,
        eventually: Eventually,
        *,
        archive: bool,
    ) -> None:
        seen = []

        async def handler(message: Email, tx: Transaction) -> None:
            seen.append(message)
            if len(seen) == 1:
                raise ValueError("not yet")

        on_success = "archive" if archive else "delete"
        async with opened(pgmq_url, queue, max_retries=3, on_success=on_success) as backend:
            await backend.push(LARGE)
            worker = WorkerBuilder("worker").backend(backend).retry(0.5).build(handler)
            async with running(worker):
                await eventually(lambda: worker.stats.failed == 1)
                assert await bodies.count() == await table.count() == 1
                await eventually(table.is_empty)
        assert seen == [LARGE, LARGE]
        assert await bodies.count() == (1 if archive else 0)

    async def test_who_lost_the_lease_removes_neither(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, queue: str, table: Table, bodies: Bodies
    ) -> None:
        await backend.push(LARGE)
        async with backend.poll() as consumer:
            task = await anext(consumer)
            await db.execute(f"UPDATE pgmq.q_{queue} SET read_ct = read_ct + 1")
            consumer.ack(task)
        assert await bodies.count() == await table.count() == 1

    async def test_what_is_handed_back_is_delivered_whole_again(
        self, backend: PgMqBackend[Email], table: Table, bodies: Bodies, eventually: Eventually
    ) -> None:
        await backend.push(LARGE)
        async with backend.poll() as consumer:
            consumer.hand_back(await anext(consumer), spend_attempt=False)
        assert await bodies.count() == 1
        assert await work(backend, eventually, table) == [LARGE]


class TestAfterwards:
    async def test_a_dead_letter_keeps_its_payload_and_a_redrive_works(
        self, backend: PgMqBackend[Email], table: Table, bodies: Bodies, eventually: Eventually
    ) -> None:
        await backend.push(LARGE, headers={"k": 1})
        await work(backend, eventually, table, AbortError("no"))
        [letter] = await backend.dead_letters()
        assert JsonCodec(Email).decode(letter.payload) == LARGE
        assert await bodies.count() == 1
        assert await backend.redrive() == 1
        assert await work(backend, eventually, table) == [LARGE]
        assert await bodies.count() == 0

    async def test_purging_dead_letters_removes_their_payloads_only(
        self, backend: PgMqBackend[Email], table: Table, bodies: Bodies, eventually: Eventually
    ) -> None:
        await backend.push_many([LARGE, LARGE, SMALL])
        await work(backend, eventually, table, AbortError("no"))
        await backend.push(LARGE)
        assert await backend.purge_dead_letters() == 3
        assert await bodies.count() == 1
        assert await work(backend, eventually, table) == [LARGE]

    async def test_a_dead_letter_queue_can_be_worked(
        self,
        backend: PgMqBackend[Email],
        pgmq_url: str,
        queue: str,
        db: asyncpg.Connection,
        table: Table,
        bodies: Bodies,
        eventually: Eventually,
    ) -> None:
        await backend.push(LARGE)
        await work(backend, eventually, table, AbortError("no"))
        async with opened(pgmq_url, f"{queue}_dlq", dead_letter=None) as dead:
            assert await work(dead, eventually, Table(db, f"{queue}_dlq")) == [LARGE]
        assert await bodies.count() == 0

    @pytest.mark.parametrize("dead", [True, False])
    async def test_an_archived_message_keeps_its_payload(
        self,
        pgmq_url: str,
        queue: str,
        db: asyncpg.Connection,
        table: Table,
        eventually: Eventually,
        *,
        dead: bool,
    ) -> None:
        async with opened(pgmq_url, queue, on_success="archive", dead_letter="archive") as backend:
            await backend.push(LARGE)
            await work(backend, eventually, table, AbortError("no") if dead else None)
        # As docs/codecs.md has it.
        sql = f"""
            SELECT a.msg_id, coalesce(b.body, a.message) AS message
            FROM pgmq.a_{queue} AS a LEFT JOIN pgmq.b_{queue} AS b ON b.id = a.headers->>'x-claim-check'
        """
        assert [json.loads(row["message"])["to"] for row in await db.fetch(sql)] == ["grace"]
        assert await sweep_bodies(pgmq_url, queue) == 0

    async def test_without_dead_letters_the_payload_goes_too(
        self, pgmq_url: str, queue: str, table: Table, bodies: Bodies, eventually: Eventually
    ) -> None:
        async with opened(pgmq_url, queue, dead_letter=None) as backend:
            await backend.push(LARGE)
            await work(backend, eventually, table, AbortError("no"))
        assert await bodies.count() == 0


class TestWithoutTheBody:
    async def test_a_worker_without_the_setting_dead_letters_and_a_redrive_mends_it(
        self,
        backend: PgMqBackend[Email],
        pgmq_url: str,
        queue: str,
        table: Table,
        bodies: Bodies,
        eventually: Eventually,
    ) -> None:
        await backend.push(LARGE)
        async with opened(pgmq_url, queue, claim_check_over=None) as ignorant:
            assert await work(ignorant, eventually, table) == []
        [letter] = await backend.dead_letters()
        assert letter.reason == "undecodable"
        assert "no claim_check_over" in (letter.error or "")
        await backend.redrive()
        assert await work(backend, eventually, table) == [LARGE]
        assert await bodies.count() == 0

    async def test_a_message_whose_payload_is_gone_is_dead_lettered(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        queue: str,
        table: Table,
        eventually: Eventually,
    ) -> None:
        await backend.push_many([LARGE, SMALL])
        await db.execute(f"DELETE FROM pgmq.b_{queue}")
        assert await work(backend, eventually, table) == [SMALL]
        [letter] = await backend.dead_letters()
        assert "deleted from there" in (letter.error or "")

    @pytest.mark.parametrize(
        "headers", ["[1]", '"x-claim-check"', '{"x-claim-check": null}', '{"x-claim-check": 5}']
    )
    async def test_headers_of_others_harm_nobody(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        queue: str,
        table: Table,
        eventually: Eventually,
        headers: str,
    ) -> None:
        await db.execute(
            f"""INSERT INTO pgmq.q_{queue} (vt, message, headers) VALUES (now(), '{{"to": "sql"}}', $1::text::jsonb)""",
            headers,
        )
        await backend.push(LARGE)
        assert await work(backend, eventually, table) == [Email("sql"), LARGE]

    async def test_a_message_that_is_passed_on_gets_a_payload_of_its_own(
        self, backend: PgMqBackend[Email], table: Table, bodies: Bodies, eventually: Eventually
    ) -> None:
        await backend.push(LARGE)
        [row] = await table.rows()
        await backend.push(SMALL, headers=json.loads(row["headers"]))
        await backend.push(LARGE, headers=json.loads(row["headers"]))
        assert await bodies.count() == 2
        assert await work(backend, eventually, table) == [LARGE, SMALL, LARGE]


class TestSweep:
    async def test_it_takes_what_others_left_behind_and_nothing_else(
        self,
        backend: PgMqBackend[Email],
        pgmq_url: str,
        queue: str,
        db: asyncpg.Connection,
        table: Table,
        bodies: Bodies,
        eventually: Eventually,
    ) -> None:
        await backend.push_many([Email("dead", body=LARGE.body), Email("archived", body=LARGE.body)])
        await db.execute(f"SELECT pgmq.archive('{queue}', max(msg_id)) FROM pgmq.q_{queue}")
        await work(backend, eventually, table, AbortError("no"))
        await backend.push_many([Email("deleted", body=LARGE.body), Email("waiting", body=LARGE.body)])
        await db.execute(f"SELECT pgmq.delete('{queue}', min(msg_id)) FROM pgmq.q_{queue}")
        assert await bodies.count() == 4
        assert await sweep_bodies(pgmq_url, queue) == 1
        assert sorted(body["to"] for body in await bodies.all()) == ["archived", "dead", "waiting"]
        await db.execute("SELECT pgmq.purge_queue($1::text)", queue)
        assert await sweep_bodies(pgmq_url, queue) == 1
        await db.execute("SELECT pgmq.drop_queue($1::text)", queue)
        assert await sweep_bodies(pgmq_url, queue) == 1
        assert [body["to"] for body in await bodies.all()] == ["dead"]
        await db.execute("SELECT pgmq.drop_queue($1::text)", f"{queue}_dlq")
        assert await sweep_bodies(pgmq_url, queue) == 1
        assert await bodies.count() == 0

    async def test_where_there_are_none_it_takes_none(self, pgmq_url: str, queue: str) -> None:
        assert await sweep_bodies(pgmq_url, queue) == 0

    async def test_a_dead_letter_queue_that_is_made_meanwhile_is_seen(
        self,
        backend: PgMqBackend[Email],
        pgmq_url: str,
        queue: str,
        table: Table,
        bodies: Bodies,
        eventually: Eventually,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Between its look for tables and its statement the message moves where it has not looked."""
        existing = _body_table._existing
        moved = []

        async def slow(connection: asyncpg.Connection, names: list[str]) -> list[str]:
            found = await existing(connection, names)
            if len(names) > 1 and not moved:
                moved.extend(await work(backend, eventually, table, AbortError("no")))
            return found

        await backend.push(LARGE)
        monkeypatch.setattr(_body_table, "_existing", slow)
        assert await sweep_bodies(pgmq_url, queue) == 0
        assert moved == [LARGE]
        assert await bodies.count() == 1

    async def test_beside_workers_it_takes_nothing_of_theirs(
        self,
        backend: PgMqBackend[Email],
        pgmq_url: str,
        queue: str,
        table: Table,
        bodies: Bodies,
        eventually: Eventually,
    ) -> None:
        """Messages are sent, dead-lettered, put back and handled all the while."""
        seen: dict[str, int] = {}

        async def handler(message: Email) -> None:
            seen[message.to] = seen.get(message.to, 0) + 1
            if seen[message.to] == 1:
                raise AbortError("first time")

        async def send() -> None:
            for n in range(60):
                await backend.push(Email(str(n), body=LARGE.body))
                await backend.redrive()

        swept = 0
        async with running(WorkerBuilder("worker").backend(backend).build(handler)):
            sending = asyncio.create_task(send())
            while not sending.done():
                swept += await sweep_bodies(pgmq_url, queue)
            await sending

            async def all_twice() -> bool:
                await backend.redrive()
                return len(seen) == 60 and set(seen.values()) == {2}

            await eventually(all_twice)
            await eventually(table.is_empty)
        assert swept == 0
        assert await bodies.count() == 0
        assert await table.dead() == []


async def test_a_role_that_may_not_make_the_table_is_told_the_statement(
    pgmq_url: str, queue: str, db: asyncpg.Connection
) -> None:
    role = f"r_{queue}"
    await db.execute("SELECT pgmq.create($1::text)", queue)
    await db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA pgmq TO {role}")
    try:
        with pytest.raises(PgMqPermissionError, match="CREATE TABLE") as caught:
            async with opened(as_role(pgmq_url, role), queue):
                pass
        await db.execute(str(caught.value).partition("run: ")[2])
        async with opened(as_role(pgmq_url, role), queue):
            pass
    finally:
        await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_many_set_ups_at_once_do_not_fight(pgmq_url: str, queue: str) -> None:
    backends = [opened(pgmq_url, queue) for _ in range(8)]
    await asyncio.gather(*(backend.setup() for backend in backends))
    await asyncio.gather(*(backend.close() for backend in backends))


async def test_bodies_are_found_by_their_index_however_few_they_are(
    backend: PgMqBackend[Email], pgmq_url: str, queue: str, db: asyncpg.Connection
) -> None:
    await db.execute(
        f"INSERT INTO pgmq.b_{queue} (id, body) SELECT n::text, '1' FROM generate_series(1, 1000) AS n; "
        f"ANALYZE pgmq.b_{queue}"
    )
    statements = await backend._ready()
    connection = await asyncpg.connect(pgmq_url)
    fence = "'{}', '{}', '{}', '{}'"
    arguments = {
        "claim": "10, '30 s', '-infinity'",
        "delete": fence,
        "delete_last": f"{fence}, '1000'",
        "dead_letters": "0, 10",
        "purge_dead_letters": "0, 10, 10",
    }
    await connection.execute("SELECT pgmq.create($1::text)", backend.config.dead_letter_queue)
    try:
        await connection.execute(_PLANNING_SQL)
        for name, values in arguments.items():
            await connection.execute(f"PREPARE {name} AS {getattr(statements, name)}")
            plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE {name} ({values})"))
            assert (
                f"Index Scan using b_{queue}_pkey" in plan or f"Index Only Scan using b_{queue}_pkey" in plan
            )
            assert f"Seq Scan on b_{queue}" not in plan
    finally:
        await connection.close()
