"""How soon an idle worker starts on a message, and whether delayed messages stand in the way."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.draining import drain_ours, worker_job
from benchmarks.listening import IDLE_CONCURRENCY, latencies, raw_listener_job
from benchmarks.preload import preload
from benchmarks.results import Row, Target

from .drain import messages_per_round, rates

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.server import Database


def idle_worker(bench: Bench, database: Database) -> tuple[str, Database, dict[str, Any]]:
    """Return a contender for `latencies`: an idle worker that notes when it starts on what."""
    job = worker_job(bench, database, handler="stamp", concurrency=IDLE_CONCURRENCY)
    return "measured.worker", database, job


async def latency(bench: Bench) -> list[Row]:
    """An idle worker against a bare loop that listens."""
    async with bench.server.database() as ours, bench.server.database() as theirs:
        found = await latencies(
            bench,
            {
                "apalis-pgmq": idle_worker(bench, ours),
                "raw": ("measured.raw_listener", theirs, raw_listener_job(bench, theirs)),
            },
            slices=bench.size(4, 1),
            seconds=bench.size(5, 1),
        )
    targets = {
        "p50": Target(must=1.2, aim=1.05, lower=True),
        "p95": None,
        "p99": Target(must=2.0, aim=1.2, lower=True),
    }
    return [
        Row(
            name=f"latency, {name}",
            unit="ms",
            values=[figures[name] for figures in found["apalis-pgmq"]],
            against="bare asyncpg loop: LISTEN, claim 10, delete",
            baseline=[figures[name] for figures in found["raw"]],
            target=target,
            note="30 messages/s at random times, from the sender's commit to the handler's start",
        )
        for name, target in targets.items()
    ]


async def delayed(bench: Bench) -> list[Row]:
    """Draining and latency with many messages in the queue that are not due for a day."""
    many = bench.size(200_000, 5_000)
    messages = messages_per_round(bench)
    with_them = f"apalis-pgmq, {many:,} delayed messages in the queue"
    drained = await bench.rounds(
        {
            with_them: partial(drain_ours, bench, messages, delayed=many),
            "apalis-pgmq": partial(drain_ours, bench, messages),
        }
    )
    async with bench.server.database() as full, bench.server.database() as empty:
        await preload(full, many, delay=86400)
        await bench.server.settle(full)
        found = await latencies(
            bench,
            {with_them: idle_worker(bench, full), "apalis-pgmq": idle_worker(bench, empty)},
            slices=bench.size(2, 1),
            seconds=bench.size(5, 1),
        )
    note = f"{many:,} messages due in a day are in the queue too"
    return [
        Row(
            name="drain with delayed messages",
            unit="messages/s",
            values=rates(drained[with_them]),
            against="the same without them",
            baseline=rates(drained["apalis-pgmq"]),
            target=Target(must=0.9, aim=1.0),
            note=note,
        ),
        Row(
            name="latency with delayed messages, p50",
            unit="ms",
            values=[figures["p50"] for figures in found[with_them]],
            against="the same without them",
            baseline=[figures["p50"] for figures in found["apalis-pgmq"]],
            target=Target(must=1 / 0.9, aim=1.0, lower=True),
            note=note,
        ),
    ]
