"""Sending from synchronous code, on connections of the producer's own."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import psycopg
import pytest

from apalis_pgmq import (
    ApalisError,
    Config,
    ConfigError,
    EncodeError,
    PgMqBackend,
    PgMqPermissionError,
    PgMqProducer,
    PgMqQueueMissingError,
    PgMqUnavailableError,
)
from apalis_pgmq.pgmq import _keys
from apalis_pgmq.pgmq._keyed_sql import KEYS

from .conftest import Email, Table, as_role

NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


@pytest.fixture
def producer(pgmq_url: str, queue: str) -> Iterator[PgMqProducer[Email]]:
    with PgMqProducer(pgmq_url, queue, Email) as producer:
        yield producer


async def test_push_stores_what_a_backend_would_and_returns_the_id(
    producer: PgMqProducer[Email], table: Table
) -> None:
    message_id = producer.push(Email("ada"), headers={"trace": "1", "n": 2}, delay=1.25)
    [row] = await table.rows()
    assert row["msg_id"] == message_id
    assert json.loads(row["message"]) == {"to": "ada", "subject": "s", "body": "b"}
    assert json.loads(row["headers"]) == {"trace": "1", "n": 2}
    assert row["vt"] - row["enqueued_at"] == timedelta(seconds=1.25)


@pytest.mark.parametrize("count", [0, 1, 1999, 2000, 5001])
async def test_push_many_returns_ids_in_the_order_in_which_they_are_claimed(
    producer: PgMqProducer[Email], table: Table, db: asyncpg.Connection, count: int
) -> None:
    producer.setup()
    ids = producer.push_many(Email(str(number)) for number in range(count))
    rows = await db.fetch(f"SELECT msg_id, message->>'to' AS to FROM pgmq.q_{producer.queue} ORDER BY vt")
    assert [row["to"] for row in rows] == [str(number) for number in range(count)]
    assert [row["msg_id"] for row in rows] == ids


@pytest.mark.parametrize("count", [3, 3000])
async def test_push_many_is_all_or_none(producer: PgMqProducer[Email], table: Table, count: int) -> None:
    messages = [Email("fine")] * count
    for bad in (Email("\x00"), "not an email"):
        with pytest.raises(EncodeError):
            producer.push_many([*messages, bad])  # type: ignore[list-item]
    assert await table.is_empty()
    producer.push(Email("then"))
    assert await table.count() == 1


async def test_a_worker_handles_what_was_sent(producer: PgMqProducer[Email], pgmq_url: str) -> None:
    async with PgMqBackend(pgmq_url, producer.config, Email) as backend, backend.poll() as consumer:
        await asyncio.to_thread(producer.push, Email("ada"), headers={"k": "v"})
        task = await anext(consumer)
        assert (task.args, task.headers) == (Email("ada"), {"k": "v"})
        consumer.ack(task)


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(hours=-1)])
async def test_schedule_takes_a_moment(producer: PgMqProducer[Email], table: Table, ahead: timedelta) -> None:
    at = datetime.now(UTC) + ahead
    producer.schedule(Email("then"), at)
    [row] = await table.rows()
    assert row["vt"] == max(at, row["enqueued_at"])


async def test_schedule_takes_a_delay(producer: PgMqProducer[Email], table: Table) -> None:
    producer.schedule(Email("then"), timedelta(minutes=1))
    producer.schedule(Email("then"), 60)
    for row in await table.rows():
        assert row["vt"] - row["enqueued_at"] == timedelta(minutes=1)


class TestKeys:
    """A message with a key is stored once."""

    async def test_on_connections_of_its_own(
        self, producer: PgMqProducer[Email], table: Table, pgmq_url: str
    ) -> None:
        first = producer.push(Email("a"), dedup_key="k", headers={"h": 1}, group="g")
        assert producer.push(Email("b"), dedup_key="k") == first
        ids = producer.push_many(
            [Email(str(number % 2500)) for number in range(5000)], dedup_key=lambda email: email.to
        )
        assert ids[:2500] == ids[2500:] == sorted(set(ids))
        at = datetime.now(UTC) + timedelta(hours=1)
        later = producer.schedule(Email("later"), at, dedup_key="l", dedup_window=7200)
        assert producer.schedule(Email("earlier"), 0, dedup_key="l") == later
        rows = await table.rows()
        assert [row["msg_id"] for row in rows] == [first, *ids[:2500], later]
        assert json.loads(rows[0]["headers"]) == {"h": 1, "x-pgmq-group": "g", "x-dedup-key": "k"}
        assert rows[-1]["vt"] == at
        async with PgMqBackend(pgmq_url, producer.queue, Email) as backend:
            assert await backend.push(Email("c"), dedup_key="k") == first

    async def test_the_table_is_made_at_the_first_key(
        self, new_database: Callable[[], Awaitable[str]], queue: str
    ) -> None:
        url = await new_database()

        def send(_: int) -> int:
            with PgMqProducer(url, queue, Email) as each:
                return each.push(Email("a"), dedup_key="k")

        with ThreadPoolExecutor(6) as threads:
            assert len(set(threads.map(send, range(6)))) == 1
        connection = await asyncpg.connect(url)
        with PgMqProducer(url, queue, Email) as each:
            first = each.push(Email("a"), dedup_key="k")
            await connection.execute(f"DROP TABLE {KEYS}")
            with pytest.raises(PgMqQueueMissingError, match="apalis_pgmq_dedup"):
                each.push(Email("a"), dedup_key="k")
            assert each.push(Email("a"), dedup_key="k") > first
        await connection.close()

    async def test_in_a_transaction_of_others_no_table_is_made(
        self, new_database: Callable[[], Awaitable[str]], queue: str
    ) -> None:
        url = await new_database()
        with PgMqProducer(url, queue, Email) as own:
            own.setup()
        given = PgMqProducer(NOWHERE, queue, Email)
        with psycopg.connect(url) as connection:
            with pytest.raises(PgMqQueueMissingError, match=f"apalis-pgmq setup {queue} --dedup"):
                given.push(Email("x"), dedup_key="k", connection=connection)
            # The transaction is as it was.
            assert given.push(Email("x"), connection=connection) == 1

    async def test_threads_store_each_key_once(self, producer: PgMqProducer[Email], table: Table) -> None:
        barrier = threading.Barrier(8)

        def send(_: int) -> list[int]:
            barrier.wait()
            return [producer.push(Email(str(number)), dedup_key=str(number)) for number in range(20)]

        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(send, range(8)))
        assert all(ids == results[0] for ids in results)
        assert await table.count() == 20

    async def test_expired_keys_are_deleted_beside(
        self, producer: PgMqProducer[Email], db: asyncpg.Connection
    ) -> None:
        producer.push(Email("a"), dedup_key="stays")
        await db.execute(
            f"INSERT INTO {KEYS} SELECT $1::text::regclass, 'old ' || n, n, now() - interval '1 s' "
            "FROM generate_series(1, 2500) AS n",
            f"pgmq.q_{producer.queue}",
        )
        await asyncio.sleep(_keys._TIDY_INTERVAL)
        producer.push(Email("a"), dedup_key="new")
        rows = await db.fetch(
            f"SELECT key FROM {KEYS} WHERE queue = $1::text::regclass ORDER BY key",
            f"pgmq.q_{producer.queue}",
        )
        assert [row["key"] for row in rows] == ["new", "stays"]

    async def test_what_it_may_not_do_is_told_with_what_to_do(
        self, producer: PgMqProducer[Email], db: asyncpg.Connection, pgmq_url: str, queue: str
    ) -> None:
        producer.push(Email("a"), dedup_key="makes the table")
        role = f"sender_{queue}"
        await db.execute(f"""
            CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA pgmq TO {role};
            GRANT INSERT (vt, message, headers), SELECT (msg_id) ON pgmq.q_{queue} TO {role}
        """)
        try:
            with PgMqProducer(as_role(pgmq_url, role), queue, Email) as least:
                with pytest.raises(PgMqPermissionError, match="a sender with dedup_key needs SELECT, INSERT"):
                    least.push(Email("x"), dedup_key="k")
                assert least.push(Email("x")) > 1
        finally:
            await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    def test_what_makes_no_sense_is_refused(self, producer: PgMqProducer[Email]) -> None:
        with pytest.raises(ConfigError, match="dedup_window needs a dedup_key"):
            producer.push(Email("a"), dedup_window=60)
        with pytest.raises(ConfigError, match="dedup_key must be a function here"):
            producer.push_many([Email("a")], dedup_key="k")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="1 to 255 characters"):
            producer.schedule(Email("a"), 1, dedup_key="")


class TestSetup:
    async def test_pgmq_and_the_queue_are_made(
        self, new_database: Callable[[], Awaitable[str]], queue: str
    ) -> None:
        url = await new_database()

        def send(number: int) -> int:
            with PgMqProducer(url, queue, Email) as producer:
                return producer.push(Email(str(number)))

        with ThreadPoolExecutor(6) as threads:
            assert sorted(threads.map(send, range(6))) == list(range(1, 7))
        connection = await asyncpg.connect(url)
        trigger = "SELECT count(*) FROM pg_trigger WHERE tgname = 'apalis_pgmq_notify'"
        assert await connection.fetchval(trigger) == 1
        await connection.close()

    def test_in_a_transaction_of_others_nothing_is_made(self, pgmq_url: str, queue: str) -> None:
        producer = PgMqProducer(NOWHERE, queue, Email)
        with psycopg.connect(pgmq_url) as connection:
            with pytest.raises(PgMqQueueMissingError, match=f"apalis-pgmq setup {queue}"):
                producer.push(Email("x"), connection=connection)
            # The transaction is as it was.
            assert connection.execute("SELECT 1").fetchone() == (1,)

    async def test_a_role_that_may_only_insert_is_enough(
        self, producer: PgMqProducer[Email], db: asyncpg.Connection, pgmq_url: str, queue: str
    ) -> None:
        producer.setup()
        role = f"sender_{queue}"
        await db.execute(f"""
            CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA pgmq TO {role};
            GRANT INSERT (vt, message, headers), SELECT (msg_id) ON pgmq.q_{queue} TO {role}
        """)
        try:
            with PgMqProducer(as_role(pgmq_url, role), queue, Email) as least:
                assert least.push(Email("x")) == 1
            with (
                PgMqProducer(as_role(pgmq_url, role), f"{queue}_2", Email) as other,
                pytest.raises(PgMqPermissionError, match="may not create queue"),
            ):
                other.push(Email("x"))
        finally:
            await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


class TestConnections:
    async def test_threads_share_a_few(
        self, producer: PgMqProducer[Email], db: asyncpg.Connection, table: Table
    ) -> None:
        open_ones = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'many threads'"
        url = producer_url = f"{await own_url(db)}"
        separator = "&" if "?" in url else "?"
        producer_url = f"{url}{separator}application_name=many%20threads"
        with PgMqProducer(producer_url, producer.queue, Email, size=3) as shared:
            barrier = threading.Barrier(16)

            def send(number: int) -> list[int]:
                barrier.wait()
                return [shared.push(Email(str(number))) for _ in range(20)]

            with ThreadPoolExecutor(16) as threads:
                ids = [one for ids in threads.map(send, range(16)) for one in ids]
            assert 1 <= await db.fetchval(open_ones) <= 3
        assert len(set(ids)) == 320 == await table.count()

    async def test_one_that_the_server_has_closed_is_replaced(
        self, producer: PgMqProducer[Email], db: asyncpg.Connection, table: Table
    ) -> None:
        producer.push(Email("one"))
        [connection] = producer._own._idle  # type: ignore[union-attr]
        await db.execute("SELECT pg_terminate_backend($1, 5000)", connection.info.backend_pid)
        producer.push(Email("two"))
        assert await table.count() == 2

    async def test_a_producer_that_was_closed_opens_new_ones(
        self, producer: PgMqProducer[Email], table: Table
    ) -> None:
        producer.push(Email("one"))
        producer.close()
        producer.close()
        producer.push(Email("two"))
        assert await table.count() == 2

    async def test_a_forked_process_opens_its_own(self, pgmq_url: str, table: Table, queue: str) -> None:
        program = f"""
import os, sys
from apalis_pgmq import PgMqProducer
producer = PgMqProducer({pgmq_url!r}, {queue!r}, dict[str, str])
payload = {{"to": "ada"}}

def session():
    with producer._own.port() as port:
        return port.fetch_rows("SELECT pg_backend_pid()", ())[0][0]

producer.push(payload)
parent = session()
if not (child := os.fork()):
    producer.push(payload)
    assert session() != parent
    producer.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
producer.push(payload)
assert session() == parent
producer.close()
"""
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
        assert await table.count() == 3

    def test_a_server_that_is_not_there_is_told(self, queue: str) -> None:
        with (
            PgMqProducer(NOWHERE, queue, Email) as producer,
            pytest.raises(PgMqUnavailableError, match=r"PostgreSQL at 127.0.0.1:1/none is unavailable"),
        ):
            producer.push(Email("x"))

    async def test_a_given_connection_is_sent_on_and_left_open(
        self, pgmq_url: str, producer: PgMqProducer[Email], table: Table
    ) -> None:
        producer.setup()
        with psycopg.connect(pgmq_url) as connection:
            given = PgMqProducer(connection, producer.queue, Email)
            with given:
                given.push(Email("never"))
                given.push_many([Email("never")] * 3000)
                with pytest.raises(ConfigError, match="makes no queue"):
                    given.setup()
            connection.rollback()
            given.push(Email("one"))
            connection.commit()
        assert await table.count() == 1


async def own_url(db: asyncpg.Connection) -> str:
    address, port = db._addr
    user, database = db._params.user, db._params.database
    password = f":{db._params.password}" if db._params.password else ""
    return f"postgresql://{user}{password}@{address}:{port}/{database}"


class TestSecrets:
    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://u:hunter2@host:abc/db",
            "postgresql://u:hunter2@[::1/db",
            "postgresql://u:hun/ter2@host/db",
            "postgresql://u:hun?ter2@host/db",
            "postgresql://u:hun#ter2@host/db",
            "postgresql://u:hunter2@host/db?nonsense=hunter2",
        ],
    )
    def test_malformed_urls_are_refused_without_their_password(self, url: str, queue: str) -> None:
        with pytest.raises(ApalisError) as caught:
            PgMqProducer(url, queue, Email).push(Email("x"))
        assert "URL" in str(caught.value)
        assert caught.value.__cause__ is None or "hun" not in str(caught.value.__cause__)
        assert "hun" not in str(caught.value)

    def test_neither_repr_nor_errors_show_it(self, pgmq_url: str, queue: str) -> None:
        url = as_role(pgmq_url, "nobody_here", "hunter2")
        producer = PgMqProducer(url, queue, Email)
        with pytest.raises(ApalisError) as caught:
            producer.push(Email("x"))
        shown = f"{caught.value} {caught.value.__cause__} {producer!r}"
        assert "hunter2" not in shown


@pytest.mark.parametrize("url", ["mysql://localhost/x", "localhost", "", 7, None])
def test_other_things_are_refused(url: object) -> None:
    with pytest.raises(ConfigError):
        PgMqProducer(url, "emails", Email)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1, 1.5, True])
def test_sizes_that_make_no_sense_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="size"):
        PgMqProducer(NOWHERE, "emails", Email, size=size)


class TestOptionalPackages:
    """Nothing is imported that is not used."""

    @staticmethod
    def run(program: str, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def test_a_backend_needs_none(self, pgmq_url: str, queue: str) -> None:
        program = """
import asyncio, os, sys, asyncpg
from apalis_pgmq import PgMqBackend

async def main():
    async with PgMqBackend(os.environ["URL"], os.environ["QUEUE"], str) as backend:
        connection = await asyncpg.connect(os.environ["URL"])
        await backend.push("x", connection=connection)
        await connection.close()

asyncio.run(main())
print(sorted({"psycopg", "psycopg2", "sqlalchemy", "django"} & set(sys.modules)))
"""
        assert self.run(program, URL=pgmq_url, QUEUE=queue) == "[]"

    def test_a_missing_psycopg_is_told(self, queue: str) -> None:
        program = """
import sys
sys.modules["psycopg"] = None
from apalis_pgmq import PgMqProducer
try:
    PgMqProducer("postgresql://localhost/x", "q", str).push("x")
except ImportError as error:
    print(error)
"""
        assert "pip install 'apalis-pgmq[psycopg]'" in self.run(program)


def test_links_of_the_documentation_lead_somewhere() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "producers.md").read_text()
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", text):
        assert (docs / target).exists(), target


def test_a_config_of_its_own(queue: str) -> None:
    producer = PgMqProducer(NOWHERE, Config(queue, max_payload=10), Email)
    assert producer.queue == queue
    with pytest.raises(EncodeError, match="at most 10"):
        producer.push(Email("ada"))
