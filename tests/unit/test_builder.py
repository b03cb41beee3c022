"""Building workers: what is refused, and that builders are values."""

from typing import Any

import pytest

from apalis_pgmq import ConfigError, Worker, WorkerBuilder

from .support import Email, memory


async def handler(message: Email) -> None: ...


async def test_build_returns_a_worker_with_the_settings() -> None:
    worker = WorkerBuilder("mail").backend(memory()).concurrency(50).build(handler)

    assert isinstance(worker, Worker)
    assert (worker.name, worker.concurrency) == ("mail", 50)
    assert not worker.is_stopping
    assert not worker.is_paused


async def test_the_default_concurrency_is_modest() -> None:
    assert WorkerBuilder("mail").backend(memory()).build(handler).concurrency == 10


async def test_every_method_returns_a_new_builder() -> None:
    base = WorkerBuilder("mail").backend(memory())

    changed = base.concurrency(3)

    assert base.build(handler).concurrency == 10
    assert changed.build(handler).concurrency == 3


async def test_one_builder_builds_many_workers() -> None:
    builder = WorkerBuilder("mail").backend(memory())

    assert builder.build(handler) is not builder.build(handler)


def test_no_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"worker 'mail' has no backend: call \.backend"):
        WorkerBuilder("mail").build(handler)


@pytest.mark.parametrize("name", ["", "  ", None, 7])
def test_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="name must be a non-empty text"):
        WorkerBuilder(name)


@pytest.mark.parametrize("limit", [0, -1, 100_001, 1.0, True, "5", None])
def test_a_bad_concurrency_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigError, match="concurrency must be between 1 and 100,000") as caught:
        WorkerBuilder("mail").concurrency(limit)

    assert repr(limit) in str(caught.value)


@pytest.mark.parametrize("limit", [1, 100_000])
def test_the_bounds_of_concurrency(limit: int) -> None:
    assert WorkerBuilder("mail").backend(memory()).concurrency(limit).build(handler).concurrency == limit


def test_a_middleware_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="middleware must be callable"):
        WorkerBuilder("mail").middleware(7)  # type: ignore[arg-type]


async def asynchronous_listener(event: object) -> None: ...


@pytest.mark.parametrize("listener", [asynchronous_listener, 7, None])
def test_a_listener_that_is_no_plain_function_is_refused(listener: Any) -> None:
    with pytest.raises(ConfigError, match="must be a plain function"):
        WorkerBuilder("mail").on_event(listener)
