"""More worker processes on one queue, and more queues in one process."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.draining import drain_ours, together, worker_job
from benchmarks.preload import preload
from benchmarks.processes import measured
from benchmarks.results import Row

from .drain import messages_per_round

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample

_WORKERS: Final = (1, 2, 4, 8)
_QUEUES: Final = (1, 5, 20, 50)
_WITHIN: Final = 900.0


async def scale(bench: Bench) -> list[Row]:
    """The drain rate and the connections, by workers and by queues."""
    messages = messages_per_round(bench)
    workers = await bench.rounds(
        {
            f"apalis-pgmq, {count} processes on one queue": partial(
                drain_ours, bench, messages, processes=count
            )
            for count in _WORKERS
        }
    )
    queues = await bench.rounds(
        {
            f"apalis-pgmq, {count} queues in one process": partial(_queues, bench, messages, count)
            for count in _QUEUES
        }
    )
    return [
        *_rows(dict(zip(_WORKERS, workers.values(), strict=True)), "worker processes on one queue"),
        *_rows(dict(zip(_QUEUES, queues.values(), strict=True)), "queues in one process"),
    ]


def _rows(found: dict[int, list[Sample]], what: str) -> list[Row]:
    one = [sample["rate"] for sample in found[1]]
    return [
        Row(
            name=f"{what}: {count}",
            unit="messages/s",
            values=[sample["rate"] for sample in samples],
            against="" if count == 1 else "one",
            baseline=[] if count == 1 else one,
            note=f"connections used: {max(sample['connections'] for sample in samples)}",
        )
        for count, samples in found.items()
    ]


async def _queues(bench: Bench, messages: int, count: int) -> Sample:
    """Drain so many messages out of several queues by one process, a worker for each."""
    share = messages // count
    async with bench.server.database() as database:
        queues = [f"scale{number}" for number in range(count)]
        for queue in queues:
            await preload(database, share, queue=queue)
        await bench.server.settle(database)
        job = worker_job(bench, database, queues=queues, expected=share * count)
        async with measured("measured.worker", job, name="apalis-pgmq") as worker:
            await worker.say(go=True)
            async with bench.server.counting_connections(database) as seen:
                result = await worker.result(_WITHIN)
    return {**together([result], share * count), "connections": max(seen)}
