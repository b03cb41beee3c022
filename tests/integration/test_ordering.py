"""Of each message group one message is worked at a time, in order, whatever happens to the others."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from apalis_pgmq import (
    AbortError,
    Batch,
    Config,
    ConfigError,
    EncodeError,
    MemoryBackend,
    PgMqBackend,
    RetryAfterError,
    Task,
    TaskId,
    Transaction,
    WorkerBuilder,
)
from apalis_pgmq.pgmq import PgMqPermissionError, _ordered
from apalis_pgmq.pgmq._bodies import Bodies
from apalis_pgmq.pgmq._ordered_sql import claim, ordering

from .conftest import Table, as_role, running

Eventually = Callable[..., Awaitable[None]]
Backend = PgMqBackend[str] | MemoryBackend[str]
EVER = "'-infinity'::timestamptz"


def ordered(queue: str, **others: Any) -> Config:
    return Config(queue, **{"visibility_timeout": 5, "poll_interval": 0.02, "ordered": True, **others})


@pytest.fixture
async def backend(pgmq_url: str, queue: str) -> AsyncIterator[PgMqBackend[str]]:
    async with PgMqBackend(pgmq_url, ordered(queue), str) as backend:
        yield backend


@pytest.fixture(params=["pgmq", "memory"])
async def either(request: pytest.FixtureRequest, pgmq_url: str, queue: str) -> AsyncIterator[Backend]:
    """An ordered queue, in PostgreSQL and in memory."""
    if request.param == "memory":
        yield MemoryBackend(ordered(queue), str)
    else:
        async with PgMqBackend(pgmq_url, ordered(queue), str) as backend:
            yield backend


class Ledger:
    """What handlers do, per group: whether two ran at once, and in which order they ended."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.started: dict[str, list[int]] = defaultdict(list)
        self.ended: dict[str, list[int]] = defaultdict(list)
        self.violations: list[str] = []

    def start(self, group: str, task_id: int) -> None:
        if group in self.running:
            self.violations.append(f"{task_id}: two of {group} at once")
        self.running.add(group)
        self.started[group].append(task_id)

    def end(self, group: str, task_id: int, *, handled: bool = True) -> None:
        self.running.discard(group)
        if handled:
            self.ended[group].append(task_id)

    @property
    def count(self) -> int:
        return sum(map(len, self.ended.values()))


async def count(backend: PgMqBackend[str], db: asyncpg.Connection) -> int:
    return int(await db.fetchval(f"SELECT count(*) FROM pgmq.q_{backend.queue}"))


@pytest.mark.parametrize("seed", [1, 2])
async def test_four_workers_keep_the_order_of_every_group_whatever_fails(either: Backend, seed: int) -> None:
    chance = random.Random(seed)
    ledger = Ledger()
    sent: dict[str, list[int]] = defaultdict(list)
    everything = asyncio.Event()

    async def handler(group: str, task: Task[str]) -> None:
        ledger.start(group, task.id)
        handled = False
        try:
            await asyncio.sleep(chance.choice([0, 0, 0.002, 0.01]))
            if chance.random() < 0.1 and task.attempt < 4:
                raise RetryAfterError(chance.choice([0, 0.02, 0.1]))
            handled = True
        finally:
            ledger.end(group, task.id, handled=handled)
        if ledger.count == 600:
            everything.set()

    async def send(groups: list[str]) -> None:
        for _ in range(30):
            for group in groups:
                sent[group].append(await either.push(group, group=group))

    async with AsyncExitStack() as stack:
        for number in range(4):
            worker = WorkerBuilder(f"w{number}").backend(either).concurrency(5).build(handler)
            await stack.enter_async_context(running(worker))
        names = [f"g{number}" for number in range(20)]
        await asyncio.gather(*(send(names[first::4]) for first in range(4)))
        async with asyncio.timeout(60):
            await everything.wait()

    assert ledger.violations == []
    assert dict(ledger.ended) == dict(sent)


async def test_a_failed_message_holds_up_its_own_group_only(either: Backend, eventually: Eventually) -> None:
    handled: list[str] = []

    async def handler(message: str, task: Task[str]) -> None:
        if message == "a1" and task.attempt == 1:
            raise RetryAfterError(0.4)
        handled.append(message)

    for group in "ab":
        for number in (1, 2, 3):
            await either.push(f"{group}{number}", group=group)
    await either.push("alone")
    async with running(WorkerBuilder("w").backend(either).build(handler)):
        await eventually(lambda: len(handled) == 7)

    assert handled[-3:] == ["a1", "a2", "a3"]
    assert [one for one in handled if one[0] == "b"] == ["b1", "b2", "b3"]


async def test_a_delayed_message_delays_what_follows_in_its_group(
    either: Backend, eventually: Eventually
) -> None:
    handled: list[str] = []

    async def handler(message: str) -> None:
        handled.append(message)

    await either.push("late", group="a", delay=0.3)
    await either.push("after", group="a")
    await either.push("other", group="b")
    async with running(WorkerBuilder("w").backend(either).build(handler)):
        await eventually(lambda: len(handled) == 3)

    assert handled == ["other", "late", "after"]


async def test_a_dead_letter_lets_its_group_go_on(either: Backend, eventually: Eventually) -> None:
    handled: list[str] = []

    async def handler(message: str) -> None:
        if message == "bad":
            raise AbortError("no")
        handled.append(message)

    await either.push("bad", group="a")
    await either.push("good", group="a")
    async with running(WorkerBuilder("w").backend(either).build(handler)):
        await eventually(lambda: handled == ["good"])

    [letter] = await either.dead_letters()
    assert letter.headers["x-pgmq-group"] == "a"


async def test_messages_without_a_group_run_beside_each_other(
    either: Backend, eventually: Eventually
) -> None:
    together = asyncio.Barrier(5)
    ended: list[str] = []

    async def handler(message: str) -> None:
        async with asyncio.timeout(10):
            await together.wait()

        ended.append(message)

    await either.push_many(["x"] * 5)
    async with running(WorkerBuilder("w").backend(either).concurrency(5).build(handler)):
        await eventually(lambda: len(ended) == 5)


async def test_what_follows_is_claimed_at_once(pgmq_url: str, queue: str) -> None:
    """Not at the next poll: 100 polls would take 100 s."""
    done = asyncio.Event()
    handled: list[TaskId] = []

    async def handler(message: str, task_id: TaskId) -> None:
        handled.append(task_id)
        if len(handled) == 100:
            done.set()

    config = ordered(queue, poll_interval=1, visibility_timeout=30)
    async with PgMqBackend(pgmq_url, config, str) as backend:
        await backend.push_many(["x"] * 100, group="a")
        async with running(WorkerBuilder("w").backend(backend).build(handler)), asyncio.timeout(20):
            await done.wait()
    assert handled == sorted(handled)


async def test_another_worker_goes_on_with_a_group_whose_worker_stops(
    backend: PgMqBackend[str], pgmq_url: str, eventually: Eventually, db: asyncpg.Connection
) -> None:
    """What is freed while a worker stops is left to the others, at once."""
    release, started = asyncio.Event(), asyncio.Event()
    handled: list[str] = []

    async def slow(message: str) -> None:
        started.set()
        await release.wait()
        handled.append(message)

    async def fast(message: str) -> None:
        handled.append(message)

    await backend.push_many(["1", "2"], group="a")
    async with PgMqBackend(pgmq_url, backend.config.with_visibility_timeout(60), str) as other:
        async with running(WorkerBuilder("one").backend(backend).build(slow)):
            await started.wait()
            rest = asyncio.create_task(_run_until(other, fast, lambda: len(handled) == 2, eventually))
            await asyncio.sleep(0.1)
            release.set()
        began = time.monotonic()
        await rest
    assert handled == ["1", "2"]
    assert time.monotonic() - began < 10


async def _run_until(
    backend: PgMqBackend[str],
    handler: Callable[..., Awaitable[None]],
    condition: Callable[[], object],
    eventually: Eventually,
) -> None:
    async with running(WorkerBuilder("w").backend(backend).build(handler)):
        await eventually(condition)


class TestOtherTools:
    async def test_messages_by_plain_sql_and_by_pgmq_are_ordered(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, eventually: Eventually
    ) -> None:
        ledger = Ledger()

        async def handler(group: str, task_id: TaskId) -> None:
            ledger.start(group, task_id)
            await asyncio.sleep(0.001)
            ledger.end(group, task_id)

        # All of them visible since the same moment.
        await db.execute(
            f"INSERT INTO pgmq.q_{backend.queue} (vt, message, headers) "
            "SELECT now(), to_jsonb('g' || g), jsonb_build_object('x-pgmq-group', 'g' || g) "
            "FROM generate_series(1, 40) AS g, generate_series(1, 10)"
        )
        for _ in range(10):
            await db.execute(
                "SELECT pgmq.send($1::text, to_jsonb('h'::text), '{\"x-pgmq-group\": \"h\"}'::jsonb)",
                backend.queue,
            )
        async with running(WorkerBuilder("w").backend(backend).build(handler)):
            await eventually(lambda: ledger.count == 410)
        assert ledger.violations == []
        assert all(ids == sorted(ids) for ids in ledger.ended.values())

    async def test_a_head_that_is_deleted_by_hand_frees_its_group(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, eventually: Eventually
    ) -> None:
        heard = asyncio.Event()
        await db.add_listener(f"pgmq.q_{backend.queue}.INSERT", lambda *_: heard.set())
        first = await backend.push("first", group="a", delay=3600)
        second = await backend.push("second", group="a")
        await eventually(heard.is_set)
        heard.clear()
        now = await db.fetchval("SELECT clock_timestamp()")
        await db.fetchval("SELECT pgmq.delete($1::text, $2::bigint)", backend.queue, first)
        await eventually(heard.is_set)
        # Where claims under load look: it is visible anew.
        vt = await db.fetchval(f"SELECT vt FROM pgmq.q_{backend.queue} WHERE msg_id = {second}")
        assert vt > now
        assert await TestRaces().claim(db, backend.queue) == [second]

    async def test_headers_that_are_no_object_and_very_long_groups_are_taken(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, eventually: Eventually
    ) -> None:
        handled: list[str] = []

        async def handler(message: str) -> None:
            handled.append(message)

        await db.execute(
            f"INSERT INTO pgmq.q_{backend.queue} (vt, message, headers) VALUES "
            "(now(), '\"1\"', '[1]'), (now(), '\"2\"', '\"text\"'), (now(), '\"3\"', NULL)"
        )
        await backend.push("4", group="g" * 100_000)
        async with running(WorkerBuilder("w").backend(backend).build(handler)):
            await eventually(lambda: sorted(handled) == ["1", "2", "3", "4"])


class TestRaces:
    """Two claims at the same time, step by step, on connections of their own."""

    async def claim(self, connection: asyncpg.Connection, queue: str) -> list[int]:
        tell = False
        [row] = await connection.fetch(
            claim(queue, Bodies()), 10, timedelta(seconds=30), _ordered.EVER, 0, 1000, 1.0, None, tell, []
        )
        return list(row["ids"] or [])

    async def insert(self, connection: asyncpg.Connection, queue: str) -> int:
        return int(
            await connection.fetchval(
                f"INSERT INTO pgmq.q_{queue} (vt, message, headers) "
                'VALUES (clock_timestamp(), \'"x"\', \'{"x-pgmq-group": "a"}\') RETURNING msg_id'
            )
        )

    @pytest.fixture
    async def two(self, pgmq_url: str) -> AsyncIterator[list[asyncpg.Connection]]:
        found = [await asyncpg.connect(pgmq_url) for _ in range(2)]
        yield found
        for connection in found:
            await connection.close()

    async def test_a_lower_id_that_is_committed_late_waits_for_what_has_been_started(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, two: list[asyncpg.Connection]
    ) -> None:
        late, other = two
        transaction = late.transaction()
        await transaction.start()
        lower = await self.insert(late, backend.queue)
        higher = await self.insert(other, backend.queue)
        assert await self.claim(db, backend.queue) == [higher]
        await transaction.commit()
        assert await self.claim(db, backend.queue) == []
        await db.execute(f"DELETE FROM pgmq.q_{backend.queue} WHERE msg_id = {higher}")
        assert await self.claim(db, backend.queue) == [lower]

    async def test_a_group_whose_claim_is_not_committed_yet_is_left_alone(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, two: list[asyncpg.Connection]
    ) -> None:
        late, claiming = two
        transaction = late.transaction()
        await transaction.start()
        await self.insert(late, backend.queue)
        higher = await self.insert(db, backend.queue)
        claims = claiming.transaction()
        await claims.start()
        assert await self.claim(claiming, backend.queue) == [higher]
        # The lower one is a head for whoever does not see that claim.
        await transaction.commit()
        assert await self.claim(db, backend.queue) == []
        await claims.commit()
        assert await self.claim(db, backend.queue) == []

    async def test_a_claim_whose_snapshot_is_older_than_anothers_claim_takes_nothing(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, two: list[asyncpg.Connection]
    ) -> None:
        late, claiming = two
        # Each claim sleeps after it has looked and before it takes the locks.
        await db.execute(
            ordering(backend.queue, has_last_read_at=True).replace("-- 2.", "PERFORM pg_sleep(0.5); -- 2.", 1)
        )
        transaction = late.transaction()
        await transaction.start()
        lower = await self.insert(late, backend.queue)
        higher = await self.insert(db, backend.queue)
        claims = claiming.transaction()
        await claims.start()
        assert await self.claim(claiming, backend.queue) == [higher]
        await transaction.commit()
        # It sees the lower one, but not that the other one has been claimed: that is committed while it sleeps.
        sleeping = asyncio.create_task(self.claim(db, backend.queue))
        await asyncio.sleep(0.25)
        await claims.commit()
        assert await sleeping == []
        await db.execute(f"DELETE FROM pgmq.q_{backend.queue} WHERE msg_id = {higher}")
        assert await self.claim(db, backend.queue) == [lower]


class TestHandlers:
    async def test_transactional_handlers_keep_the_order(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, eventually: Eventually
    ) -> None:
        await db.execute(f"CREATE TABLE effects_{backend.queue} (at serial, grp text, id bigint UNIQUE)")

        async def handler(group: str, task: Task[str], tx: Transaction) -> None:
            await tx.connection.execute(
                f"INSERT INTO effects_{backend.queue} (grp, id) VALUES ($1, $2)", group, task.id
            )
            if task.attempt == 1 and task.id % 7 == 0:
                raise RetryAfterError(0.02)

        for _ in range(15):
            for group in "abc":
                await backend.push(group, group=group)
        async with running(WorkerBuilder("w").backend(backend).build(handler)):
            began = time.monotonic()
            await eventually(lambda: _is_empty(backend, db))
            # Not one poll for each.
            assert time.monotonic() - began < 10
        rows = await db.fetch(f"SELECT grp, id FROM effects_{backend.queue} ORDER BY at")
        for group in "abc":
            ids = [row["id"] for row in rows if row["grp"] == group]
            assert ids == sorted(ids)
            assert len(ids) == 15

    async def test_a_batch_has_one_message_of_a_group_at_most(
        self, backend: PgMqBackend[str], eventually: Eventually
    ) -> None:
        seen: list[str] = []
        batches: list[list[str]] = []

        async def handler(batch: Batch[str]) -> None:
            batches.append([task.args[0] for task in batch])
            seen.extend(task.args for task in batch)

        for number in range(5):
            for group in "abc":
                await backend.push(f"{group}{number}", group=group)
        worker = WorkerBuilder("w").backend(backend).batch(size=10, wait=0.01).build(handler)
        async with running(worker):
            await eventually(lambda: len(seen) == 15)
        assert all(len(set(batch)) == len(batch) for batch in batches)
        for group in "abc":
            assert [one for one in seen if one[0] == group] == [f"{group}{number}" for number in range(5)]

    async def test_a_transaction_sends_to_a_group(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, eventually: Eventually
    ) -> None:
        async def handler(message: str, tx: Transaction) -> None:
            if message == "first":
                await tx.push(backend, "second", group="a", delay=3600)

        await backend.push("first")
        async with running(WorkerBuilder("w").backend(backend).build(handler)):
            table = Table(db, backend.queue)

            async def sent() -> bool:
                return [row["headers"] for row in await table.rows()] == ['{"x-pgmq-group": "a"}']

            await eventually(sent)


async def _is_empty(backend: PgMqBackend[str], db: asyncpg.Connection) -> bool:
    return await count(backend, db) == 0


class TestSetup:
    async def test_a_queue_that_is_there_is_made_ready_and_setup_is_repeatable(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        async with PgMqBackend(pgmq_url, queue, str) as plain:
            await plain.push_many(["1", "2"], group="a")
        await asyncio.gather(*(_open(pgmq_url, queue) for _ in range(4)))
        assert await TestRaces().claim(db, queue) == [1]

    async def test_a_role_that_may_not_is_told_what_to_do(
        self, pgmq_url: str, queue: str, db: asyncpg.Connection
    ) -> None:
        async with PgMqBackend(pgmq_url, queue, str):
            pass
        role = f"role_{queue}"
        await db.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'secret'; GRANT USAGE ON SCHEMA pgmq TO {role}; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgmq TO {role}"
        )
        try:
            with pytest.raises(PgMqPermissionError, match="--ordered"):
                await _open(as_role(pgmq_url, role), queue)
            await _open(pgmq_url, queue)
            # Once it is ready, that role may work it.
            handled = asyncio.Event()

            async def handler(message: str) -> None:
                handled.set()

            async with PgMqBackend(as_role(pgmq_url, role), ordered(queue), str) as backend:
                await backend.push("x", group="a")
                async with running(WorkerBuilder("w").backend(backend).build(handler)):
                    async with asyncio.timeout(10):
                        await handled.wait()
        finally:
            await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    def test_a_name_that_is_too_long_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="too long for an ordered queue"):
            Config("ü" * 28, ordered=True, dead_letter=None)

    async def test_two_names_for_a_group_are_refused(self, either: Backend) -> None:
        with pytest.raises(EncodeError, match="name two groups"):
            await either.push("x", group="a", headers={"x-pgmq-group": "b"})
        with pytest.raises(EncodeError, match="not empty"):
            await either.push("x", group="")


async def _open(url: str, queue: str) -> None:
    async with PgMqBackend(url, ordered(queue), str):
        pass


class TestKills:
    VISIBILITY = 1.0

    async def test_killed_processes_neither_break_the_order_nor_lose_a_message(
        self, backend: PgMqBackend[str], pgmq_url: str, tmp_path: Path, db: asyncpg.Connection
    ) -> None:
        groups = [f"g{number}" for number in range(25)]
        sent: dict[str, list[int]] = defaultdict(list)
        for _ in range(24):
            for group in groups:
                sent[group].append(await backend.push(group, group=group))
        died: dict[int, float] = {}
        path = tmp_path / "ledger"
        workers = [self.start(pgmq_url, backend.queue, path) for _ in range(4)]
        chance = random.Random(11)
        kills = 0
        try:
            async with asyncio.timeout(90):
                while not await _is_empty(backend, db):
                    await asyncio.sleep(0.7)
                    if kills < 6 and path.exists():
                        victim = chance.randrange(4)
                        workers[victim].send_signal(signal.SIGKILL)
                        workers[victim].wait()
                        died[workers[victim].pid] = time.monotonic()
                        kills += 1
                        workers[victim] = self.start(pgmq_url, backend.queue, path)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        assert kills >= 3
        self.judge(path.read_text(), sent, died)

    def start(self, url: str, queue: str, path: Path) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.integration.ordering_worker",
                url,
                queue,
                str(path),
                str(self.VISIBILITY),
            ],
            cwd=Path(__file__).parents[2],
        )

    def judge(self, ledger: str, sent: dict[str, list[int]], died: dict[int, float]) -> None:
        lines = sorted((line.split() for line in ledger.splitlines()), key=lambda line: float(line[4]))
        open_: dict[str, tuple[int, int]] = {}
        first_starts: dict[str, list[int]] = defaultdict(list)
        ended: dict[str, set[int]] = defaultdict(set)
        for what, group, task_text, pid_text, at in lines:
            task_id, pid = int(task_text), int(pid_text)
            if what == "start":
                if group in open_:
                    other, owner = open_[group]
                    # Only that very message, and only when its process was dead.
                    assert died.get(owner, float("inf")) < float(at) + 0.05, f"{task_id} beside {other}"
                    assert task_id == other
                open_[group] = (task_id, pid)
                if task_id not in first_starts[group]:
                    assert ended[group] >= set(first_starts[group]), f"{task_id} overtook"
                    first_starts[group].append(task_id)
            else:
                assert open_.pop(group) == (task_id, pid)
                if what == "end":
                    ended[group].add(task_id)
        assert dict(first_starts) == dict(sent)
        assert all(ended[group] == set(ids) for group, ids in sent.items())


class TestPlans:
    """A claim touches few pages, however many groups there are and however long one is."""

    async def buffers(self, db: asyncpg.Connection, queue: str, place: str = f"{EVER}, 0") -> tuple[int, Any]:
        """Return how many pages a claim of 50 touches, and its row; nothing stays claimed."""
        call = f"apalis_claim_{queue}(50, interval '30 s', {place}, 1000, 1, NULL, false, '{{}}')"
        transaction = db.transaction()
        await transaction.start()
        try:
            text = await db.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM pgmq.{call}")
            row = None
        finally:
            await transaction.rollback()
        plan = json.loads(text)[0]["Plan"]
        return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], row

    async def fill(self, db: asyncpg.Connection, queue: str, vt: str, source: str, group: str) -> None:
        await db.execute(
            f"INSERT INTO pgmq.q_{queue} (vt, message, headers) "
            f"SELECT {vt}, '{{}}', jsonb_build_object('x-pgmq-group', {group}) FROM {source}"
        )

    async def test_ten_thousand_groups(self, backend: PgMqBackend[str], db: asyncpg.Connection) -> None:
        await self.fill(
            db,
            backend.queue,
            "clock_timestamp()",
            "generate_series(1, 10) n, generate_series(1, 10000) g",
            "'g' || g",
        )
        await self.buffers(db, backend.queue)
        assert (await self.buffers(db, backend.queue))[0] < 3000

    async def test_a_group_of_a_hundred_thousand_beside_small_ones(
        self, backend: PgMqBackend[str], db: asyncpg.Connection
    ) -> None:
        old = "now() - interval '1 h'"
        await self.fill(db, backend.queue, old, "generate_series(1, 100000)", "'big'")
        await self.fill(db, backend.queue, "clock_timestamp()", "generate_series(1, 1000) g", "'g' || g")
        # One look at 1,000 of them, all visible since the same moment; and one beyond them.
        await self.buffers(db, backend.queue)
        assert (await self.buffers(db, backend.queue))[0] < 12_000
        assert (await self.buffers(db, backend.queue, "now() - interval '1 min', 0"))[0] < 3000

    async def test_delayed_messages_are_not_looked_at(
        self, backend: PgMqBackend[str], db: asyncpg.Connection
    ) -> None:
        later = "now() + interval '1 h'"
        await self.fill(db, backend.queue, later, "generate_series(1, 200000) g", "'g' || g")
        await self.buffers(db, backend.queue)
        assert (await self.buffers(db, backend.queue))[0] < 300

    async def test_every_plan_of_the_functions_is_by_index(
        self, backend: PgMqBackend[str], db: asyncpg.Connection, pgmq_url: str
    ) -> None:
        """Bloated, unanalyzed, as small as it can be: no statement inside reads the table whole."""
        notes: list[str] = []
        connection = await asyncpg.connect(pgmq_url)
        try:
            await connection.execute(
                "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; "
                "SET auto_explain.log_nested_statements = on; SET client_min_messages = log"
            )
            connection.add_log_listener(lambda _, message: notes.append(str(message.message)))
            for _ in range(3):
                await self.fill(connection, backend.queue, "now()", "generate_series(1, 3) g", "'g' || g")
            ids = await TestRaces().claim(connection, backend.queue)
            await connection.execute(f"DELETE FROM pgmq.q_{backend.queue} WHERE msg_id = ANY ($1)", ids)
        finally:
            await connection.close()
        plans = "\n".join(note for note in notes if "apalis_group_" in note or "apalis_order_" in note)
        assert f"apalis_group_{backend.queue} on q_{backend.queue}" in plans
        assert f"apalis_order_{backend.queue} on q_{backend.queue}" in plans
        assert "Seq Scan" not in plans
        assert "Bitmap" not in plans
