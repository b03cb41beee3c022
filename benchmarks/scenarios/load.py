"""Workers under sustained load: beside an old snapshot, over a million messages, with slow handlers."""

from __future__ import annotations

import asyncio
import statistics
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from benchmarks.draining import CONCURRENCY, worker_job
from benchmarks.feeding import feed
from benchmarks.preload import preload
from benchmarks.processes import ProcessError, run
from benchmarks.results import Row, Target

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample

_WARM_SECONDS: Final = 2.0
_WITHIN: Final = 900.0
_LARGE: Final = 64 * 1024


async def snapshot(bench: Bench) -> list[Row]:
    """Full load while another session holds an old snapshot, which keeps dead rows from being removed."""
    hold = bench.options.hold
    found = await bench.rounds(
        {
            "apalis-pgmq, snapshot held": partial(_loaded, bench, hold, held=True),
            "apalis-pgmq": partial(_loaded, bench, hold, held=False),
        },
        rounds=min(2, bench.options.rounds),
    )
    held, free = found.values()
    window = f"{_window(hold):g} s"
    target = Target(must=0.85, aim=1.0)
    note = f"a REPEATABLE READ snapshot is held for {hold:g} s; producer and worker at full load"
    return [
        Row(
            name=f"last {window} beside a snapshot, against the first",
            unit="messages/s",
            values=[sample["last"] for sample in held],
            against=f"the first {window} of the same run",
            baseline=[sample["first"] for sample in held],
            target=target,
            note=note,
        ),
        Row(
            name=f"last {window} beside a snapshot, against none",
            unit="messages/s",
            values=[sample["last"] for sample in held],
            against="the same time of a run without a held snapshot",
            baseline=[sample["last"] for sample in free],
            target=target,
            note=note,
        ),
    ]


async def _loaded(bench: Bench, hold: float, *, held: bool) -> Sample:
    span: dict[str, float] = {}
    loop = asyncio.get_running_loop()

    async with bench.server.database() as database:

        async def holding() -> None:
            await asyncio.sleep(_WARM_SECONDS)
            other = await asyncpg.connect(database.url)
            try:
                transaction = other.transaction(isolation="repeatable_read")
                if held:
                    await transaction.start()
                    await other.execute("SELECT")  # takes the snapshot
                span["begin"] = loop.time()
                await asyncio.sleep(hold)
                span["end"] = loop.time()
                if held:
                    await transaction.rollback()
            finally:
                await other.close()

        job = worker_job(bench, database, sample=0.1)
        result, produced = await feed(database, job, batch=100, ahead=20_000, beside=holding)
    # The event loop's clock is the monotonic clock, in the worker too.
    at = [(time, handled) for time, handled, _ in result["samples"]]
    window = _window(hold)
    return {
        "first": _rate(at, span["begin"], span["begin"] + window),
        "last": _rate(at, span["end"] - window, span["end"]),
        "per_second": [
            round(_rate(at, span["begin"] + second, span["begin"] + second + 1))
            for second in range(int(hold))
        ],
        "handled": result["handled"],
        "sent": produced["sent"],
        "cpu": result["cpu"],
    }


def _window(hold: float) -> float:
    return min(10.0, hold / 3)


def _rate(at: list[tuple[float, int]], begin: float, end: float) -> float:
    """Return the messages per second between two moments, from samples of time and count."""
    within = [sample for sample in at if begin <= sample[0] <= end]
    if len(within) < 2:
        raise ProcessError("the worker's event loop stood still for the whole time that was to be measured")
    return (within[-1][1] - within[0][1]) / (within[-1][0] - within[0][0])


async def memory(bench: Bench) -> list[Row]:
    """Resident memory over many messages, and with large ones."""
    messages = bench.size(1_000_000, 10_000)
    large = bench.size(5_000, 300)
    found = await bench.rounds(
        {
            "apalis-pgmq": partial(_remember, bench, messages),
            "apalis-pgmq, 64 KiB payloads": partial(_large, bench, large),
        },
        rounds=1,
    )
    small, big = found.values()
    return [
        Row(
            name=f"peak memory over {messages:,} messages",
            unit="MB",
            values=[sample["rss_peak"] for sample in small],
            against="before the first message",
            baseline=[sample["rss_before"] for sample in small],
            target=Target(must=60, aim=50, of="value", lower=True),
            note=f"resident memory of the worker process, concurrency {CONCURRENCY}",
        ),
        Row(
            name="memory in the last fifth",
            unit="MB",
            values=[sample["last_fifth"] for sample in small],
            against="in the second fifth",
            baseline=[sample["second_fifth"] for sample in small],
            target=Target(must=1.1, aim=1.02, lower=True),
            note="flat is 1",
        ),
        Row(
            name=f"peak memory over {large:,} messages of 64 KiB",
            unit="MB",
            values=[sample["rss_peak"] for sample in big],
            against="before the first message",
            baseline=[sample["rss_before"] for sample in big],
            note=f"handlers take 50 ms, at concurrency {CONCURRENCY}: the payloads in their hands alone are "
            f"{CONCURRENCY * _LARGE / 2**20:.1f} MB",
        ),
    ]


async def _remember(bench: Bench, messages: int) -> Sample:
    async with bench.server.database() as database:
        job = worker_job(bench, database, sample=0.25)
        result, _ = await feed(database, job, batch=1000, ahead=50_000, total=messages)
    rss = [megabytes for _, _, megabytes in result["samples"]]
    fifth = max(1, len(rss) // 5)
    return {
        **_memory(result),
        "second_fifth": statistics.median(rss[fifth : 2 * fifth] or rss),
        "last_fifth": statistics.median(rss[-fifth:]),
        "rss": [round(megabytes, 1) for megabytes in rss],
    }


async def _large(bench: Bench, messages: int) -> Sample:
    async with bench.server.database() as database:
        await preload(database, messages, size=_LARGE)
        await bench.server.settle(database)
        job = worker_job(bench, database, handler="sleep", seconds=0.05, expected=messages, sample=0.1)
        result = await run("measured.worker", job, within=_WITHIN, name="apalis-pgmq")
    return {**_memory(result), "rss": [round(megabytes, 1) for _, _, megabytes in result["samples"]]}


def _memory(result: dict[str, Any]) -> Sample:
    return {name: result[name] for name in ("handled", "rss_before", "rss_peak", "cpu")}


async def slow(bench: Bench) -> list[Row]:
    """Many handlers of a second each at the same time: stalls of the event loop, and lost leases."""
    concurrency, times = 1000, bench.size(15, 2)
    found = await bench.rounds(
        {
            "apalis-pgmq": partial(_slow, bench, concurrency, times),
            "raw": partial(_sleepers, bench, concurrency, times),
        },
        rounds=min(3, bench.options.rounds),
    )
    ours, bare = found.values()
    return [
        Row(
            name="longest stall of the event loop",
            unit="ms",
            values=[sample["stalls"][0] * 1000 for sample in ours],
            against=f"{concurrency:,} bare coroutines that sleep",
            baseline=[sample["stalls"][0] * 1000 for sample in bare],
            target=Target(must=50, aim=10, of="value", lower=True),
            note=f"handlers of 1 s, concurrency {concurrency:,}, visibility timeout 5 s; how late a tick of 5 ms came",
        ),
        Row(
            name="leases lost",
            unit="leases",
            values=[float(sample["lost"]) for sample in ours],
            target=Target(must=0, aim=0, of="value", lower=True),
        ),
        Row(
            name="messages with handlers of 1 s",
            unit="messages/s",
            values=[sample["rate"] for sample in ours],
            against="what the concurrency allows",
            baseline=[float(concurrency)] * len(ours),
        ),
    ]


async def _slow(bench: Bench, concurrency: int, times: int) -> Sample:
    messages = concurrency * times
    async with bench.server.database() as database:
        await preload(database, messages)
        await bench.server.settle(database)
        job = worker_job(
            bench,
            database,
            handler="sleep",
            seconds=1.0,
            concurrency=concurrency,
            expected=messages,
            watch=True,
            config={"visibility_timeout": 5.0},
        )
        result = await run("measured.worker", job, within=_WITHIN, name="apalis-pgmq")
    seconds = result["last"] - result["first"] + 1.0
    return {
        "rate": result["handled"] / seconds,
        **{name: result[name] for name in ("stalls", "lost", "cpu", "rss_peak", "handled")},
    }


async def _sleepers(bench: Bench, sleepers: int, times: int) -> Sample:
    job = {"loop": bench.options.loop, "sleepers": sleepers, "seconds": 1.0, "times": times}
    return await run("measured.sleepers", job, within=_WITHIN)
