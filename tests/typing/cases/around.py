"""Middleware, listeners, codecs and the capabilities of backends."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, reveal_type

from apalis_pgmq import (
    Codec,
    Event,
    EventListener,
    Failed,
    JsonCodec,
    MemoryBackend,
    Middleware,
    Monitor,
    Next,
    PgMqBackend,
    RetryAfterError,
    Sink,
    Succeeded,
    Task,
    Timeout,
    Worker,
    WorkerBuilder,
)


@dataclass
class Email:
    to: str


emails = MemoryBackend("emails", Email)
builder = WorkerBuilder("mail").backend(emails)


async def middleware(task: Task[Any], call_next: Next) -> object:
    reveal_type(task.attempt)  # R: Attempt
    return await call_next(task)


async def without_next(task: Task[Any]) -> object: ...


def no_awaitable(task: Task[Any], call_next: Next) -> int:
    return 1


as_middleware: Middleware = middleware
as_middleware_too: Middleware = Timeout(timedelta(seconds=5))
builder.middleware(middleware).middleware(Timeout(5))
builder.middleware(without_next)  # E: arg-type
builder.middleware(no_awaitable)  # E: arg-type
Timeout("5s")  # E: arg-type


def listener(event: Event) -> None:
    if isinstance(event, Succeeded):
        reveal_type(event.result)  # R: object
        reveal_type(event.duration)  # R: float
    if isinstance(event, Failed):
        reveal_type(event.error)  # R: BaseException
        reveal_type(event.will_retry)  # R: bool
        event.will_retry = False  # E: misc


def narrow_listener(event: Succeeded) -> None: ...


as_listener: EventListener = listener
seen: list[Event] = []
builder.on_event(listener).on_event(seen.append)
builder.on_event(narrow_listener)  # E: arg-type


def should_restart(worker: Worker[Any], error: Exception, attempt: int) -> bool:
    return attempt < 3


Monitor(should_restart=should_restart, shutdown_timeout=timedelta(seconds=1))
Monitor(should_restart=lambda worker, error: True)  # E: arg-type  # E: misc
Monitor(shutdown_timeout="1s")  # E: arg-type

codec = JsonCodec(Email)
reveal_type(codec)  # R: JsonCodec[Email]
reveal_type(codec.decode("{}"))  # R: Email
codec.encode("ada")  # E: arg-type
as_codec: Codec[Email] = codec
annotated: JsonCodec[Email | int] = JsonCodec(Email | int)
MemoryBackend("emails", Email, codec=codec)
PgMqBackend("postgres://localhost", "emails", Email, codec=codec)

sink: Sink[Email] = emails
sink_too: Sink[Email] = PgMqBackend("postgres://localhost", "emails", Email)
wrong_sink: Sink[int] = emails  # E: assignment

RetryAfterError(5)
RetryAfterError(timedelta(seconds=5), "busy")
RetryAfterError("5s")  # E: arg-type
