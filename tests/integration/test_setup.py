"""Making PGMQ and queues ready."""

import asyncio
import importlib.resources
import importlib.util
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from apalis_pgmq import (
    PgMqBackend,
    PgMqNotInstalledError,
    PgMqPermissionError,
    PgMqUnavailableError,
    PgMqVersionError,
)

from .conftest import as_role

NewDatabase = Callable[[], Awaitable[str]]


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def set_up(url: str, queue: str) -> None:
    async with PgMqBackend(url, queue, str):
        pass


@pytest.fixture
async def role(admin: asyncpg.Connection, queue: str):
    name = f"role_{queue}"
    await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
    yield name
    await admin.execute(f"DROP ROLE {name}")


async def test_pgmq_is_installed_from_the_package_where_there_is_none(new_database: NewDatabase) -> None:
    url = await new_database()
    async with PgMqBackend(url, "emails", str) as backend:
        await backend.push("hello")
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM pgmq.read('emails'::text, 30, 10)") == 1
    await connection.close()


async def test_an_offered_extension_is_preferred(
    new_database: NewDatabase, admin: asyncpg.Connection
) -> None:
    if admin.get_server_version().major < 18:
        pytest.skip("before PostgreSQL 18 extensions are found in the installation only")
    url = await new_database()
    path = await _offer_extension(admin)
    await admin.execute(f"ALTER DATABASE {urlsplit(url).path[1:]} SET extension_control_path = '{path}'")
    async with PgMqBackend(url, "emails", str) as backend:
        await backend.push("hello")
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT extversion FROM pg_extension WHERE extname = 'pgmq'")
    await connection.close()


async def _offer_extension(admin: asyncpg.Connection) -> str:
    """Lay out the packaged SQL as an extension, as PGMQ's own build does; return the path to find it."""
    package = importlib.resources.files("pgmq") / "sql"
    version = (package / "VERSION").read_text().strip()
    data = Path(await admin.fetchval("SHOW data_directory"))
    folder = data / "offered" / "extension"
    # Written by the server itself: the tests may run as another user than it does.
    await admin.execute(f"COPY (SELECT 1) TO PROGRAM 'mkdir -p {folder}'")
    for name, text in (
        (f"pgmq--{version}.sql", (package / "pgmq.sql").read_text()),
        ("pgmq.control", f"default_version = '{version}'\nschema = 'pgmq'\nrelocatable = false\n"),
    ):
        lob = await admin.fetchval("SELECT lo_from_bytea(0, $1)", text.encode())
        await admin.execute(f"SELECT lo_export({lob}, '{folder / name}')")
        await admin.execute(f"SELECT lo_unlink({lob})")
    return f"$system:{folder.parent}"


async def test_pgmq_that_is_there_is_used_as_it_is(pgmq_url: str, queue: str, db: asyncpg.Connection) -> None:
    await db.execute("SELECT pgmq.create($1::text)", queue)
    before = await db.fetchval("SELECT count(*) FROM pg_proc WHERE pronamespace = 'pgmq'::regnamespace")
    async with PgMqBackend(pgmq_url, queue, str) as backend:
        await backend.setup()
    after = await db.fetchval("SELECT count(*) FROM pg_proc WHERE pronamespace = 'pgmq'::regnamespace")
    assert before == after


async def test_tables_of_older_versions_work(pgmq_url: str, queue: str, db: asyncpg.Connection) -> None:
    await db.execute("SELECT pgmq.create($1::text)", queue)
    for table in ("q", "a"):
        await db.execute(f"ALTER TABLE pgmq.{table}_{queue} DROP COLUMN last_read_at")
    async with PgMqBackend(pgmq_url, queue, str) as backend, backend.poll() as consumer:
        await backend.push("hello")
        task = await anext(consumer)
        assert (task.args, task.attempt) == ("hello", 1)
        consumer.ack(task)
    assert await db.fetchval(f"SELECT count(*) FROM pgmq.q_{queue}") == 0


async def test_many_set_ups_at_once_do_not_fight(new_database: NewDatabase) -> None:
    url = await new_database()
    backends = [PgMqBackend(url, f"queue{number % 3}", str) for number in range(12)]
    await asyncio.gather(*(backend.setup() for backend in backends))
    await asyncio.gather(*(backend.push("hello") for backend in backends))
    await asyncio.gather(*(backend.close() for backend in backends))
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM pgmq.meta") == 3
    await connection.close()


async def test_set_ups_of_many_processes_do_not_fight(new_database: NewDatabase, tmp_path: Path) -> None:
    url = await new_database()
    script = tmp_path / "set_up.py"
    script.write_text(
        "import asyncio, sys\n"
        "from apalis_pgmq import PgMqBackend\n"
        "async def main():\n"
        "    async with PgMqBackend(sys.argv[1], 'emails', str) as backend:\n"
        "        await backend.push('hello')\n"
        "asyncio.run(main())\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, str(script), url, stderr=asyncio.subprocess.PIPE)
        for _ in range(4)
    ]
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0] * 4, outputs
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM pgmq.q_emails") == 4
    await connection.close()


async def test_without_the_package_the_error_says_what_to_install(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await new_database()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pgmq" else find_spec(name, *rest)
    )
    with pytest.raises(PgMqNotInstalledError, match=r"CREATE EXTENSION pgmq.*apalis-pgmq\[embedded\]"):
        await set_up(url, "emails")


async def test_a_role_that_may_not_install_pgmq_is_told_so(new_database: NewDatabase, role: str) -> None:
    url = await new_database()
    with pytest.raises(PgMqPermissionError, match=r"may not put it there.*CREATE on the database"):
        await set_up(as_role(url, role), "emails")


async def test_a_role_that_may_not_use_the_schema_is_told_so(pgmq_url: str, role: str, queue: str) -> None:
    with pytest.raises(PgMqPermissionError, match="GRANT USAGE ON SCHEMA pgmq"):
        await set_up(as_role(pgmq_url, role), queue)


async def test_a_role_that_may_not_create_queues_is_told_so(
    pgmq_url: str, role: str, queue: str, db: asyncpg.Connection
) -> None:
    await db.execute(f"GRANT USAGE ON SCHEMA pgmq TO {role}")
    try:
        with pytest.raises(PgMqPermissionError, match=rf"may not create queue '{queue}'.*pgmq\.create"):
            await set_up(as_role(pgmq_url, role), queue)
    finally:
        await db.execute(f"DROP OWNED BY {role}")


async def test_a_role_without_rights_on_the_tables_is_told_so(
    pgmq_url: str, role: str, queue: str, db: asyncpg.Connection
) -> None:
    await db.execute("SELECT pgmq.create($1::text)", queue)
    await db.execute(f"GRANT USAGE ON SCHEMA pgmq TO {role}")
    try:
        async with PgMqBackend(as_role(pgmq_url, role), queue, str) as backend:
            with pytest.raises(PgMqPermissionError, match="SELECT, INSERT, UPDATE, DELETE"):
                await backend.push("hello")
    finally:
        await db.execute(f"DROP OWNED BY {role}")


async def test_too_old_a_version_is_refused(new_database: NewDatabase) -> None:
    url = await new_database()
    await execute(
        url,
        "CREATE SCHEMA pgmq",
        "CREATE TABLE pgmq.meta (queue_name text)",
        "CREATE TYPE pgmq.message_record AS (msg_id bigint, read_ct int, message jsonb)",
    )
    with pytest.raises(PgMqVersionError, match=r"1\.5\.1 or later is needed: ALTER EXTENSION pgmq UPDATE"):
        await set_up(url, "emails")


async def test_wrong_users_and_databases_are_told_without_the_password(server_url: str) -> None:
    parts = urlsplit(server_url)
    with pytest.raises(PgMqPermissionError, match="check user and password") as caught:
        await set_up(as_role(server_url, "nobody_known", "hunter2"), "emails")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(Exception, match="create it, or correct the URL"):
        await set_up(parts._replace(path="/nowhere").geturl(), "emails")


async def test_a_server_that_is_away_is_unavailable() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but nobody listens
        url = f"postgres://u:hunter2@127.0.0.1:{bound.getsockname()[1]}/db"
        backend = PgMqBackend(url, "emails", str)
        with pytest.raises(PgMqUnavailableError, match=r"127\.0\.0\.1") as caught:
            await backend.setup()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(backend)
