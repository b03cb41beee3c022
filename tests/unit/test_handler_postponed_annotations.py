"""Handlers in modules with postponed annotations, where every annotation is text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from apalis_pgmq import Attempt, Data, HandlerError, MemoryBackend, Task, WorkerBuilder

from .support import Email, build, memory, run_until_empty

if TYPE_CHECKING:
    from decimal import Decimal


class Mailer:
    pass


async def send(message: Email, task: Task[Email], mailer: Data[Mailer], *, attempt: Attempt) -> None:
    message.to = f"{task.id} {type(mailer).__name__} {attempt}"
    sent.append(message)


sent: list[Email] = []


class Service:
    async def __call__(self, message: Email, attempt: Attempt) -> None:
        sent.append(message)

    async def method(self, message: Email, attempt: Attempt) -> None:
        sent.append(message)


@pytest.fixture(autouse=True)
def nothing_sent() -> None:
    sent.clear()


async def test_a_function() -> None:
    backend = memory()
    await backend.push(Email("ada"))

    await run_until_empty(backend, WorkerBuilder("w").backend(backend).data(Mailer()).build(send))

    assert sent == [Email("1 Mailer 1")]


@pytest.mark.parametrize("handler", [Service(), Service().method], ids=["object", "method"])
async def test_an_object_and_a_method(handler: Any) -> None:
    backend = memory()
    await backend.push(Email("ada"))

    await run_until_empty(backend, build(backend, handler))

    assert sent == [Email("ada")]


async def test_a_message_class_that_is_local_to_a_function() -> None:
    @dataclass
    class Local:
        to: str

    seen: list[Local] = []

    async def handler(message: Local, attempt: Attempt) -> None:
        assert isinstance(message, Local)
        seen.append(message)

    backend = MemoryBackend("local", Local)
    await backend.push(Local("ada"))

    await run_until_empty(backend, build(backend, handler))

    assert seen == [Local("ada")]


async def test_a_local_data_class_that_the_handler_uses() -> None:
    class Local:
        pass

    seen: list[bool] = []

    async def handler(message: Email, local: Data[Local]) -> None:
        seen.append(isinstance(local, Local))

    backend = memory()
    await backend.push(Email("ada"))

    await run_until_empty(backend, WorkerBuilder("w").backend(backend).data(Local()).build(handler))

    assert seen == [True]


def test_a_local_data_class_that_the_handler_does_not_use_cannot_be_resolved() -> None:
    class Local:
        pass

    async def handler(message: Email, local: Data[Local]) -> None: ...

    with pytest.raises(HandlerError, match=r"'Data\[Local\]' of parameter 'local' cannot be resolved"):
        WorkerBuilder("w").backend(memory()).data(Local()).build(handler)


def test_a_type_that_only_the_checker_sees_cannot_be_resolved() -> None:
    async def handler(message: Email, amount: Decimal) -> None: ...

    with pytest.raises(HandlerError, match=r"'Decimal' of parameter 'amount' .*not only under TYPE_CHECKING"):
        build(memory(), handler)


def test_a_handler_of_another_message_type_is_refused() -> None:
    async def handler(message: Mailer) -> None: ...

    with pytest.raises(HandlerError, match="takes Mailer"):
        build(memory(), handler)


def test_a_handler_may_close_over_what_comes_later() -> None:
    async def handler(message: Email, attempt: Attempt) -> None:
        worker.stop()

    worker = build(memory(), handler)
    assert worker.name == "worker"
