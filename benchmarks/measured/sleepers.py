"""The limit of calm: as many bare coroutines that sleep as a worker has handlers, and the same ticker.

Its job:
    loop: the event loop.
    sleepers: how many coroutines.
    seconds: how long each sleeps at a time.
    times: how often.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from benchmarks.child import Meter, serve

from .ticker import tick

if TYPE_CHECKING:
    from benchmarks.child import Parent


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Sleep."""

    async def sleeper() -> None:
        for _ in range(job["times"]):
            await asyncio.sleep(job["seconds"])

    parent.tell("ready")
    await parent.hear_soon()
    meter = Meter()
    gaps: list[float] = []
    ticking = asyncio.create_task(tick(gaps))
    await asyncio.gather(*(sleeper() for _ in range(job["sleepers"])))
    ticking.cancel()
    parent.tell("result", **meter.read(), stalls=sorted(gaps, reverse=True)[:20])


if __name__ == "__main__":
    serve(main)
