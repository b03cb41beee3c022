"""How fast a queue is drained in order within message groups."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from benchmarks.draining import worker_job
from benchmarks.preload import left_over, preload_groups
from benchmarks.processes import ProcessError, measured
from benchmarks.results import Row, Target

from .drain import rates

if TYPE_CHECKING:
    from benchmarks.bench import Bench, Sample

_EACH: Final = 20
_WITHIN: Final = 900.0


async def ordered(bench: Bench) -> list[Row]:
    """Many groups, a large one beside small ones, and one alone; the same queues without order."""
    groups = bench.size(10_000, 100)
    small = bench.size(1_000, 20)
    large = bench.size(100_000, 1_000)
    alone = bench.size(3_000, 200)
    found = await bench.rounds(
        {
            "in order": partial(_drain, bench, groups, ordered=True),
            "without order": partial(_drain, bench, groups, ordered=False),
            "in order, beside a large group": partial(_drain, bench, small, large=large, ordered=True),
            "without order, beside a large group": partial(_drain, bench, small, large=large, ordered=False),
            "in order, one group": partial(_drain, bench, 0, large=alone, ordered=True),
        }
    )
    many, many_plain, beside, beside_plain, one = (rates(samples) for samples in found.values())
    return [
        Row(
            name=f"drain of {groups:,} groups of {_EACH}, in order",
            unit="messages/s",
            values=many,
            against="the same messages without order",
            baseline=many_plain,
            target=Target(must=0.3, aim=0.5),
        ),
        Row(
            name=f"{small * _EACH:,} messages, {small:,} groups of {_EACH} behind one of {large:,}, in order",
            unit="messages/s",
            values=beside,
            against="as many of the same messages without order",
            baseline=beside_plain,
        ),
        Row(
            name="one group alone",
            unit="messages/s",
            values=one,
            target=Target(must=300, aim=500, of="value"),
            note="each message is claimed when the one before it has been removed durably",
        ),
    ]


async def _drain(bench: Bench, groups: int, *, large: int = 0, ordered: bool) -> Sample:
    """Handle as many messages as the groups have, or the large one alone."""
    async with bench.server.database() as database, AsyncExitStack() as stack:
        await preload_groups(database, groups, _EACH, large=large, ordered=ordered)
        await bench.server.settle(database)
        messages = groups * _EACH or large
        job = worker_job(bench, database, expected=messages, config={"ordered": ordered})
        worker = await stack.enter_async_context(measured("measured.worker", job, name="apalis-pgmq"))
        await worker.say(go=True)
        result = await worker.result(_WITHIN)
        await bench.server.left(database)
        left = await left_over(database)
        # With a large group beside the others, the worker stops in the midst of it, and what it was at is handled too.
        if result["handled"] + left != groups * _EACH + large or result["handled"] < messages:
            raise ProcessError(f"{result['handled']} messages were handled and {left} are left")
        return {
            "messages": result["handled"],
            "rate": (result["handled"] - 1) / (result["last"] - result["first"]),
            "cpu": result["cpu"],
        }
