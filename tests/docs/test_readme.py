"""The README's code, as it stands there."""

import asyncio
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from apalis_pgmq import AbortError, Monitor, PgMqBackend, WorkerBuilder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
URL = "postgres://postgres:postgres@localhost:5432/postgres"


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block {name!r}"
    return found.group(1)


async def read_until(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        while text not in (line := (await process.stdout.readline()).decode()):
            assert line, f"ended before it printed {text!r}"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
async def test_the_first_program_works_as_written(pgmq_url: str, tmp_path: Path, scheme: str) -> None:
    program = block("first program")
    assert URL in program
    script = tmp_path / "first_program.py"
    script.write_text(program.replace(URL, scheme + pgmq_url[pgmq_url.index("://") :]))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", str(script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    await read_until(process, "Sending email to: ada@example.com")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        _, errors = await process.communicate()
    assert process.returncode == 0
    assert errors == b""
    connection = await asyncpg.connect(pgmq_url)
    assert await connection.fetchval("SELECT count(*) FROM pgmq.q_emails") == 0
    await connection.execute("SELECT pgmq.drop_queue('emails'::text)")
    await connection.close()


async def test_two_queues_share_their_connections_as_written(
    pgmq_url: str, db: asyncpg.Connection, eventually: Callable[..., Awaitable[None]]
) -> None:
    @dataclass
    class EmailMessage:
        to: str

    sent = []

    async def send_email(message: EmailMessage) -> None:
        sent.append(message.to)

    program = block("shared connections")
    assert URL in program
    names = {
        "EmailMessage": EmailMessage,
        "Monitor": Monitor,
        "PgMqBackend": PgMqBackend,
        "WorkerBuilder": WorkerBuilder,
        "send_email": send_email,
    }
    exec(compile(program.replace(URL, pgmq_url), "README.md", "exec", dont_inherit=True), names)
    for queue in ("emails", "newsletters"):
        async with PgMqBackend(pgmq_url, queue, EmailMessage) as backend:
            await backend.push(EmailMessage(queue))
    running = asyncio.create_task(names["two_queues"]())
    try:
        await eventually(lambda: sorted(sent) == ["emails", "newsletters"])
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    for queue in ("emails", "newsletters"):
        await db.execute(f"SELECT pgmq.drop_queue('{queue}'::text)")


async def test_the_handlers_work_as_written(pgmq_url: str, queue: str) -> None:
    @dataclass
    class EmailMessage:
        to: str
        subject: str
        body: str

    class SmtpClient:
        sent: list[str] = []  # noqa: RUF012 - one client, one list

        async def send(self, to: str, body: str) -> bool:
            self.sent.append(to)
            if len(self.sent) == 2:
                worker.stop()
            return True

    names = {"EmailMessage": EmailMessage, "SmtpClient": SmtpClient, "__name__": "readme"}
    exec(compile(block("handlers"), "README.md", "exec", dont_inherit=True), names)
    async with PgMqBackend(pgmq_url, queue, EmailMessage) as emails:
        WorkerBuilder("resize").backend(emails).build(names["resize"])
        worker = WorkerBuilder("send").backend(emails).data(SmtpClient()).build(names["send"])
        for to in ("ada@example.com", "nowhere", "grace@example.com"):
            await emails.push(EmailMessage(to, "Hello", "..."))
        async with asyncio.timeout(20):
            await worker.run()
    assert SmtpClient.sent == ["ada@example.com", "grace@example.com"]
    connection = await asyncpg.connect(pgmq_url)
    reason = f"SELECT headers->>'x-dead-letter-reason' FROM pgmq.q_{queue}_dlq"
    assert await connection.fetchval(reason) == "aborted"
    await connection.close()


async def test_the_other_handlers_work_as_written(
    pgmq_url: str, queue: str, db: asyncpg.Connection, eventually: Callable[..., Awaitable[None]]
) -> None:
    @dataclass
    class EmailMessage:
        to: str
        subject: str
        body: str

    await db.execute("CREATE TABLE bills (customer text)")
    async with (
        PgMqBackend(pgmq_url, f"{queue}_bills", EmailMessage) as bills,
        PgMqBackend(pgmq_url, queue, EmailMessage) as emails,
    ):
        names = {
            "EmailMessage": EmailMessage,
            "AbortError": AbortError,
            "WorkerBuilder": WorkerBuilder,
            "bills": bills,
            "emails": emails,
            "__name__": "readme",
        }
        exec(compile(block("more handlers"), "README.md", "exec", dont_inherit=True), names)
        await bills.push(EmailMessage("ada", "s", "b"))
        await emails.push(EmailMessage("nobody", "s", ""))
        monitor = Monitor(handle_signals=False).register(names["billing"]).register(names["indexing"])
        run = asyncio.create_task(monitor.run())
        indexed = names["indexing"]
        await eventually(lambda: indexed.stats.succeeded == indexed.stats.dead_lettered == 1)
        monitor.stop()
        await run
    assert [row["customer"] for row in await db.fetch("SELECT customer FROM bills")] == ["ada"]
    await db.execute("DROP TABLE bills")


async def test_the_producers_work_as_written(pgmq_url: str, db: asyncpg.Connection, queue: str) -> None:
    from sqlalchemy import create_engine, text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.orm import Session

    @dataclass
    class EmailMessage:
        to: str
        subject: str
        body: str

    await db.execute("CREATE TABLE users (email text)")
    url = pgmq_url[pgmq_url.index("://") :]
    async with PgMqBackend(pgmq_url, "emails", EmailMessage) as emails:
        names = {
            "AsyncSession": AsyncSession,
            "EmailMessage": EmailMessage,
            "Session": Session,
            "emails": emails,
            "text": text,
        }
        exec(compile(block("producers"), "README.md", "exec", dont_inherit=True), names)
        engine = create_async_engine("postgresql+asyncpg" + url)
        async with AsyncSession(engine) as session, session.begin():
            await names["sign_up"]("ada", session)
        await engine.dispose()
        blocking = create_engine("postgresql+psycopg" + url)
        with Session(blocking) as session, session.begin():
            names["sign_up_by_form"]("grace", session)
        blocking.dispose()
    sent = await db.fetch("SELECT message->>'to' AS to FROM pgmq.q_emails ORDER BY msg_id")
    assert [row["to"] for row in sent] == ["ada", "grace"]
    await db.execute("DROP TABLE users; SELECT pgmq.drop_queue('emails'::text)")


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_ci_runs_the_test_command_of_the_readme() -> None:
    development = README[README.index("## Development") :]
    command = re.search(r"```bash\n(.*?)```", development, re.DOTALL)
    assert command
    ci = (ROOT / ".ci" / "run").read_text().replace("pip install -q", "pip install")
    assert command.group(1) in ci
