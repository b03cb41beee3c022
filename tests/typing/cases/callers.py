"""What messages can be sent on: asynchronous connections by a backend, synchronous ones by a producer."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, reveal_type

import asyncpg
import psycopg
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext import asyncio as alchemy

from apalis_pgmq import MemoryBackend, PgMqBackend, PgMqProducer, PgMqTopic, TaskId, Transaction


@dataclass
class Email:
    to: str


async def asynchronous(
    emails: PgMqBackend[Email],
    connection: asyncpg.Connection[Any],
    psycopg_connection: psycopg.AsyncConnection[Any],
    session: alchemy.AsyncSession,
    alchemy_connection: alchemy.AsyncConnection,
    transaction: Transaction,
    pool: "asyncpg.Pool[Any]",
) -> None:
    ada = Email("ada")
    await emails.push(ada, connection=connection)
    await emails.push(ada, connection=psycopg_connection)
    await emails.push_many([ada], connection=session)
    await emails.schedule(ada, 5, connection=alchemy_connection)
    await transaction.schedule(emails, ada, timedelta(1))
    await transaction.schedule(emails, ada, 5, dedup_key="ada", dedup_window=60)
    await emails.schedule(ada, 5, dedup_key="ada", connection=session)
    await emails.push_many([ada], dedup_key=lambda email: email.to, connection=psycopg_connection)
    await emails.schedule(ada, 5, dedup_key=lambda email: email.to)  # E: arg-type
    topic = PgMqTopic("postgresql://localhost", Email)
    await topic.push("a.b", ada, connection=connection)
    await topic.push_many("a.b", [ada], connection=session)
    await topic.push("a.b", ada, connection="postgresql://localhost")  # E: arg-type
    async with pool.acquire() as acquired:
        await emails.push(ada, connection=acquired)
    reveal_type(await emails.schedule(ada, datetime.now(UTC)))  # R: TaskId
    reveal_type(await MemoryBackend("emails", Email).schedule(ada, 1.5))  # R: TaskId
    await emails.schedule("ada", 5)  # E: arg-type
    await emails.schedule(ada, "soon")  # E: arg-type
    await emails.push(ada, connection="postgresql://localhost")  # E: arg-type


async def not_in_a_backend(
    emails: PgMqBackend[Email], session: orm.Session, one: psycopg.Connection[Any], two: sqlalchemy.Connection
) -> None:
    await emails.push(Email("ada"), connection=session)  # E: arg-type
    await emails.push(Email("ada"), connection=one)  # E: arg-type
    await emails.push(Email("ada"), connection=two)  # E: arg-type


def synchronous(
    connection: psycopg.Connection[Any],
    session: orm.Session,
    scoped: orm.scoped_session[orm.Session],
    alchemy_connection: sqlalchemy.Connection,
) -> TaskId:
    emails = PgMqProducer("postgresql://localhost", "emails", Email)
    reveal_type(emails)  # R: PgMqProducer[Email]
    ada = Email("ada")
    emails.push(ada, connection=connection)
    emails.push_many([ada], connection=session)
    emails.push(ada, connection=scoped)
    emails.schedule(ada, timedelta(1), connection=alchemy_connection)
    PgMqProducer(connection, "emails", Email).push(ada)
    PgMqProducer(scoped, "emails", Email).push(ada)
    emails.push("ada")  # E: arg-type
    emails.push(ada, dedup_key="ada", dedup_window=timedelta(hours=1))
    reveal_type(emails.push_many([ada], dedup_key=lambda email: email.to))  # R: list[TaskId]
    emails.schedule(ada, 5, dedup_key="ada")
    emails.push_many([ada], dedup_key="ada")  # E: arg-type
    emails.push_many([ada], dedup_key=lambda email: email.number)  # E: attr-defined
    PgMqProducer(7, "emails", Email)  # E: call-overload
    with emails as opened:
        return opened.push(ada)


def not_in_a_producer(
    emails: PgMqProducer[Email],
    one: psycopg.AsyncConnection[Any],
    two: alchemy.AsyncSession,
    three: asyncpg.Connection[Any],
    four: alchemy.AsyncConnection,
) -> None:
    emails.push(Email("ada"), connection=one)  # E: arg-type
    emails.push(Email("ada"), connection=two)  # E: arg-type
    emails.push(Email("ada"), connection=three)  # E: arg-type
    emails.push(Email("ada"), connection=four)  # E: arg-type
