"""Several worker processes on one queue, and their sudden death."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from apalis_pgmq import Config, PgMqBackend

from .conftest import Email, Table

Eventually = Callable[..., Awaitable[None]]

# Each handler writes to a ledger when it starts and when it is done, outside the library.
PROGRAM = """
import asyncio, os, sys
from dataclasses import dataclass
import asyncpg
from apalis_pgmq import Config, Monitor, PgMqBackend, TaskId, WorkerBuilder

@dataclass
class Email:
    to: str
    subject: str
    body: str

async def main(url, queue, timeout, concurrency, seconds):
    async with asyncpg.create_pool(url, min_size=1, max_size=4) as pool:
        async def handler(message: Email, task_id: TaskId) -> None:
            await pool.execute(f"INSERT INTO ledger_{queue} VALUES ($1, $2, 'start')", task_id, os.getpid())
            await asyncio.sleep(seconds)
            await pool.execute(f"INSERT INTO ledger_{queue} VALUES ($1, $2, 'done')", task_id, os.getpid())

        async with PgMqBackend(url, Config(queue, visibility_timeout=timeout), Email) as backend:
            worker = WorkerBuilder("w").backend(backend).concurrency(concurrency).build(handler)
            await Monitor().register(worker).run()

url, queue, timeout, concurrency, seconds = sys.argv[1:]
asyncio.run(main(url, queue, float(timeout), int(concurrency), float(seconds)))
"""


class Ledger:
    def __init__(self, db: asyncpg.Connection, queue: str) -> None:
        self.db = db
        self.table = f"ledger_{queue}"

    async def count(self, what: str) -> int:
        counted: int = await self.db.fetchval(f"SELECT count(*) FROM {self.table} WHERE what = $1", what)
        return counted

    async def distinct(self, what: str, column: str) -> int:
        counted: int = await self.db.fetchval(
            f"SELECT count(DISTINCT {column}) FROM {self.table} WHERE what = $1", what
        )
        return counted


@pytest.fixture
async def ledger(db: asyncpg.Connection, queue: str) -> AsyncIterator[Ledger]:
    await db.execute(f"CREATE TABLE ledger_{queue} (id bigint, pid int, what text)")
    yield Ledger(db, queue)
    await db.execute(f"DROP TABLE ledger_{queue}")


@pytest.fixture
async def start(pgmq_url: str, queue: str, tmp_path: Path):
    """Starts worker processes; kills what is left of them."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    processes: list[asyncio.subprocess.Process] = []

    async def start(
        *, visibility_timeout: float, concurrency: int, seconds: float
    ) -> asyncio.subprocess.Process:
        arguments = map(str, (script, pgmq_url, queue, visibility_timeout, concurrency, seconds))
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_four_processes_handle_each_message_once(
    pgmq_url: str, queue: str, ledger: Ledger, table: Table, start, eventually: Eventually
) -> None:
    async with PgMqBackend(pgmq_url, Config(queue), Email) as backend:
        await backend.push_many(Email(str(number)) for number in range(2000))
    processes = [await start(visibility_timeout=30, concurrency=4, seconds=0) for _ in range(4)]
    await eventually(table.is_empty, within=60)
    assert await ledger.count("done") == await ledger.distinct("done", "id") == 2000
    assert await ledger.distinct("done", "pid") == 4
    for process in processes:
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert [await process.wait() for process in processes] == [0] * 4
    assert await table.dead() == []


async def test_kill_9_loses_nothing_and_the_messages_return_within_the_visibility_timeout(
    pgmq_url: str, queue: str, ledger: Ledger, table: Table, start, eventually: Eventually
) -> None:
    visibility_timeout = 3.0
    async with PgMqBackend(pgmq_url, Config(queue), Email) as backend:
        await backend.push_many(Email(str(number)) for number in range(20))
    victim = await start(visibility_timeout=visibility_timeout, concurrency=3, seconds=60)

    async def all_run() -> bool:
        return await ledger.count("start") == 3

    await eventually(all_run)
    rescuer = await start(visibility_timeout=visibility_timeout, concurrency=20, seconds=0)
    # All but what the victim holds.
    await eventually(lambda: _all_claimed_once(table))
    victim.kill()
    killed = time.monotonic()
    await victim.wait()
    await eventually(table.is_empty, within=visibility_timeout + 2)
    assert time.monotonic() - killed < visibility_timeout + 2
    assert await ledger.distinct("done", "id") == 20
    assert await ledger.count("done") == 20
    rescuer.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert await rescuer.wait() == 0


async def _all_claimed_once(table: Table) -> bool:
    return all(row["read_ct"] == 1 for row in await table.rows()) and await table.count() < 10


async def test_a_message_whose_handler_kills_the_process_ends_in_the_dead_letters(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, tmp_path: Path
) -> None:
    script = tmp_path / "poison.py"
    script.write_text(
        "import asyncio, os, signal, sys\n"
        "from apalis_pgmq import Config, PgMqBackend, WorkerBuilder\n"
        "async def main(url, queue):\n"
        "    async def handler(message: str) -> None:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    config = Config(queue, visibility_timeout=0.5, max_retries=1, poll_interval=0.02)\n"
        "    async with PgMqBackend(url, config, str) as backend:\n"
        "        await WorkerBuilder('w').backend(backend).build(handler).run()\n"
        "asyncio.run(main(*sys.argv[1:]))\n"
    )
    async with PgMqBackend(pgmq_url, queue, str) as backend:
        await backend.push("poison")
    deaths = 0
    while not await table.dead():
        process = await asyncio.create_subprocess_exec(sys.executable, str(script), pgmq_url, queue)

        async def is_over(process: asyncio.subprocess.Process = process) -> bool:
            return process.returncode is not None or bool(await table.dead())

        await eventually(is_over)
        if process.returncode is None:
            process.kill()
        else:
            deaths += 1
        await process.wait()
    assert deaths == 2
    assert await table.is_empty()
