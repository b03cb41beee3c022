"""The one connection that listens: what it costs, how it is found broken, and who answers first."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from apalis_pgmq import Config, PgMqBackend, PgMqPool, PgMqUnavailableError
from apalis_pgmq.pgmq import _listener
from tests.chaos.proxy import Proxy

from .conftest import Email, Table, running
from .resting import NEVER, Catcher, Rest, raw_insert, rest, subscriptions

Eventually = Callable[..., Awaitable[None]]

__all__ = ["rest"]

LISTENING = """
SELECT DISTINCT a.pid FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND a.application_name = $1 AND a.datname = current_database()
"""
"""Whoever listens holds its rank as an advisory lock."""
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
RANKS = "SELECT count(*) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE l.locktype = 'advisory' AND application_name = $1"


@pytest.fixture
def catcher() -> Catcher:
    return Catcher()


@pytest.fixture
def named_url(pgmq_url: str, queue: str) -> str:
    """Connections to it are known by the queue's name."""
    return f"{pgmq_url}?application_name={queue}"


@pytest.fixture
async def proxy(named_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(named_url) as proxy:
        yield proxy


@pytest.fixture
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_listener, "PROBE_INTERVAL", 0.2)


def resting_config(queue: str) -> Config:
    return Config(queue, poll_interval=NEVER)


async def listening(db: asyncpg.Connection, name: str) -> set[int]:
    return {row[0] for row in await db.fetch(LISTENING, name)}


def ranks(*backends: PgMqBackend[Email]) -> list[int | None]:
    return [one.turn.rank for backend in backends for one in subscriptions(backend)]


class TestBroken:
    async def test_a_listener_that_is_cut_off_listens_again_and_misses_nothing(
        self, named_url: str, queue: str, db: asyncpg.Connection, rest: Rest, catcher: Catcher
    ) -> None:
        async with (
            PgMqBackend(named_url, resting_config(queue), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend)
            before: set[int] = set()
            for number in range(3):
                [pid] = await listening(db, queue)
                assert pid not in before
                before.add(pid)
                assert await db.fetchval("SELECT pg_terminate_backend($1, 5000)", pid)
                await raw_insert(db, queue, f"meanwhile {number}")
                await catcher.got(f"meanwhile {number}", within=10)
                await rest(backend)
                await raw_insert(db, queue, f"after {number}")
                await catcher.got(f"after {number}")

    @pytest.mark.usefixtures("short_timeouts", "quick_probes")
    async def test_a_listener_gone_silent_is_found_by_the_probe(
        self,
        proxy: Proxy,
        queue: str,
        db: asyncpg.Connection,
        rest: Rest,
        catcher: Catcher,
        eventually: Eventually,
    ) -> None:
        async with (
            PgMqBackend(proxy.url, resting_config(queue), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend)
            before = await listening(db, queue)
            proxy.silence()
            await raw_insert(db, queue, "meanwhile")
            await catcher.got("meanwhile", within=10)
            # The server does not know yet that the silent one has gone.
            await eventually(lambda: _has_more(db, queue, before))
            await rest(backend)
            await raw_insert(db, queue, "after")
            await catcher.got("after")

    @pytest.mark.usefixtures("short_timeouts")
    async def test_a_listener_gone_silent_is_suspected_when_a_claim_fails(
        self,
        proxy: Proxy,
        queue: str,
        db: asyncpg.Connection,
        rest: Rest,
        catcher: Catcher,
        eventually: Eventually,
    ) -> None:
        async with (
            PgMqBackend(proxy.url, resting_config(queue), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await backend.push(Email("first"))
            await catcher.got("first")
            await rest(backend)
            [subscription] = subscriptions(backend)
            before = await listening(db, queue)
            proxy.silence()
            with pytest.raises(PgMqUnavailableError):
                await backend.push(Email("lost"))
            assert subscription.is_heard, "nobody has noticed yet"
            # Pokes our own worker, whose claim fails.
            await backend.push(Email("second"))
            await catcher.got("second", within=10)
            await eventually(lambda: _has_more(db, queue, before))
            await rest(backend)
            await raw_insert(db, queue, "after")
            await catcher.got("after")

    async def test_a_listener_that_cannot_connect_tries_again(
        self, proxy: Proxy, queue: str, db: asyncpg.Connection, rest: Rest, catcher: Catcher
    ) -> None:
        async with (
            PgMqBackend(proxy.url, resting_config(queue), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend)
            for _ in range(4):
                proxy.cut()
                await asyncio.sleep(0.1)
            await raw_insert(db, queue, "meanwhile")
            await catcher.got("meanwhile", within=15)
            await rest(backend)
            await raw_insert(db, queue, "after")
            await catcher.got("after")


async def _has_more(db: asyncpg.Connection, name: str, than: set[int]) -> bool:
    return bool(await listening(db, name) - than)


class TestCost:
    @pytest.fixture
    def statements(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What is sent from now on."""
        sent: list[str] = []
        for name in ("fetch", "execute", "fetchrow", "fetchval"):
            method = getattr(asyncpg.Connection, name)

            async def noted(self: Any, query: str, *rest: Any, method: Any = method, **more: Any) -> Any:
                sent.append(query)
                return await method(self, query, *rest, **more)

            monkeypatch.setattr(asyncpg.Connection, name, noted)
        return sent

    async def test_an_idle_worker_sends_hardly_a_statement(
        self, pgmq_url: str, queue: str, catcher: Catcher, eventually: Eventually, statements: list[str]
    ) -> None:
        async with PgMqBackend(pgmq_url, queue, Email) as backend, running(catcher.worker(backend)):
            await eventually(lambda: [one for one in subscriptions(backend) if one.is_announced])
            await asyncio.sleep(0.5)
            statements.clear()
            await asyncio.sleep(5)
            # It looks 1, 2 and 4 s after it began.
            assert 1 <= len(statements) <= 4, statements

    async def test_a_worker_that_is_told_nothing_polls(
        self, pgmq_url: str, queue: str, catcher: Catcher, db: asyncpg.Connection, statements: list[str]
    ) -> None:
        await db.execute("SELECT pgmq.create($1::text)", queue)
        config = Config(queue, poll_interval=0.1)
        async with PgMqBackend(pgmq_url, config, Email) as backend, running(catcher.worker(backend)):
            await asyncio.sleep(2)
            assert 8 <= len([one for one in statements if "SKIP LOCKED" in one]) <= 23

    async def test_an_idle_worker_is_one_claim_per_message(
        self, named_url: str, queue: str, catcher: Catcher, rest: Rest, db: asyncpg.Connection
    ) -> None:
        async with (
            PgMqBackend(named_url, resting_config(queue), Email) as backend,
            running(catcher.worker(backend)),
        ):
            await rest(backend)
            before = rest.count
            for number in range(5):
                await raw_insert(db, queue, str(number))
                await catcher.got(str(number))
                await rest(backend, quiet=0.1)
            assert rest.count - before <= 6

    @pytest.mark.parametrize(("concurrency", "most"), [(1, 3), (5, 2)])
    async def test_of_ten_idle_workers_few_claim(
        self,
        pgmq_url: str,
        queue: str,
        catcher: Catcher,
        rest: Rest,
        db: asyncpg.Connection,
        eventually: Eventually,
        quick_probes: None,
        concurrency: int,
        most: int,
    ) -> None:
        """Each has connections of its own; one that had no room for more asks again."""
        async with AsyncExitStack() as stack:
            backends = []
            for number in range(10):
                backend = PgMqBackend(pgmq_url, resting_config(queue), Email)
                backends.append(await stack.enter_async_context(backend))
                await stack.enter_async_context(running(catcher.worker(backend, f"w{number}", concurrency)))
            await rest(*backends)
            await eventually(lambda: sorted(map(str, ranks(*backends))) == sorted(map(str, range(10))))
            claims = []
            for number in range(12):
                before = rest.count
                await raw_insert(db, queue, str(number))
                await catcher.got(str(number))
                await rest(*backends, quiet=0.3)
                claims.append(rest.count - before)
        assert statistics.median(claims) <= most, claims
        assert statistics.mean(claims) <= most + 1, claims


class TestShared:
    async def test_twenty_queues_of_one_pool_have_one_listener_and_few_connections(
        self,
        named_url: str,
        queue: str,
        db: asyncpg.Connection,
        catcher: Catcher,
        rest: Rest,
        eventually: Eventually,
    ) -> None:
        names = [f"{queue}_{number}" for number in range(20)]
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(PgMqPool(named_url, size=2))
            backends = []
            for name in names:
                backend = PgMqBackend(pool, resting_config(name), Email)
                backends.append(await stack.enter_async_context(backend))
                await stack.enter_async_context(running(catcher.worker(backend, name)))
            await rest(backends[0])
            assert len(subscriptions(backends[0])) == 20
            await asyncio.gather(*(backend.push(Email(backend.queue)) for backend in backends))
            await asyncio.gather(*(catcher.got(name, within=10) for name in names))
            assert len(await listening(db, queue)) == 1
            assert await db.fetchval(RANKS, queue) == 20
            # Two each to claim, to settle and to send, and one that listens.
            assert 4 <= await db.fetchval(CONNECTIONS, queue) <= 7
            for name in names:
                await raw_insert(db, name, f"raw {name}")
            await asyncio.gather(*(catcher.got(f"raw {name}") for name in names))
        await eventually(lambda: _is(db, CONNECTIONS, queue, 0))

    async def test_the_last_consumer_takes_all_but_the_sending_connections_with_it(
        self,
        named_url: str,
        queue: str,
        db: asyncpg.Connection,
        catcher: Catcher,
        rest: Rest,
        eventually: Eventually,
    ) -> None:
        async with PgMqPool(named_url) as pool, PgMqBackend(pool, resting_config(queue), Email) as backend:
            for number in range(2):
                async with running(catcher.worker(backend)):
                    await rest(backend)
                    await backend.push(Email(str(number)))
                    await catcher.got(str(number))
                    assert await db.fetchval(CONNECTIONS, queue) >= 3
                await eventually(lambda: _is(db, CONNECTIONS, queue, 1))
        await eventually(lambda: _is(db, CONNECTIONS, queue, 0))

    async def test_an_asyncpg_pool_of_two_connections_polls(
        self,
        named_url: str,
        queue: str,
        db: asyncpg.Connection,
        table: Table,
        catcher: Catcher,
        eventually: Eventually,
    ) -> None:
        async with (
            asyncpg.create_pool(named_url, min_size=0, max_size=2) as pool,
            PgMqBackend(pool, Config(queue, poll_interval=0.1), Email) as backend,
            running(catcher.worker(backend)),
        ):
            for number in range(3):
                await raw_insert(db, queue, str(number))
                await catcher.got(str(number))
            await eventually(table.is_empty)
            assert [one.is_heard for one in subscriptions(backend)] == [False]
            assert await listening(db, queue) == set()

    async def test_an_asyncpg_pool_of_three_connections_listens(
        self,
        named_url: str,
        queue: str,
        db: asyncpg.Connection,
        catcher: Catcher,
        rest: Rest,
        eventually: Eventually,
    ) -> None:
        async with asyncpg.create_pool(named_url, min_size=0, max_size=3) as pool:
            async with (
                PgMqBackend(pool, resting_config(queue), Email) as backend,
                running(catcher.worker(backend)),
            ):
                await rest(backend)
                await raw_insert(db, queue, "raw")
                await catcher.got("raw")
            # What it leaves behind in the caller's pool holds and hears nothing.
            await eventually(lambda: _is(db, RANKS, queue, 0))
            async with pool.acquire() as connection:
                assert await connection.fetch("SELECT pg_listening_channels()") == []


async def _is(db: asyncpg.Connection, sql: str, name: str, count: int) -> bool:
    return await db.fetchval(sql, name) == count


class TestRanks:
    async def test_who_is_alone_does_not_take_itself_for_company(
        self, pgmq_url: str, queue: str, catcher: Catcher, rest: Rest
    ) -> None:
        backend = PgMqBackend(pgmq_url, resting_config(queue), Email)
        async with backend, running(catcher.worker(backend)):
            await rest(backend)
            assert ranks(backend) == [0]
            await backend.push(Email("x"))
            await catcher.got("x")
            [one] = subscriptions(backend)
            assert not one.turn.has_company

    async def test_two_consumers_of_a_process_have_two_ranks_and_the_second_moves_up(
        self, pgmq_url: str, queue: str, catcher: Catcher, rest: Rest, eventually: Eventually
    ) -> None:
        leaves = catcher.worker(backend := PgMqBackend(pgmq_url, resting_config(queue), Email), "leaves")
        async with backend, running(leaves):
            await eventually(lambda: ranks(backend) == [0])
            async with running(catcher.worker(backend, "stays")):
                await eventually(lambda: ranks(backend) == [0, 1])
                first, second = subscriptions(backend)
                assert second.turn.has_company
                await eventually(lambda: first.turn.has_company)
                leaves.stop()
                await eventually(lambda: ranks(backend) == [0])
                assert subscriptions(backend) == [second]
                await rest(backend)
                await backend.push(Email("x"))
                await catcher.got("x")

    @pytest.mark.usefixtures("quick_probes")
    @pytest.mark.parametrize("leaves", ["process", "consumer"])
    async def test_the_next_process_moves_up_when_the_first_leaves(
        self,
        named_url: str,
        queue: str,
        catcher: Catcher,
        db: asyncpg.Connection,
        eventually: Eventually,
        leaves: str,
    ) -> None:
        """Also if the first goes on to listen for another queue."""
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(PgMqPool(named_url))
            first = await stack.enter_async_context(PgMqBackend(pool, resting_config(queue), Email))
            if leaves == "consumer":
                name = f"{queue}_other"
                other = await stack.enter_async_context(PgMqBackend(pool, resting_config(name), Email))
                await stack.enter_async_context(running(catcher.worker(other)))
            second = await stack.enter_async_context(PgMqBackend(named_url, resting_config(queue), Email))
            async with running(catcher.worker(first)):
                await eventually(
                    lambda: [one for one in subscriptions(first) if one.queue == queue and one.turn.rank == 0]
                )
                await stack.enter_async_context(running(catcher.worker(second)))
                await eventually(lambda: ranks(second) == [1])
            await eventually(lambda: ranks(second) == [0], within=5)
            assert await db.fetchval(RANKS, queue) == (2 if leaves == "consumer" else 1)
