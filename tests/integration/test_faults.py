"""Faults of network and server, one at a time: each is survived without help, and nothing is lost or told wrongly."""

import asyncio
import gc
import logging
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from apalis_pgmq import Config, Event, LeaseLost, PgMqBackend, PgMqUnavailableError, WorkerBuilder
from apalis_pgmq.embedded import EmbeddedServer
from apalis_pgmq.pgmq import _connect
from tests.chaos.proxy import Proxy

from .conftest import Email, Table, as_role, running

Eventually = Callable[..., Awaitable[None]]

TERMINATE = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""

own_server = pytest.mark.skipif(
    bool(os.environ.get("APALIS_PGMQ_URL")), reason="a server that is not ours is not stopped"
)


@pytest.fixture
async def proxy(pgmq_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(pgmq_url) as proxy:
        yield proxy


class Handler:
    """Handles one message at a time as it is told to, and remembers."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.done: list[str] = []
        self.release = asyncio.Event()

    async def __call__(self, message: Email) -> None:
        self.started.append(message.to)
        if message.to.startswith("held"):
            await self.release.wait()
        self.done.append(message.to)


class Watched:
    """A worker on a queue, with its handler and its events."""

    def __init__(self, backend: PgMqBackend[Email], concurrency: int = 5) -> None:
        self.handler = Handler()
        self.events: list[Event] = []
        self.worker = (
            WorkerBuilder("w")
            .backend(backend)
            .concurrency(concurrency)
            .on_event(self.events.append)
            .build(self.handler)
        )

    @property
    def lost(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, LeaseLost)]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the library logged of outages."""
    return [record.getMessage() for record in caplog.records if "available" in record.getMessage()]


def assert_one_outage(caplog: pytest.LogCaptureFixture) -> None:
    logged = lines(caplog)
    assert len(logged) == 2, logged
    assert "is unavailable, trying again" in logged[0]
    assert "is available again" in logged[1]


class TestSilence:
    """A socket that goes silent and is not closed: what a lost route or a dead firewall leaves behind."""

    @pytest.fixture
    async def watched(
        self, proxy: Proxy, queue: str, short_timeouts: None
    ) -> AsyncIterator[tuple[Watched, PgMqBackend[Email]]]:
        config = Config(queue, visibility_timeout=30, poll_interval=0.05)
        async with PgMqBackend(proxy.url, config, Email) as backend:
            watched = Watched(backend)
            async with running(watched.worker):
                yield watched, backend

    async def test_acks_are_stored_late_over_new_connections(
        self, watched: Any, proxy: Proxy, pgmq_url: str, queue: str, table: Table, eventually: Eventually
    ) -> None:
        watched, _ = watched
        async with PgMqBackend(pgmq_url, queue, Email) as producer:
            await producer.push_many([Email("held 1"), Email("held 2"), Email("one")])
            # The connection for settlements is open by now.
            await eventually(lambda: watched.handler.done == ["one"])
            await eventually(lambda: _count_is(table, 2))
            proxy.silence()
            watched.handler.release.set()
            await eventually(table.is_empty, within=10)
            await producer.push(Email("after"))
            await eventually(lambda: "after" in watched.handler.done, within=10)
            await eventually(table.is_empty, within=10)
        assert sorted(watched.handler.started) == ["after", "held 1", "held 2", "one"]
        assert not watched.lost

    async def test_leases_are_extended_over_new_connections(
        self, proxy: Proxy, queue: str, short_timeouts: None, table: Table, eventually: Eventually
    ) -> None:
        config = Config(queue, visibility_timeout=6, poll_interval=0.05)
        async with PgMqBackend(proxy.url, config, Email) as backend:
            watched = Watched(backend)
            async with running(watched.worker):
                await backend.push_many([Email("held"), Email("one")])
                await eventually(lambda: watched.handler.done == ["one"])
                await eventually(lambda: _count_is(table, 1))
                [before] = await table.rows()
                proxy.silence()

                async def extended() -> bool:
                    [row] = await table.rows()
                    assert row["read_ct"] == 1
                    return row["vt"] > before["vt"]

                await eventually(extended, within=8)
                watched.handler.release.set()
                await eventually(table.is_empty)
        assert watched.handler.started == ["held", "one"]
        assert not watched.lost

    async def test_leases_do_not_run_out_while_a_silent_socket_is_found_out(
        self,
        proxy: Proxy,
        pgmq_url: str,
        queue: str,
        short_timeouts: None,
        monkeypatch: pytest.MonkeyPatch,
        table: Table,
        eventually: Eventually,
    ) -> None:
        """Although other statements may take as long as a lease lasts."""
        config = Config(queue, visibility_timeout=6, poll_interval=0.05)
        monkeypatch.setattr(_connect, "_STATEMENT_TIMEOUT", 6.0)
        async with (
            PgMqBackend(proxy.url, config, Email) as backend,
            PgMqBackend(pgmq_url, config, Email) as other_backend,
        ):
            watched, other = Watched(backend), Watched(other_backend)
            async with running(watched.worker):
                await backend.push_many([Email("held"), Email("one")])
                await eventually(lambda: watched.handler.done == ["one"])
                await eventually(lambda: _count_is(table, 1))
                async with running(other.worker):
                    [before] = await table.rows()
                    proxy.silence()

                    async def extended_or_taken() -> bool:
                        [row] = await table.rows()
                        return row["vt"] > before["vt"]

                    await eventually(extended_or_taken, within=15)
                    assert other.handler.started == []
                    watched.handler.release.set()
                    await eventually(table.is_empty)
        assert not watched.lost

    async def test_a_network_that_is_away_as_a_whole_is_one_outage(
        self,
        watched: Any,
        proxy: Proxy,
        pgmq_url: str,
        queue: str,
        table: Table,
        eventually: Eventually,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        watched, _ = watched
        async with PgMqBackend(pgmq_url, queue, Email) as producer:
            await producer.push(Email("held"))
            await eventually(lambda: watched.handler.started == ["held"])
            proxy.silence(new_ones_too=True)
            watched.handler.release.set()
            await eventually(lambda: len(lines(caplog)) == 1)
            # Long enough for every part to try again, also to connect anew.
            await asyncio.sleep(3)
            proxy.cut()
            await eventually(table.is_empty)
            await eventually(lambda: len(lines(caplog)) == 2)
        assert_one_outage(caplog)
        assert watched.handler.started == ["held"]
        assert not watched.lost

    async def test_a_push_is_told_that_it_failed(self, watched: Any, proxy: Proxy) -> None:
        _, backend = watched
        proxy.silence()
        async with asyncio.timeout(10):
            with pytest.raises(PgMqUnavailableError):
                await backend.push(Email("lost"))
            # And the next one has a new connection.
            await backend.push(Email("not lost"))

    async def test_a_worker_stops_all_the_same(
        self, proxy: Proxy, queue: str, short_timeouts: None, eventually: Eventually
    ) -> None:
        async with PgMqBackend(proxy.url, Config(queue), Email) as backend:
            watched = Watched(backend)
            run = asyncio.create_task(watched.worker.run())
            await backend.push_many([Email("held"), Email("one")])
            await eventually(lambda: watched.handler.done == ["one"])
            proxy.silence(new_ones_too=True)
            watched.handler.release.set()
            watched.worker.stop()
            # Closing waits for the last outcomes for 5 s, and no longer.
            async with asyncio.timeout(15):
                await run
        assert watched.handler.done == ["one", "held"]


async def _count_is(table: Table, count: int) -> bool:
    return await table.count() == count


class TestLostAnswers:
    """The server carried a statement out, and the connection broke before it could say so."""

    async def test_of_a_claim(
        self, proxy: Proxy, pgmq_url: str, queue: str, table: Table, eventually: Eventually
    ) -> None:
        config = Config(queue, visibility_timeout=2, poll_interval=0.02)
        async with PgMqBackend(pgmq_url, config, Email) as producer:
            await producer.push(Email("x"))
            proxy.lose_answer("FOR UPDATE SKIP LOCKED")
            async with PgMqBackend(proxy.url, config, Email) as backend:
                watched = Watched(backend)
                async with running(watched.worker):
                    await asyncio.wait_for(proxy.answer_lost.wait(), 10)
                    [row] = await table.rows()
                    assert row["read_ct"] == 1
                    assert watched.handler.started == []
                    await eventually(table.is_empty)
        assert watched.handler.started == ["x"]
        assert not watched.lost
        assert await table.dead() == []

    @pytest.mark.parametrize("on_success", ["delete", "archive"])
    async def test_of_an_ack(
        self, proxy: Proxy, queue: str, table: Table, eventually: Eventually, on_success: Any, caplog: Any
    ) -> None:
        config = Config(queue, visibility_timeout=30, on_success=on_success)
        async with PgMqBackend(proxy.url, config, Email) as backend:
            watched = Watched(backend)
            async with running(watched.worker):
                proxy.lose_answer("DELETE FROM")
                await backend.push(Email("x"))
                await asyncio.wait_for(proxy.answer_lost.wait(), 10)
                assert await table.is_empty()
                await eventually(lambda: "available again" in caplog.text)
                # The worker is well: it goes on.
                await backend.push(Email("y"))
                await eventually(lambda: "y" in watched.handler.done)
                await eventually(table.is_empty)
        assert watched.handler.started == ["x", "y"]
        assert not watched.lost
        assert "lost the lease" not in caplog.text
        assert len(await table.archived()) == (2 if on_success == "archive" else 0)

    async def test_of_an_ack_whose_message_another_has_by_now(
        self, proxy: Proxy, queue: str, db: asyncpg.Connection, table: Table, eventually: Eventually
    ) -> None:
        """The counterpart: here the try that broke was never carried out, and that must not pass for done."""
        config = Config(queue, visibility_timeout=30)
        async with PgMqBackend(proxy.url, config, Email) as backend:
            watched = Watched(backend)
            async with running(watched.worker):
                await backend.push(Email("held"))
                await eventually(lambda: watched.handler.started == ["held"])
                await db.execute(f"UPDATE pgmq.q_{queue} SET read_ct = 2, vt = now() + interval '1 h'")
                proxy.lose_answer("DELETE FROM")
                watched.handler.release.set()
                await asyncio.wait_for(proxy.answer_lost.wait(), 10)
                await eventually(lambda: watched.lost)
        [row] = await table.rows()
        assert row["read_ct"] == 2

    @pytest.mark.parametrize("after_the_next_extension", [False, True])
    async def test_of_an_extension(
        self,
        proxy: Proxy,
        queue: str,
        table: Table,
        eventually: Eventually,
        after_the_next_extension: bool,  # noqa: FBT001 - a test's parameter
    ) -> None:
        config = Config(queue, visibility_timeout=6, poll_interval=0.05)
        async with PgMqBackend(proxy.url, config, Email) as backend:
            watched = Watched(backend)
            async with running(watched.worker):
                await backend.push(Email("held"))
                await eventually(lambda: watched.handler.started == ["held"])
                [claimed] = await table.rows()
                proxy.lose_answer("SET vt = f.new_vt")
                await asyncio.wait_for(proxy.answer_lost.wait(), 10)
                [extended] = await table.rows()
                assert extended["vt"] > claimed["vt"]
                assert extended["read_ct"] == 1

                async def extended_again() -> bool:
                    [row] = await table.rows()
                    return row["vt"] > extended["vt"]

                if after_the_next_extension:
                    await eventually(extended_again)
                watched.handler.release.set()
                await eventually(table.is_empty)
        assert watched.handler.started == ["held"]
        assert not watched.lost

    async def test_of_a_dead_lettering(
        self, proxy: Proxy, queue: str, table: Table, eventually: Eventually, caplog: Any
    ) -> None:
        async def handler(message: Email) -> None:
            raise ValueError(message.to)

        async with PgMqBackend(proxy.url, Config(queue, max_retries=0), Email) as backend:
            events: list[Event] = []
            worker = WorkerBuilder("w").backend(backend).on_event(events.append).build(handler)
            async with running(worker):
                await backend.push(Email("first"))
                await eventually(table.dead)
                proxy.lose_answer("x-dead-letter-enqueued-at")
                await backend.push(Email("x"))
                await asyncio.wait_for(proxy.answer_lost.wait(), 10)
                await eventually(lambda: "available again" in caplog.text)
        assert len(await table.dead()) == 2
        assert await table.is_empty()
        assert not [event for event in events if isinstance(event, LeaseLost)]

    async def test_of_a_push(self, proxy: Proxy, queue: str, table: Table) -> None:
        """It cannot be known whether it was stored, so the caller is told; it is not sent twice by itself."""
        async with PgMqBackend(proxy.url, queue, Email) as backend:
            proxy.lose_answer("INSERT INTO")
            with pytest.raises(PgMqUnavailableError):
                await backend.push(Email("x"))
        assert await table.count() == 1


@own_server
async def test_fail_over_to_the_next_host_of_the_url(
    queue: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(queue, visibility_timeout=30)
    async with _server() as first, _server() as second:
        hosts = []
        for server in (first, second):
            connection = await asyncpg.connect(server.url)
            await connection.execute("CREATE ROLE app SUPERUSER LOGIN PASSWORD 'secret'")
            await connection.close()
            hosts.append(urlsplit(server.url).netloc.rpartition("@")[2])
        async with PgMqBackend(second.url, config, Email):
            pass  # as a replica has it
        url = f"postgresql://app:secret@{hosts[0]},{hosts[1]}/postgres"
        async with PgMqBackend(url, config, Email) as backend:
            watched = Watched(backend)
            async with running(watched.worker):
                await backend.push(Email("first"))
                await eventually(lambda: watched.handler.done == ["first"])
                await asyncio.to_thread(first.stop)
                await backend_push_until_stored(backend, Email("second"))
                await eventually(lambda: "second" in watched.handler.done)
        connection = await asyncpg.connect(second.url)
        assert await connection.fetchval(f"SELECT count(*) FROM pgmq.q_{queue}") == 0
        await connection.close()
    assert "unavailable" not in caplog.text or "available again" in caplog.text


async def backend_push_until_stored(backend: PgMqBackend[Email], message: Email) -> None:
    """As a caller does who would rather send twice than not at all."""
    async with asyncio.timeout(20):
        while True:
            try:
                await backend.push(message)
            except PgMqUnavailableError:
                await asyncio.sleep(0.05)
            else:
                return


@asynccontextmanager
async def _server(**settings: str) -> AsyncIterator[EmbeddedServer]:
    server = EmbeddedServer(settings=settings)
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


async def test_too_many_connections_are_waited_for(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    table: Table,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    role = f"role_{queue}"
    async with PgMqBackend(pgmq_url, queue, Email) as producer:
        await db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        await db.execute(f"GRANT USAGE ON SCHEMA pgmq TO {role}")
        await db.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON pgmq.q_{queue} TO {role}")
        others = [await asyncpg.connect(as_role(pgmq_url, role)) for _ in range(3)]
        try:
            async with PgMqBackend(as_role(pgmq_url, role), Config(queue), Email) as backend:
                watched = Watched(backend)
                async with running(watched.worker):
                    await producer.push(Email("before"))
                    await eventually(lambda: watched.handler.done == ["before"])
                    await eventually(table.is_empty)
                    # From now on the others use up what there is.
                    await db.execute(f"ALTER ROLE {role} CONNECTION LIMIT {len(others)}")
                    await db.execute(
                        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                        "WHERE usename = $1 AND pid <> ALL ($2::int[])",
                        role,
                        [other.get_server_pid() for other in others],
                    )
                    await producer.push(Email("after"))
                    await eventually(lambda: "too many connections" in caplog.text)
                    await asyncio.sleep(1)  # several tries fall into it
                    assert watched.handler.done == ["before"]
                    await db.execute(f"ALTER ROLE {role} CONNECTION LIMIT {len(others) + 3}")
                    await eventually(lambda: watched.handler.done == ["before", "after"])
                    await eventually(table.is_empty)
                    await eventually(lambda: "available again" in caplog.text)
        finally:
            for other in others:
                await other.close()
            await db.execute(f"DROP OWNED BY {role}")
            await db.execute(f"DROP ROLE {role}")
    assert_one_outage(caplog)


async def test_a_database_that_is_read_only_for_a_while_is_waited_for(
    new_database: Callable[[], Awaitable[str]],
    admin: asyncpg.Connection,
    queue: str,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As hosted databases do when the disk is full: and nobody ends the sessions when it is over."""
    url = await new_database()
    name = urlsplit(url).path[1:]
    async with PgMqBackend(url, Config(queue, visibility_timeout=30), Email) as backend:
        watched = Watched(backend)
        async with running(watched.worker):
            await backend.push(Email("held"))
            await eventually(lambda: watched.handler.started == ["held"])
            await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            await admin.execute(TERMINATE.replace("current_database()", f"'{name}'"))
            await eventually(lambda: "read-only transaction" in caplog.text)
            watched.handler.release.set()
            await eventually(lambda: watched.handler.done == ["held"])
            await asyncio.sleep(1)  # several tries fall into it
            await admin.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            await eventually(lambda: "available again" in caplog.text, within=15)
            await backend_push_until_stored(backend, Email("after"))
            await eventually(lambda: watched.handler.done == ["held", "after"])
            look = await asyncpg.connect(url)
            await eventually(lambda: _is_empty(look, queue))
            await look.close()
        assert watched.handler.started == ["held", "after"]
        assert not watched.lost
    assert_one_outage(caplog)


async def _is_empty(connection: asyncpg.Connection, queue: str) -> bool:
    return await connection.fetchval(f"SELECT count(*) FROM pgmq.q_{queue}") == 0


@own_server
async def test_an_outage_costs_two_log_lines_and_next_to_no_memory_and_handlers_go_on(
    queue: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "apalis_pgmq")
    ticks = 0
    started: list[str] = []
    over = asyncio.Event()

    async def handler(message: Email) -> None:
        nonlocal ticks
        started.append(message.to)
        while not over.is_set():
            ticks += 1
            await asyncio.sleep(0.02)

    async with _server() as server:
        config = Config(queue, visibility_timeout=30, poll_interval=0.02)
        async with PgMqBackend(server.url, config, Email) as backend:
            worker = WorkerBuilder("w").backend(backend).concurrency(20).build(handler)
            async with running(worker):
                await backend.push_many(Email(str(number)) for number in range(20))
                await eventually(lambda: len(started) == 20)
                caplog.clear()
                with server.down():
                    await eventually(lambda: lines(caplog))
                    ticks_before, tasks_before = ticks, len(asyncio.all_tasks())
                    tracemalloc.start()
                    before = await _traced()
                    ends = time.monotonic() + 5
                    await eventually(lambda: time.monotonic() > ends)
                    grown = await _traced() - before
                    tracemalloc.stop()
                    ticks_meanwhile = ticks - ticks_before
                    tasks_grown = len(asyncio.all_tasks()) - tasks_before
                over.set()
                connection = await asyncpg.connect(server.url)
                await eventually(lambda: _is_empty(connection, queue))
                await connection.close()
                await eventually(lambda: len(lines(caplog)) == 2)
    assert ticks_meanwhile > 20 * 5 * 10
    # Steady tries may leave something of the last one behind, not something of each.
    assert grown < 200_000
    assert tasks_grown <= 2
    assert sorted(started) == sorted(str(number) for number in range(20))
    assert_one_outage(caplog)
    assert len([record for record in caplog.records if record.name == "apalis_pgmq"]) == 2


async def _traced() -> int:
    await asyncio.sleep(0)
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
