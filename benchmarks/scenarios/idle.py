"""What workers do while there is nothing to do, and how punctual they are."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import asyncpg

from apalis_pgmq import PgMqBackend
from benchmarks.draining import worker_job
from benchmarks.listening import IDLE_CONCURRENCY
from benchmarks.payload import Message, encoded, message
from benchmarks.processes import ProcessError, measured
from benchmarks.results import Row, Target
from benchmarks.server import QUEUE, TABLE

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample
    from benchmarks.server import Database

_SETTLE: Final = 3.0
_WITHIN: Final = 60.0
_LONGEST_DELAY: Final = 3.0


async def idle(bench: Bench) -> list[Row]:
    """Statements per second of a quiet worker, and how late it starts on delayed messages."""
    quiet = bench.size(60, 4)
    found = await bench.rounds(
        {"apalis-pgmq": lambda: _idle(bench, quiet, bench.size(20, 4))}, rounds=_few(bench)
    )
    samples = found["apalis-pgmq"]
    return [
        Row(
            name="statements of an idle worker",
            unit="statements/s",
            values=[sample["statements_per_second"] for sample in samples],
            target=Target(must=0.2, aim=0.05, of="value", lower=True),
            note=f"counted by pg_stat_statements over {quiet} s",
        ),
        Row(
            name="lateness of delayed messages, greatest",
            unit="ms",
            values=[max(sample["lateness_ms"]) for sample in samples],
            target=Target(must=50, aim=10, of="value", lower=True),
            note="pushed with delays of 1 to 3 s by another process; from when they are due to the handler's start",
        ),
        Row(
            name="processor time of an idle worker",
            unit="ms/s",
            values=[sample["cpu_ms_per_second"] for sample in samples],
        ),
    ]


async def _idle(bench: Bench, seconds: int, delayed: int) -> Sample:
    async with bench.server.database() as database:
        job = worker_job(bench, database, handler="stamp", concurrency=IDLE_CONCURRENCY)
        async with measured("measured.worker", job, name="apalis-pgmq") as worker:
            await worker.say(go=True)
            await asyncio.sleep(_SETTLE)
            before = await bench.server.statements(database)
            await asyncio.sleep(seconds)
            statements = await bench.server.statements(database) - before
            due = await _push_delayed(database, delayed)
            await asyncio.sleep(_LONGEST_DELAY + 1)
            await worker.say(stop=True)
            result = await worker.result(_WITHIN)
    started = {number: at for number, _, at in reversed(result["starts"])}
    if missing := set(due) - set(started):
        raise ProcessError(f"{len(missing)} delayed messages were not handled within a second of their time")
    return {
        "statements_per_second": statements / seconds,
        "lateness_ms": [round((started[number] - due[number]) * 1000, 3) for number in sorted(due)],
        "cpu_ms_per_second": result["cpu"] * 1000 / (seconds + _SETTLE),
    }


async def _push_delayed(database: Database, messages: int) -> dict[int, float]:
    """Push delayed messages, one at a time; return when each is due, by the wall clock."""
    chance = random.Random(2)  # noqa: S311 - the same delays in every run
    due = {}
    connection = await asyncpg.connect(database.url)
    try:
        async with PgMqBackend(database.url, QUEUE, Message) as backend:
            for number in range(messages):
                id_ = await backend.push(message(number), delay=chance.uniform(1, _LONGEST_DELAY))
                vt = await connection.fetchval(f"SELECT vt FROM {TABLE} WHERE msg_id = $1", int(id_))
                due[number] = vt.timestamp()
                await asyncio.sleep(chance.uniform(0.2, 0.8))
    finally:
        await connection.close()
    return due


async def herd(bench: Bench) -> list[Row]:
    """How many claims ten idle workers make for one message."""
    found = await bench.rounds({"apalis-pgmq, 10 workers": lambda: _herd(bench)}, rounds=_few(bench))
    (samples,) = found.values()
    return [
        Row(
            name="claims per message by ten idle workers",
            unit="claims",
            values=[sample["claims_per_message"] for sample in samples],
            target=Target(must=2, aim=1, of="value", lower=True),
            note="single messages 2 s apart; the claims that idle workers make anyhow are subtracted, so that it is "
            "0 where a routine claim finds the message",
        ),
        Row(
            name="claims of ten idle workers",
            unit="claims/s",
            values=[sample["background_per_second"] for sample in samples],
        ),
    ]


async def _herd(bench: Bench) -> Sample:
    workers, messages, pause = 10, bench.size(10, 3), bench.size(2, 1)
    quiet = bench.size(20, 3)
    async with bench.server.database() as database, AsyncExitStack() as stack:
        job = worker_job(bench, database, handler="stamp", concurrency=IDLE_CONCURRENCY)
        found = [
            await stack.enter_async_context(measured("measured.worker", job, name=f"worker {number}"))
            for number in range(workers)
        ]
        for worker in found:
            await worker.say(go=True)
        connection = await asyncpg.connect(database.url)
        stack.push_async_callback(connection.close)
        insert = await connection.prepare(
            f"INSERT INTO {TABLE} (vt, message) VALUES (now(), $1::text::jsonb)"
        )
        await asyncio.sleep(_SETTLE)
        before = await _claims(bench, database)
        await asyncio.sleep(quiet)
        background = (await _claims(bench, database) - before) / quiet
        loop = asyncio.get_running_loop()
        before, began = await _claims(bench, database), loop.time()
        for number in range(messages):
            await insert.fetch(encoded(number))
            await asyncio.sleep(pause)
        claims = await _claims(bench, database) - before
        expected = background * (loop.time() - began)
        for worker in found:
            await worker.say(stop=True)
        handled = sum([(await worker.result(_WITHIN))["handled"] for worker in found])
    if handled != messages:
        raise ProcessError(f"{handled} messages were handled, not {messages}")
    return {
        "claims": claims,
        "background_per_second": background,
        "claims_per_message": max(0.0, claims - expected) / messages,
    }


async def _claims(bench: Bench, database: Database) -> int:
    return await bench.server.statements(database, "%SKIP LOCKED%")


def _few(bench: Bench) -> int:
    """Return how often to measure what takes minutes and hardly varies: twice at most."""
    return min(2, bench.options.rounds)
