"""Draining a preloaded queue: by `apalis_pgmq`, and by the bare loop that is its limit."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from .preload import left_over, preload
from .processes import ProcessError, measured
from .server import QUEUE, TABLE

if TYPE_CHECKING:
    from .bench import Bench, Sample
    from .processes import Measured
    from .server import Database

CONCURRENCY: Final = 50
"""Handlers at the same time; between 10 and 200 the drain rate hardly depends on it."""

_WITHIN: Final = 900.0


def worker_job(bench: Bench, database: Database, **more: Any) -> dict[str, Any]:
    """Return a job for `measured.worker`, with what most have in common."""
    return {
        "url": database.url,
        "loop": bench.options.loop,
        "queues": [QUEUE],
        "concurrency": CONCURRENCY,
        "handler": "count",
        **more,
    }


async def drain_ours(bench: Bench, messages: int, *, processes: int = 1, delayed: int = 0) -> Sample:
    """Drain so many messages by workers of `apalis_pgmq`, one in each process.

    Args:
        bench: the run.
        messages: how many.
        processes: how many.
        delayed: how many messages that are due in a day are in the queue too.
    """
    async with bench.server.database() as database, AsyncExitStack() as stack:
        await preload(database, delayed, delay=86400)
        await preload(database, messages)
        await bench.server.settle(database)
        before = await bench.server.transactions(database)
        alone = {"expected": messages} if processes == 1 else {"progress": 0.05}
        job = worker_job(bench, database, **alone)
        workers = [
            await stack.enter_async_context(measured("measured.worker", job, name="apalis-pgmq"))
            for _ in range(processes)
        ]
        async with bench.server.counting_connections(database) as seen:
            for worker in workers:
                await worker.say(go=True)
            if processes > 1:
                await _stop_at(workers, messages)
            results = [await worker.result(_WITHIN) for worker in workers]
        sample = together(results, messages)
        await bench.server.left(database)
        sample["transactions"] = await bench.server.transactions(database) - before
        sample["connections"] = max(seen)
        if left := await left_over(database) - delayed:
            raise ProcessError(f"apalis-pgmq left {left} messages in the queue")
        return sample


async def drain_raw(
    bench: Bench, messages: int, *, batch: int = 100, overlap: bool = False, processes: int = 1
) -> Sample:
    """Drain so many messages by the bare loop, one in each process."""
    async with bench.server.database() as database, AsyncExitStack() as stack:
        await preload(database, messages)
        await bench.server.settle(database)
        before = await bench.server.transactions(database)
        job = {
            "url": database.url,
            "loop": bench.options.loop,
            "table": TABLE,
            "batch": batch,
            "overlap": overlap,
        }
        loops = [
            await stack.enter_async_context(measured("measured.raw_drain", job)) for _ in range(processes)
        ]
        for loop in loops:
            await loop.say(go=True)
        results = [await loop.result(_WITHIN) for loop in loops]
        sample = together(results, messages)
        await bench.server.left(database)
        sample["transactions"] = await bench.server.transactions(database) - before
        if left := await left_over(database):
            raise ProcessError(f"the bare loop left {left} messages in the queue")
        return sample


def together(results: list[dict[str, Any]], messages: int) -> Sample:
    """Return what processes did together, from the first to the last message handled by any.

    Raises:
        ProcessError: they did not handle exactly so many.
    """
    handled = sum(result["handled"] for result in results)
    if handled != messages:
        raise ProcessError(f"{handled} messages were handled, not {messages}")
    busy = [result for result in results if result["handled"]]
    first = min(busy, key=lambda result: result["first"])
    seconds = max(result["last"] for result in busy) - first["first"]
    return {
        "messages": messages,
        "seconds": seconds,
        "rate": (messages - first.get("at_first", 1)) / seconds,
        "settled_seconds": max(result["ended"] for result in busy) - first["first"],
        "cpu": sum(result["cpu"] for result in results),
        "rss_peak": max(result["rss_peak"] for result in results),
        "shares": [result["handled"] for result in results],
    }


async def _stop_at(workers: list[Measured], messages: int) -> None:
    """Stop workers when together they have handled so many."""
    handled = [0] * len(workers)
    while sum(handled) < messages:
        for number, worker in enumerate(workers):
            handled[number] = (await worker.expect("progress", _WITHIN))["handled"]
    for worker in workers:
        await worker.say(stop=True)
