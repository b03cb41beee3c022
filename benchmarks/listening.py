"""Idle workers, and how soon they start on a message: contenders take turns, so that noise hits both."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from .processes import ProcessError, measured
from .server import CHANNEL, TABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .bench import Bench
    from .server import Database

RATE: Final = 30.0
"""Messages per second."""

IDLE_CONCURRENCY: Final = 10

_WITHIN: Final = 60.0
_LAST_SECONDS: Final = 2.0
_PERCENTS: Final = (50, 95, 99)


def raw_listener_job(bench: Bench, database: Database) -> dict[str, Any]:
    """Return a job for `measured.raw_listener`."""
    return {"url": database.url, "loop": bench.options.loop, "table": TABLE, "channel": CHANNEL}


async def latencies(
    bench: Bench,
    contenders: Mapping[str, tuple[str, Database, dict[str, Any]]],
    *,
    slices: int,
    seconds: float,
) -> dict[str, list[dict[str, float]]]:
    """Send to idle contenders in turns; return for each its latencies of each round.

    Args:
        bench: the run.
        contenders: by name, the module that handles, its database and its job.
        slices: how often each has its turn in a round.
        seconds: how long a turn is.

    Returns:
        Percentiles in milliseconds by their names, ``p50`` and so on, from when the commit was known to the
        sender to the start of the handler.
    """
    names = list(contenders)
    turns: list[tuple[str, int, list[tuple[int, float, float]]]] = []
    started: dict[str, dict[int, float]] = {}
    async with AsyncExitStack() as stack:
        running = {}
        for name, (module, _, job) in contenders.items():
            running[name] = await stack.enter_async_context(measured(module, job, name=name))
            await running[name].say(go=True)
        urls = [database.url for _, database, _ in contenders.values()]
        job = {"urls": urls, "table": TABLE, "rate": RATE}
        sender = await stack.enter_async_context(measured("measured.sender", job))
        await sender.say(go=True)
        first = 0
        for number in range(bench.options.rounds):
            bench.say(f"round {number + 1}: {', '.join(names)} in turns")
            for turn in range(slices * len(names)):
                # The first, the second, the second, the first, and so on.
                pass_, place = divmod(turn, len(names))
                to = place if (pass_ + number) % 2 == 0 else len(names) - 1 - place
                await sender.say(to=to, seconds=seconds, first=first)
                sent = (await sender.expect("sent", seconds + _WITHIN))["sent"]
                turns.append((names[to], number, sent))
                first += len(sent)
        await sender.say(stop=True)
        await sender.result(_WITHIN)
        await asyncio.sleep(_LAST_SECONDS)
        for name, one in running.items():
            await one.say(stop=True)
            starts = (await one.result(_WITHIN))["starts"]
            started[name] = {number: at for number, at, _ in reversed(starts)}
    return {name: _rounds(bench, name, turns, started[name]) for name in names}


def _rounds(
    bench: Bench, name: str, turns: list[tuple[str, int, list[Any]]], started: dict[int, float]
) -> list[dict[str, float]]:
    found = []
    for number in range(bench.options.rounds):
        late, since_sent = [], []
        for owner, round_, sent in turns:
            if (owner, round_) != (name, number):
                continue
            for message, before, after in sent:
                if message not in started:
                    raise ProcessError(f"{name} never started on a message that was sent to it")
                late.append((started[message] - after) * 1000)
                since_sent.append((started[message] - before) * 1000)
        figures = {f"p{percent}": percentile(late, percent) for percent in _PERCENTS}
        bench.note(
            name,
            {
                "messages": len(late),
                **figures,
                "latencies_ms": _short(late),
                "since_sent_ms": _short(since_sent),
            },
            round=number + 1,
        )
        found.append(figures)
    return found


def percentile(values: list[float], percent: float) -> float:
    """Return a percentile, interpolated."""
    ordered = sorted(values)
    if not ordered:
        raise ProcessError("nothing was sent within a round: it was too short")
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _short(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]
