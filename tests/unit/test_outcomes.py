"""What becomes of a message: removed, delivered again or dead-lettered."""

import asyncio
from datetime import timedelta
from time import monotonic

import pytest

from apalis_pgmq import (
    AbortError,
    Attempt,
    ConfigError,
    DeadLettered,
    EncodeError,
    Engaged,
    Failed,
    Idle,
    MemoryBackend,
    RetryAfterError,
    Succeeded,
    Task,
    WorkerBuilder,
)

from .support import (
    Email,
    Events,
    build,
    emails,
    eventually,
    memory,
    push_raw,
    run_until_empty,
    running,
    settings,
)


async def test_success_removes_the_message() -> None:
    backend = memory()
    await backend.push_many(emails(50))
    seen = []

    async def handler(message: Email) -> None:
        seen.append(message)

    await run_until_empty(backend, build(backend, handler))

    assert sorted(seen, key=lambda email: int(email.to)) == emails(50)
    assert backend.archived == []
    assert await backend.dead_letters() == []


async def test_a_message_stays_until_its_handler_returned() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    found = []

    async def handler(message: Email) -> None:
        await asyncio.sleep(0)
        found.append(len(backend.messages))

    await run_until_empty(backend, build(backend, handler))

    assert found == [1]


async def test_success_archives_the_message_on_request() -> None:
    backend = memory(on_success="archive")
    message_id = await backend.push(Email("ada"), headers={"k": "v"})

    async def handler(message: Email) -> None: ...

    await run_until_empty(backend, build(backend, handler))

    [archived] = backend.archived
    assert (archived.id, archived.payload, archived.headers) == (message_id, '{"to":"ada"}', '{"k": "v"}')


async def test_a_failed_message_comes_back_when_its_visibility_timeout_ends() -> None:
    backend = memory(visibility_timeout=0.3)
    await backend.push(Email("ada"))
    attempts = []

    async def handler(message: Email, attempt: Attempt) -> None:
        attempts.append((attempt, monotonic()))
        if attempt == 1:
            raise ValueError("not today")

    await run_until_empty(backend, build(backend, handler))

    (first, failed_at), (second, again_at) = attempts
    assert (first, second) == (1, 2)
    assert again_at - failed_at >= 0.25
    assert await backend.dead_letters() == []


async def test_retry_after_brings_a_message_back_after_its_delay() -> None:
    backend = memory(visibility_timeout=600)
    await backend.push(Email("ada"))
    attempts = []

    async def handler(message: Email, attempt: Attempt) -> None:
        attempts.append(monotonic())
        if attempt == 1:
            raise RetryAfterError(0.2, "later")

    await run_until_empty(backend, build(backend, handler))

    assert len(attempts) == 2
    assert attempts[1] - attempts[0] >= 0.15


@pytest.mark.parametrize(
    ("delay", "stored"),
    [
        (2, timedelta(seconds=2)),
        (timedelta(minutes=1), timedelta(minutes=1)),
        (0.5, timedelta(milliseconds=500)),
        (-1, timedelta(0)),
    ],
)
def test_retry_after_takes_a_timedelta_or_seconds(delay: timedelta | float, stored: timedelta) -> None:
    error = RetryAfterError(delay)

    assert error.delay == stored
    assert str(error) == f"retry after {stored.total_seconds():g} s"
    assert str(RetryAfterError(delay, "busy")) == "busy"


async def test_an_absurd_delay_does_not_stop_the_worker() -> None:
    backend = memory()
    await backend.push_many([Email("far future"), Email("now")])
    done = []

    async def handler(message: Email) -> None:
        if message.to == "far future":
            raise RetryAfterError(timedelta.max)
        done.append(message.to)

    async with running(build(backend, handler, concurrency=1)):
        await eventually(lambda: done, within=5)
        await backend.push(Email("after"))
        await eventually(lambda: len(done) == 2, within=5)


@pytest.mark.parametrize("max_retries", [0, 1, 3])
async def test_a_message_is_delivered_one_time_and_max_retries_more(max_retries: int) -> None:
    backend = memory(max_retries=max_retries)
    message_id = await backend.push(Email("ada"))
    attempts: list[int] = []

    async def handler(message: Email, attempt: Attempt) -> None:
        attempts.append(attempt)
        raise RetryAfterError(0, "again")

    await run_until_empty(backend, build(backend, handler))

    assert attempts == list(range(1, max_retries + 2))
    [dead] = await backend.dead_letters()
    assert dead.reason == "retries-exhausted"
    assert (dead.original_id, dead.attempts) == (message_id, max_retries + 1)
    assert dead.error == "again"


async def test_a_message_of_dead_workers_is_not_delivered_beyond_the_limit() -> None:
    backend = memory(max_retries=2)
    await backend.push(Email("ada"))
    backend.messages[0].read_ct = 3
    seen = []

    async def handler(message: Email) -> None:
        seen.append(message)

    await run_until_empty(backend, build(backend, handler))

    assert seen == []
    [dead] = await backend.dead_letters()
    assert dead.reason == "deliveries-exhausted"


async def test_the_last_delivery_that_is_allowed_is_made() -> None:
    backend = memory(max_retries=2)
    await backend.push(Email("ada"))
    backend.messages[0].read_ct = 2
    seen = []

    async def handler(message: Email, attempt: Attempt) -> None:
        seen.append(attempt)

    await run_until_empty(backend, build(backend, handler))

    assert seen == [3]
    assert await backend.dead_letters() == []


@pytest.mark.parametrize(("dead_letter", "archived"), [("archive", 1), (None, 0)])
async def test_what_is_given_up_is_archived_or_deleted_on_request(
    dead_letter: str | None, archived: int
) -> None:
    backend = memory(dead_letter=dead_letter)
    await backend.push(Email("ada"))
    events = Events()

    async def handler(message: Email) -> None:
        raise AbortError

    worker = WorkerBuilder("worker").backend(backend).on_event(events).build(handler)
    await run_until_empty(backend, worker)

    assert not backend._queue.dead
    assert len(backend.archived) == archived
    assert len(events.of(DeadLettered)) == 1


async def test_abort_dead_letters_at_once() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    seen = []

    async def handler(message: Email) -> None:
        seen.append(message)
        raise AbortError("no such address")

    await run_until_empty(backend, build(backend, handler))

    assert len(seen) == 1
    [dead] = await backend.dead_letters()
    assert dead.reason == "aborted"
    assert dead.error == "no such address"


@pytest.mark.parametrize("payload", ['{"bad": 1}', "not json", "null", "[]"])
async def test_an_undecodable_message_is_dead_lettered_and_the_worker_goes_on(payload: str) -> None:
    backend = memory()
    push_raw(backend, payload)
    await backend.push(Email("ada"))
    seen = []

    async def handler(message: Email) -> None:
        seen.append(message)

    await run_until_empty(backend, build(backend, handler, concurrency=1))

    assert seen == [Email("ada")]
    [dead] = await backend.dead_letters()
    assert dead.reason == "undecodable"
    assert dead.payload == payload
    assert dead.error_type == "DecodeError"


async def test_a_codec_that_breaks_concerns_one_message() -> None:
    class Broken:
        def encode(self, message: Email) -> str:
            return f'"{message.to}"'

        def decode(self, payload: str) -> Email:
            if "bad" in payload:
                raise ZeroDivisionError
            return Email(payload)

    backend: MemoryBackend[Email] = MemoryBackend(settings(), Email, codec=Broken())
    await backend.push_many([Email("bad"), Email("good")])
    seen = []

    async def handler(message: Email) -> None:
        seen.append(message.to)

    await run_until_empty(backend, build(backend, handler))

    assert seen == ['"good"']
    [dead] = await backend.dead_letters()
    assert dead.reason == "undecodable"


@pytest.mark.parametrize("text", ["[1]", "7", "null", '"x"'])
async def test_headers_that_are_no_object_are_no_headers(text: str) -> None:
    backend = memory()
    backend._queue.add('{"to": "ada"}', text, timedelta(0))
    seen = []

    async def handler(message: Email, task: Task[Email]) -> None:
        seen.append(task.headers)

    await run_until_empty(backend, build(backend, handler))

    assert seen == [{}]


async def test_a_handlers_own_cancelled_error_is_a_failure_and_no_more() -> None:
    backend = memory(max_retries=0)
    await backend.push_many([Email("cancelled"), Email("good")])
    seen = []

    async def handler(message: Email) -> None:
        if message.to == "cancelled":
            inner = asyncio.ensure_future(asyncio.Event().wait())
            asyncio.get_running_loop().call_soon(inner.cancel)
            await inner
        seen.append(message.to)

    await run_until_empty(backend, build(backend, handler, concurrency=1))

    assert seen == ["good"]
    [dead] = await backend.dead_letters()
    assert dead.reason == "retries-exhausted"
    assert dead.error_type == "CancelledError"


@pytest.mark.parametrize("synchronous", [False, True])
async def test_a_stop_iteration_from_a_handler_is_a_failure(*, synchronous: bool) -> None:
    backend = memory(max_retries=0)
    await backend.push_many([Email("stop"), Email("good")])
    seen = []

    def handler(message: Email) -> None:
        if message.to == "stop":
            next(iter(()))
        seen.append(message.to)

    async def asynchronous(message: Email) -> None:
        handler(message)

    worker = build(backend, handler if synchronous else asynchronous, concurrency=1)
    run = asyncio.create_task(worker.run())
    try:
        await eventually(lambda: not backend.messages, within=5)
    finally:
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)

    assert seen == ["good"]
    assert len(await backend.dead_letters()) == 1


async def test_a_delayed_message_comes_later() -> None:
    backend = memory()
    start = monotonic()
    await backend.push(Email("later"), delay=0.2)
    await backend.push(Email("now"))
    seen = []

    async def handler(message: Email) -> None:
        seen.append((message.to, monotonic() - start))

    await run_until_empty(backend, build(backend, handler))

    assert [name for name, _ in seen] == ["now", "later"]
    assert seen[1][1] >= 0.2


async def test_push_returns_growing_ids() -> None:
    backend = memory()

    ids = [await backend.push(Email("ada")), *await backend.push_many(emails(3))]

    assert ids == sorted(set(ids))
    assert await backend.push_many([]) == []


async def test_push_many_sends_all_or_none() -> None:
    backend = memory()

    with pytest.raises(EncodeError):
        await backend.push_many([Email("ada"), "not an email"])  # type: ignore[list-item]

    assert backend.messages == []


@pytest.mark.parametrize("headers", [{"x": object()}, {"x": float("nan")}, {(1, 2): "x"}, [1, 2]])
async def test_headers_without_a_json_form_are_refused(headers: object) -> None:
    backend = memory()

    with pytest.raises(EncodeError, match="headers"):
        await backend.push(Email("ada"), headers=headers)  # type: ignore[arg-type]

    assert backend.messages == []


@pytest.mark.parametrize("delay", [-1, float("nan"), "1s", True, timedelta.max])
async def test_a_bad_delay_is_refused(delay: object) -> None:
    with pytest.raises(ConfigError, match="delay"):
        await memory().push(Email("ada"), delay=delay)  # type: ignore[arg-type]


async def test_two_workers_on_one_queue_get_each_message_once() -> None:
    backend = memory()
    await backend.push_many(emails(300))
    seen: list[tuple[str, str]] = []

    def worker(name: str):
        async def handler(message: Email) -> None:
            seen.append((name, message.to))
            await asyncio.sleep(0.001)

        return WorkerBuilder(name).backend(backend).concurrency(5).build(handler)

    async with running(worker("one"), worker("two")):
        await eventually(lambda: not backend.messages)

    assert sorted(int(number) for _, number in seen) == list(range(300))
    assert {name for name, _ in seen} == {"one", "two"}


async def test_a_push_wakes_an_idle_worker_at_once() -> None:
    backend = memory(poll_interval=3600)
    seen = []
    events = Events()

    async def handler(message: Email) -> None:
        seen.append(message)

    async with running(WorkerBuilder("w").backend(backend).on_event(events).build(handler)):
        await eventually(lambda: events.of(Idle))
        for email in emails(3):
            await backend.push(email)
            await eventually(lambda: not backend.messages)

    assert seen == emails(3)


async def test_the_events_of_a_success() -> None:
    backend = memory()
    message_id = await backend.push(Email("ada"))
    events = Events()

    async def handler(message: Email) -> str:
        return "sent"

    async with running(WorkerBuilder("mail").backend(backend).on_event(events).build(handler)):
        await eventually(lambda: events.of(Idle))

    assert events.names == ["Started", "Engaged", "Succeeded", "Idle", "Stopped"]
    assert {(event.worker, event.queue) for event in events} == {("mail", "emails")}
    [succeeded] = events.of(Succeeded)
    assert (succeeded.id, succeeded.attempt, succeeded.result) == (message_id, 1, "sent")
    assert succeeded.duration >= 0
    assert events[-1].error is None


async def test_the_events_of_a_failure_and_a_retry() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    events = Events()
    failure = RetryAfterError(0, "again")

    async def handler(message: Email, attempt: Attempt) -> None:
        if attempt == 1:
            raise failure

    async with running(WorkerBuilder("mail").backend(backend).on_event(events).build(handler)):
        await eventually(lambda: events.of(Succeeded))

    assert [name for name in events.names if name != "Idle"] == [
        "Started",
        "Engaged",
        "Failed",
        "Engaged",
        "Succeeded",
        "Stopped",
    ]
    [failed] = events.of(Failed)
    assert (failed.error, failed.will_retry, failed.retry_after) == (failure, True, timedelta(0))
    assert [engaged.attempt for engaged in events.of(Engaged)] == [1, 2]


async def test_the_events_of_giving_up() -> None:
    backend = memory(max_retries=0)
    message_id = await backend.push(Email("ada"))
    events = Events()
    failure = ValueError("never")

    async def handler(message: Email) -> None:
        raise failure

    async with running(WorkerBuilder("mail").backend(backend).on_event(events).build(handler)):
        await eventually(lambda: events.of(DeadLettered))

    assert [name for name in events.names if name != "Idle"] == [
        "Started",
        "Engaged",
        "Failed",
        "DeadLettered",
        "Stopped",
    ]
    [failed] = events.of(Failed)
    assert (failed.will_retry, failed.retry_after) == (False, None)
    [dead] = events.of(DeadLettered)
    assert (dead.id, dead.attempt, dead.reason, dead.error) == (message_id, 1, "retries-exhausted", failure)


async def test_an_undecodable_message_is_only_told_as_dead_lettered() -> None:
    backend = memory()
    push_raw(backend, "{}")
    events = Events()

    async def handler(message: Email) -> None: ...

    async with running(WorkerBuilder("mail").backend(backend).on_event(events).build(handler)):
        await eventually(lambda: events.of(DeadLettered))

    assert not events.of(Engaged, Failed)
    assert events.of(DeadLettered)[0].reason == "undecodable"


async def test_idle_is_told_once_until_something_comes() -> None:
    backend = memory(poll_interval=0.001)
    events = Events()

    async def handler(message: Email) -> None: ...

    async with running(WorkerBuilder("mail").backend(backend).on_event(events).build(handler)):
        await eventually(lambda: events.of(Idle))
        claims = 0
        original = backend._queue.visible

        def counted(limit: int):
            nonlocal claims
            claims += 1
            return original(limit)

        backend._queue.visible = counted  # type: ignore[method-assign]
        await eventually(lambda: claims > 5)

    assert len(events.of(Idle)) == 1


async def test_a_listener_that_raises_hurts_neither_worker_nor_other_listeners(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = memory()
    await backend.push(Email("ada"))
    events = Events()

    def broken(event: object) -> None:
        raise ZeroDivisionError

    async def handler(message: Email) -> None: ...

    worker = WorkerBuilder("mail").backend(backend).on_event(broken).on_event(events).build(handler)
    await run_until_empty(backend, worker)

    assert "Succeeded" in events.names
    assert events.names[-1] == "Stopped"
    assert "a listener failed on Started" in caplog.text


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise AttributeError

    __repr__ = __str__


async def test_an_error_that_cannot_be_told_does_no_harm() -> None:
    backend = memory(max_retries=0)
    await backend.push_many([Email("bad"), *emails(3)])

    async def handler(message: Email) -> None:
        if message.to == "bad":
            raise UnspeakableError

    worker = build(backend, handler)
    await run_until_empty(backend, worker)

    [dead] = await backend.dead_letters()
    assert dead.error_type == "UnspeakableError"
    assert worker.stats.succeeded == 3
