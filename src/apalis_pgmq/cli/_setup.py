"""``apalis-pgmq setup``."""

from __future__ import annotations

import asyncio

import typer

from apalis_pgmq.core import Config
from apalis_pgmq.pgmq import create_queue


def set_up(url: str, queue: str, *, dead_letter: bool, notify: bool, tune: bool, ordered: bool) -> None:
    """Make PGMQ and the queue ready, with its dead-letter queue if wanted; say what was done.

    Args:
        url: the database.
        queue: the queue's name.
        dead_letter: whether to make its dead-letter queue too.
        notify: whether to have inserts announced.
        tune: whether to set autovacuum.
        ordered: whether to make the queue ready to be worked in order within groups.

    Raises:
        ApalisError: the name cannot be a queue's, or the database refuses or does not answer.
    """
    config = Config(queue, ordered=ordered)
    queues = [config.queue, config.dead_letter_queue] if dead_letter else [config.queue]
    asyncio.run(_create(url, queues, notify=notify, tune=tune, ordered=ordered))


async def _create(url: str, queues: list[str], *, notify: bool, tune: bool, ordered: bool) -> None:
    for queue in queues:
        is_ordered = ordered and queue == queues[0]
        created = await create_queue(url, queue, notify=notify, tune=tune, ordered=is_ordered)
        done = ["created" if created else "was there already"]
        if notify:
            done.append("inserts are announced")
        if tune:
            done.append("autovacuum is tuned")
        if is_ordered:
            done.append("ready to be worked in order")
        typer.echo(f"queue {queue}: {', '.join(done)}")
