"""Sending, and being read by others."""

import asyncio
import json
import math
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from apalis_pgmq import ApalisError, ConfigError, EncodeError, PgMqBackend, PgMqError, PgMqQueueMissingError

from .conftest import Email, Table


@pytest.fixture
async def backend(pgmq_url: str, queue: str):
    async with PgMqBackend(pgmq_url, queue, Email) as backend:
        yield backend


async def test_push_stores_what_pgmq_would_and_returns_the_id(
    backend: PgMqBackend[Email], table: Table
) -> None:
    message_id = await backend.push(Email("ada"), headers={"trace": "1", "n": 2})
    [row] = await table.rows()
    assert row["msg_id"] == message_id
    assert json.loads(row["message"]) == {"to": "ada", "subject": "s", "body": "b"}
    assert json.loads(row["headers"]) == {"trace": "1", "n": 2}
    assert row["read_ct"] == 0
    assert row["vt"] <= datetime.now(UTC)


async def test_push_many_returns_ids_in_order(backend: PgMqBackend[Email], table: Table) -> None:
    ids = await backend.push_many(Email(str(number)) for number in range(5000))
    rows = {row["msg_id"]: json.loads(row["message"])["to"] for row in await table.rows()}
    assert [rows[message_id] for message_id in ids] == [str(number) for number in range(5000)]


async def test_push_many_of_nothing_sends_nothing(backend: PgMqBackend[Email], table: Table) -> None:
    assert await backend.push_many([]) == []
    assert await table.is_empty()


@pytest.mark.parametrize("delay", [1.25, timedelta(seconds=1.25)])
async def test_delays_keep_fractions_of_a_second(
    backend: PgMqBackend[Email], table: Table, delay: float | timedelta
) -> None:
    await backend.push(Email("later"), delay=delay)
    [row] = await table.rows()
    assert row["vt"] - row["enqueued_at"] == timedelta(seconds=1.25)


async def test_a_delayed_message_comes_when_it_is_due(backend: PgMqBackend[Email]) -> None:
    async with backend.poll() as consumer:
        await backend.push(Email("later"), delay=0.5)
        await backend.push(Email("now"))
        first, second = await anext(consumer), await anext(consumer)
        assert (first.args.to, second.args.to) == ("now", "later")
        assert datetime.now(UTC) - second.enqueued_at >= timedelta(seconds=0.5)
        consumer.ack(first)
        consumer.ack(second)


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, "soon", None, True])
async def test_nonsense_delays_are_refused(backend: PgMqBackend[Email], table: Table, delay: object) -> None:
    with pytest.raises(ConfigError, match="delay"):
        await backend.push(Email("x"), delay=delay)  # type: ignore[arg-type]
    assert await table.is_empty()


async def test_concurrent_pushes_share_statements(
    backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table
) -> None:
    await backend.push(Email("connect"))
    committed = "SELECT count(DISTINCT xmin::text) FROM pgmq." + f"q_{backend.queue}"
    ids = await asyncio.gather(*(backend.push(Email(str(number))) for number in range(200)))
    assert len(set(ids)) == 200
    assert await table.count() == 201
    assert await db.fetchval(committed) <= 4


async def test_one_bad_push_costs_the_others_few_statements(
    backend: PgMqBackend[Email], db: asyncpg.Connection
) -> None:
    await backend.push(Email("connect"))
    committed = "SELECT count(DISTINCT xmin::text) FROM pgmq." + f"q_{backend.queue}"
    pushes = (backend.push(Email("\x00" if number == 130 else str(number))) for number in range(256))
    results = await asyncio.gather(*pushes, return_exceptions=True)
    assert [number for number, result in enumerate(results) if isinstance(result, EncodeError)] == [130]
    assert await db.fetchval(committed) <= 12


async def test_one_bad_push_does_not_hurt_the_others(backend: PgMqBackend[Email], table: Table) -> None:
    bad = Email("nul \x00 byte")
    results = await asyncio.gather(
        *(backend.push(bad if number == 7 else Email(str(number))) for number in range(20)),
        return_exceptions=True,
    )
    assert isinstance(results[7], EncodeError)
    assert "cannot store the message" in str(results[7])
    assert sum(isinstance(result, int) for result in results) == 19
    assert await table.count() == 19


async def test_push_many_is_all_or_none(backend: PgMqBackend[Email], table: Table) -> None:
    with pytest.raises(EncodeError):
        await backend.push_many([Email("fine"), Email("\x00"), Email("fine")])
    with pytest.raises(EncodeError):
        await backend.push_many([Email("fine"), "not an email"])  # type: ignore[list-item]
    assert await table.is_empty()


@pytest.mark.parametrize("headers", [{"x": object()}, {"x": math.nan}, {"x": "\x00"}])
async def test_headers_that_cannot_be_stored_are_refused(
    backend: PgMqBackend[Email], table: Table, headers: dict[str, object]
) -> None:
    with pytest.raises(EncodeError):
        await backend.push(Email("x"), headers=headers)
    assert await table.is_empty()


async def test_a_cancelled_push_that_was_not_sent_yet_is_not_sent(
    backend: PgMqBackend[Email], table: Table
) -> None:
    first = asyncio.create_task(backend.push(Email("first")))
    second = asyncio.create_task(backend.push(Email("second")))
    await asyncio.sleep(0)
    second.cancel()
    await first
    with pytest.raises(asyncio.CancelledError):
        await second
    await backend.push(Email("third"))
    assert [json.loads(row["message"])["to"] for row in await table.rows()] == ["first", "third"]


async def test_pgmq_functions_read_what_we_send(backend: PgMqBackend[Email], db: asyncpg.Connection) -> None:
    await backend.push(Email("ada"), headers={"a": 1})
    row = await db.fetchrow("SELECT * FROM pgmq.read($1::text, 30, 1)", backend.queue)
    assert json.loads(row["message"])["to"] == "ada"
    assert json.loads(row["headers"]) == {"a": 1}
    assert await db.fetchval("SELECT pgmq.delete($1::text, $2::bigint)", backend.queue, row["msg_id"])


async def test_pgmq_py_reads_what_we_send_and_we_handle_what_it_sends(
    backend: PgMqBackend[Email], pgmq_url: str
) -> None:
    from pgmq import PGMQueue

    await backend.push(Email("ours"))

    def other_side() -> str:
        client = PGMQueue(conn_string=pgmq_url, init_extension=False)
        message = client.read(backend.queue, vt=30)
        client.delete(backend.queue, message.msg_id)
        client.send(backend.queue, {"to": "theirs", "subject": "s", "body": "b"}, headers={"k": "v"})
        client.pool.close()
        return message.message["to"]

    assert await asyncio.to_thread(other_side) == "ours"
    async with backend.poll() as consumer:
        task = await anext(consumer)
        assert task.args == Email("theirs")
        assert task.headers == {"k": "v"}
        consumer.ack(task)


async def test_a_dropped_queue_is_named(backend: PgMqBackend[Email], db: asyncpg.Connection) -> None:
    await backend.push(Email("x"))
    await db.execute("SELECT pgmq.drop_queue($1::text)", backend.queue)
    with pytest.raises(PgMqQueueMissingError, match=backend.queue):
        await backend.push(Email("x"))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
async def test_both_url_schemes_work(pgmq_url: str, queue: str, scheme: str) -> None:
    url = scheme + pgmq_url[pgmq_url.index("://") :]
    async with PgMqBackend(url, queue, Email) as backend:
        assert await backend.push(Email("x")) == 1


@pytest.mark.parametrize("url", ["mysql://localhost/x", "localhost", "", 7, None])
def test_other_urls_are_refused(url: object) -> None:
    with pytest.raises(ConfigError, match="URL"):
        PgMqBackend(url, "emails", Email)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:hunter2@host:abc/db",
        "postgresql://u:hunter2@[::1/db",
        "postgresql://u:hun/ter2@host/db",
        "postgresql://u:hun?ter2@host/db",
        "postgresql://u:hun#ter2@host/db",
    ],
)
async def test_malformed_urls_are_refused_without_their_password(url: str, queue: str) -> None:
    with pytest.raises(ApalisError) as caught:
        await PgMqBackend(url, queue, Email).setup()
    assert "URL" in str(caught.value)
    assert caught.value.__cause__ is None or "hun" not in str(caught.value.__cause__)
    assert "hun" not in str(caught.value)


@pytest.mark.parametrize("name", ["MiXed", "with space", 'quo"te', "back\\slash", "ümlaut", "dash-ed", "1"])
async def test_any_name_that_pgmq_takes_works(
    pgmq_url: str, db: asyncpg.Connection, name: str, queue: str
) -> None:
    name = f"{name} {queue}"
    async with PgMqBackend(pgmq_url, name, Email) as backend, backend.poll() as consumer:
        await backend.push(Email("x"))
        task = await anext(consumer)
        consumer.ack(task)
    assert await db.fetchval("SELECT queue_length FROM pgmq.metrics($1::text)", name) == 0


async def test_a_pool_of_the_program_is_used_and_left_open(pgmq_url: str, queue: str) -> None:
    async def init(connection: asyncpg.Connection) -> None:
        # What many programs do; our payloads must not be encoded twice for it.
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    async with asyncpg.create_pool(pgmq_url, min_size=0, max_size=3, init=init) as pool:
        async with PgMqBackend(pool, queue, Email) as backend, backend.poll() as consumer:
            await backend.push(Email("pooled"), headers={"a": 1})
            task = await anext(consumer)
            assert (task.args, task.headers) == (Email("pooled"), {"a": 1})
            consumer.ack(task)
        assert await pool.fetchval(f"SELECT count(*) FROM pgmq.q_{queue}") == 0
        assert await pool.fetchval("SHOW synchronous_commit") == "on"


async def test_a_closed_pool_is_named(pgmq_url: str, queue: str) -> None:
    async with asyncpg.create_pool(pgmq_url, min_size=0, max_size=1) as pool:
        backend = PgMqBackend(pool, queue, Email)
        await backend.setup()
        await backend.close()
    with pytest.raises(PgMqError, match=r"pool .* was closed"):
        await backend.push(Email("x"))
