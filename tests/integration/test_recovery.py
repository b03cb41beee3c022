"""The worker stays up: broken connections, restarts, poolers."""

import asyncio
import logging
import os
import pwd
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from apalis_pgmq import Config, PgMqBackend, PgMqProducer, PgMqQueues, PgMqTopic, WorkerBuilder
from apalis_pgmq.embedded import EmbeddedServer

from .conftest import Email, Table, running, sweep_bodies

Eventually = Callable[..., Awaitable[None]]


async def test_terminated_connections_are_replaced_and_nothing_is_lost(
    pgmq_url: str, queue: str, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    handled: Counter[str] = Counter()

    async def handler(message: Email) -> None:
        handled[message.to] += 1
        await asyncio.sleep(0.005)

    async with PgMqBackend(pgmq_url, Config(queue, visibility_timeout=2), Email) as backend:
        await backend.push_many(Email(str(number)) for number in range(2000))
        worker = WorkerBuilder("w").backend(backend).concurrency(20).build(handler)
        run = asyncio.create_task(worker.run())
        for round_ in range(1, 5):
            await eventually(lambda round_=round_: len(handled) > round_ * 300)
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await eventually(table.is_empty)
        worker.stop()
        await run
    assert len(handled) == 2000
    assert await table.dead() == []


async def test_a_restarting_server_is_waited_for_and_logged_once(
    queue: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "apalis_pgmq")
    running, release = asyncio.Event(), asyncio.Event()
    handled = []

    async def handler(message: Email) -> None:
        if message.to == "before":
            running.set()
            await release.wait()
        handled.append(message.to)

    if os.environ.get("APALIS_PGMQ_URL"):
        pytest.skip("a server that is not ours is not restarted")
    with EmbeddedServer() as server:
        async with PgMqBackend(server.url, Config(queue, visibility_timeout=30), Email) as backend:
            worker = WorkerBuilder("w").backend(backend).concurrency(5).build(handler)
            run = asyncio.create_task(worker.run())
            await backend.push(Email("before"))
            await running.wait()
            with server.down():
                await eventually(lambda: "unavailable, trying again" in caplog.text)
                release.set()
                await eventually(lambda: handled == ["before"])
                await asyncio.sleep(1)  # the outage goes on: several tries fall into it
            await eventually(lambda: "available again" in caplog.text)
            await backend.push(Email("after"))
            await eventually(lambda: handled == ["before", "after"])
            connection = await asyncpg.connect(server.url)
            await eventually(lambda: _is_zero(connection, f"SELECT count(*) FROM pgmq.q_{queue}"))
            await connection.close()
            worker.stop()
            await run
    assert caplog.text.count("unavailable, trying again") == 1
    assert caplog.text.count("available again") == 1


async def test_a_crashing_server_loses_no_message(queue: str, eventually: Eventually) -> None:
    handled: Counter[str] = Counter()

    async def handler(message: Email) -> None:
        await asyncio.sleep(0.002)
        handled[message.to] += 1

    if os.environ.get("APALIS_PGMQ_URL"):
        pytest.skip("a server that is not ours is not restarted")
    with EmbeddedServer(settings={"fsync": "on"}) as server:
        config = Config(queue, visibility_timeout=2, max_retries=100)
        async with PgMqBackend(server.url, config, Email) as backend:
            await backend.push_many(Email(str(number)) for number in range(1000))
            worker = WorkerBuilder("w").backend(backend).concurrency(5).build(handler)
            run = asyncio.create_task(worker.run())
            await eventually(lambda: len(handled) > 200)
            await asyncio.to_thread(server.restart, "immediate")
            connection = await asyncpg.connect(server.url)
            await eventually(lambda: _is_zero(connection, f"SELECT count(*) FROM pgmq.q_{queue}"), within=40)
            await connection.close()
            worker.stop()
            await run
    assert len(handled) == 1000


async def _is_zero(connection: asyncpg.Connection, sql: str) -> bool:
    return await connection.fetchval(sql) == 0


async def test_a_worker_waits_for_a_server_that_is_not_up_yet(
    queue: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(message: Email) -> None: ...

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but nobody listens
        backend = PgMqBackend(f"postgresql://u@127.0.0.1:{bound.getsockname()[1]}/db", queue, Email)
        worker = WorkerBuilder("w").backend(backend).build(handler)
        run = asyncio.create_task(worker.run())
        await eventually(lambda: "unavailable, trying again" in caplog.text)
        worker.stop()
        async with asyncio.timeout(5):
            await run
        await backend.close()


@pytest.fixture
async def pgbouncer_url(pgmq_url: str, tmp_path: Path) -> AsyncIterator[str]:
    """A pgbouncer in transaction mode with few server connections in front of the database."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    parts = urlsplit(pgmq_url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = parts.path[1:]
    config = tmp_path / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n{database} = host={parts.hostname} port={parts.port} "
        f"user={parts.username} password={parts.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n"
        "pool_mode = transaction\ndefault_pool_size = 2\nmax_client_conn = 100\nunix_socket_dir =\n"
    )
    user: dict[str, object] = {}
    arguments = [program, "/dev/stdin"]
    if os.geteuid() == 0:
        account = pwd.getpwnam("nobody")
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    with config.open("rb") as stdin:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=stdin,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd="/",
            **user,
        )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    assert process.returncode is None, "pgbouncer ended"
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    break
        yield f"postgresql://{parts.username}@127.0.0.1:{port}/{database}"
    finally:
        process.kill()
        await process.wait()


async def test_a_producer_works_through_pgbouncer_in_transaction_mode(
    pgbouncer_url: str, queue: str, table: Table
) -> None:
    def send(number: int) -> None:
        for one in range(20):
            producer.push(Email(f"{number}-{one}"))
        producer.push_many([Email(f"{number}-{one}") for one in range(2000)])

    with PgMqProducer(pgbouncer_url, queue, Email, size=6) as producer, ThreadPoolExecutor(6) as threads:
        producer.setup()
        await asyncio.gather(
            *(asyncio.get_running_loop().run_in_executor(threads, send, number) for number in range(6))
        )
    assert await table.count() == 6 * 2020


async def test_it_works_through_pgbouncer_in_transaction_mode(
    pgbouncer_url: str, queue: str, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    handled: Counter[str] = Counter()

    async def handler(message: Email) -> None:
        handled[message.to] += 1

    config = Config(queue, visibility_timeout=2, poll_interval=0.02)
    backends = [PgMqBackend(pgbouncer_url, config, Email) for _ in range(3)]
    await asyncio.gather(*(backend.setup() for backend in backends))
    workers = [
        WorkerBuilder(f"w{number}").backend(backend).concurrency(10).build(handler)
        for number, backend in enumerate(backends)
    ]
    runs = [asyncio.create_task(worker.run()) for worker in workers]
    pushes = [
        backends[number % 3].push_many([Email(f"{number}-{one}") for one in range(50)])
        for number in range(20)
    ]
    await asyncio.gather(*pushes)
    await eventually(lambda: len(handled) == 1000)
    await eventually(table.is_empty)
    for worker in workers:
        worker.stop()
    await asyncio.gather(*runs)
    await asyncio.gather(*(backend.close() for backend in backends))
    assert set(handled.values()) == {1}


async def test_large_payloads_go_through_pgbouncer_and_are_swept_through_it(
    pgbouncer_url: str, queue: str, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    large = Email("ada", body="x" * 5000)
    handled = []

    async def handler(message: Email) -> None:
        handled.append(message)

    async with PgMqBackend(
        pgbouncer_url, Config(queue, poll_interval=0.02, claim_check_over=1000), Email
    ) as backend:
        await backend.push_many([large] * 3)
        await db.execute(f"SELECT pgmq.delete('{queue}', min(msg_id)) FROM pgmq.q_{queue}")
        assert await sweep_bodies(pgbouncer_url, queue) == 1
        async with running(WorkerBuilder("w").backend(backend).build(handler)):
            await eventually(table.is_empty)
    assert handled == [large, large]
    assert await db.fetchval(f"SELECT count(*) FROM pgmq.b_{queue}") == 0


async def test_so_do_queues_topics_and_keys(pgbouncer_url: str, queue: str, table: Table) -> None:
    async with (
        PgMqQueues(pgbouncer_url) as queues,
        PgMqTopic(pgbouncer_url, Email) as topic,
        PgMqBackend(pgbouncer_url, queue, Email) as backend,
    ):
        assert await queues.create(queue, tune=True, dedup=True) is False
        await queues.bind(f"{queue}.*", queue)
        assert await topic.push(f"{queue}.x", Email("topic")) == {queue: 1}
        ids = await asyncio.gather(*(backend.push(Email("key"), dedup_key=f"{n % 5}") for n in range(20)))
        assert len(set(ids)) == 5
        assert (await queues.metrics(queue)).length == 6
        assert await queues.purge(queue) == 6
        assert await queues.drop(queue)
