"""Listing dead letters, putting them back and deleting them, on real tables; and the bound on what is sent."""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

import asyncpg
import pytest

from apalis_pgmq import (
    AbortError,
    Config,
    ConfigError,
    DeadLetter,
    EncodeError,
    PgMqBackend,
    PgMqQueueMissingError,
    WorkerBuilder,
)
from apalis_pgmq.core import SupportsDeadLetters

from .conftest import Email, Table

Eventually = Callable[..., Awaitable[None]]


@pytest.fixture
async def backend(pgmq_url: str, queue: str):
    async with PgMqBackend(pgmq_url, Config(queue, poll_interval=0.02), Email) as backend:
        yield backend


@pytest.fixture
async def dlq(backend: PgMqBackend[Email], db: asyncpg.Connection) -> str:
    """The table of a dead-letter queue that is there and empty."""
    await db.execute("SELECT pgmq.create($1::text)", backend.config.dead_letter_queue)
    return f"pgmq.q_{backend.config.dead_letter_queue}"


async def bury(db: asyncpg.Connection, dlq: str, count: int, headers: object = None) -> None:
    """Put dead letters there as anybody may: their payloads are the numbers from 1."""
    await db.execute(
        f"INSERT INTO {dlq} (vt, message, headers) "
        "SELECT now(), to_jsonb(n), $2::text::jsonb FROM generate_series(1, $1::int) AS n",
        count,
        None if headers is None else json.dumps(headers),
    )


async def fail_all(backend: PgMqBackend[Email], eventually: Eventually, table: Table) -> None:
    """Run a worker that gives up on every message, until the queue is empty."""

    async def handler(message: Email) -> None:
        raise AbortError("no such address")

    worker = WorkerBuilder("failing").backend(backend).build(handler)
    run = asyncio.create_task(worker.run())
    await eventually(table.is_empty)
    worker.stop()
    await run


def numbers(rows: list[asyncpg.Record]) -> list[int]:
    return [json.loads(row["message"]) for row in rows]


def test_the_backend_has_the_capability(pgmq_url: str) -> None:
    assert isinstance(PgMqBackend(pgmq_url, "emails", Email), SupportsDeadLetters)


class TestListing:
    async def test_a_dead_letter_tells_all_of_its_story(
        self, backend: PgMqBackend[Email], table: Table, eventually: Eventually
    ) -> None:
        before = datetime.now(UTC)
        message_id = await backend.push(Email("ada"), headers={"trace": "t"})
        [row] = await table.rows()
        await fail_all(backend, eventually, table)
        [letter] = await backend.dead_letters()
        assert isinstance(letter, DeadLetter)
        assert json.loads(letter.payload) == {"to": "ada", "subject": "s", "body": "b"}
        assert letter.headers["trace"] == "t"
        assert letter.headers["x-dead-letter-reason"] == letter.reason == "aborted"
        assert (letter.error, letter.error_type) == ("no such address", "AbortError")
        assert (letter.attempts, letter.worker) == (1, "failing")
        assert (letter.original_id, letter.queue) == (message_id, backend.queue)
        assert letter.enqueued_at == row["enqueued_at"]
        assert letter.dead_lettered_at is not None
        assert before < letter.dead_lettered_at <= datetime.now(UTC)

    @pytest.mark.parametrize(
        "headers",
        [
            None,
            [1],
            "text",
            {},
            {"x-dead-letter-reason": 7, "x-dead-letter-attempts": "3", "x-dead-letter-id": True},
            {"x-dead-letter-at": "yesterday", "x-dead-letter-enqueued-at": "2026-01-01T00:00:00"},
        ],
    )
    async def test_what_others_put_there_is_listed_with_what_it_says(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, headers: object
    ) -> None:
        await bury(db, dlq, 1, headers)
        [letter] = await backend.dead_letters()
        assert letter == DeadLetter(
            id=letter.id,
            payload="1",
            headers=headers if isinstance(headers, dict) else {},
            reason=None,
            error=None,
            error_type=None,
            attempts=None,
            original_id=None,
            queue=None,
            enqueued_at=None,
            dead_lettered_at=None,
            worker=None,
        )

    @pytest.mark.parametrize("headers", ["9" * 5000, "[" * 1500 + "]" * 1500])
    async def test_headers_that_python_cannot_read_do_no_harm(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        dlq: str,
        table: Table,
        request: pytest.FixtureRequest,
        headers: str,
    ) -> None:
        # Python's own limit; a test before may have raised it.
        request.addfinalizer(partial(sys.setrecursionlimit, sys.getrecursionlimit()))
        sys.setrecursionlimit(1000)
        text = '{"x-dead-letter-reason": "aborted", "own": ' + headers + "}"
        await db.execute(f"INSERT INTO {dlq} (vt, headers) VALUES (now(), $1::text::jsonb)", text)
        [letter] = await backend.dead_letters()
        assert (letter.payload, letter.headers) == ("null", {})
        assert await backend.redrive() == 1
        [row] = await table.rows()
        assert row["message"] is None
        assert headers in row["headers"]
        assert "x-dead-letter" not in row["headers"]

    async def test_pages_follow_each_other_oldest_first(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str
    ) -> None:
        await bury(db, dlq, 250)
        assert [letter.payload for letter in await backend.dead_letters()] == [
            str(number) for number in range(1, 101)
        ]
        seen: list[int] = []
        after = None
        while page := await backend.dead_letters(limit=60, after=after):
            seen.extend(json.loads(letter.payload) for letter in page)
            after = page[-1].id
        assert seen == list(range(1, 251))

    async def test_looking_leaves_all_as_it_was(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 3)
        before = await table.dead()
        await backend.dead_letters()
        assert await table.dead() == before


class TestRedrive:
    async def test_a_redriven_message_is_delivered_anew(
        self, backend: PgMqBackend[Email], table: Table, eventually: Eventually
    ) -> None:
        await backend.push(Email("ada"), headers={"trace": "t"})
        await fail_all(backend, eventually, table)
        assert await backend.redrive() == 1
        assert await table.dead() == []
        [row] = await table.rows()
        assert json.loads(row["message"]) == {"to": "ada", "subject": "s", "body": "b"}
        assert json.loads(row["headers"]) == {"trace": "t", "x-redrive-count": 1}
        assert row["read_ct"] == 0
        assert row["vt"] <= await table.db.fetchval("SELECT now()")
        async with backend.poll() as consumer:
            task = await anext(consumer)
            assert (task.args, task.attempt) == (Email("ada"), 1)
            consumer.ack(task)

    async def test_redrives_are_counted(
        self, backend: PgMqBackend[Email], table: Table, eventually: Eventually
    ) -> None:
        await backend.push(Email("ada"))
        for count in (1, 2, 3):
            await fail_all(backend, eventually, table)
            await backend.redrive()
            [row] = await table.rows()
            assert json.loads(row["headers"]) == {"x-redrive-count": count}

    @pytest.mark.parametrize(
        ("headers", "expected"),
        [
            (None, {"x-redrive-count": 1}),
            ([1], {"x-redrive-count": 1}),
            ({"x-redrive-count": "many", "a": None}, {"x-redrive-count": 1, "a": None}),
            ({"x-redrive-count": 10**30}, {"x-redrive-count": 1}),
            ({"x-redrive-count": -3}, {"x-redrive-count": 1}),
            ({"x-redrive-count": "4"}, {"x-redrive-count": 5}),
            ({"x-dead-letters": 1, "x-dead-letter-": 2}, {"x-dead-letters": 1, "x-redrive-count": 1}),
        ],
    )
    async def test_headers_of_all_kinds_are_redriven(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        dlq: str,
        table: Table,
        headers: object,
        expected: object,
    ) -> None:
        await bury(db, dlq, 1, headers)
        assert await backend.redrive() == 1
        [row] = await table.rows()
        assert json.loads(row["headers"]) == expected

    async def test_only_the_asked_for_are_moved(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 300)
        ids = [letter.id for letter in await backend.dead_letters(limit=300)]
        assert await backend.redrive([*ids[::2], ids[0], 10**12]) == 150
        assert numbers(await table.rows()) == list(range(1, 301, 2))
        assert numbers(await table.dead()) == list(range(2, 301, 2))
        assert await backend.redrive([]) == 0
        assert await backend.redrive(iter(ids)) == 150
        assert await table.dead() == []

    async def test_at_most_the_limit_is_moved_oldest_first(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 300)
        ids = [letter.id for letter in await backend.dead_letters(limit=300)]
        assert await backend.redrive(limit=0) == 0
        assert await backend.redrive(limit=150) == 150
        assert numbers(await table.rows()) == list(range(1, 151))
        assert await backend.redrive(ids[150:], limit=120) == 120
        assert numbers(await table.dead()) == list(range(271, 301))
        assert await backend.redrive(limit=1000) == 30

    async def test_the_rate_is_kept(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 60)
        began = time.monotonic()
        redrive = asyncio.create_task(backend.redrive(rate=50))
        while not redrive.done():
            count = await table.count()
            # A batch is a tenth of a second's worth.
            assert count <= 5 + 50 * (time.monotonic() - began)
            await asyncio.sleep(0.01)
        assert await redrive == 60
        assert time.monotonic() - began >= 55 / 50

    async def test_cancelling_loses_and_doubles_nothing(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        dlq: str,
        table: Table,
        eventually: Eventually,
    ) -> None:
        await bury(db, dlq, 5000)
        for rate in (100, 2000):
            before = await table.count()
            redrive = asyncio.create_task(backend.redrive(rate=rate))
            await eventually(lambda before=before: _has_more(table, before))
            redrive.cancel()
            with pytest.raises(asyncio.CancelledError):
                await redrive
            moved, left = numbers(await table.rows()), numbers(await table.dead())
            assert sorted(moved + left) == list(range(1, 5001))
            assert 0 < len(moved) < 5000
        assert await backend.redrive() == len(left)

    async def test_redrives_at_the_same_time_share_the_work(
        self, backend: PgMqBackend[Email], pgmq_url: str, db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 3000)
        others = [PgMqBackend(pgmq_url, backend.config, Email) for _ in range(3)]
        ids = [letter.id for letter in await backend.dead_letters(limit=3000)]
        counts = await asyncio.gather(
            backend.redrive(), *(other.redrive(ids if other is others[0] else None) for other in others)
        )
        assert sum(counts) == 3000
        assert sorted(numbers(await table.rows())) == list(range(1, 3001))
        assert await table.dead() == []
        for other in others:
            await other.close()

    async def test_what_fails_again_meanwhile_is_not_put_back_for_ever(
        self,
        backend: PgMqBackend[Email],
        db: asyncpg.Connection,
        dlq: str,
        table: Table,
        eventually: Eventually,
    ) -> None:
        await bury(db, dlq, 150)  # none of them is an Email
        async with backend.poll() as consumer:
            work = asyncio.create_task(anext(consumer))
            async with asyncio.timeout(20):
                assert await backend.redrive(rate=200) == 150
            await eventually(table.is_empty)
            work.cancel()
        letters = await backend.dead_letters(limit=1000)
        assert [letter.headers["x-redrive-count"] for letter in letters] == [1] * 150

    async def test_what_a_consumer_of_the_dead_letters_holds_is_left_to_it(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 3)
        held = await db.fetchval("SELECT msg_id FROM pgmq.read($1::text, 60, 1)", dlq.removeprefix("pgmq.q_"))
        assert await backend.redrive([held]) == 0
        assert await backend.redrive() == 2
        assert [row["msg_id"] for row in await table.dead()] == [held]

    async def test_what_another_transaction_locks_does_not_hold_up_the_others(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 3)
        async with asyncio.timeout(10), db.transaction():
            await db.execute(f"SELECT FROM {dlq} WHERE msg_id = 2 FOR UPDATE")
            assert await backend.redrive() == 2
        assert numbers(await table.dead()) == [2]

    async def test_workers_of_this_process_are_woken(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        config = Config(queue, poll_interval=3600)
        await db.execute("SELECT pgmq.create($1::text)", config.dead_letter_queue)
        async with PgMqBackend(pgmq_url, config, int) as backend, backend.poll() as consumer:
            work = asyncio.create_task(anext(consumer))
            await asyncio.sleep(0.2)
            await bury(db, f"pgmq.q_{config.dead_letter_queue}", 1)
            await backend.redrive()
            async with asyncio.timeout(10):
                task = await work
            consumer.ack(task)
            assert task.args == 1

    @pytest.mark.parametrize("odd", ["with-Dash", "curly{0}brace"])
    async def test_queues_with_odd_names_are_redriven(
        self, pgmq_url: str, queue: str, odd: str, eventually: Eventually
    ) -> None:
        async with PgMqBackend(pgmq_url, f"{queue}{odd}", str) as backend:

            async def handler(message: str) -> None:
                raise AbortError

            worker = WorkerBuilder("w").backend(backend).build(handler)
            await backend.push("x")
            run = asyncio.create_task(worker.run())
            await eventually(lambda: worker.stats.dead_lettered)
            worker.stop()
            await run
            await eventually(backend.dead_letters)
            assert await backend.redrive() == 1
            assert await backend.dead_letters() == []


class TestPurge:
    async def test_purging_deletes_them_all_and_nothing_else(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await backend.push(Email("stays"))
        await bury(db, dlq, 2500)
        await db.fetch("SELECT msg_id FROM pgmq.read($1::text, 60, 1)", dlq.removeprefix("pgmq.q_"))
        assert await backend.purge_dead_letters() == 2500
        assert await table.dead() == []
        assert await table.count() == 1
        assert await backend.purge_dead_letters() == 0


class TestRefusals:
    async def test_where_there_is_no_dead_letter_queue_yet_there_is_nothing(
        self, backend: PgMqBackend[Email]
    ) -> None:
        assert await backend.dead_letters() == []
        assert await backend.redrive() == 0
        assert await backend.redrive([1]) == 0
        assert await backend.purge_dead_letters() == 0

    async def test_a_queue_that_was_dropped_is_told_and_nothing_is_lost(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
    ) -> None:
        await bury(db, dlq, 3)
        await db.execute("SELECT pgmq.drop_queue($1::text)", backend.queue)
        with pytest.raises(PgMqQueueMissingError, match=backend.queue):
            await backend.redrive()
        assert len(await table.dead()) == 3

    @pytest.mark.parametrize(
        ("dead_letter", "says"),
        [("archive", "'archive', .* go to PGMQ's archive"), (None, "None, .* are deleted")],
    )
    async def test_other_fates_of_dead_letters_are_told(
        self, pgmq_url: str, queue: str, dead_letter: Literal["archive"] | None, says: str
    ) -> None:
        async with PgMqBackend(pgmq_url, Config(queue, dead_letter=dead_letter), Email) as backend:
            for call in (backend.dead_letters, backend.redrive, backend.purge_dead_letters):
                with pytest.raises(ConfigError, match=f"'{queue}' has no dead-letter queue: .*{says}"):
                    await call()

    async def test_nonsense_is_refused(self, backend: PgMqBackend[Email]) -> None:
        for limit in (-1, 1.5, "1", True, 2**63):
            with pytest.raises(ConfigError, match="limit"):
                await backend.dead_letters(limit=limit)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="limit"):
                await backend.redrive(limit=limit)  # type: ignore[arg-type]
        for after in (2**63, "1"):
            with pytest.raises(ConfigError, match="after"):
                await backend.dead_letters(after=after)  # type: ignore[arg-type]
        for ids in (["1"], [2**63], "12", [None]):
            with pytest.raises(ConfigError, match="a dead letter's id"):
                await backend.redrive(ids)  # type: ignore[arg-type]
        for rate in (0, -1, float("nan"), float("inf"), "fast", True):
            with pytest.raises(ConfigError, match="rate"):
                await backend.redrive(rate=rate)  # type: ignore[arg-type]


class TestMaxPayload:
    async def test_the_bound_is_bytes_of_json(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        async with PgMqBackend(pgmq_url, Config(queue, max_payload=12), str) as backend:
            await backend.push("x" * 10)
            await backend.push("\u20ac" * 3 + "x")
            says = f"has 13 bytes as JSON, and queue '{queue}' takes at most 12"
            for text in ("x" * 11, "\u20ac" * 3 + "xx"):
                with pytest.raises(EncodeError, match=says):
                    await backend.push(text)
                with pytest.raises(EncodeError, match=says):
                    await backend.push_many(["fine", text])
                async with db.transaction():
                    with pytest.raises(EncodeError, match=says):
                        await backend.push(text, connection=db)
            assert await Table(db, queue).count() == 2

    async def test_a_mebibyte_is_the_default_and_none_is_no_bound(
        self, pgmq_url: str, queue: str, table: Table
    ) -> None:
        large = "x" * (1024 * 1024 - 1)
        async with PgMqBackend(pgmq_url, queue, str) as backend:
            await backend.push(large[:-1])
            with pytest.raises(EncodeError, match="1,048,577 bytes as JSON"):
                await backend.push(large)
        unbounded = Config(queue).with_max_payload(None)
        async with PgMqBackend(pgmq_url, unbounded, str) as backend:
            await backend.push(large)
        assert await table.count() == 2

    async def test_what_others_sent_is_delivered_whatever_its_size(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        async with PgMqBackend(pgmq_url, Config(queue, max_payload=5), str) as backend:
            await db.execute("SELECT pgmq.send($1::text, '\"a long message\"'::jsonb)", queue)
            async with backend.poll() as consumer:
                task = await anext(consumer)
                consumer.ack(task)
            assert task.args == "a long message"

    @pytest.mark.parametrize("max_payload", [0, -1, 1.5, "1 MiB", True, timedelta(1)])
    def test_nonsense_is_refused(self, max_payload: object) -> None:
        with pytest.raises(ConfigError, match="max_payload"):
            Config("emails", max_payload=max_payload)  # type: ignore[arg-type]

    def test_it_is_a_setting_like_the_others(self) -> None:
        assert Config("emails").with_max_payload(7) == Config("emails", max_payload=7)
        assert Config("emails", max_payload=7).with_max_retries(1).max_payload == 7


async def _has_more(table: Table, count: int) -> bool:
    return await table.count() > count


async def test_a_redrive_of_many_touches_each_row_once(
    backend: PgMqBackend[Email], db: asyncpg.Connection, dlq: str, table: Table
) -> None:
    await bury(db, dlq, 20_000)
    assert await backend.redrive() == 20_000
    assert set(Counter(numbers(await table.rows())).values()) == {1}


async def test_the_guides_program_works_as_written(
    pgmq_url: str, db: asyncpg.Connection, tmp_path: Path
) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "dead-letters.md").read_text()
    found = re.search(r"<!-- dead letters -->\n```python\n(.*?)```", guide, re.DOTALL)
    assert found
    for name in ("emails", "emails_dlq"):
        await db.execute("SELECT pgmq.create($1::text)", name)
    await bury(db, "pgmq.q_emails_dlq", 1, {"x-dead-letter-error-type": "NameError"})
    await bury(db, "pgmq.q_emails_dlq", 2, {"x-dead-letter-reason": "aborted"})
    script = tmp_path / "guide.py"
    script.write_text(
        found.group(1).replace("postgres://postgres:postgres@localhost:5432/postgres", pgmq_url)
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert output.decode().splitlines() == [
        "1 None None 1",
        "2 aborted None 1",
        "3 aborted None 2",
        "1 put back",
        "2 put back",
        "0 deleted",
    ]
    for name in ("emails", "emails_dlq"):
        await db.execute("SELECT pgmq.drop_queue($1::text)", name)
