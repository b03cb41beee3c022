"""A password goes to the server and nowhere else: not into logs, errors or reprs."""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import asyncpg
import pytest

from apalis_pgmq import (
    ApalisError,
    Config,
    Event,
    LeaseLost,
    Monitor,
    PgMqBackend,
    Transaction,
    WorkerBuilder,
)
from tests.chaos.proxy import Proxy

from .conftest import Email, Table, as_role
from .test_delivery import Running

Eventually = Callable[..., Awaitable[None]]

SECRET = "hunter2"


async def test_no_log_line_of_a_worker_shows_the_password(
    pgmq_url: str,
    queue: str,
    db: asyncpg.Connection,
    table: Table,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in an outage, at a failure, at a lost lease or at a dead letter, whatever the level."""
    caplog.set_level(logging.DEBUG)
    password = urlsplit(pgmq_url).password
    assert password
    events: list[Event] = []

    async def handler(message: Email, tx: Transaction) -> None:
        if message.to == "held":
            await asyncio.sleep(60)
        raise ValueError(message.to)

    async with Proxy(pgmq_url) as proxy:
        config = Config(queue, visibility_timeout=1, max_retries=0)
        async with PgMqBackend(proxy.url, config, Email) as backend:
            worker = WorkerBuilder("w").backend(backend).on_event(events.append).build(handler)
            async with Running(worker):
                await backend.push(Email("fails"))
                await eventually(table.dead)
                proxy.lose_answer("FOR UPDATE SKIP LOCKED")
                await eventually(lambda: "available again" in caplog.text)
                held = await backend.push(Email("held"))
                await eventually(lambda: any(getattr(event, "id", None) == held for event in events))
                await db.execute(f"DELETE FROM pgmq.q_{queue} WHERE msg_id = $1", held)
                await eventually(lambda: any(isinstance(event, LeaseLost) for event in events))
    assert "is unavailable" in caplog.text
    assert "127.0.0.1" in caplog.text
    assert password not in caplog.text
    assert not [record for record in caplog.records if password in repr(vars(record))]
    assert password not in repr(events)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda url: as_role(url, "nobody_known", SECRET), "check user and password"),
        (lambda url: urlsplit(as_role(url, "postgres", SECRET))._replace(path="/nowhere").geturl(), None),
        (lambda url: f"postgresql://u:{SECRET}@127.0.0.1:1/db", "unavailable"),
        (lambda url: f"postgresql://u:{SECRET}@127.0.0.1:99999/db", "host and port"),
        (lambda url: f"postgresql://u:{SECRET}@nowhere.invalid/db", "unavailable"),
        (lambda url: as_role(url, "u", SECRET) + "?sslmode=nonsense", "correct the URL"),
        (lambda url: as_role(url, "u", SECRET) + "?sslmode=require", "SSL"),
        (lambda url: as_role(url, "u", SECRET) + "?target_session_attrs=nonsense", None),
        (lambda url: f"postgresql://127.0.0.1:1/db?user=u&password={SECRET}", "unavailable"),
    ],
    ids=["user", "database", "nobody listens", "port", "host", "sslmode", "no TLS", "attributes", "query"],
)
async def test_no_error_shows_the_password(
    server_url: str, queue: str, change: Callable[[str], str], says: str | None
) -> None:
    with pytest.raises(ApalisError, match=says) as caught:
        await PgMqBackend(change(server_url), queue, Email).setup()
    # With all that it was raised from.
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(caught.value)


def test_no_repr_shows_the_password() -> None:
    backend = PgMqBackend(f"postgresql://ada:{SECRET}@db.example/app?password={SECRET}", "emails", Email)

    async def handler(message: Email) -> None: ...

    builder = WorkerBuilder("w").backend(backend)
    worker = builder.build(handler)
    monitor = Monitor().register(worker)
    shown = [repr(one) for one in (backend, backend.config, backend.poll(), builder, worker, monitor)]
    assert SECRET not in " ".join(shown)
    assert "db.example" in shown[0]
