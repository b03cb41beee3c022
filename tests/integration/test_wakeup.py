"""A resting worker is woken when there is a message, however it came: polling would take an hour here."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from apalis_pgmq import AbortError, Config, PgMqBackend, RetryAfterError, WorkerBuilder
from apalis_pgmq.pgmq import _claims, _listener
from apalis_pgmq.pgmq._names import insert_channel

from .conftest import Email, Table, running
from .resting import NEVER, PROMPT, Catcher, Rest, pgmq_send, raw_insert, rest, subscriptions
from .test_recovery import pgbouncer_url

Eventually = Callable[..., Awaitable[None]]

__all__ = ["pgbouncer_url", "rest"]


@pytest.fixture
def catcher() -> Catcher:
    return Catcher()


@pytest.fixture
async def resting(
    pgmq_url: str, queue: str, rest: Rest, catcher: Catcher
) -> AsyncIterator[PgMqBackend[Email]]:
    """The backend of a worker that rests."""
    async with (
        PgMqBackend(pgmq_url, Config(queue, poll_interval=NEVER), Email) as backend,
        running(catcher.worker(backend)),
    ):
        await rest(backend)
        yield backend


@pytest.fixture
async def other(pgmq_url: str, queue: str) -> AsyncIterator[PgMqBackend[Email]]:
    """Another process, as far as the worker can tell."""
    async with PgMqBackend(pgmq_url, queue, Email) as backend:
        yield backend


@pytest.mark.usefixtures("resting")
async def test_a_push_of_another_process_wakes(
    other: PgMqBackend[Email], catcher: Catcher, rest: Rest
) -> None:
    for number in range(3):
        await other.push(Email(str(number)))
        await catcher.got(str(number))
    await other.push_many([Email("a"), Email("b")])
    await asyncio.gather(catcher.got("a"), catcher.got("b"))
    assert rest.count < 20


@pytest.mark.usefixtures("resting")
async def test_a_raw_insert_wakes(db: asyncpg.Connection, queue: str, catcher: Catcher) -> None:
    await raw_insert(db, queue, "raw")
    await catcher.got("raw")


@pytest.mark.usefixtures("resting")
async def test_pgmqs_own_send_wakes(db: asyncpg.Connection, queue: str, catcher: Catcher) -> None:
    await pgmq_send(db, queue, "sent")
    await catcher.got("sent")


async def test_a_push_in_a_transaction_wakes_when_it_commits(
    resting: PgMqBackend[Email], db: asyncpg.Connection, catcher: Catcher, other: PgMqBackend[Email]
) -> None:
    async with db.transaction():
        await other.push(Email("later"), connection=db)
        await resting.push(Email("later still"), connection=db)
        await resting.push(Email("before"))
        await catcher.got("before")
        await asyncio.sleep(0.5)
        assert list(catcher.at) == ["before"]
    await catcher.got("later")
    await catcher.got("later still")


@pytest.mark.usefixtures("resting")
async def test_a_transaction_that_is_rolled_back_wakes_nobody(
    db: asyncpg.Connection, queue: str, catcher: Catcher, rest: Rest
) -> None:
    before = rest.count
    transaction = db.transaction()
    await transaction.start()
    await raw_insert(db, queue, "never")
    await transaction.rollback()
    await asyncio.sleep(0.5)
    assert rest.count == before
    assert not catcher.at


async def test_a_redrive_of_another_process_wakes(
    pgmq_url: str,
    queue: str,
    other: PgMqBackend[Email],
    rest: Rest,
    catcher: Catcher,
    eventually: Eventually,
) -> None:
    config = Config(queue, poll_interval=NEVER)

    async def handler(message: Email) -> None:
        if not catcher.at:
            catcher.at[message.to] = []
            raise AbortError
        await catcher(message)

    async with (
        PgMqBackend(pgmq_url, config, Email) as backend,
        running(WorkerBuilder("w").backend(backend).build(handler)),
    ):
        await other.push(Email("again"))
        await eventually(other.dead_letters)
        await rest(backend)
        assert await other.redrive() == 1
        await catcher.got("again")


class Holder:
    """A worker of another process that holds its first message until it is told to end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.holds = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, message: Email) -> None:
        assert not self.holds.is_set(), "it was to hold one only"
        self.holds.set()
        await self.release.wait()
        if self.error is not None:
            raise self.error


@pytest.mark.usefixtures("one_ahead")
async def test_what_another_worker_hands_back_when_it_stops_wakes(
    pgmq_url: str,
    queue: str,
    other: PgMqBackend[Email],
    table: Table,
    rest: Rest,
    catcher: Catcher,
    eventually: Eventually,
) -> None:
    holder = Holder()
    await other.push_many([Email("first"), Email("second")])
    worker = WorkerBuilder("other").backend(other).concurrency(1).build(holder)
    async with running(worker):
        await holder.holds.wait()
        await eventually(lambda: _read_counts(table, [1, 1]))
        async with (
            PgMqBackend(pgmq_url, Config(queue, poll_interval=NEVER), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend)
            worker.stop()
            await catcher.got("second")
            holder.release.set()


async def _read_counts(table: Table, counts: list[int]) -> bool:
    return [row["read_ct"] for row in await table.rows()] == counts


async def test_what_fails_in_another_worker_wakes_when_it_is_due(
    pgmq_url: str, queue: str, other: PgMqBackend[Email], rest: Rest, catcher: Catcher
) -> None:
    holder = Holder(RetryAfterError(1))
    await other.push(Email("again"))
    worker = WorkerBuilder("other").backend(other).concurrency(1).build(holder)
    async with (
        PgMqBackend(pgmq_url, Config(queue, poll_interval=NEVER), Email) as backend,
        running(worker),
    ):
        await holder.holds.wait()
        async with running(catcher.worker(backend)):
            await rest(backend)
            worker.stop()
            began = time.monotonic()
            holder.release.set()
            at = await catcher.got("again", within=1 + PROMPT)
    assert at - began >= 1


async def test_delayed_messages_are_handled_when_they_are_due(
    resting: PgMqBackend[Email], other: PgMqBackend[Email], catcher: Catcher
) -> None:
    late = []
    for number, backend in enumerate([other, resting, other]):
        await backend.push(Email(f"later {number}"), delay=5)  # not to be waited for
        await backend.push(Email(str(number)), delay=0.6)
        sent = time.monotonic()
        late.append(await catcher.got(str(number), within=0.6 + PROMPT) - sent - 0.6)
    assert min(late) > -0.1
    # A machine that is busy may be late, but not each time.
    assert min(late) < 0.25
    assert "later 2" not in catcher.at


async def test_a_delay_that_others_hear_of_is_kept_although_the_first_worker_stops(
    pgmq_url: str, queue: str, other: PgMqBackend[Email], rest: Rest, catcher: Catcher
) -> None:
    """Whoever leaves has the others look, as it alone may know what is due."""
    config = Config(queue, poll_interval=NEVER, visibility_timeout=20)
    async with (
        PgMqBackend(pgmq_url, config, Email) as one,
        PgMqBackend(pgmq_url, config, Email) as two,
        running(catcher.worker(two, "two")),
    ):
        async with running(catcher.worker(one, "one")):
            await rest(one, two, quiet=0.05)
            await other.push(Email("later"), delay=1)
        await catcher.got("later", within=2 + PROMPT)


async def test_a_delay_of_which_only_a_killed_worker_knew_is_kept(
    pgmq_url: str,
    queue: str,
    other: PgMqBackend[Email],
    rest: Rest,
    catcher: Catcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever looks for what is due tells the others what it saw."""
    # It leaves without a word.
    monkeypatch.setattr(_claims, "HAVE_LOOK", "SELECT $1::text")
    config = Config(queue, poll_interval=NEVER, visibility_timeout=20)
    async with PgMqBackend(pgmq_url, config, Email) as one, PgMqBackend(pgmq_url, config, Email) as two:
        async with asyncio.timeout(30), running(catcher.worker(one, "one")):
            await rest(one)
            heir = asyncio.create_task(catcher.worker(two, "two").run())
            await rest(one, two, quiet=0.05)
            assert [subscriptions(backend)[0].turn.rank for backend in (one, two)] == [0, 1]
            await other.push(Email("later"), delay=2)
            await rest(one, two, quiet=0.3)
        try:
            assert not catcher.at
            await catcher.got("later", within=2 + PROMPT)
        finally:
            heir.cancel()
            await asyncio.gather(heir, return_exceptions=True)


async def test_the_message_of_a_killed_worker_returns_when_its_lease_ends(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    other: PgMqBackend[Email],
    rest: Rest,
    catcher: Catcher,
) -> None:
    """It is not left alone for longer than a lease."""
    held = await raw_insert(db, other.queue, "killed", vt="now() + interval '1 h'")
    config = Config(queue, poll_interval=NEVER, visibility_timeout=2)
    async with PgMqBackend(pgmq_url, config, Email) as backend, running(catcher.worker(backend)):
        await other.push(Email("started"))
        await catcher.got("started")
        await rest(backend)
        # As a claim does, which nobody announces.
        await db.execute(
            f"UPDATE pgmq.q_{queue} SET vt = now() + interval '2 s', read_ct = 1 WHERE msg_id = $1", held
        )
        claimed = time.monotonic()
        late = await catcher.got("killed", within=2 + PROMPT) - claimed - 2
    assert -0.1 < late < 1


@pytest.mark.parametrize("name", ["Mixed_{}", "UPPER_{}"])
async def test_a_queue_with_upper_case_in_its_name_wakes(
    pgmq_url: str, queue: str, db: asyncpg.Connection, rest: Rest, catcher: Catcher, name: str
) -> None:
    name = name.format(queue)
    config = Config(name, poll_interval=NEVER)
    async with (
        PgMqBackend(pgmq_url, config, Email) as backend,
        PgMqBackend(pgmq_url, config, Email) as other,
        running(catcher.worker(backend)),
    ):
        await rest(backend)
        await other.push(Email("pushed"))
        await catcher.got("pushed")
        await raw_insert(db, name, "raw")
        await catcher.got("raw")
        await pgmq_send(db, name, "sent")
        await catcher.got("sent")


async def test_a_name_too_long_for_a_channel_is_polled_for(
    pgmq_url: str, queue: str, db: asyncpg.Connection, rest: Rest, catcher: Catcher
) -> None:
    name = queue + "\N{GREEK SMALL LETTER ALPHA}" * 22
    assert insert_channel(name) is None
    async with (
        PgMqBackend(pgmq_url, Config(name, poll_interval=0.3), Email) as backend,
        running(catcher.worker(backend)),
    ):
        await rest(backend, announced=False, quiet=0.1)
        await raw_insert(db, name, "raw")
        await catcher.got("raw")
        await backend.push(Email("pushed"))
        await catcher.got("pushed")


class TestWithoutTrigger:
    """A queue that was made by other means than ours."""

    @pytest.fixture(autouse=True)
    async def made_by_pgmq(self, db: asyncpg.Connection, queue: str) -> None:
        await db.execute("SELECT pgmq.create($1::text)", queue)

    async def test_it_is_polled_for(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection, rest: Rest, catcher: Catcher
    ) -> None:
        async with (
            PgMqBackend(pgmq_url, Config(queue, poll_interval=0.3), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend, announced=False, quiet=0.1)
            assert not subscriptions(backend)[0].is_announced
            before, began = rest.count, time.monotonic()
            await raw_insert(db, queue, "raw")
            await catcher.got("raw")
            await raw_insert(db, queue, "delayed", vt="now() + interval '1 s'")
            await catcher.got("delayed", within=1 + PROMPT)
            polls = (time.monotonic() - began) / 0.3
            assert rest.count - before <= polls + 4

    async def test_our_own_push_wakes_other_processes_all_the_same(
        self, pgmq_url: str, queue: str, rest: Rest, other: PgMqBackend[Email], catcher: Catcher
    ) -> None:
        async with (
            PgMqBackend(pgmq_url, Config(queue, poll_interval=NEVER), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend, announced=False)
            await other.push(Email("pushed"))
            await catcher.got("pushed")
            await other.push(Email("delayed"), delay=0.5)
            await catcher.got("delayed", within=0.5 + PROMPT)

    async def test_a_push_in_a_callers_transaction_wakes_all_the_same(
        self,
        pgmq_url: str,
        queue: str,
        rest: Rest,
        other: PgMqBackend[Email],
        db: asyncpg.Connection,
        catcher: Catcher,
    ) -> None:
        async with (
            PgMqBackend(pgmq_url, Config(queue, poll_interval=NEVER), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend, announced=False)
            async with db.transaction():
                await other.push(Email("pushed"), connection=db)
            await catcher.got("pushed")

    async def test_pgmqs_own_notification_wakes(
        self, pgmq_url: str, queue: str, rest: Rest, db: asyncpg.Connection, catcher: Catcher
    ) -> None:
        await db.execute("SELECT pgmq.enable_notify_insert($1::text, 0)", queue)
        async with (
            PgMqBackend(pgmq_url, Config(queue, poll_interval=NEVER), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend, announced=False)
            await pgmq_send(db, queue, "sent")
            await catcher.got("sent")
            await raw_insert(db, queue, "raw")
            await catcher.got("raw")


@pytest.mark.parametrize(
    "loss", ["DROP TRIGGER apalis_pgmq_notify ON {}", "ALTER TABLE {} DISABLE TRIGGER apalis_pgmq_notify"]
)
async def test_a_queue_that_loses_its_trigger_is_polled_from_then_on(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    rest: Rest,
    catcher: Catcher,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
    loss: str,
) -> None:
    monkeypatch.setattr(_listener, "PROBE_INTERVAL", 0.2)
    async with (
        PgMqBackend(pgmq_url, Config(queue, poll_interval=0.3), Email) as backend,
        running(catcher.worker(backend)),
    ):
        await rest(backend)
        [subscription] = subscriptions(backend)
        await db.execute(loss.format(f"pgmq.q_{queue}"))
        await eventually(lambda: not subscription.is_announced, within=PROMPT)
        for number in range(2):
            # Not while it looks for having lost the trigger.
            await asyncio.sleep(0.4)
            await raw_insert(db, queue, str(number))
            await catcher.got(str(number))


async def test_behind_a_pooler_the_queue_is_polled(
    pgbouncer_url: str, queue: str, db: asyncpg.Connection, rest: Rest, catcher: Catcher
) -> None:
    async with (
        PgMqBackend(pgbouncer_url, Config(queue, poll_interval=0.3), Email) as backend,
        running(catcher.worker(backend)),
    ):
        await backend.push(Email("first"))
        await catcher.got("first")
        for number in range(2):
            await asyncio.sleep(0.4)
            await raw_insert(db, queue, str(number))
            await catcher.got(str(number))
        [subscription] = subscriptions(backend)
        assert not subscription.is_heard
        # And it did not poll without a pause.
        assert rest.count < 20
