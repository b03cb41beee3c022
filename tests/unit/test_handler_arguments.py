"""What a handler may ask for by annotation, and how it is told that nobody provides it."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from apalis_pgmq import (
    Attempt,
    Data,
    HandlerError,
    MemoryBackend,
    Task,
    TaskId,
    WorkerBuilder,
    WorkerContext,
)

from .support import Email, build, memory, run_until_empty


class Mailer:
    pass


class SmtpMailer(Mailer):
    pass


class SesMailer(Mailer):
    pass


class Sends(Protocol):
    def send(self) -> None: ...


Seen = list[Any]
NINTH = Attempt(9)


async def deliver(handler: Callable[..., Any], *data: object) -> None:
    """Have a worker run the handler on ``Email("ada")``."""
    backend = memory(max_retries=0)
    await backend.push(Email("ada"), headers={"k": "v"})
    builder = WorkerBuilder("worker").backend(backend)
    for value in data:
        builder = builder.data(value)
    await run_until_empty(backend, builder.build(handler))
    for dead in await backend.dead_letters():
        pytest.fail(f"{dead.error_type}: {dead.error}")


def refusal(handler: Any, *data: object, backend: Any = None) -> str:
    builder = WorkerBuilder("worker").backend(memory() if backend is None else backend)
    for value in data:
        builder = builder.data(value)
    with pytest.raises(HandlerError) as caught:
        builder.build(handler)
    return str(caught.value)


async def test_an_async_handler_is_given_all_it_asks_for() -> None:
    seen: Seen = []
    mailer = Mailer()

    async def handler(
        message: Email,
        task: Task[Email],
        task_id: TaskId,
        attempt: Attempt,
        context: WorkerContext,
        mailer: Data[Mailer],
    ) -> None:
        seen.append((message, task, task_id, attempt, context, mailer))

    await deliver(handler, mailer)

    [(message, task, task_id, attempt, context, given)] = seen
    assert message == Email("ada")
    assert message is task.args
    assert (task.id, task.attempt, dict(task.headers), task.queue) == (1, 1, {"k": "v"}, "emails")
    assert (task_id, attempt) == (1, 1)
    assert context.worker == "worker"
    assert context.is_stopping is False
    assert given is mailer


async def test_a_sync_handler_is_given_all_it_asks_for() -> None:
    seen: Seen = []
    mailer = Mailer()

    def handler(
        message: Email,
        task: Task[Email],
        task_id: TaskId,
        attempt: Attempt,
        context: WorkerContext,
        mailer: Data[Mailer],
    ) -> None:
        seen.append((message, task.id, task_id, attempt, context.worker, mailer))

    await deliver(handler, mailer)

    assert seen == [(Email("ada"), 1, 1, 1, "worker", mailer)]


async def test_the_order_of_parameters_does_not_matter() -> None:
    seen: Seen = []

    async def handler(message: Email, mailer: Data[Mailer], attempt: Attempt, task: Task[Any]) -> None:
        seen.append((type(mailer), attempt, task.id))

    await deliver(handler, Mailer())

    assert seen == [(Mailer, 1, 1)]


async def test_positional_only_and_keyword_only_parameters() -> None:
    seen: Seen = []

    async def handler(
        message: Email, task_id: TaskId, mailer: Data[Mailer], /, attempt: Attempt, *, task: Task[Email]
    ) -> None:
        seen.append((message.to, task_id, type(mailer), attempt, task.id))

    await deliver(handler, Mailer())

    assert seen == [("ada", 1, Mailer, 1, 1)]


async def test_defaults_stay_where_nobody_provides() -> None:
    seen: Seen = []

    async def handler(message: Email, retries: int = 3, *, unannotated=None, attempt: Attempt = NINTH):
        seen.append((retries, unannotated, attempt))

    await deliver(handler)

    assert seen == [(3, None, 1)]


async def test_variable_parameters_are_left_empty() -> None:
    seen: Seen = []

    async def handler(message: Email, *args: object, **kwargs: object) -> None:
        seen.append((args, kwargs))

    await deliver(handler)

    assert seen == [((), {})]


async def test_a_handler_of_variable_parameters_only() -> None:
    seen: Seen = []

    async def handler(*args: object) -> None:
        seen.append(args)

    await deliver(handler)

    assert seen == [(Email("ada"),)]


async def test_an_unannotated_message_is_taken() -> None:
    seen: Seen = []

    async def handler(message):
        seen.append(message)

    await deliver(handler)

    assert seen == [Email("ada")]


class Recorder:
    def __init__(self) -> None:
        self.seen: Seen = []

    async def method(self, message: Email, attempt: Attempt) -> None:
        self.seen.append((message.to, attempt))

    def plain_method(self, message: Email, attempt: Attempt) -> None:
        self.seen.append((message.to, attempt))

    async def __call__(self, message: Email, attempt: Attempt) -> None:
        self.seen.append((message.to, attempt))


class PlainRecorder(Recorder):
    def __call__(self, message: Email, attempt: Attempt) -> None:  # type: ignore[override]
        self.seen.append((message.to, attempt))


@pytest.mark.parametrize(
    ("recorder", "handler_of"),
    [
        (Recorder(), lambda recorder: recorder),
        (PlainRecorder(), lambda recorder: recorder),
        (Recorder(), lambda recorder: recorder.method),
        (Recorder(), lambda recorder: recorder.plain_method),
        (Recorder(), functools.partial),
        (Recorder(), lambda recorder: functools.partial(recorder.method)),
    ],
    ids=["object", "plain object", "method", "plain method", "partial of an object", "partial of a method"],
)
async def test_callables_of_every_kind(recorder: Recorder, handler_of: Callable[[Any], Any]) -> None:
    await deliver(handler_of(recorder))

    assert recorder.seen == [("ada", 1)]


async def test_what_partial_binds_by_keyword_is_kept() -> None:
    seen: Seen = []

    async def handler(message: Email, prefix: str, attempt: Attempt) -> None:
        seen.append((message.to, prefix, attempt))

    await deliver(functools.partial(handler, prefix="x"))

    assert seen == [("ada", "x", 1)]


async def test_what_partial_binds_by_position_comes_before_the_message() -> None:
    seen: Seen = []

    async def handler(prefix: str, message: Email, attempt: Attempt) -> None:
        seen.append((prefix, message.to, attempt))

    await deliver(functools.partial(handler, "x"))

    assert seen == [("x", "ada", 1)]


async def test_a_decorated_async_handler_is_seen_through() -> None:
    seen: Seen = []

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.append("before")
            return await function(*args, **kwargs)

        return wrapper

    @decorate
    async def handler(message: Email, attempt: Attempt, mailer: Data[Mailer]) -> None:
        seen.append((message.to, attempt, type(mailer)))

    await deliver(handler, Mailer())

    assert seen == ["before", ("ada", 1, Mailer)]


async def test_a_coroutine_from_a_plain_wrapper_is_awaited() -> None:
    seen: Seen = []

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @decorate
    async def handler(message: Email, attempt: Attempt) -> None:
        seen.append((message.to, attempt))

    await deliver(handler)

    assert seen == [("ada", 1)]


async def test_data_is_found_by_a_base_class() -> None:
    seen: Seen = []
    mailer = SmtpMailer()

    async def handler(message: Email, mailer: Data[Mailer]) -> None:
        seen.append(mailer)

    await deliver(handler, mailer, "another kind of data")

    assert seen == [mailer]


async def test_data_of_exactly_the_class_comes_before_that_of_a_subclass() -> None:
    seen: Seen = []
    exact = Mailer()

    async def handler(message: Email, mailer: Data[Mailer]) -> None:
        seen.append(mailer)

    await deliver(handler, SmtpMailer(), exact)

    assert seen == [exact]


async def test_data_of_a_generic_class() -> None:
    seen: Seen = []
    table = {"a": 1}

    async def handler(message: Email, table: Data[dict[str, int]]) -> None:
        seen.append(table)

    await deliver(handler, table)

    assert seen == [table]


async def test_a_handler_of_a_base_class_of_the_message() -> None:
    seen: Seen = []

    async def handler(message: object) -> None:
        seen.append(message)

    await deliver(handler)

    assert seen == [Email("ada")]


async def test_a_handler_of_any() -> None:
    seen: Seen = []

    async def handler(message: Any) -> None:
        seen.append(message)

    await deliver(handler)

    assert seen == [Email("ada")]


async def test_a_handler_of_float_takes_a_queue_of_int() -> None:
    async def handler(message: float) -> None: ...

    build(MemoryBackend("numbers", int), handler)


async def test_a_handler_of_a_union_that_holds_the_message() -> None:
    seen: Seen = []

    async def handler(message: Email | str) -> None:
        seen.append(message)

    await deliver(handler)

    assert seen == [Email("ada")]


async def test_a_result_is_passed_on() -> None:
    backend = memory()
    await backend.push(Email("ada"))
    results: Seen = []

    async def handler(message: Email) -> str:
        return message.to.upper()

    worker = (
        WorkerBuilder("worker")
        .backend(backend)
        .on_event(lambda event: results.append(getattr(event, "result", None)))
        .build(handler)
    )
    await run_until_empty(backend, worker)

    assert "ADA" in results


def test_missing_data_is_named() -> None:
    async def handler(message: Email, mailer: Data[Mailer]) -> None: ...

    text = refusal(handler, "something else")

    assert "handler'" in text
    assert "'mailer' asks for Data[Mailer]" in text
    assert "no Mailer was given to data()" in text


def test_ambiguous_data_is_named() -> None:
    async def handler(message: Email, mailer: Data[Mailer]) -> None: ...

    assert "'mailer' asks for Data[Mailer], and 2 of those" in refusal(handler, SmtpMailer(), SesMailer())
    assert "and 2 of those" in refusal(handler, Mailer(), Mailer())


@pytest.mark.parametrize("kind", [Mailer | None, int | str, "Mailer"])
def test_data_takes_one_class(kind: Any) -> None:
    async def handler(message, mailer): ...

    handler.__annotations__["mailer"] = Data[kind]

    assert "'mailer': Data[...] takes one class" in refusal(handler, Mailer())


def test_data_by_a_protocol_that_cannot_be_checked_is_missing() -> None:
    async def handler(message: Email, sender: Data[Sends]) -> None: ...

    assert "'sender' asks for Data[Sends]" in refusal(handler, Mailer())


def test_an_unannotated_parameter_is_named() -> None:
    async def handler(message: Email, extra): ...

    text = refusal(handler)

    assert "handler'" in text
    assert "parameter 'extra' has no annotation" in text


def test_a_type_that_nobody_provides_is_named_with_those_that_are() -> None:
    async def handler(message: Email, *, mailer: Mailer) -> None: ...

    text = refusal(handler, Mailer())

    assert "nobody provides parameter 'mailer' of type Mailer" in text
    for known in ("Attempt", "Task", "TaskId", "WorkerContext", "Data[...]"):
        assert known in text


def test_an_annotation_that_cannot_be_hashed_is_refused_like_any_other() -> None:
    async def handler(message: Email, extra: [int]) -> None: ...  # type: ignore[valid-type]

    assert "parameter 'extra'" in refusal(handler)


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    async def handler(message: Email, extra: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    text = refusal(handler)

    assert "the annotation 'Nowhere' of parameter 'extra' cannot be resolved" in text


async def test_an_annotation_that_cannot_be_resolved_does_not_matter_beside_a_default() -> None:
    seen: Seen = []

    async def handler(
        message: "Nowhere",  # type: ignore[name-defined]  # noqa: F821
        extra: "Elsewhere" = 7,  # type: ignore[name-defined]  # noqa: F821
        *,
        attempt: "Attempt",
    ) -> None:
        seen.append((extra, attempt))

    await deliver(handler)

    assert seen == [(7, 1)]


def test_a_handler_of_another_message_type_is_refused() -> None:
    async def handler(order: int) -> None: ...

    text = refusal(handler)

    assert "takes int as its 'order'" in text
    assert "the queue's messages are Email" in text


@pytest.mark.parametrize("annotation", [Task, Task[Email], "Task[Email]"])
def test_a_task_as_the_first_parameter_is_refused(annotation: Any) -> None:
    async def handler(task, message=None): ...

    handler.__annotations__["task"] = annotation

    assert "a Task can be a later one" in refusal(handler)


def test_a_handler_without_parameters_is_refused() -> None:
    async def handler() -> None: ...

    async def keyword_only(*, message: Email) -> None: ...

    for one in (handler, keyword_only):
        text = refusal(one)
        assert one.__qualname__ in text
        assert "must take the message as its first parameter" in text


@pytest.mark.parametrize("handler", [None, 7, "send_email"])
def test_what_cannot_be_called_is_refused(handler: Any) -> None:
    assert "cannot be called" in refusal(handler)


def test_the_handler_is_named_through_partial_and_class() -> None:
    def send_email(message: Email, extra): ...

    class Sender:
        def __call__(self, message: Email, extra): ...

    assert "send_email" in refusal(functools.partial(send_email))
    assert "Sender" in refusal(Sender())


def test_a_generator_is_refused_since_it_would_never_run() -> None:
    async def asynchronous(message: Email):
        yield message

    def plain(message: Email):
        yield message

    for handler in (asynchronous, plain):
        assert handler.__qualname__ in refusal(handler)


def test_a_handler_error_is_a_type_error() -> None:
    assert issubclass(HandlerError, TypeError)


def test_a_task_can_be_made_from_its_message_alone() -> None:
    task = Task(Email("ada"))

    assert task.args == Email("ada")
    assert (task.attempt, task.headers) == (1, {})
    assert task.enqueued_at.tzinfo is not None
