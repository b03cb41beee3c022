"""Retry policies."""

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apalis_pgmq import (
    AbortError,
    Config,
    ConfigError,
    DeadLettered,
    Event,
    Exponential,
    Failed,
    MemoryBackend,
    RetryAfterError,
    WorkerBuilder,
)


def builder(backend: MemoryBackend[str]) -> WorkerBuilder[str]:
    return WorkerBuilder("w").backend(backend)


@pytest.fixture
def backend() -> MemoryBackend[str]:
    return MemoryBackend(Config("q", visibility_timeout=60, poll_interval=0.01, max_retries=3), str)


async def failures(
    build: WorkerBuilder[str], backend: MemoryBackend[str], error: BaseException
) -> list[Failed]:
    """Run a handler that always raises until its message is given up, or fails without a retry at once."""
    events: list[Failed] = []

    async def handler(message: str) -> None:
        raise error

    def on_event(event: Event) -> None:
        if isinstance(event, Failed):
            events.append(event)
            if event.will_retry and event.retry_after is None:
                worker.stop()
        if isinstance(event, DeadLettered):
            worker.stop()

    worker = build.on_event(on_event).build(handler)
    await backend.push("x")
    async with asyncio.timeout(20):
        await worker.run()
    return events


async def test_by_default_the_visibility_timeout_decides(backend: MemoryBackend[str]) -> None:
    [event] = await failures(builder(backend), backend, ValueError())
    assert event.will_retry
    assert event.retry_after is None


@pytest.mark.parametrize("delay", [0.01, timedelta(milliseconds=10)])
async def test_a_constant_delay(backend: MemoryBackend[str], delay: float | timedelta) -> None:
    events = await failures(builder(backend).retry(delay), backend, ValueError())
    assert [event.retry_after for event in events] == [timedelta(milliseconds=10)] * 3 + [None]
    assert [event.will_retry for event in events] == [True, True, True, False]


async def test_a_function_of_error_and_attempt(backend: MemoryBackend[str]) -> None:
    asked = []

    def delay(error: BaseException, attempt: int) -> float:
        asked.append((error, attempt))
        return attempt / 1000

    error = ValueError()
    events = await failures(builder(backend).retry(delay), backend, error)
    assert asked == [(error, 1), (error, 2), (error, 3)]
    assert [event.retry_after for event in events[:3]] == [timedelta(milliseconds=n) for n in (1, 2, 3)]


@pytest.mark.parametrize("broken", [lambda *_: 1 / 0, lambda *_: -1, lambda *_: "soon"])
async def test_a_broken_function_leaves_it_to_the_visibility_timeout(
    backend: MemoryBackend[str], broken, caplog: pytest.LogCaptureFixture
) -> None:
    [event] = await failures(builder(backend).retry(broken), backend, ValueError())
    assert event.will_retry
    assert event.retry_after is None
    assert "could not be reckoned" in caplog.text


async def test_some_errors_give_up_at_once(backend: MemoryBackend[str]) -> None:
    [event] = await failures(builder(backend).retry(0, abort_on=LookupError), backend, KeyError())
    assert not event.will_retry


async def test_only_some_errors_are_tried_again(backend: MemoryBackend[str]) -> None:
    build = builder(backend).retry(0, retry_on=(OSError, TimeoutError))
    assert len(await failures(build, backend, ConnectionError())) == 4
    assert len(await failures(build, backend, ValueError())) == 1


async def test_abort_goes_before_retry(backend: MemoryBackend[str]) -> None:
    build = builder(backend).retry(0, retry_on=OSError, abort_on=FileNotFoundError)
    assert len(await failures(build, backend, FileNotFoundError())) == 1


async def test_what_the_handler_says_goes_first(backend: MemoryBackend[str]) -> None:
    build = builder(backend).retry(60, retry_on=OSError, abort_on=RetryAfterError)
    events = await failures(build, backend, RetryAfterError(0.001))
    assert [event.retry_after for event in events[:3]] == [timedelta(milliseconds=1)] * 3
    assert len(await failures(builder(backend).retry(0), backend, AbortError())) == 1


@given(
    first=st.floats(0.001, 10),
    factor=st.floats(1, 10),
    longest=st.floats(0.001, 1000),
    jitter=st.floats(0, 1),
    attempt=st.integers(1, 1_000_000),
)
def test_exponential_delays_grow_to_the_longest(
    first: float, factor: float, longest: float, jitter: float, attempt: int
) -> None:
    delay = Exponential(first, factor=factor, longest=longest, jitter=jitter)(ValueError(), attempt)
    # Durations have microseconds.
    first, longest = (timedelta(seconds=one).total_seconds() for one in (first, longest))
    try:
        full = min(first * factor ** (attempt - 1), longest)
    except OverflowError:
        full = longest
    assert full * (1 - jitter) - 1e-5 <= delay.total_seconds() <= full + 1e-5


@pytest.mark.parametrize(
    "settings",
    [{"first": 0}, {"first": -1}, {"factor": 0.5}, {"longest": 0}, {"jitter": 2}, {"jitter": -0.1}],
)
def test_nonsense_exponentials_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Exponential(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"delay": -1}, {"delay": "1"}, {"retry_on": "ValueError"}, {"abort_on": (1,)}, {"retry_on": int}],
)
def test_nonsense_policies_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        WorkerBuilder("w").retry(**settings)  # type: ignore[arg-type]
