"""The roles of docs/sql/roles.sql: what each can do, and what it cannot."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest

from apalis_pgmq import (
    AbortError,
    Config,
    PgMqBackend,
    PgMqError,
    PgMqPermissionError,
    Transaction,
    WorkerBuilder,
)

from .conftest import Email, Table, as_role

Eventually = Callable[..., Awaitable[None]]

ROLES = (Path(__file__).parents[2] / "docs" / "sql" / "roles.sql").read_text()
KINDS = ("producer", "worker", "operator")


@dataclass(frozen=True)
class Roles:
    """Logins that are members of the roles, and what to try with them."""

    url: str
    db: asyncpg.Connection
    config: Config

    @property
    def queue(self) -> str:
        return self.config.queue

    def backend(self, kind: str, **changes: object) -> PgMqBackend[Email]:
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        return PgMqBackend(as_role(self.url, f"login_{self.queue}_{kind}"), config, Email)

    async def grant(self) -> None:
        await self.db.execute(ROLES.replace("emails", self.queue))

    async def refuses(self, kind: str, *statements: str) -> None:
        """Try statements, each of which must fail for want of a right alone."""
        connection = await asyncpg.connect(as_role(self.url, f"login_{self.queue}_{kind}"))
        try:
            for statement in statements:
                sql = statement.replace("emails", self.queue)
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(sql)
        finally:
            await connection.close()
        for statement in statements:
            # As the owner it goes through: it was not refused for another reason.
            transaction = self.db.transaction()
            await transaction.start()
            await self.db.execute(statement.replace("emails", self.queue))
            await transaction.rollback()


@pytest.fixture
async def roles(pgmq_url: str, queue: str, db: asyncpg.Connection) -> AsyncIterator[Roles]:
    config = Config(queue, poll_interval=0.02, visibility_timeout=1, max_retries=0)
    for name in (queue, config.dead_letter_queue):
        await db.execute("SELECT pgmq.create($1::text)", name)
    roles = Roles(pgmq_url, db, config)
    await roles.grant()
    for kind in KINDS:
        login = f"login_{queue}_{kind}"
        await db.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'secret'; GRANT {queue}_{kind} TO {login}")
    yield roles
    for kind in KINDS:
        for role in (f"login_{queue}_{kind}", f"{queue}_{kind}"):
            await db.execute(f"DROP OWNED BY {role}")
            await db.execute(f"DROP ROLE {role}")


async def give_up(message: Email) -> None:
    raise AbortError("no")


async def work_until(
    backend: PgMqBackend[Email],
    handler: Callable[..., Awaitable[None]],
    condition: Callable[[], object],
    eventually: Eventually,
) -> None:
    worker = WorkerBuilder("w").backend(backend).build(handler)
    run = asyncio.create_task(worker.run())
    await eventually(condition)
    worker.stop()
    await run


async def bury(roles: Roles) -> None:
    await roles.db.execute(
        f"INSERT INTO pgmq.q_{roles.queue}_dlq (vt, message) VALUES (now(), $1::text::jsonb)",
        json.dumps({"to": "ada", "subject": "s", "body": "b"}),
    )


SEND = """INSERT INTO pgmq.q_emails (vt, message) VALUES (now(), '"x"')"""
READ = "SELECT message FROM pgmq.q_emails"
ALTER_MESSAGE = """UPDATE pgmq.q_emails SET message = '"x"'"""
OWNERS = (
    "DROP TABLE pgmq.q_emails CASCADE",
    "TRUNCATE pgmq.q_emails",
    "CREATE TABLE pgmq.emails_4 (id int)",
    "SELECT pgmq.create('emails_2'::text)",
    "SELECT pgmq.drop_queue('emails'::text)",
    "SELECT pgmq.purge_queue('emails'::text)",
    "INSERT INTO pgmq.meta (queue_name, is_partitioned, is_unlogged) VALUES ('emails_3', false, false)",
    ALTER_MESSAGE,
    "ALTER TABLE pgmq.q_emails DISABLE ROW LEVEL SECURITY",
)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_role_can_do_what_is_the_owners(roles: Roles, kind: str) -> None:
    await roles.refuses(kind, *OWNERS)


@pytest.mark.parametrize("kind", KINDS)
async def test_no_role_reaches_other_queues(roles: Roles, kind: str) -> None:
    other = f"{roles.queue}_o"
    await roles.db.execute("SELECT pgmq.create($1::text)", other)
    await roles.refuses(
        kind,
        f"SELECT msg_id FROM pgmq.q_{other}",
        f"INSERT INTO pgmq.q_{other} (vt, message) VALUES (now(), 'null')",
        f"DELETE FROM pgmq.q_{other}",
    )


async def test_a_producer_sends(roles: Roles, table: Table) -> None:
    async with roles.backend("producer") as backend:
        one = await backend.push(Email("a"), headers={"k": 1}, delay=1)
        two, three = await backend.push_many([Email("b"), Email("c")])
    assert [row["msg_id"] for row in await table.rows()] == [one, two, three]


async def test_a_producer_sends_with_pgmqs_own_function(roles: Roles, table: Table) -> None:
    connection = await asyncpg.connect(as_role(roles.url, f"login_{roles.queue}_producer"))
    await connection.execute("SELECT pgmq.send($1::text, '{}'::text::jsonb)", roles.queue)
    await connection.close()
    assert await table.count() == 1


async def test_a_producer_does_no_more(roles: Roles) -> None:
    await roles.refuses(
        "producer",
        READ,
        "DELETE FROM pgmq.q_emails",
        "UPDATE pgmq.q_emails SET vt = now()",
        "SELECT msg_id FROM pgmq.q_emails_dlq",
        "INSERT INTO pgmq.q_emails_dlq (vt) VALUES (now())",
        "SELECT msg_id FROM pgmq.a_emails",
        "INSERT INTO pgmq.q_emails (vt, read_ct) VALUES (now(), 99)",
        "SELECT msg_id FROM pgmq.read('emails'::text, 1, 1)",
        "SELECT pgmq.delete('emails'::text, 1::bigint)",
    )
    async with roles.backend("producer") as backend:
        for call in (backend.dead_letters, backend.redrive, backend.purge_dead_letters):
            with pytest.raises(PgMqPermissionError):
                await call()


@pytest.mark.parametrize("on_success", ["delete", "archive"])
async def test_a_worker_works(roles: Roles, table: Table, eventually: Eventually, on_success: str) -> None:
    done = []

    async def handler(message: Email) -> None:
        if message.to == "long":
            await asyncio.sleep(1.5)  # its lease is extended meanwhile
        done.append(message.to)

    async with roles.backend("producer") as producer:
        await producer.push_many([Email("short"), Email("long")])
    async with roles.backend("worker", on_success=on_success) as backend:
        await work_until(backend, handler, table.is_empty, eventually)
    assert sorted(done) == ["long", "short"]
    assert len(await table.archived()) == (2 if on_success == "archive" else 0)


@pytest.mark.parametrize("dead_letter", ["queue", "archive", None])
async def test_a_worker_gives_up(
    roles: Roles, table: Table, eventually: Eventually, dead_letter: str | None
) -> None:
    async with roles.backend("producer") as producer:
        await producer.push(Email("x"))
    async with roles.backend("worker", dead_letter=dead_letter) as backend:
        await work_until(backend, give_up, table.is_empty, eventually)
    assert len(await table.dead()) == (dead_letter == "queue")
    assert len(await table.archived()) == (dead_letter == "archive")


async def test_a_worker_hands_back_and_handles_in_transactions(
    roles: Roles, table: Table, eventually: Eventually
) -> None:
    async def handler(message: Email, tx: Transaction) -> None:
        await tx.connection.execute("SELECT 1")

    async with roles.backend("producer") as producer:
        await producer.push(Email("x"))
    async with roles.backend("worker") as backend:
        async with backend.poll() as consumer:
            task = await anext(consumer)
            consumer.hand_back(task, spend_attempt=False)
        [row] = await table.rows()
        assert row["read_ct"] == 0
        await work_until(backend, handler, table.is_empty, eventually)


async def test_a_worker_does_no_more(roles: Roles) -> None:
    await bury(roles)
    await roles.refuses(
        "worker",
        SEND,
        "UPDATE pgmq.q_emails SET headers = NULL",
        "SELECT msg_id FROM pgmq.q_emails_dlq",
        "DELETE FROM pgmq.q_emails_dlq",
        "SELECT message FROM pgmq.a_emails",
        "DELETE FROM pgmq.a_emails",
    )
    async with roles.backend("worker") as backend:
        for call in (backend.dead_letters, backend.redrive, backend.purge_dead_letters):
            with pytest.raises(PgMqPermissionError):
                await call()
        with pytest.raises(PgMqPermissionError):
            await backend.push(Email("x"))


async def test_an_operator_looks_after_the_dead_letters(roles: Roles, table: Table) -> None:
    for _ in range(4):
        await bury(roles)
    async with roles.backend("operator") as backend:
        first, *_ = await backend.dead_letters()
        assert await backend.redrive([first.id]) == 1
        assert await backend.redrive(limit=1) == 1
        assert await backend.purge_dead_letters() == 2
    assert await table.count() == 2
    connection = await asyncpg.connect(as_role(roles.url, f"login_{roles.queue}_operator"))
    assert await connection.fetchval(f"SELECT count(message) FROM pgmq.q_{roles.queue}") == 2
    assert await connection.fetchval(f"SELECT count(message) FROM pgmq.a_{roles.queue}") == 0
    await connection.close()


async def test_an_operator_does_no_more(roles: Roles) -> None:
    await roles.refuses(
        "operator",
        "DELETE FROM pgmq.q_emails",
        "UPDATE pgmq.q_emails SET vt = now()",
        "INSERT INTO pgmq.q_emails_dlq (vt) VALUES (now())",
        "UPDATE pgmq.q_emails_dlq SET message = NULL",
        "DELETE FROM pgmq.a_emails",
        "SELECT msg_id FROM pgmq.read('emails'::text, 1, 1)",
    )


async def test_the_rights_suffice_for_tables_of_older_versions(
    pgmq_url: str, roles: Roles, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    for kind in ("q", "a"):
        await db.execute(f"ALTER TABLE pgmq.{kind}_{roles.queue} DROP COLUMN last_read_at")
    await roles.grant()
    async with roles.backend("producer") as producer, roles.backend("worker") as backend:
        await producer.push(Email("x"))
        await work_until(backend, give_up, table.dead, eventually)


async def test_the_rights_suffice_where_pgmq_notifies(
    roles: Roles, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    for name in (roles.queue, roles.config.dead_letter_queue):
        await db.execute("SELECT pgmq.enable_notify_insert($1::text)", name)
    async with roles.backend("producer") as producer:
        with pytest.raises(PgMqPermissionError):
            await producer.push(Email("x"))
    await roles.grant()
    async with roles.backend("producer") as producer, roles.backend("worker") as backend:
        await producer.push(Email("x"))
        await work_until(backend, give_up, table.dead, eventually)
    async with roles.backend("operator") as backend:
        assert await backend.redrive() == 1


async def test_row_level_security_comes_on_top(
    roles: Roles, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    tables = [f"pgmq.q_{roles.queue}", f"pgmq.q_{roles.queue}_dlq"]
    for name in tables:
        await db.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    async with roles.backend("producer") as producer:
        with pytest.raises(PgMqError, match="row-level security"):
            await producer.push(Email("x"))
    await bury(roles)
    async with roles.backend("operator") as backend:
        assert await backend.dead_letters() == []
    for name in tables:
        await db.execute(
            f"CREATE POLICY members ON {name} TO {', '.join(f'{roles.queue}_{kind}' for kind in KINDS)} "
            "USING (true) WITH CHECK (true)"
        )
    async with roles.backend("operator") as backend:
        assert await backend.redrive() == 1
    async with roles.backend("worker") as backend:
        await work_until(backend, give_up, table.is_empty, eventually)
    assert len(await table.dead()) == 1


async def test_large_payloads_beside_the_queue_go_through_all_roles(
    roles: Roles, db: asyncpg.Connection, table: Table, eventually: Eventually
) -> None:
    large = Email("ada", body="x" * 5000)
    async with PgMqBackend(roles.url, replace(roles.config, claim_check_over=1000), Email):
        pass
    await roles.grant()
    bodies = f"SELECT count(*) FROM pgmq.b_{roles.queue}"
    handled: list[Email] = []

    async def handler(message: Email) -> None:
        handled.append(message)
        if len(handled) != 2:
            raise AbortError("no")

    async with (
        roles.backend("producer", claim_check_over=1000) as producer,
        roles.backend("worker", claim_check_over=1000) as worker,
        roles.backend("operator", claim_check_over=1000) as operator,
    ):
        await producer.push(large)
        await work_until(worker, handler, table.dead, eventually)
        [letter] = await operator.dead_letters()
        assert large.body in letter.payload
        assert await operator.redrive() == 1
        await work_until(worker, handler, table.is_empty, eventually)
        assert await db.fetchval(bodies) == 0
        await producer.push(large)
        await work_until(worker, handler, table.dead, eventually)
        assert await operator.purge_dead_letters() == 1
        assert await db.fetchval(bodies) == 0
    assert handled == [large] * 3
    await roles.refuses(
        "producer", "SELECT body FROM pgmq.b_emails", "DELETE FROM pgmq.b_emails", "TRUNCATE pgmq.b_emails"
    )
    for kind in ("worker", "operator"):
        await roles.refuses(
            kind, "INSERT INTO pgmq.b_emails VALUES ('x', '1')", "UPDATE pgmq.b_emails SET body = '1'"
        )
