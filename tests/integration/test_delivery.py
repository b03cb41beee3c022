"""Claiming, settling, retries and dead letters, on real tables."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import asyncpg
import pytest

from apalis_pgmq import (
    AbortError,
    Attempt,
    Config,
    DeadLettered,
    DeadLetterReason,
    Event,
    LeaseLost,
    PgMqBackend,
    PgMqContext,
    PgMqQueueMissingError,
    RetryAfterError,
    Stalled,
    Task,
    TaskId,
    Worker,
    WorkerBuilder,
)

from .conftest import Email, Table, as_role

Eventually = Callable[..., Awaitable[None]]


class Running:
    """A worker that runs for the length of a block."""

    def __init__(self, worker: Worker[Email]) -> None:
        self.worker = worker

    async def __aenter__(self) -> Worker[Email]:
        self._run = asyncio.create_task(self.worker.run())
        return self.worker

    async def __aexit__(self, *_exc: object) -> None:
        self.worker.stop()
        async with asyncio.timeout(30):
            await self._run


@pytest.fixture
async def backend(pgmq_url: str, queue: str):
    config = Config(queue, visibility_timeout=1, poll_interval=0.02, max_retries=2)
    async with PgMqBackend(pgmq_url, config, Email) as backend:
        yield backend


async def sql_send(db: asyncpg.Connection, queue: str, message: object, headers: object = None) -> int:
    sent: int = await db.fetchval(
        "SELECT pgmq.send($1::text, $2::text::jsonb, $3::text::jsonb, 0::int)",
        queue,
        json.dumps(message),
        None if headers is None else json.dumps(headers),
    )
    return sent


async def test_a_handled_message_is_deleted(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    seen = []

    async def handler(message: Email) -> None:
        seen.append(message)

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("ada"))
        await eventually(lambda: seen)
        await eventually(table.is_empty)
    assert seen == [Email("ada")]
    assert await table.archived() == []


async def test_a_handled_message_is_archived_whole(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually
) -> None:
    config = Config(queue, on_success="archive")
    async with PgMqBackend(pgmq_url, config, Email) as backend:

        async def handler(message: Email) -> None: ...

        async with Running(WorkerBuilder("w").backend(backend).build(handler)):
            message_id = await backend.push(Email("ada"), headers={"a": 1})
            await eventually(table.is_empty)
    [row] = await table.archived()
    assert row["msg_id"] == message_id
    assert json.loads(row["message"])["to"] == "ada"
    assert json.loads(row["headers"]) == {"a": 1}
    assert row["read_ct"] == 1
    assert row["archived_at"] >= row["enqueued_at"]


async def test_handlers_get_what_they_ask_for(backend: PgMqBackend[Email], eventually: Eventually) -> None:
    seen: list[tuple[object, ...]] = []

    async def handler(
        message: Email, task: Task[Email], context: PgMqContext, task_id: TaskId, attempt: Attempt
    ) -> None:
        seen.append((message, task, context, task_id, attempt))

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        sent_id = await backend.push(Email("ada"), headers={"a": 1})
        await eventually(lambda: seen)
    message, task, context, task_id, attempt = seen[0]
    assert isinstance(task, Task)
    assert isinstance(context, PgMqContext)
    assert (message, task.args) == (Email("ada"), Email("ada"))
    assert task_id == task.id == context.msg_id == sent_id
    assert attempt == task.attempt == context.read_count == 1
    assert task.headers == context.headers == {"a": 1}
    assert task.queue == context.queue == backend.queue
    assert task.enqueued_at == context.enqueued_at
    assert timedelta(0) < context.visible_until - task.enqueued_at
    assert context.enqueued_at.tzinfo is not None


@pytest.mark.parametrize(
    ("headers", "expected"), [(None, {}), ({"k": "v"}, {"k": "v"}), ([1], {}), ("text", {}), (7, {})]
)
async def test_messages_sent_with_sql_are_handled_like_ours(
    backend: PgMqBackend[Email],
    db: asyncpg.Connection,
    table: Table,
    eventually: Eventually,
    headers: object,
    expected: object,
) -> None:
    seen = []

    async def handler(message: Email, context: PgMqContext) -> None:
        seen.append((message, context.headers))

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await sql_send(db, backend.queue, {"to": "a@b.c", "subject": "s", "body": "b"}, headers)
        await eventually(table.is_empty)
    assert seen == [(Email("a@b.c"), expected)]


@pytest.mark.parametrize("headers", [None, {"k": "v"}, [1], "text"])
async def test_an_undecodable_payload_goes_to_the_dead_letters_and_the_worker_goes_on(
    backend: PgMqBackend[Email],
    db: asyncpg.Connection,
    table: Table,
    eventually: Eventually,
    headers: object,
) -> None:
    seen = []

    async def handler(message: Email) -> None:
        seen.append(message.to)

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        bad_id = await sql_send(db, backend.queue, {"bad": 1}, headers)
        await sql_send(db, backend.queue, {"to": "good", "subject": "s", "body": "b"})
        await eventually(table.is_empty)
    assert seen == ["good"]
    [row] = await table.dead()
    assert json.loads(row["message"]) == {"bad": 1}
    added = json.loads(row["headers"])
    assert added["x-dead-letter-reason"] == "undecodable"
    assert added["x-dead-letter-id"] == bad_id
    assert added["x-dead-letter-queue"] == backend.queue
    assert added["x-dead-letter-attempts"] == 1
    assert added["x-dead-letter-worker"] == "w"
    assert added["x-dead-letter-error-type"] == "DecodeError"
    assert "not a valid Email: to: Field required" in added["x-dead-letter-error"]
    assert datetime.fromisoformat(added["x-dead-letter-enqueued-at"]) <= datetime.fromisoformat(
        added["x-dead-letter-at"]
    )
    if isinstance(headers, dict):
        assert added["k"] == "v"


async def test_a_null_message_is_undecodable_not_deadly(
    backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    async def handler(message: Email) -> None: ...

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await db.execute(f"INSERT INTO pgmq.q_{backend.queue} (vt, message) VALUES (now(), NULL)")
        await eventually(table.is_empty)
    [row] = await table.dead()
    assert row["message"] is None


async def test_a_failed_message_returns_when_its_visibility_timeout_ends(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    starts = []

    async def handler(message: Email, context: PgMqContext) -> None:
        starts.append((datetime.now(UTC), context.visible_until))
        if len(starts) == 1:
            raise ValueError("once")

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("x"))
        await eventually(table.is_empty)
    (_, visible_until), (second_start, _) = starts
    assert second_start >= visible_until


async def test_a_handler_can_ask_for_its_delay(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    starts = []

    async def handler(message: Email) -> None:
        starts.append(time.monotonic())
        if len(starts) == 1:
            raise RetryAfterError(0.2)

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("x"))
        await eventually(table.is_empty)
    # Before the visibility timeout of 1 s would have brought it back.
    assert 0.2 <= starts[1] - starts[0] < 0.9


async def test_after_the_last_retry_the_message_is_dead_lettered_with_its_headers(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    attempts = []
    events: list[Event] = []

    async def handler(message: Email, attempt: Attempt) -> None:
        attempts.append(attempt)
        raise RetryAfterError(0, f"bad luck \x00 {attempt}")

    worker = WorkerBuilder("w").backend(backend).on_event(events.append).build(handler)
    async with Running(worker):
        message_id = await backend.push(Email("x"), headers={"trace": "t"})
        await eventually(lambda: any(isinstance(event, DeadLettered) for event in events))
    assert attempts == [1, 2, 3]
    assert await table.is_empty()
    [row] = await table.dead()
    assert json.loads(row["message"])["to"] == "x"
    headers = json.loads(row["headers"])
    assert headers["trace"] == "t"
    assert headers["x-dead-letter-reason"] == "retries-exhausted"
    assert headers["x-dead-letter-error-type"] == "RetryAfterError"
    assert headers["x-dead-letter-error"] == "bad luck \ufffd 3"
    assert headers["x-dead-letter-attempts"] == 3
    assert headers["x-dead-letter-id"] == message_id


@pytest.mark.parametrize("dead_letter", ["archive", None])
async def test_what_is_given_up_can_go_to_the_archive_or_be_deleted(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, dead_letter: Literal["archive"] | None
) -> None:
    async def handler(message: Email) -> None:
        raise AbortError("no")

    async with PgMqBackend(pgmq_url, Config(queue, dead_letter=dead_letter), Email) as backend:
        message_id = await backend.push(Email("x"), headers={"a": 1})
        async with Running(WorkerBuilder("w").backend(backend).build(handler)):
            await eventually(table.is_empty)
    assert await table.dead() == []
    archived = await table.archived()
    if dead_letter is None:
        assert archived == []
    else:
        assert [row["msg_id"] for row in archived] == [message_id]
        headers = json.loads(archived[0]["headers"])
        assert (headers["a"], headers["x-dead-letter-reason"]) == (1, "aborted")
        assert archived[0]["read_ct"] == 1


async def test_a_handler_that_hangs_is_let_go_after_max_lease(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, caplog
) -> None:
    attempts = []
    cancelled = []

    async def handler(message: Email, attempt: Attempt) -> None:
        attempts.append(attempt)
        if attempt == 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(attempt)
                raise

    config = Config(queue, visibility_timeout=0.5, max_lease=1.5)
    async with PgMqBackend(pgmq_url, config, Email) as backend:
        await backend.push(Email("x"))
        async with Running(WorkerBuilder("w").backend(backend).concurrency(1).build(handler)):
            await eventually(table.is_empty)
    assert (attempts, cancelled) == ([1, 2], [1])
    assert "held for longer than max_lease" in caplog.text


async def test_a_blocked_event_loop_is_reported(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    events: list[Event] = []

    async def handler(message: Email) -> None:
        time.sleep(0.5)  # noqa: ASYNC251 - the mistake that is to be reported

    await backend.push(Email("x"))
    async with Running(WorkerBuilder("w").backend(backend).on_event(events.append).build(handler)):
        await eventually(lambda: any(isinstance(event, Stalled) for event in events))
        await eventually(table.is_empty)
    [stalled] = [event for event in events if isinstance(event, Stalled)]
    assert 0.15 < stalled.seconds < 5


async def test_abort_dead_letters_at_once(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    attempts = []

    async def handler(message: Email, attempt: Attempt) -> None:
        attempts.append(attempt)
        raise AbortError("no such customer")

    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await backend.push(Email("x"))
        await eventually(table.dead)
    assert attempts == [1]
    assert await table.is_empty()


async def test_a_message_whose_workers_die_is_dead_lettered_without_running_again(
    backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    ran = []

    async def handler(message: Email) -> None:
        ran.append(message)

    await backend.push(Email("poison"))
    for _ in range(3):  # 1 + max_retries claims that nobody settled
        assert await db.fetchval("SELECT msg_id FROM pgmq.read($1::text, 0, 1)", backend.queue)
    async with Running(WorkerBuilder("w").backend(backend).build(handler)):
        await eventually(table.dead)
    assert ran == []
    [row] = await table.dead()
    assert json.loads(row["headers"])["x-dead-letter-reason"] == "deliveries-exhausted"


async def test_a_worker_that_cannot_make_the_dead_letter_queue_keeps_the_message(
    pgmq_url: str, queue: str, db: asyncpg.Connection, table: Table, eventually: Eventually, caplog
) -> None:
    role = f"role_{queue}"
    await db.execute("SELECT pgmq.create($1::text)", queue)
    await db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    await db.execute(f"GRANT USAGE ON SCHEMA pgmq TO {role}")
    await db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON pgmq.q_{queue} TO {role}")
    try:
        async with PgMqBackend(as_role(pgmq_url, role), Config(queue, poll_interval=0.02), Email) as backend:

            async def handler(message: Email) -> None:
                if message.to == "bad":
                    raise AbortError("no")

            async with Running(WorkerBuilder("w").backend(backend).build(handler)):
                await backend.push(Email("bad"))
                await backend.push(Email("good"))
                await eventually(lambda: "cannot be dead-lettered and stay in the queue" in caplog.text)
                await eventually(lambda: _has_rows(table, 1))
    finally:
        await db.execute(f"DROP OWNED BY {role}")
        await db.execute(f"DROP ROLE {role}")


async def _has_rows(table: Table, count: int) -> bool:
    return await table.count() == count


async def test_a_queue_that_is_dropped_ends_the_worker_with_a_clear_error(
    backend: PgMqBackend[Email], db: asyncpg.Connection
) -> None:
    async def handler(message: Email) -> None: ...

    worker = WorkerBuilder("w").backend(backend).build(handler)
    run = asyncio.create_task(worker.run())
    await backend.push(Email("x"))
    await db.execute("SELECT pgmq.drop_queue($1::text)", backend.queue)
    async with asyncio.timeout(20):
        with pytest.raises(PgMqQueueMissingError, match=backend.queue):
            await run


class TestFence:
    """What was claimed by somebody else since is never touched."""

    @pytest.fixture
    async def held(self, backend: PgMqBackend[Email], pgmq_url: str):
        """A consumer that holds a task, and the events it caused."""
        events: list[Event] = []
        config = backend.config.with_visibility_timeout(3600)
        await backend.push(Email("x"))
        async with (
            PgMqBackend(pgmq_url, config, Email) as own,
            own.poll(on_event=events.append) as consumer,
        ):
            yield consumer, await anext(consumer), events

    # What another claim may have left: a later delivery, or (after a crash that lost our claim) the very
    # same read_ct with another vt.
    TAKEN = ("read_ct = read_ct + 1, vt = now() + interval '1 h'", "vt = vt + interval '1 ms'")

    @pytest.mark.parametrize("taken", TAKEN)
    @pytest.mark.parametrize("settle", ["ack", "dead_letter", "hand_back", "retry"])
    async def test_late_settlements_change_nothing(
        self,
        held,
        db: asyncpg.Connection,
        table: Table,
        eventually: Eventually,
        taken: str,
        settle: str,
    ) -> None:
        consumer, task, events = held
        await db.execute(f"UPDATE pgmq.q_{table.queue} SET {taken}")
        before = await table.rows()
        if settle == "ack":
            consumer.ack(task)
        elif settle == "dead_letter":
            consumer.dead_letter(task, DeadLetterReason.ABORTED)
        elif settle == "retry":
            consumer.retry(task, after=timedelta(0))
        else:
            consumer.hand_back(task, spend_attempt=False)
        await eventually(lambda: any(isinstance(event, LeaseLost) for event in events))
        assert await table.rows() == before
        assert await table.dead() == []

    @pytest.mark.parametrize("taken", TAKEN)
    async def test_a_lost_lease_is_not_extended_and_its_handler_is_cancelled(
        self, backend: PgMqBackend[Email], db: asyncpg.Connection, eventually: Eventually, taken: str
    ) -> None:
        events: list[Event] = []
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def handler(message: Email) -> None:
            if started.is_set():
                return
            started.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        worker = WorkerBuilder("w").backend(backend).on_event(events.append).build(handler)
        async with Running(worker):
            await backend.push(Email("x"))
            await started.wait()
            await db.execute(f'UPDATE pgmq.q_{backend.queue} SET {taken}, message = \'{{"to": "theirs"}}\'')
            theirs = await db.fetchrow(f"SELECT read_ct, vt FROM pgmq.q_{backend.queue}")
            async with asyncio.timeout(20):
                await cancelled.wait()
            await eventually(lambda: any(isinstance(event, LeaseLost) for event in events))
            if "1 h" in taken:
                assert await db.fetchrow(f"SELECT read_ct, vt FROM pgmq.q_{backend.queue}") == theirs


async def test_a_handler_that_outlives_its_visibility_timeout_is_delivered_once(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    starts = []
    visible_until = []

    async def handler(message: Email, task: Task[Email]) -> None:
        starts.append(message)
        visible_until.append(task.visible_until)
        await asyncio.sleep(10.2)  # ten visibility timeouts
        visible_until.append(task.visible_until)

    first = WorkerBuilder("one").backend(backend).build(handler)
    second = WorkerBuilder("two").backend(backend).build(handler)
    async with Running(first), Running(second):
        await backend.push(Email("long"))
        await eventually(lambda: len(visible_until) == 2, within=40)
        await eventually(table.is_empty)
    assert len(starts) == 1
    assert visible_until[1] - visible_until[0] > timedelta(seconds=9)


@pytest.mark.usefixtures("one_ahead")
async def test_buffered_messages_are_kept_too(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    handled: Counter[str] = Counter()
    events: list[Event] = []

    async def handler(message: Email) -> None:
        handled[message.to] += 1
        await asyncio.sleep(2.5)

    await backend.push_many(Email(str(number)) for number in range(2))
    worker = WorkerBuilder("w").backend(backend).concurrency(1).on_event(events.append).build(handler)
    async with Running(worker):
        await eventually(lambda: _in_flight(table, 2))
        await eventually(table.is_empty)
    assert handled == {"0": 1, "1": 1}
    assert not [event for event in events if isinstance(event, LeaseLost)]


async def test_a_message_that_is_locked_does_not_hold_up_the_others(
    backend: PgMqBackend[Email], db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    handled = []

    async def handler(message: Email) -> None:
        handled.append(message.to)

    await backend.push_many(Email(str(number)) for number in range(3))
    worker = WorkerBuilder("w").backend(backend).build(handler)
    # As another claim that has not committed yet does.
    lock = f"SELECT FROM pgmq.q_{backend.queue} WHERE msg_id = 1 FOR UPDATE"
    transaction = db.transaction()
    await transaction.start()
    await db.execute(lock)
    async with Running(worker):
        await eventually(lambda: handled == ["1", "2"])
        await transaction.rollback()
        await eventually(table.is_empty)
    assert handled == ["1", "2", "0"]


@pytest.mark.usefixtures("one_ahead")
async def test_stopping_hands_back_what_was_not_started_without_spending_an_attempt(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    started = asyncio.Event()
    release = asyncio.Event()

    async def handler(message: Email) -> None:
        started.set()
        await release.wait()

    await backend.push_many(Email(str(number)) for number in range(3))
    worker = WorkerBuilder("w").backend(backend).concurrency(1).build(handler)
    run = asyncio.create_task(worker.run())
    await started.wait()
    await eventually(lambda: _in_flight(table, 2))
    worker.stop()
    await eventually(lambda: _in_flight(table, 1))
    rows = await table.rows()
    assert sorted(row["read_ct"] for row in rows) == [0, 0, 1]
    assert not run.done()
    release.set()
    await run
    assert await table.count() == 2


async def _in_flight(table: Table, count: int) -> bool:
    now = await table.db.fetchval("SELECT now()")
    return sum(row["vt"] > now for row in await table.rows()) == count


async def test_what_sends_and_what_removes_waits_for_the_disk(
    pgmq_url: str, queue: str, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    """As the server saw it: claims alone may be lost in a crash."""

    async def handler(message: Email) -> None:
        if message.to == "hopeless":
            raise AbortError

    async with PgMqBackend(pgmq_url, queue, Email) as backend:
        await db.execute(f"""
            CREATE TABLE waits_{queue} (what text, setting text);
            CREATE FUNCTION note_{queue}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO waits_{queue} VALUES (
                    CASE WHEN TG_OP <> 'UPDATE' THEN TG_OP WHEN NEW.read_ct > OLD.read_ct THEN 'claim'
                    ELSE 'other' END,
                    current_setting('synchronous_commit')
                );
                RETURN NULL;
            END $$;
            CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON pgmq.q_{queue}
                FOR EACH ROW EXECUTE FUNCTION note_{queue}();
        """)
        async with Running(WorkerBuilder("w").backend(backend).build(handler)):
            await backend.push_many([Email("one"), Email("hopeless")])
            await eventually(table.dead)
            await eventually(table.is_empty)
    noted = await db.fetch(f"SELECT DISTINCT what, setting FROM waits_{queue} ORDER BY what")
    await db.execute(f"DROP FUNCTION note_{queue} CASCADE; DROP TABLE waits_{queue}")
    assert [tuple(row) for row in noted] == [("DELETE", "on"), ("INSERT", "on"), ("claim", "off")]


async def test_20_000_messages_are_each_handled_once(
    backend: PgMqBackend[Email], table: Table, eventually: Eventually
) -> None:
    handled: Counter[str] = Counter()

    async def handler(message: Email) -> None:
        handled[message.to] += 1

    await backend.push_many(Email(str(number)) for number in range(20_000))
    async with Running(WorkerBuilder("w").backend(backend).concurrency(100).build(handler)):
        await eventually(table.is_empty, within=60)
    assert len(handled) == 20_000
    assert set(handled.values()) == {1}
    assert await table.dead() == []
