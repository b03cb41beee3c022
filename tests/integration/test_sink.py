"""Concurrent pushes: how they wait for each other, and whose error is whose."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from apalis_pgmq import ConfigError, EncodeError, JsonCodec, MemoryBackend, PgMqBackend, PgMqError
from apalis_pgmq.pgmq import _sink

from .conftest import Email, Table

Eventually = Callable[..., Awaitable[None]]


class Noting(JsonCodec[Email]):
    """A codec that notes what it has encoded."""

    def __init__(self) -> None:
        super().__init__(Email)
        self.encoded: list[str] = []

    def encode(self, message: Email) -> str:
        self.encoded.append(getattr(message, "to", ""))
        return super().encode(message)


@pytest.fixture
def codec() -> Noting:
    return Noting()


@pytest.fixture
async def backend(pgmq_url: str, queue: str, codec: Noting) -> AsyncIterator[PgMqBackend[Email]]:
    async with PgMqBackend(pgmq_url, queue, Email, codec=codec) as backend:
        yield backend


@asynccontextmanager
async def stuck(db: asyncpg.Connection, queue: str) -> AsyncIterator[None]:
    """Let nobody write to a queue."""
    async with db.transaction():
        await db.execute(f"LOCK TABLE pgmq.q_{queue}")
        yield


async def turns() -> None:
    for _ in range(200):
        await asyncio.sleep(0)


class TestBackPressure:
    @pytest.mark.parametrize("bound", ["_MOST_MESSAGES", "MOST_CHARACTERS"])
    async def test_pushes_wait_in_line_before_they_are_encoded(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        codec: Noting,
        table: Table,
        monkeypatch: pytest.MonkeyPatch,
        bound: str,
    ) -> None:
        size = len(codec.encode(Email("00")))
        codec.encoded.clear()
        monkeypatch.setattr(_sink, bound, 4 if bound == "_MOST_MESSAGES" else 4 * size)
        names = [f"{number:02}" for number in range(30)]
        async with stuck(db, backend.queue):
            pushes = [asyncio.create_task(backend.push(Email(name))) for name in names]
            await turns()
            # One statement with the first four is under way, four more wait to be sent, the others in line.
            assert len(codec.encoded) == 8
            for number in (3, 6, 12, 20):
                pushes[number].cancel()
            await turns()
            assert len(codec.encoded) == 8
        results = await asyncio.gather(*pushes, return_exceptions=True)
        cancelled = {number for number, one in enumerate(results) if isinstance(one, asyncio.CancelledError)}
        assert cancelled == {3, 6, 12, 20}
        # In the order in which they came; nobody in line that was cancelled was encoded, let alone sent.
        assert codec.encoded == [name for name in names if name not in {"12", "20"}]
        sent = [json.loads(row["message"])["to"] for row in await table.rows()]
        assert [name for name in sent if name != "03"] == [
            name for number, name in enumerate(names) if number not in cancelled
        ]
        assert sorted(one for one in results if isinstance(one, int)) == [
            one for one in results if isinstance(one, int)
        ]
        await backend.push(Email("then"))

    async def test_who_cannot_be_encoded_holds_nobody_up(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sink, "_MOST_MESSAGES", 2)
        messages: list[Any] = [Email(str(number)) if number % 3 else "no email" for number in range(40)]
        async with stuck(db, backend.queue):
            pushes = [asyncio.create_task(backend.push(message)) for message in messages]
            await turns()
        async with asyncio.timeout(20):
            results = await asyncio.gather(*pushes, return_exceptions=True)
        for message, result in zip(messages, results, strict=True):
            assert isinstance(result, int if isinstance(message, Email) else EncodeError)

    async def test_closing_sends_what_stands_in_line(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        table: Table,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(_sink, "_MOST_MESSAGES", 2)
        async with stuck(db, backend.queue):
            pushes = [asyncio.create_task(backend.push(Email(str(number)))) for number in range(20)]
            await turns()
            closing = asyncio.create_task(backend.close())
            await turns()
            assert not closing.done()
        async with asyncio.timeout(20):
            await closing
        assert all(push.done() for push in pushes)
        assert await table.count() == 20

    async def test_a_call_that_is_larger_than_the_bound_is_sent_all_the_same(
        self, backend: PgMqBackend[Email], table: Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_sink, "_MOST_MESSAGES", 2)
        monkeypatch.setattr(_sink, "MOST_CHARACTERS", 10)
        await asyncio.gather(*(backend.push_many([Email(str(n)) for n in range(9)]) for _ in range(5)))
        assert await table.count() == 45


class TestErrors:
    @pytest.mark.parametrize(
        "rule",
        [
            "ALTER TABLE {table} ADD CHECK (message->>'to' <> 'bad')",
            "CREATE UNIQUE INDEX ON {table} ((message->>'to'))",
            """
            CREATE FUNCTION refuse_{name}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.message->>'to' = 'bad' THEN RAISE EXCEPTION 'not that one'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{name}()
            """,
        ],
        ids=["constraint", "unique index", "trigger"],
    )
    async def test_what_a_rule_of_the_program_refuses_is_isolated(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table, rule: str
    ) -> None:
        await backend.push(Email("bad"))
        if "UNIQUE" not in rule:
            await db.execute(f"DELETE FROM pgmq.q_{backend.queue}")
        await db.execute(rule.format(table=f"pgmq.q_{backend.queue}", name=backend.queue))
        pushes = (backend.push(Email("bad" if number == 130 else str(number))) for number in range(256))
        results = await asyncio.gather(*pushes, return_exceptions=True)
        assert [number for number, one in enumerate(results) if not isinstance(one, int)] == [130]
        assert isinstance(results[130], PgMqError)
        transactions = f"SELECT count(DISTINCT xmin::text) FROM pgmq.q_{backend.queue}"
        assert await db.fetchval(transactions) <= 12
        assert await table.count() == 255 + ("UNIQUE" in rule)

    async def test_several_bad_ones_are_each_told(self, backend: PgMqBackend[Email], table: Table) -> None:
        bad = {0, 17, 18, 63, 99}
        pushes = (backend.push(Email("\x00" if number in bad else str(number))) for number in range(100))
        results = await asyncio.gather(*pushes, return_exceptions=True)
        assert {number for number, one in enumerate(results) if isinstance(one, EncodeError)} == bad
        assert await table.count() == 95

    async def test_what_concerns_everybody_is_tried_once(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection
    ) -> None:
        await backend.push(Email("x"))
        await db.execute("SELECT pgmq.drop_queue($1::text)", backend.queue)
        tried = 0
        fetch = backend._lane.fetch

        async def counted(*arguments: Any) -> Any:
            nonlocal tried
            tried += 1
            return await fetch(*arguments)

        backend._lane.fetch = counted  # type: ignore[method-assign]
        pushes = (backend.push(Email(str(number))) for number in range(100))
        results = await asyncio.gather(*pushes, return_exceptions=True)
        assert all(isinstance(one, PgMqError) for one in results)
        assert tried == 1


class TestSchedule:
    @pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=-1)])
    async def test_a_moment_is_the_servers(
        self, backend: PgMqBackend[Email], table: Table, ahead: timedelta
    ) -> None:
        at = (datetime.now(UTC) + ahead).astimezone()
        message_id = await backend.schedule(Email("then"), at, headers={"a": 1})
        [row] = await table.rows()
        # What is past counts as now: it takes its turn.
        assert (row["msg_id"], row["vt"]) == (message_id, max(at, row["enqueued_at"]))
        assert json.loads(row["headers"]) == {"a": 1}

    async def test_a_long_transaction_makes_it_no_earlier(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table
    ) -> None:
        async with db.transaction():
            await db.execute("SELECT now()")
            await asyncio.sleep(0.3)
            at = datetime.now(UTC) + timedelta(seconds=5)
            await backend.schedule(Email("then"), at, connection=db)
        [row] = await table.rows()
        assert row["vt"] == at

    async def test_it_comes_when_it_is_due(self, backend: PgMqBackend[Email]) -> None:
        at = datetime.now(UTC) + timedelta(seconds=0.5)
        async with backend.poll() as consumer:
            await backend.schedule(Email("later"), at)
            await backend.schedule(Email("now"), 0)
            first, second = await anext(consumer), await anext(consumer)
            assert (first.args.to, second.args.to) == ("now", "later")
            assert datetime.now(UTC) >= at
            consumer.ack(first)
            consumer.ack(second)

    @pytest.mark.parametrize("in_memory", [0, 1])
    @pytest.mark.parametrize(
        ("at", "text"),
        [
            (datetime(2030, 1, 1), "without a time zone, 2030-01-01T00:00:00"),  # noqa: DTZ001
            (datetime(9999, 1, 1, tzinfo=UTC), "at most 3650 days ahead"),
            (-1, "zero or more"),
            (True, "a datetime, a timedelta or a number of seconds"),
            ("soon", "a datetime, a timedelta or a number of seconds"),
            (None, "a datetime, a timedelta or a number of seconds"),
        ],
    )
    async def test_nonsense_is_refused(
        self, backend: PgMqBackend[Email], queue: str, in_memory: int, at: Any, text: str
    ) -> None:
        sink = MemoryBackend(queue, Email) if in_memory else backend
        with pytest.raises(ConfigError, match=text):
            await sink.schedule(Email("x"), at)

    async def test_in_memory(self, queue: str) -> None:
        memory = MemoryBackend(queue, Email)
        now = datetime.now(UTC)
        await memory.schedule(Email("a"), now + timedelta(hours=1), headers={"k": 1})
        await memory.schedule(Email("b"), now - timedelta(hours=1))
        await memory.schedule(Email("c"), 60)
        due = [message.vt - now for message in memory.messages]
        assert [round(one.total_seconds()) for one in due] == [3600, 0, 60]
        assert memory.messages[0].headers == '{"k": 1}'


class Changing(JsonCodec[Email]):
    """Adds a header to some messages, as a codec with layers does."""

    def pack(self, message: Email) -> tuple[str, dict[str, object]]:
        number = int(message.to)
        return self.encode(message), {"k": 1} if 1000 <= number < 2500 and number % 2 else {}

    def unpack(self, payload: str, _headers: object) -> Email:
        return self.decode(payload)


async def test_parts_keep_their_order_whatever_their_headers(
    pgmq_url: str, queue: str, db: asyncpg.Connection
) -> None:
    async with PgMqBackend(pgmq_url, queue, Email, codec=Changing(Email)) as backend:
        messages = [Email(str(number)) for number in range(3300)]
        await backend.push_many(messages)
    rows = await db.fetch(f"SELECT message->>'to' AS to, headers FROM pgmq.q_{queue} ORDER BY vt")
    assert [row["to"] for row in rows] == [message.to for message in messages]
    assert sum(row["headers"] is not None for row in rows) == 750
