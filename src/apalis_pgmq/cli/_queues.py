"""``apalis-pgmq queues``, ``purge`` and ``drop``."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console
from rich.table import Table

from apalis_pgmq.pgmq import PgMqQueueMissingError, PgMqQueues

from ._exits import UsageError

if TYPE_CHECKING:
    from datetime import timedelta

    from apalis_pgmq.pgmq import QueueInfo, QueueMetrics

_UNITS: Final = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_WIDTH: Final = 120
"""Columns where there is no terminal that has its own."""


def list_queues(url: str, *, as_json: bool) -> None:
    """Show every queue with its figures.

    Args:
        url: the database.
        as_json: as a JSON array, ages in seconds, rather than as a table.

    Raises:
        ApalisError: the database refuses or does not answer.
    """
    found = asyncio.run(_measure(url))
    if as_json:
        typer.echo(json.dumps([_plain(info, metrics) for info, metrics in found], indent=2))
    elif found:
        _show(found)
    else:
        typer.echo("there are no queues")


def purge(url: str, queue: str, *, is_sure: bool) -> None:
    """Delete every message of a queue, once its user has confirmed it; say how many.

    Raises:
        UsageError: the user did not confirm.
        ApalisError: there is no such queue, or the database refuses or does not answer.
    """
    asyncio.run(_purge(url, queue, is_sure=is_sure))


def drop(url: str, queue: str, *, is_sure: bool) -> None:
    """Drop a queue with its archive, once its user has confirmed it.

    Raises:
        UsageError: the user did not confirm.
        ApalisError: there is no such queue, or the database refuses or does not answer.
    """
    asyncio.run(_drop(url, queue, is_sure=is_sure))


async def _measure(url: str) -> list[tuple[QueueInfo, QueueMetrics]]:
    async with PgMqQueues(url) as queues:
        metrics = {each.queue: each for each in await queues.metrics_of_all()}
        # What was made or dropped in between is left out.
        return [(info, metrics[info.name]) for info in await queues.all() if info.name in metrics]


async def _purge(url: str, queue: str, *, is_sure: bool) -> None:
    async with PgMqQueues(url) as queues:
        length = (await queues.metrics(queue)).length
        _confirm(f"Delete all {length:,} messages of queue {queue}?", is_sure=is_sure)
        typer.echo(f"queue {queue}: {await queues.purge(queue):,} messages deleted")


async def _drop(url: str, queue: str, *, is_sure: bool) -> None:
    async with PgMqQueues(url) as queues:
        length = (await queues.metrics(queue)).length
        _confirm(f"Drop queue {queue} with its {length:,} messages and its archive?", is_sure=is_sure)
        if not await queues.drop(queue):
            raise PgMqQueueMissingError(f"queue {queue!r} is not there any more")
        typer.echo(f"queue {queue}: dropped")


def _confirm(question: str, *, is_sure: bool) -> None:
    if is_sure:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort:
        raise UsageError("nothing was done: there is nobody to ask, so say --yes") from None
    if not agreed:
        raise UsageError("nothing was done")


def _show(found: list[tuple[QueueInfo, QueueMetrics]]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("queue", overflow="fold")
    table.add_column("kind")
    for heading in ("messages", "visible", "oldest", "newest", "sent ever"):
        table.add_column(heading, justify="right")
    for info, its in found:
        table.add_row(
            info.name,
            _kind(info),
            f"{its.length:,}",
            f"{its.visible_length:,}",
            _age(its.oldest_age),
            _age(its.newest_age),
            f"{its.total_messages:,}",
        )
    console = Console()
    console.print(table, width=console.width if console.is_terminal else _WIDTH, markup=False)


def _kind(info: QueueInfo) -> str:
    return "partitioned" if info.is_partitioned else "unlogged" if info.is_unlogged else "plain"


def _age(age: timedelta | None) -> str:
    if age is None:
        return "-"
    seconds = max(round(age.total_seconds()), 0)
    for unit, length in _UNITS:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return "0 s"


def _plain(info: QueueInfo, metrics: QueueMetrics) -> dict[str, object]:
    def seconds(age: timedelta | None) -> float | None:
        return None if age is None else age.total_seconds()

    return {
        "queue": info.name,
        "kind": _kind(info),
        "created_at": info.created_at.isoformat(),
        "length": metrics.length,
        "visible_length": metrics.visible_length,
        "oldest_age": seconds(metrics.oldest_age),
        "newest_age": seconds(metrics.newest_age),
        "total_messages": metrics.total_messages,
        "scraped_at": metrics.scraped_at.isoformat(),
    }
