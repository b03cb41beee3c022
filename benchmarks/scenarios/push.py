"""How fast messages are sent: one by one, by many at the same time, and many at once."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.processes import run
from benchmarks.results import Row, Target
from benchmarks.server import CHANNEL, QUEUE, TABLE

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample

_COROUTINES: Final = (16, 1, 4, 64)
_WITHIN: Final = 300.0


async def push16(bench: Bench) -> list[Row]:
    """Coroutines that each await one durable push after the other, against as many bare connections."""
    seconds = bench.size(5, 1)
    rows = []
    for coroutines in _COROUTINES:
        found = await bench.rounds(
            {
                f"apalis-pgmq, {coroutines} coroutines": partial(
                    _push, bench, {"coroutines": coroutines, "seconds": seconds}
                ),
                f"raw, {coroutines} connections": partial(
                    _raw_push, bench, {"connections": coroutines, "seconds": seconds}
                ),
                f"pgmq-py, {coroutines} coroutines": partial(
                    _pgmq_push, bench, {"coroutines": coroutines, "seconds": seconds}
                ),
            }
        )
        ours, raw, peer = ([sample["rate"] for sample in samples] for samples in found.values())
        rows += [
            Row(
                name=f"push by {coroutines} at the same time",
                unit="messages/s",
                values=ours,
                against=against,
                baseline=baseline,
                target=target,
                note="each coroutine awaits the durable storage of its message before it sends the next",
            )
            for against, baseline, target in (
                (
                    f"bare asyncpg, connections: {coroutines}; INSERT with pg_notify",
                    raw,
                    Target(must=3, aim=8) if coroutines == _COROUTINES[0] else None,
                ),
                (f"pgmq-py, connections: {coroutines}", peer, None),
            )
        ]
    return rows


async def push_many(bench: Bench) -> list[Row]:
    """Many messages by one call, against the faster of INSERT and COPY."""
    many = bench.size(100_000, 2_000)
    found = await bench.rounds(
        {
            "apalis-pgmq": partial(_push, bench, {"many": many}),
            "raw, INSERT": partial(_raw_push, bench, {"many": many, "way": "insert"}),
            "raw, COPY": partial(_raw_push, bench, {"many": many, "way": "copy"}),
            "pgmq-py": partial(_pgmq_push, bench, {"many": many}),
        }
    )
    ours, insert, copy, peer = ([sample["rate"] for sample in samples] for samples in found.values())
    return [
        Row(
            name=f"push_many of {many:,}",
            unit="messages/s",
            values=ours,
            against="bare asyncpg: the faster of INSERT SELECT unnest and COPY, payloads ready-made",
            baseline=[max(pair) for pair in zip(insert, copy, strict=True)],
            target=Target(must=0.85, aim=0.95),
            note="apalis-pgmq encodes its messages within the time",
        ),
        Row(
            name=f"push_many of {many:,}",
            unit="messages/s",
            values=ours,
            against="bare asyncpg: INSERT SELECT unnest, payloads ready-made",
            baseline=insert,
            note="COPY writes many rows by one WAL record, and returns no ids",
        ),
        Row(
            name=f"push_many of {many:,}",
            unit="messages/s",
            values=ours,
            against="pgmq-py: send_batch",
            baseline=peer,
        ),
    ]


async def _push(bench: Bench, what: dict[str, int]) -> Sample:
    async with bench.server.database() as database:
        job = {"url": database.url, "loop": bench.options.loop, "queue": QUEUE, **what}
        await bench.server.settle(database)
        return await run("measured.push", job, within=_WITHIN, name="apalis-pgmq")


async def _pgmq_push(bench: Bench, what: dict[str, int]) -> Sample:
    async with bench.server.database() as database:
        job = {"url": database.url, "loop": bench.options.loop, "queue": QUEUE, **what}
        await bench.server.settle(database)
        return await run("measured.pgmq_push", job, within=_WITHIN)


async def _raw_push(bench: Bench, what: dict[str, int | str]) -> Sample:
    async with bench.server.database() as database:
        job = {"url": database.url, "loop": bench.options.loop, "table": TABLE, "channel": CHANNEL, **what}
        await bench.server.settle(database)
        return await run("measured.raw_push", job, within=_WITHIN)
