"""Messages that go to every queue that is bound to their routing key."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import asyncpg
import pytest

from apalis_pgmq import (
    Config,
    ConfigError,
    EncodeError,
    PgMqBackend,
    PgMqContext,
    PgMqNotInstalledError,
    PgMqPermissionError,
    PgMqQueues,
    PgMqTopic,
    PgMqVersionError,
    WorkerBuilder,
)

from .callers import KINDS
from .conftest import Email, Table, as_role, running

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def queues(pgmq_url: str) -> AsyncIterator[PgMqQueues]:
    async with PgMqQueues(pgmq_url) as one:
        yield one


@pytest.fixture
async def two(queues: PgMqQueues, queue: str) -> tuple[str, str]:
    """Two queues; the first gets all, the second what is created."""
    one, other = f"{queue}_a", f"{queue}_b"
    await queues.create(one)
    await queues.create(other)
    await queues.bind(f"{queue}.#", one)
    await queues.bind(f"{queue}.created.*", other)
    return one, other


@pytest.fixture
async def topic(pgmq_url: str) -> AsyncIterator[PgMqTopic[Email]]:
    async with PgMqTopic(pgmq_url, Email) as one:
        yield one


async def test_queues_are_bound_and_unbound(queues: PgMqQueues, queue: str) -> None:
    await queues.create(queue)
    for _ in range(2):
        await queues.bind(f"{queue}.*", queue)
    [binding] = await queues.bindings(queue)
    assert (binding.pattern, binding.queue) == (f"{queue}.*", queue)
    assert binding in await queues.bindings()
    assert await queues.routes(f"{queue}.x") == [queue]
    assert await queues.routes(f"{queue}.x.y") == []
    assert await queues.unbind(f"{queue}.*", queue) is True
    assert await queues.unbind(f"{queue}.*", queue) is False
    assert await queues.bindings(queue) == []


async def test_dropping_a_queue_unbinds_it(queues: PgMqQueues, queue: str) -> None:
    await queues.create(queue)
    await queues.bind(f"{queue}.*", queue)
    await queues.drop(queue)
    assert await queues.bindings(queue) == []


async def test_a_message_reaches_each_bound_queue_once(
    topic: PgMqTopic[Email], two: tuple[str, str], queue: str, db: asyncpg.Connection, queues: PgMqQueues
) -> None:
    one, other = two
    await queues.bind(f"{queue}.created.eu", one)  # a second pattern that matches
    sent = await topic.push(f"{queue}.created.eu", Email("ada"), headers={"k": 1})
    assert sent == {one: 1, other: 1}
    assert await topic.push(f"{queue}.deleted", Email("ada")) == {one: 2}
    assert await topic.push(f"{queue}_nobody", Email("ada")) == {}
    [row] = await Table(db, other).rows()
    assert row["message"] == '{"to": "ada", "body": "b", "subject": "s"}'
    assert row["headers"] == f'{{"k": 1, "x-routing-key": "{queue}.created.eu"}}'


async def test_many_messages_keep_their_order(
    topic: PgMqTopic[Email], two: tuple[str, str], queue: str, db: asyncpg.Connection
) -> None:
    one, other = two
    sent = await topic.push_many(f"{queue}.created.eu", (Email(str(number)) for number in range(100)))
    assert sent == {one: list(range(1, 101)), other: list(range(1, 101))}
    rows = await db.fetch(f"SELECT message->>'to' FROM pgmq.q_{other} ORDER BY msg_id")
    assert [row[0] for row in rows] == [str(number) for number in range(100)]
    assert await topic.push_many(f"{queue}.created.eu", []) == {}


async def test_a_delay_is_kept_to_the_millisecond(
    topic: PgMqTopic[Email], two: tuple[str, str], queue: str, db: asyncpg.Connection
) -> None:
    await topic.push(f"{queue}.x", Email("ada"), delay=timedelta(seconds=90.25))
    [row] = await Table(db, two[0]).rows()
    assert abs((row["vt"] - row["enqueued_at"]).total_seconds() - 90.25) < 0.001


async def test_a_message_is_sent_if_and_when_the_callers_transaction_commits(
    topic: PgMqTopic[Email], two: tuple[str, str], queue: str, db: asyncpg.Connection
) -> None:
    transaction = db.transaction()
    await transaction.start()
    await topic.push(f"{queue}.created.eu", Email("ada"), connection=db)
    await transaction.rollback()
    assert await Table(db, two[0]).is_empty()
    async with db.transaction():
        await topic.push(f"{queue}.created.eu", Email("ada"), connection=db)
    assert [await Table(db, name).count() for name in two] == [1, 1]


@pytest.mark.parametrize("kind", ["psycopg, async", "AsyncSession, psycopg", "AsyncConnection, asyncpg"])
async def test_and_so_on_connections_of_other_drivers(
    kind: str,
    topic: PgMqTopic[Email],
    two: tuple[str, str],
    queue: str,
    db: asyncpg.Connection,
    pgmq_url: str,
) -> None:
    async with (
        PgMqBackend(pgmq_url, two[0], Email) as backend,
        KINDS[kind](pgmq_url, backend, None) as caller,
    ):
        await caller.begin()
        await topic.push(f"{queue}.created.eu", Email("never"), connection=caller.connection)
        await caller.roll_back()
        await caller.begin()
        sent = await topic.push_many(
            f"{queue}.created.eu",
            [Email("a %s"), Email("b")],
            headers={"k": "%"},
            connection=caller.connection,
        )
        assert await Table(db, two[0]).is_empty()
        await caller.commit()
        assert set(sent) == set(two)
        rows = [await Table(db, name).rows() for name in two]
        assert [[row["msg_id"] for row in each] for each in rows] == [sent[name] for name in two]
        assert [json.loads(row["message"])["to"] for row in rows[0]] == ["a %s", "b"]
        await caller.begin()
        with pytest.raises(ConfigError, match="PGMQ refuses it: routing_key"):
            await topic.push("a..b", Email("ada"), connection=caller.connection)
        await caller.roll_back()


async def test_idle_workers_wake_at_once(
    topic: PgMqTopic[Email], two: tuple[str, str], queue: str, pgmq_url: str, eventually: Eventually
) -> None:
    handled: list[tuple[str, str]] = []

    async def handle(message: Email, context: PgMqContext) -> None:
        handled.append((message.to, context.headers["x-routing-key"]))

    async with PgMqBackend(pgmq_url, Config(two[1], poll_interval=3600), Email) as backend:
        worker = WorkerBuilder("w").backend(backend).build(handle)
        async with running(worker):
            await eventually(lambda: backend._pool.listener._subscriptions)  # type: ignore[attr-defined]
            await asyncio.sleep(1.5)  # it has looked, and rests
            await topic.push(f"{queue}.created.eu", Email("ada"))
            await eventually(lambda: handled, within=0.5)
    assert handled == [("ada", f"{queue}.created.eu")]


async def test_workers_of_another_type_dead_letter_it_and_say_why(
    two: tuple[str, str], queue: str, pgmq_url: str, db: asyncpg.Connection, eventually: Eventually
) -> None:
    handled: list[Email] = []

    async def handle(message: Email) -> None:
        handled.append(message)

    async with (
        PgMqTopic(pgmq_url, dict[str, int]) as numbers,
        PgMqTopic(pgmq_url, Email) as emails,
        PgMqBackend(pgmq_url, two[1], Email) as backend,
    ):
        async with running(WorkerBuilder("w").backend(backend).build(handle)):
            await numbers.push(f"{queue}.created.number", {"n": 1})
            await emails.push(f"{queue}.created.email", Email("ada"))
            await eventually(lambda: handled)
            await eventually(Table(db, two[1]).is_empty)
        [letter] = await backend.dead_letters()
        assert letter.reason == "undecodable"
        assert "to" in (letter.error or "")
        assert letter.headers["x-routing-key"] == f"{queue}.created.number"
    assert handled == [Email("ada")]
    assert await Table(db, two[0]).count() == 2  # the other queue's are its own business


@pytest.mark.parametrize("key", ["", ".a", "a.", "a..b", "a b", "a.*", "x" * 256])
async def test_a_bad_routing_key_is_refused(topic: PgMqTopic[Email], queues: PgMqQueues, key: str) -> None:
    with pytest.raises(ConfigError, match="routing_key"):
        await topic.push(key, Email("ada"))
    with pytest.raises(ConfigError, match="routing_key"):
        await queues.routes(key)


async def test_a_bad_pattern_or_queue_is_refused(queues: PgMqQueues, queue: str) -> None:
    with pytest.raises(ConfigError, match=f'Queue "{queue}" does not exist'):
        await queues.bind("a.*", queue)
    await queues.create(queue)
    with pytest.raises(ConfigError, match="pattern"):
        await queues.bind("a..b", queue)


async def test_what_has_no_place_in_a_queue_is_refused(
    pgmq_url: str, topic: PgMqTopic[Email], two: tuple[str, str], queue: str, db: asyncpg.Connection
) -> None:
    with pytest.raises(EncodeError):
        await topic.push_many(f"{queue}.created.eu", [Email("ada"), Email("\0")])
    with pytest.raises(ConfigError, match="delay"):
        await topic.push(f"{queue}.x", Email("ada"), delay=-1)
    async with PgMqTopic(pgmq_url, Email, max_payload=50) as small:
        with pytest.raises(EncodeError, match="takes at most 50"):
            await small.push(f"{queue}.x", Email("a" * 50))
    assert await Table(db, two[0]).is_empty()


async def test_an_older_pgmq_has_no_topics(new_database: Callable[[], Awaitable[str]]) -> None:
    """As the tables of 1.10 are those of 1.11 otherwise, without what 1.11 added."""
    url = await new_database()
    async with PgMqTopic(url, Email) as topic:
        with pytest.raises(PgMqNotInstalledError, match="PGMQ is not in this database"):
            await topic.push("a.b", Email("ada"))
    async with PgMqQueues(url) as queues, PgMqTopic(url, Email) as topic:
        await queues.create("emails")
        connection = await asyncpg.connect(url)
        for (name,) in await connection.fetch(
            "SELECT p.oid::regprocedure::text FROM pg_proc AS p WHERE p.pronamespace = 'pgmq'::regnamespace "
            "AND p.proname ~ 'topic|routing'"
        ):
            await connection.execute(f"DROP FUNCTION {name}")
        await connection.close()
        with pytest.raises(PgMqVersionError, match=r"topics need PGMQ 1\.11 or later"):
            await topic.push("a.b", Email("ada"))
        for call in (
            queues.bind("a", "emails"),
            queues.unbind("a", "emails"),
            queues.bindings(),
            queues.routes("a"),
        ):
            with pytest.raises(PgMqVersionError, match=r"topics need PGMQ 1\.11 or later"):
                await call


async def test_a_sender_needs_no_more_rights_than_the_document_says(
    new_database: Callable[[], Awaitable[str]], queue: str
) -> None:
    url = await new_database()
    role = f"role_{queue}"
    async with PgMqQueues(url) as queues:
        await queues.create(queue)
        await queues.bind("a.*", queue)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA pgmq TO {role};"
            f"GRANT INSERT (vt, message, headers), SELECT (msg_id) ON pgmq.q_{queue} TO {role}"
        )
        async with PgMqTopic(as_role(url, role), Email) as topic:
            with pytest.raises(PgMqPermissionError, match="topic_bindings"):
                await topic.push("a.b", Email("ada"))
            await connection.execute(f"GRANT SELECT ON pgmq.topic_bindings TO {role}")
            assert await topic.push("a.b", Email("ada")) == {queue: 1}
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


PGMQ_PY = """
import sys
import psycopg
from pgmq import PGMQueue
url, queue = sys.argv[1:]
client = PGMQueue(conn_string=url, init_extension=False)
client.bind_topic(f"{queue}.py.*", queue)
print(client.send_topic(f"{queue}.py.x", {"to": "from pgmq-py"}))
print(sorted(binding.pattern for binding in client.list_topic_bindings(queue)))
for message in client.read(queue, vt=0, qty=10):
    print(message.message["to"])
client.pool.close()
"""


async def test_the_client_of_pgmq_itself_and_ours_understand_each_other(
    topic: PgMqTopic[Email], queues: PgMqQueues, queue: str, pgmq_url: str
) -> None:
    await queues.create(queue)
    await queues.bind(f"{queue}.ours", queue)
    await topic.push(f"{queue}.ours", Email("from ours"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PGMQ_PY, pgmq_url, queue, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = (text.decode() for text in await process.communicate())
    assert process.returncode == 0, errors
    lines = out.splitlines()
    assert lines[0] == "1"
    assert lines[1] == str([f"{queue}.ours", f"{queue}.py.*"])
    assert lines[2:] == ["from ours", "from pgmq-py"]
    assert [binding.pattern for binding in await queues.bindings(queue)] == [f"{queue}.ours", f"{queue}.py.*"]
