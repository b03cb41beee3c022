"""A process with workers of `apalis_pgmq`, one per queue, through its public API.

Its job:
    url, loop: the database, and the event loop.
    queues: their names.
    concurrency: of each worker.
    config: further settings of the queues.
    handler: ``count`` returns at once, ``stamp`` notes when it was started on which message, ``sleep`` takes
        ``seconds``.
    expected: after how many messages to stop; without it, when the harness says ``stop``.
    sample: every how many seconds to note time, messages handled and memory.
    progress: every how many seconds to tell how many messages were handled.
    watch: whether to note how long the event loop stood still, and which leases were lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

from apalis_pgmq import Config, LeaseLost, Monitor, PgMqBackend, WorkerBuilder
from benchmarks.child import Meter, Parent, rss_mb, serve
from benchmarks.payload import Message

from .ticker import tick

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from apalis_pgmq import Event, Worker

_BODY_SHOWN: Final = 20


class Notes:
    """What is noted while the workers run."""

    def __init__(self) -> None:
        self.handled = 0
        self.first = 0.0
        self.last = 0.0
        self.starts: list[tuple[int, float, float]] = []
        self.samples: list[tuple[float, int, float]] = []
        self.gaps: list[float] = []
        self.lost = 0

    def observe(self, event: Event) -> None:
        """Count the leases that were lost."""
        self.lost += isinstance(event, LeaseLost)

    def facts(self) -> dict[str, Any]:
        """Return them as JSON."""
        return {
            "handled": self.handled,
            "first": self.first,
            "last": self.last,
            "starts": self.starts,
            "samples": self.samples,
            "stalls": sorted(self.gaps, reverse=True)[:_BODY_SHOWN],
            "lost": self.lost,
        }


def handler(
    job: dict[str, Any], notes: Notes, done: Callable[[], None]
) -> Callable[[Message], Coroutine[Any, Any, None]]:
    """Return the handler that a job asks for."""
    expected = job.get("expected", 0)
    seconds = job.get("seconds", 0.0)

    async def count(_message: Message) -> None:
        notes.last = time.monotonic()
        notes.handled += 1
        if notes.handled == 1:
            notes.first = notes.last
        if notes.handled == expected:
            done()

    async def stamp(message: Message) -> None:
        notes.starts.append((message.number, time.monotonic(), time.time()))
        await count(message)

    async def sleep(message: Message) -> None:
        await asyncio.sleep(seconds)
        await count(message)

    return {"count": count, "stamp": stamp, "sleep": sleep}[job["handler"]]


@contextlib.asynccontextmanager
async def workers(
    job: dict[str, Any], notes: Notes, done: Callable[[], None]
) -> AsyncIterator[list[Worker[Message]]]:
    """Have the workers of a job, ready to run."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for queue in job["queues"]:
            config = Config(queue, **job.get("config", {}))
            backend = await stack.enter_async_context(PgMqBackend(job["url"], config, Message))
            builder = WorkerBuilder(f"worker-{queue}").backend(backend).concurrency(job["concurrency"])
            if job.get("watch"):
                builder = builder.on_event(notes.observe)
            found.append(builder.build(handler(job, notes, done)))
        yield found


async def sample(notes: Notes, seconds: float) -> None:
    """Note how far it is, again and again."""
    while True:
        notes.samples.append((time.monotonic(), notes.handled, rss_mb()))
        await asyncio.sleep(seconds)


async def progress(notes: Notes, seconds: float) -> None:
    """Tell how far it is, again and again."""
    while True:
        Parent.tell("progress", handled=notes.handled)
        await asyncio.sleep(seconds)


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Run the workers until they have done what was asked for."""
    notes = Notes()
    monitor = Monitor(handle_signals=False)

    async def stop_when_told() -> None:
        await parent.hear_soon()
        monitor.stop()

    async with workers(job, notes, monitor.stop) as found:
        for worker in found:
            monitor.register(worker)
        parent.tell("ready")
        await parent.hear_soon()
        meter = Meter()
        beside = [asyncio.create_task(stop_when_told())]
        if job.get("sample"):
            beside.append(asyncio.create_task(sample(notes, job["sample"])))
        if job.get("progress"):
            beside.append(asyncio.create_task(progress(notes, job["progress"])))
        if job.get("watch"):
            beside.append(asyncio.create_task(tick(notes.gaps)))
        try:
            await monitor.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        ended = time.monotonic()
        facts = meter.read()
    parent.tell("result", **facts, **notes.facts(), ended=ended)


if __name__ == "__main__":
    serve(main)
