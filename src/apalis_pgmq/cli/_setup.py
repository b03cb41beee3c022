"""``apalis-pgmq setup``."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import typer

from apalis_pgmq.core import Config
from apalis_pgmq.pgmq import Partitions, PgMqQueues

from ._exits import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS: Final = {"": None, "h": timedelta(hours=1), "d": timedelta(days=1)}
_AMOUNT: Final = re.compile(r"([1-9][0-9]{0,9})([hd]?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """What ``setup`` was asked to make.

    Attributes:
        queue: the queue's name.
        dead_letter: whether to make its dead-letter queue too, a plain one always.
        notify: whether to have inserts announced.
        tune: whether to set autovacuum.
        dedup: whether to make the table of deduplication.
        ordered: whether to make the queue ready to be worked in order within groups.
        unlogged: whether the queue is to be unlogged.
        partitions: interval and retention, such as ``10000`` and ``100000``, or ``1d`` and ``7d``.
    """

    queue: str
    dead_letter: bool
    notify: bool
    tune: bool
    dedup: bool
    ordered: bool
    unlogged: bool
    partitions: tuple[str, str] | None


def set_up(url: str, wanted: SetUp) -> None:
    """Make PGMQ and the queue ready, with its dead-letter queue if wanted; say what was done.

    Raises:
        UsageError: an amount of the partitions cannot be read.
        ApalisError: the name cannot be a queue's, or the database refuses or does not answer.
    """
    partitions = None if wanted.partitions is None else _partitions(wanted.partitions)
    config = Config(wanted.queue, ordered=wanted.ordered)
    queues = [config.queue, config.dead_letter_queue] if wanted.dead_letter else [config.queue]
    asyncio.run(_create(url, queues, wanted, partitions))


async def _create(url: str, names: Sequence[str], wanted: SetUp, partitions: Partitions | None) -> None:
    async with PgMqQueues(url) as queues:
        for queue in names:
            is_its_own = queue == wanted.queue
            created = await queues.create(
                queue,
                unlogged=wanted.unlogged and is_its_own,
                partitions=partitions if is_its_own else None,
                notify=wanted.notify,
                tune=wanted.tune,
                dedup=wanted.dedup,
                ordered=wanted.ordered and is_its_own,
            )
            done = ["created" if created else "was there already"]
            if wanted.notify:
                done.append("inserts are announced")
            if wanted.tune:
                done.append("autovacuum is tuned")
            if wanted.ordered and is_its_own:
                done.append("ready to be worked in order")
            typer.echo(f"queue {queue}: {', '.join(done)}")


def _partitions(amounts: tuple[str, str]) -> Partitions:
    interval, retention = map(_amount, amounts)
    return Partitions(interval, retention)


def _amount(text: str) -> int | timedelta:
    if not (found := _AMOUNT.fullmatch(text)):
        raise UsageError(f"{text!r} must be a number of messages, or a time such as 12h or 7d")
    unit = _UNITS[found[2]]
    return int(found[1]) if unit is None else int(found[1]) * unit
