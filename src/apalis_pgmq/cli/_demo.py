"""``apalis-pgmq demo``."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from rich.console import Console

from apalis_pgmq.core import ApalisError
from apalis_pgmq.embedded import embedded_postgres
from apalis_pgmq.pgmq import PgMqBackend, PgMqQueues
from apalis_pgmq.worker import WorkerBuilder

from ._screen import Screen
from ._stage import Clock, log_aside, own_queue
from ._story import MAX_RETRIES, EmailMessage, Mail, Observer, Outbox, faults, send_email

if TYPE_CHECKING:
    from apalis_pgmq.core import Task, TaskId

_SHOWN_HEADERS: Final = tuple(
    f"x-dead-letter-{name}" for name in ("reason", "error", "attempts", "queue", "id", "enqueued-at", "at")
)
_FRAME: Final = 0.05
_PATIENCE: Final = 20.0
"""Seconds without any progress after which something is wrong."""


class DemoError(ApalisError):
    """The demonstration did not show what it should have shown."""


def run_demo(count: int, concurrency: int) -> None:
    """Send ``count`` messages through a queue, and check what it shows.

    Raises:
        DemoError: a check did not hold.
        ApalisError: there is no server, or it refuses.
    """
    # All of it on one event loop, even what blocks: its way with Ctrl-C is to cancel at the next `await`,
    # whereas a KeyboardInterrupt could strike in the middle of a start or of a clean-up.
    asyncio.run(_demonstrate(Screen(Console(highlight=False)), count, concurrency))


async def _demonstrate(screen: Screen, count: int, concurrency: int) -> None:
    clock = Clock()
    borrowed = bool(os.environ.get("APALIS_PGMQ_URL"))
    screen.opening("apalis-pgmq: background workers on PGMQ, the message queue in PostgreSQL")
    with log_aside(), ExitStack() as server:
        with screen.waiting_for("starting PostgreSQL"):
            url = server.enter_context(embedded_postgres())
        screen.done(
            "Took the PostgreSQL of APALIS_PGMQ_URL"
            if borrowed
            else "Started a throw-away PostgreSQL (fsync off)",
            clock.lap(),
        )
        await _show(screen, url, count, concurrency)
        with screen.waiting_for("cleaning up"):
            server.close()
    screen.conclusion(
        "Checked: all others were handled exactly once, the queue is empty, nothing is left behind"
    )
    screen.note(f"{clock.total():.1f} s in all")


async def _show(screen: Screen, url: str, count: int, concurrency: int) -> None:
    clock = Clock()
    async with (
        own_queue(url, "demo", poll_interval=0.02, max_retries=MAX_RETRIES) as config,
        PgMqBackend(url, config, EmailMessage) as emails,
    ):
        screen.done("Made a queue", clock.lap())
        mail, outbox = Mail.of(count), Outbox()
        with screen.waiting_for("pushing messages"):
            ids = await emails.push_many(mail.messages)
        screen.done(f"Pushed {count:,} e-mails to it", clock.lap(), count=count)

        observer = await _work(screen, emails, outbox, count, concurrency)
        screen.done(f"Handled them in one worker, {concurrency} at a time", observer.seconds, count=count - 2)
        letter = await _dead_letter(url, config.dead_letter_queue)
        _tell_of_failures(screen, mail, ids, observer, letter)

        async with PgMqQueues(url) as queues:
            left = (await queues.metrics(config.queue)).length
            dead = (await queues.metrics(config.dead_letter_queue)).length
        found = faults(
            mail,
            ids,
            outbox,
            letter,
            left=left,
            dead=dead,
        )
        if found:
            raise DemoError(f"a check did not hold: {'; '.join(found)}")


async def _work(
    screen: Screen, emails: PgMqBackend[EmailMessage], outbox: Outbox, count: int, concurrency: int
) -> Observer:
    """Work the queue until every message has come to its end."""
    observer = Observer(count)
    worker = (
        WorkerBuilder("demo")
        .backend(emails)
        .concurrency(concurrency)
        .data(outbox)
        .on_event(observer)
        .build(send_email)
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run())
        await _watch(screen, observer, count)
        worker.stop()
    return observer


async def _watch(screen: Screen, observer: Observer, count: int) -> None:
    """Show how far the worker is, until it is done; lose patience if it gets nowhere."""
    with screen.progress("handling e-mails", count) as show:
        before, since = -1, time.monotonic()
        while not observer.has_seen_all:
            show(observer.ended)
            if observer.ended != before:
                before, since = observer.ended, time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise DemoError(f"nothing happened for {_PATIENCE:g} s, with {before:,} of {count:,} handled")
            await asyncio.sleep(_FRAME)
        show(observer.ended)


async def _dead_letter(url: str, queue: str) -> Task[EmailMessage]:
    """Take a look at the message in a dead-letter queue, which is a queue like any other."""
    try:
        async with (
            asyncio.timeout(_PATIENCE),
            PgMqBackend(url, queue, EmailMessage) as dead,
            dead.poll() as letters,
        ):
            letter = await anext(letters)
            letters.hand_back(letter, spend_attempt=False)
            return letter
    except TimeoutError:
        raise DemoError(f"there is no message in {queue}") from None


def _tell_of_failures(
    screen: Screen, mail: Mail, ids: list[TaskId], observer: Observer, letter: Task[EmailMessage]
) -> None:
    busy, unknown = ids[mail.busy], ids[mail.unknown]
    screen.title("One failed, and was tried again")
    screen.note(f"message {busy} to {mail.messages[mail.busy].to}")
    for failure in observer.failures[busy]:
        screen.attempt(failure.attempt, str(failure.error))
    if attempt := observer.recovered.get(busy):
        screen.attempt(attempt, None)

    screen.title(f"One failed each time; after {MAX_RETRIES} retries it was put aside, with the reason")
    screen.note(f"message {unknown} to {letter.args.to}")
    for failure in observer.failures[unknown]:
        screen.attempt(failure.attempt, str(failure.error))
    screen.note("in the dead-letter queue it has these headers:")
    screen.table({name: letter.headers.get(name) for name in _SHOWN_HEADERS})
