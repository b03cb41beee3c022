"""Dead letters in memory: listed, put back and deleted as PGMQ's are."""

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apalis_pgmq import AbortError, ConfigError, DeadLetter, EncodeError, MemoryBackend
from apalis_pgmq.core import SupportsDeadLetters

from .support import Email, build, emails, memory, push_raw, run_until_empty, running, settings


async def bury(backend: MemoryBackend[Email], count: int) -> None:
    async def handler(message: Email) -> None:
        raise AbortError(f"no {message.to}")

    await backend.push_many(emails(count), headers={"trace": "t"})
    await run_until_empty(backend, build(backend, handler))


def put_there(backend: MemoryBackend[Any], headers: object) -> None:
    """Put a message into the dead-letter queue as anybody may."""
    backend._queue.add_dead('{"to": "ada"}', None if headers is None else json.dumps(headers))


def names(letters: list[DeadLetter]) -> list[str]:
    return [json.loads(letter.payload)["to"] for letter in letters]


def test_the_backend_has_the_capability() -> None:
    assert isinstance(memory(), SupportsDeadLetters)


async def test_a_dead_letter_tells_all_of_its_story() -> None:
    backend = memory()
    before = datetime.now(UTC)
    await bury(backend, 1)

    [letter] = await backend.dead_letters()

    assert letter.payload == '{"to":"0"}'
    assert letter.headers["trace"] == "t"
    assert letter.headers["x-dead-letter-reason"] == letter.reason == "aborted"
    assert (letter.error, letter.error_type) == ("no 0", "AbortError")
    assert (letter.attempts, letter.worker, letter.original_id, letter.queue) == (1, "worker", 1, "emails")
    assert letter.enqueued_at is not None
    assert letter.dead_lettered_at is not None
    assert before <= letter.enqueued_at <= letter.dead_lettered_at <= datetime.now(UTC)


async def test_an_archived_dead_letter_has_the_headers_too() -> None:
    backend = memory(dead_letter="archive")
    await bury(backend, 1)

    [message] = backend.archived

    assert message.headers is not None
    headers = json.loads(message.headers)
    assert (headers["trace"], headers["x-dead-letter-reason"]) == ("t", "aborted")
    assert headers["x-dead-letter-error"] == "no 0"


async def test_an_error_is_kept_as_postgresql_could_store_it() -> None:
    backend = memory()
    await backend.push(Email("ada"))

    async def handler(message: Email) -> None:
        raise AbortError("\x00\ud800" + "x" * 3000)

    await run_until_empty(backend, build(backend, handler))

    [letter] = await backend.dead_letters()
    assert letter.error == "\ufffd?" + "x" * 1998


@pytest.mark.parametrize(
    "headers",
    [
        None,
        [1],
        "text",
        {"x-dead-letter-reason": 7, "x-dead-letter-attempts": "3", "x-dead-letter-id": True},
        {"x-dead-letter-at": "yesterday", "x-dead-letter-enqueued-at": "2026-01-01T00:00:00"},
    ],
)
async def test_what_others_put_there_is_listed_with_what_it_says(headers: object) -> None:
    backend = memory()
    put_there(backend, headers)

    [letter] = await backend.dead_letters()

    assert (letter.id, letter.payload) == (1, '{"to": "ada"}')
    assert letter.headers == (headers if isinstance(headers, dict) else {})
    told = (letter.reason, letter.error, letter.error_type, letter.queue, letter.worker)
    assert told == (None,) * 5
    assert (letter.attempts, letter.original_id) == (None, None)
    assert (letter.enqueued_at, letter.dead_lettered_at) == (None, None)


async def test_pages_follow_each_other_oldest_first() -> None:
    backend = memory()
    await bury(backend, 25)
    in_order = names(await backend.dead_letters())

    seen = []
    after = None
    while page := await backend.dead_letters(limit=10, after=after):
        seen.extend(names(page))
        after = page[-1].id

    assert seen == in_order
    assert sorted(seen, key=int) == [str(number) for number in range(25)]


async def test_a_redriven_message_is_delivered_anew() -> None:
    backend = memory()
    await bury(backend, 1)

    assert await backend.redrive() == 1

    assert await backend.dead_letters() == []
    [message] = backend.messages
    assert (message.payload, message.read_ct) == ('{"to":"0"}', 0)
    assert json.loads(message.headers or "") == {"trace": "t", "x-redrive-count": 1}
    assert message.vt <= datetime.now(UTC)


async def test_redrives_are_counted() -> None:
    backend = memory()
    push_raw(backend, "not json")
    for count in (1, 2, 3):
        await run_until_empty(backend, build(backend, lambda message: None))
        await backend.redrive()
        [message] = backend.messages
        assert message.payload == "not json"
        assert json.loads(message.headers or "") == {"x-redrive-count": count}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (None, {"x-redrive-count": 1}),
        ([1], {"x-redrive-count": 1}),
        ({"x-redrive-count": "many", "a": None}, {"x-redrive-count": 1, "a": None}),
        ({"x-redrive-count": True}, {"x-redrive-count": 1}),
        ({"x-redrive-count": 10**30}, {"x-redrive-count": 1}),
        ({"x-redrive-count": -3}, {"x-redrive-count": 1}),
        ({"x-redrive-count": "4"}, {"x-redrive-count": 5}),
        ({"x-dead-letters": 1, "x-dead-letter-": 2}, {"x-dead-letters": 1, "x-redrive-count": 1}),
    ],
)
async def test_headers_of_all_kinds_are_redriven(headers: object, expected: object) -> None:
    backend = memory()
    put_there(backend, headers)

    assert await backend.redrive() == 1

    assert json.loads(backend.messages[0].headers or "") == expected


async def test_only_the_asked_for_are_moved() -> None:
    backend = memory()
    await bury(backend, 300)
    ids = [letter.id for letter in await backend.dead_letters(limit=300)]

    assert await backend.redrive([*ids[::2], ids[0], 10**12]) == 150
    assert [letter.id for letter in await backend.dead_letters(limit=300)] == ids[1::2]
    assert await backend.redrive([]) == 0
    assert await backend.redrive(iter(ids)) == 150


async def test_at_most_the_limit_is_moved_oldest_first() -> None:
    backend = memory()
    await bury(backend, 300)
    ids = [letter.id for letter in await backend.dead_letters(limit=300)]

    assert await backend.redrive(limit=0) == 0
    assert await backend.redrive(limit=150) == 150
    assert [letter.id for letter in await backend.dead_letters(limit=300)] == ids[150:]
    assert await backend.redrive(ids, limit=120) == 120
    assert await backend.redrive(limit=1000) == 30


async def test_the_rate_is_kept() -> None:
    backend = memory()
    await bury(backend, 60)
    began = time.monotonic()

    redrive = asyncio.create_task(backend.redrive(rate=100))
    while not redrive.done():
        # A batch is a tenth of a second's worth.
        assert len(backend.messages) <= 10 + 100 * (time.monotonic() - began)
        await asyncio.sleep(0.005)

    assert await redrive == 60
    assert time.monotonic() - began >= 0.5


async def test_redrives_at_the_same_time_share_the_work_and_cancelling_loses_nothing() -> None:
    backend = memory()
    await bury(backend, 1000)
    cancelled = asyncio.create_task(backend.redrive(rate=500))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    already = len(backend.messages)
    assert 0 < already < 1000

    counts = await asyncio.gather(backend.redrive(), backend.redrive(range(1000)), backend.redrive(rate=5000))

    assert sum(counts) == 1000 - already
    assert len({message.payload for message in backend.messages}) == len(backend.messages) == 1000


async def test_what_fails_again_meanwhile_is_not_put_back_for_ever() -> None:
    backend = memory()
    await bury(backend, 150)

    async def handler(message: Email) -> None:
        raise AbortError

    async with running(build(backend, handler)), asyncio.timeout(20):
        assert await backend.redrive(rate=1000) == 150


async def test_workers_are_woken() -> None:
    backend = MemoryBackend(settings(poll_interval=3600), Email)
    put_there(backend, None)
    async with backend.poll() as consumer:
        work = asyncio.create_task(anext(consumer))
        await asyncio.sleep(0.05)
        await backend.redrive()
        async with asyncio.timeout(10):
            consumer.ack(await work)


async def test_purging_deletes_them_all_and_nothing_else() -> None:
    backend = memory()
    await bury(backend, 3)
    await backend.push(Email("stays"))

    assert await backend.purge_dead_letters() == 3

    assert await backend.dead_letters() == []
    assert len(backend.messages) == 1
    assert await backend.purge_dead_letters() == await backend.redrive() == 0


@pytest.mark.parametrize("dead_letter", ["archive", None])
async def test_other_fates_of_dead_letters_are_told(dead_letter: str | None) -> None:
    backend = memory(dead_letter=dead_letter)
    for call in (backend.dead_letters, backend.redrive, backend.purge_dead_letters):
        with pytest.raises(ConfigError, match=f"'emails' has no dead-letter queue: .*{dead_letter!r}"):
            await call()


@pytest.mark.parametrize(
    "nonsense", [{"limit": -1}, {"limit": "1"}, {"rate": 0}, {"rate": float("nan")}, {"ids": ["1"]}]
)
async def test_nonsense_is_refused(nonsense: dict[str, Any]) -> None:
    backend = memory()
    with pytest.raises(ConfigError):
        await backend.redrive(**nonsense)
    for page in ({"limit": -1}, {"limit": 1.5}, {"after": "1"}):
        with pytest.raises(ConfigError):
            await backend.dead_letters(**page)  # type: ignore[arg-type]


async def test_the_size_of_what_is_sent_is_bounded() -> None:
    backend: MemoryBackend[str] = MemoryBackend(settings(max_payload=12), str)
    await backend.push("x" * 10)
    with pytest.raises(EncodeError, match="has 13 bytes as JSON, and queue 'emails' takes at most 12"):
        await backend.push_many(["fine", "\u20ac" * 3 + "xx"])
    assert len(backend.messages) == 1
    backend._queue.add('"whatever its size"', None, timedelta(0))
    assert len(backend.messages) == 2
