"""``apalis-pgmq setup``."""

from __future__ import annotations

import asyncio

import typer

from apalis_pgmq.core import Config
from apalis_pgmq.pgmq import create_queue


def set_up(url: str, queue: str, *, dead_letter: bool) -> None:
    """Make PGMQ and the queue ready, with its dead-letter queue if wanted; say what was there.

    Raises:
        ApalisError: the name cannot be a queue's, or the database refuses or does not answer.
    """
    config = Config(queue)
    queues = [config.queue, config.dead_letter_queue] if dead_letter else [config.queue]
    asyncio.run(_create(url, queues))


async def _create(url: str, queues: list[str]) -> None:
    for queue in queues:
        created = await create_queue(url, queue)
        typer.echo(f"queue {queue}: {'created' if created else 'was there already'}")
