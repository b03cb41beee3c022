"""How fast a preloaded queue is drained, and what that costs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.draining import drain_ours, drain_raw
from benchmarks.results import Row, Target

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample

_RAW = "claim 100 + delete, one connection"


async def drain(bench: Bench) -> list[Row]:
    """One worker against the bare loop; two faster bare loops are reported beside it."""
    messages = messages_per_round(bench)
    found = await bench.rounds(
        {
            "apalis-pgmq": partial(drain_ours, bench, messages),
            "raw": partial(drain_raw, bench, messages),
            "raw, deletes on a second connection": partial(drain_raw, bench, messages, overlap=True),
            "raw, claim 1000": partial(drain_raw, bench, messages, batch=1000),
        }
    )
    ours, raw, overlapped, thousand = (rates(samples) for samples in found.values())
    bench.drained = found["apalis-pgmq"]
    return [
        Row(
            name="drain",
            unit="messages/s",
            values=ours,
            against=f"bare asyncpg loop: {_RAW}",
            baseline=raw,
            target=Target(must=0.75, aim=1.0),
            note="durable deletes; the bare loop's claims wait for the disk too",
        ),
        Row(
            name="drain",
            unit="messages/s",
            values=ours,
            against="bare loop with deletes on a second connection while the next claim runs",
            baseline=overlapped,
        ),
        Row(
            name="drain",
            unit="messages/s",
            values=ours,
            against="bare loop: claim 1000 + delete, one connection",
            baseline=thousand,
        ),
    ]


async def drain2(bench: Bench) -> list[Row]:
    """Two worker processes against two bare loops."""
    messages = messages_per_round(bench)
    found = await bench.rounds(
        {
            "apalis-pgmq, 2 processes": partial(drain_ours, bench, messages, processes=2),
            "raw, 2 processes": partial(drain_raw, bench, messages, processes=2),
        }
    )
    ours, raw = (rates(samples) for samples in found.values())
    return [
        Row(
            name="drain by two processes",
            unit="messages/s",
            values=ours,
            against=f"two bare loops: {_RAW} each",
            baseline=raw,
            target=Target(must=0.75, aim=1.0),
        )
    ]


async def cost(bench: Bench) -> list[Row]:
    """Processor time and transactions per message, of the drain rounds."""
    if not bench.drained:
        messages = messages_per_round(bench)
        found = await bench.rounds({"apalis-pgmq": partial(drain_ours, bench, messages)})
        bench.drained = found["apalis-pgmq"]
    samples = bench.drained
    return [
        Row(
            name="worker's processor time per message",
            unit="µs",
            values=[sample["cpu"] / sample["messages"] * 1e6 for sample in samples],
            target=Target(must=20, aim=10, of="value", lower=True),
            note="user and system time of the worker process while it drains",
        ),
        Row(
            name="transactions per message",
            unit="transactions",
            values=[sample["transactions"] / sample["messages"] for sample in samples],
            target=Target(must=0.02, aim=0.01, of="value", lower=True),
            note="commits of the whole database, setting up included",
        ),
        Row(
            name="worker's peak memory",
            unit="MB",
            values=[sample["rss_peak"] for sample in samples],
        ),
    ]


def messages_per_round(bench: Bench) -> int:
    """Return how many messages are drained in one round."""
    return bench.size(100_000, 2_000)


def rates(samples: list[Sample]) -> list[float]:
    """Return the messages per second of samples."""
    return [sample["rate"] for sample in samples]
