"""A worker under load: a producer keeps a queue filled, and is told what was handled."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

from .processes import measured
from .server import TABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .processes import Measured
    from .server import Database

PROGRESS_SECONDS: Final = 0.1

_WITHIN: Final = 900.0
_AT_ONCE: Final = 60.0


async def feed(
    database: Database,
    job: Mapping[str, Any],
    *,
    batch: int,
    ahead: int,
    total: int | None = None,
    beside: Callable[[], Awaitable[object]] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a worker on a queue that a producer fills; return the results of both.

    Args:
        database: where.
        job: of the worker, a `measured.worker`.
        batch: messages per INSERT.
        ahead: how many messages may wait, about.
        total: how many to produce and to handle; or
        beside: what to do meanwhile; when it is done, both are stopped.
    """
    whole = {} if total is None else {"total": total}
    last = {} if total is None else {"expected": total}
    producing = {
        "url": database.url,
        "table": TABLE,
        "batch": batch,
        "ahead": ahead,
        **whole,
    }
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(
            measured("measured.worker", {**job, **last, "progress": PROGRESS_SECONDS}, name="apalis-pgmq")
        )
        producer = await stack.enter_async_context(measured("measured.producer", producing))
        for one in (worker, producer):
            await one.say(go=True)
        if total is not None:
            worked = await _relay(worker, producer, tell=True)
            return worked, await producer.result(_WITHIN)
        assert beside is not None
        relaying = asyncio.create_task(_relay(worker, producer, tell=True))
        doing = asyncio.ensure_future(beside())
        try:
            await asyncio.wait([relaying, doing], return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                await relaying  # failed: it ends by itself only then
            await doing
            await producer.say(stop=True)
            await worker.say(stop=True)
            return await relaying, await producer.result(_WITHIN)
        finally:
            for task in (relaying, doing):
                task.cancel()
            await asyncio.gather(relaying, doing, return_exceptions=True)


async def _relay(worker: Measured, producer: Measured, *, tell: bool) -> dict[str, Any]:
    """Tell a producer how many messages were handled, until the worker's result comes; return that."""
    while (message := await worker.hear(_AT_ONCE))["event"] == "progress":
        if tell:
            try:
                await producer.say(handled=message["handled"])
            except (BrokenPipeError, ConnectionResetError):
                tell = False  # it has sent all
    del message["event"]
    return message
