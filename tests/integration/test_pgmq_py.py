"""PGMQ's own client: it reads what we send, and we handle what it sends, headers included."""

import asyncio
from typing import Any

import pytest

pytest.importorskip("pgmq")

from pgmq import PGMQueue
from pgmq.async_queue import PGMQueue as AsyncPGMQueue

from apalis_pgmq import PgMqBackend, PgMqProducer, Task, WorkerBuilder, WorkerContext

from .conftest import Email

OURS = {"to": "ours", "subject": "s", "body": "b"}
THEIRS = {"to": "theirs", "subject": "s", "body": "b"}
HEADERS = {"trace": "1", "nested": {"n": [1, None]}}


async def handled(url: str, queue: str, count: int) -> list[tuple[Email, Any]]:
    """Have a worker handle so many messages; return them with their headers."""
    found: list[tuple[Email, Any]] = []

    async def handle(message: Email, task: Task[Email], worker: WorkerContext) -> None:
        found.append((message, task.headers))
        if len(found) == count:
            worker.stop()

    async with PgMqBackend(url, queue, Email) as backend, asyncio.timeout(20):
        await WorkerBuilder("w").backend(backend).build(handle).run()
    return found


async def test_the_synchronous_one(pgmq_url: str, queue: str) -> None:
    def other_side() -> None:
        client = PGMQueue(conn_string=pgmq_url, init_extension=False)
        try:
            [one, two] = client.read_batch(queue, vt=30, batch_size=10)
            assert (one.message, one.headers) == (OURS, HEADERS)
            assert (two.message, two.headers) == (OURS, None)
            client.delete_batch(queue, [one.msg_id, two.msg_id])
            client.send(queue, THEIRS, headers=HEADERS)
            client.send(queue, THEIRS)
            client.send_batch(queue, [THEIRS, THEIRS])
        finally:
            client.close()

    with PgMqProducer(pgmq_url, queue, Email) as producer:
        producer.push(Email("ours"), headers=HEADERS)
        producer.push(Email("ours"))
    await asyncio.to_thread(other_side)
    found = await handled(pgmq_url, queue, 4)
    assert (
        sorted(found, key=lambda one: not one[1])
        == [(Email("theirs"), HEADERS)] + [(Email("theirs"), {})] * 3
    )


async def test_the_asynchronous_one(pgmq_url: str, queue: str) -> None:
    async with PgMqBackend(pgmq_url, queue, Email) as backend:
        await backend.push(Email("ours"), headers=HEADERS)
        await backend.push(Email("ours"))
    client = AsyncPGMQueue(conn_string=pgmq_url, init_extension=False)
    await client.init()
    try:
        [one, two] = await client.read_batch(queue, vt=30, batch_size=10)
        assert (one.message, one.headers) == (OURS, HEADERS)
        assert (two.message, two.headers) == (OURS, None)
        await client.delete_batch(queue, [one.msg_id, two.msg_id])
        await client.send(queue, THEIRS, headers=HEADERS)
        await client.send(queue, THEIRS)
    finally:
        await client.close()
    found = await handled(pgmq_url, queue, 2)
    assert sorted(found, key=lambda one: not one[1]) == [(Email("theirs"), HEADERS), (Email("theirs"), {})]


async def test_a_message_that_we_scheduled_is_seen_by_it_when_it_is_due(pgmq_url: str, queue: str) -> None:
    with PgMqProducer(pgmq_url, queue, Email) as producer:
        producer.schedule(Email("ours"), 1)
    client = AsyncPGMQueue(conn_string=pgmq_url, init_extension=False)
    await client.init()
    try:
        assert await client.read(queue, vt=30) is None
        [message] = await client.read_with_poll(queue, vt=30, qty=1, max_poll_seconds=5)
        assert message.message == OURS
    finally:
        await client.close()
