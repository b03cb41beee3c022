"""Sends in transactions of asyncpg's, while another sender may hold its own open.

Its job:
    url, queue: the database, and its queue.
    by: ``apalis-pgmq`` (`PgMqBackend.push` on the connection), or ``pgmq`` (``pgmq.send``, with PGMQ's own insert
        trigger, `enable_notify_insert`).
    senders, seconds: so many coroutines, each with a connection of its own, send one message after the other for so
        long, each in a transaction that inserts a row elsewhere too.
    held: whether one more sender has sent, and does not commit before the end.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import asyncpg

from apalis_pgmq import PgMqBackend
from benchmarks.child import Meter, serve
from benchmarks.payload import Message, message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.child import Parent


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Send."""
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(PgMqBackend(job["url"], job["queue"], Message))
        connections = []
        for _ in range(job["senders"] + 1):
            connections.append(await asyncpg.connect(job["url"]))
            stack.push_async_callback(connections[-1].close)
        holder, *senders = connections
        await holder.execute("CREATE TABLE business (n int)")
        one = message(0)
        text = json.dumps(asdict(one))
        if job["by"] == "pgmq":
            await holder.execute("DROP TRIGGER IF EXISTS apalis_pgmq_notify ON pgmq.q_" + job["queue"])
            await holder.execute("SELECT pgmq.enable_notify_insert($1::text)", job["queue"])

        async def send(connection: Any) -> None:
            if job["by"] == "pgmq":
                await connection.execute("SELECT pgmq.send($1::text, $2::text::jsonb)", job["queue"], text)
            else:
                await backend.push(one, connection=connection)

        for connection in connections:
            await send(connection)
        held = holder.transaction()
        if job["held"]:
            # PGMQ's trigger updates its row a few times a second only; the holder's message is to be such a one.
            await asyncio.sleep(0.5)
            await held.start()
            await send(holder)
        parent.tell("ready")
        await parent.hear_soon()
        meter = Meter()
        began = time.monotonic()
        sent = await _send_all(senders, send, job["seconds"])
        took = time.monotonic() - began
        facts = meter.read()
        if job["held"]:
            await held.rollback()
    parent.tell("result", **facts, sent=sent, took=took, rate=sent / took)


async def _send_all(connections: list[Any], send: Callable[[Any], Awaitable[None]], seconds: float) -> int:
    sent = 0

    async def work(connection: Any) -> None:
        nonlocal sent
        while True:
            async with connection.transaction():
                await connection.execute("INSERT INTO business (n) VALUES (1)")
                await send(connection)
            sent += 1

    working = [asyncio.create_task(work(connection)) for connection in connections]
    await asyncio.wait(working, timeout=seconds)
    counted = sent
    for one in working:
        one.cancel()
    await asyncio.wait(working)
    for one in working:
        if not one.cancelled():
            one.result()
    return counted


if __name__ == "__main__":
    serve(main)
