"""``apalis-pgmq bench``."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console

from apalis_pgmq.embedded import EmbeddedServer
from apalis_pgmq.worker import stop_signals

from ._bench_drain import measure_drain
from ._bench_latency import measure_latency
from ._bench_push import measure_push, measure_server
from ._bench_report import Results
from ._exits import UsageError
from ._screen import Screen
from ._stage import Clock, log_aside

if TYPE_CHECKING:
    from pathlib import Path

_DURABLE: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    Attributes:
        url: the database; None for a throw-away server.
        messages: how many are drained, and sent at once.
        concurrency: of the worker.
        seconds: how long latency, and sending one by one, are measured for each contender.
        json_file: where to write the figures too.
    """

    url: str | None
    messages: int
    concurrency: int
    seconds: float
    json_file: Path | None


def run_bench(options: Options) -> None:
    """Measure a server, and say what was found.

    Raises:
        UsageError: the file cannot be written.
        ApalisError: there is no server, it refuses, or a measurement came to no result.
        KeyboardInterrupt: it was interrupted; its queues are gone.
    """
    if options.json_file is not None:
        _refuse_unwritable(options.json_file)
    screen, clock = Screen(Console(highlight=False)), Clock()
    try:
        # All of it on one event loop: an interruption is a cancellation there, and lets queues be dropped.
        results = asyncio.run(_bench(screen, options))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    screen.show(results.table())
    if advice := results.advice():
        screen.title(advice)
    if options.json_file is not None:
        options.json_file.write_text(json.dumps(results.json(), indent=2) + "\n", encoding="utf-8")
    screen.note(f"{clock.total():.1f} s in all")


async def _bench(screen: Screen, options: Options) -> Results:
    measuring = asyncio.ensure_future(_measure(screen, options))

    def interrupt() -> None:
        if not measuring.cancelling():  # a second signal must not interrupt the cleaning up
            measuring.cancel()

    # SIGTERM, too, must leave no queue behind.
    with stop_signals(interrupt):
        return await measuring


async def _measure(screen: Screen, options: Options) -> Results:
    clock = Clock()
    screen.opening("apalis-pgmq bench: what a server allows, and how much of it a worker gets")
    with log_aside(), ExitStack() as stack:
        url = options.url
        if url is None:
            with screen.waiting_for("starting PostgreSQL"):
                url = stack.enter_context(EmbeddedServer(settings=_DURABLE)).url
            screen.done("Started a throw-away PostgreSQL (fsync on)", clock.lap())
        server = await measure_server(url, screen.note)
        screen.done("Measured the server", clock.lap())
        drain = await measure_drain(url, options.messages, options.concurrency, screen.note)
        screen.done("Measured draining", clock.lap())
        latency = await measure_latency(url, options.concurrency, options.seconds, screen.note)
        screen.done("Measured latency", clock.lap())
        push = await measure_push(url, options.messages, options.seconds, screen.note)
        screen.done("Measured sending", clock.lap())
    return Results(
        options.messages,
        options.concurrency,
        options.seconds,
        throw_away=options.url is None,
        server=server,
        drain=drain,
        latency=latency,
        push=push,
    )


def _refuse_unwritable(file: Path) -> None:
    # Before all the measuring, not after it.
    if not file.parent.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"--json: {file} cannot be written")
