"""What one worker knows to be due is not forgotten when it has no time for it."""

import asyncio

import pytest

from apalis_pgmq import Config, PgMqBackend, WorkerBuilder

from .conftest import Email, running
from .resting import NEVER, PROMPT, Catcher, Rest, rest

__all__ = ["rest"]


@pytest.fixture
def catcher() -> Catcher:
    return Catcher()


async def test_an_idle_worker_handles_what_the_first_to_answer_is_too_busy_for(
    pgmq_url: str, queue: str, rest: Rest, catcher: Catcher
) -> None:
    """The first to answer knows when messages are due; the others do not."""
    release = asyncio.Event()

    async def handler(message: Email) -> None:
        await catcher(message)
        await release.wait()

    config = Config(queue, poll_interval=NEVER)
    async with (
        PgMqBackend(pgmq_url, config, Email) as one,
        PgMqBackend(pgmq_url, config, Email) as two,
        running(WorkerBuilder("one").backend(one).concurrency(1).build(handler)),
        running(WorkerBuilder("two").backend(two).concurrency(1).build(handler)),
    ):
        await rest(one, two)
        await one.push(Email("a"), delay=0.5)
        await one.push(Email("b"), delay=0.8)
        await catcher.got("a", within=0.5 + PROMPT)
        try:
            await catcher.got("b", within=0.8 + PROMPT)
        finally:
            release.set()
