"""How fast synchronous code sends, and senders in transactions of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks.processes import run
from benchmarks.results import Row, Target
from benchmarks.server import CHANNEL, QUEUE, TABLE

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample

_WITHIN: Final = 300.0
_SENDERS: Final = 8
_BY: Final = ("apalis-pgmq", "raw", "pgmq-py")


async def producer(bench: Bench) -> list[Row]:
    """`PgMqProducer`, against bare psycopg and pgmq-py."""
    seconds, many = bench.size(5, 1), bench.size(100_000, 2_000)
    rows = []
    for name, what, target in (
        ("push, one after the other", {"seconds": seconds}, Target(must=0.7, aim=0.9)),
        ("push in a transaction", {"seconds": seconds, "transaction": True}, Target(must=0.7, aim=0.9)),
        (f"push_many of {many:,}", {"many": many}, Target(must=0.6, aim=0.9)),
    ):
        found = await bench.rounds({by: partial(_sync_push, bench, {"by": by, **what}) for by in _BY})
        ours, raw, peer = ([sample["rate"] for sample in samples] for samples in found.values())
        rows += [
            Row(
                name=f"synchronous {name}",
                unit="messages/s",
                values=ours,
                against="bare psycopg, INSERT with pg_notify, payloads ready-made",
                baseline=raw,
                target=target,
            ),
            Row(
                name=f"synchronous {name}",
                unit="messages/s",
                values=ours,
                against="pgmq-py",
                baseline=peer,
                target=Target(must=1, aim=1.2),
            ),
        ]
    return rows


async def outbox(bench: Bench) -> list[Row]:
    """Senders in transactions of their own, one of whom keeps it open, against the same without that one."""
    seconds = bench.size(5, 1)
    rows = []
    for by, name in (("apalis-pgmq", "push"), ("pgmq", "pgmq.send with enable_notify_insert")):
        job = {"by": by, "senders": _SENDERS, "seconds": seconds}
        found = await bench.rounds(
            {
                f"{name}, one transaction open": partial(_outbox, bench, {**job, "held": True}),
                f"{name}, none open": partial(_outbox, bench, {**job, "held": False}),
            }
        )
        held, free = ([sample["rate"] for sample in samples] for samples in found.values())
        rows.append(
            Row(
                name=f"{_SENDERS} senders in transactions, one more holds its own open: {name}",
                unit="messages/s",
                values=held,
                against="the same without that one",
                baseline=free,
                target=Target(must=0.9, aim=0.97) if by == "apalis-pgmq" else None,
                note="" if by == "apalis-pgmq" else "for comparison: PGMQ's own trigger",
            )
        )
    return rows


async def _sync_push(bench: Bench, what: dict[str, Any]) -> Sample:
    async with bench.server.database() as database:
        job = {"url": database.url, "table": TABLE, "channel": CHANNEL, "queue": QUEUE, **what}
        await bench.server.settle(database)
        return await run("measured.sync_push", job, within=_WITHIN, name=what["by"])


async def _outbox(bench: Bench, what: dict[str, Any]) -> Sample:
    async with bench.server.database() as database:
        job = {"url": database.url, "loop": bench.options.loop, "queue": QUEUE, **what}
        await bench.server.settle(database)
        return await run("measured.outbox", job, within=_WITHIN, name=what["by"])
