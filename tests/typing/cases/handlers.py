"""A handler takes what the queue holds, and then whatever it asks for."""

from dataclasses import dataclass
from functools import partial
from typing import reveal_type

from apalis_pgmq import (
    Attempt,
    Backend,
    Data,
    MemoryBackend,
    Monitor,
    PgMqBackend,
    PgMqContext,
    Task,
    TaskId,
    WorkerBuilder,
    WorkerContext,
)


@dataclass
class Email:
    to: str


@dataclass
class Order:
    number: int


class Mailer:
    def send(self, to: str) -> bool:
        return bool(to)


emails = PgMqBackend("postgres://localhost", "emails", Email)
builder = WorkerBuilder("mail").backend(emails)
reveal_type(builder)  # R: WorkerBuilder[Email]


async def send(message: Email) -> None: ...


def send_sync(message: Email) -> int:
    return 1


async def send_with_everything(
    message: Email,
    task: Task[Email],
    task_id: TaskId,
    attempt: Attempt,
    worker: WorkerContext,
    context: PgMqContext,
    mailer: Data[Mailer],
) -> None:
    reveal_type(mailer)  # R: Mailer
    reveal_type(task.args)  # R: Email
    reveal_type(task.attempt)  # R: Attempt
    mailer.send(message.to)
    mailer.receive()  # E: attr-defined


def send_sync_with_keywords(message: Email, *, attempt: Attempt, mailer: Data[Mailer]) -> None: ...


async def send_positional(message: Email, attempt: Attempt, /, *, task: Task[Email]) -> None: ...


async def send_anything(message: object) -> None: ...


async def send_either(message: Email | Order) -> None: ...


async def handle_order(message: Order) -> None: ...


def handle_order_sync(message: Order, attempt: Attempt) -> None: ...


async def handle_nothing() -> None: ...


async def handle_keyword(*, message: Email) -> None: ...


async def prefixed(prefix: str, message: Email, attempt: Attempt) -> None: ...


class Sender:
    async def __call__(self, message: Email, attempt: Attempt) -> None: ...

    async def method(self, message: Email, *, mailer: Data[Mailer]) -> None: ...


reveal_type(builder.build(send))  # R: Worker[Email]
reveal_type(builder.concurrency(5).data(Mailer()).build(send_sync))  # R: Worker[Email]
reveal_type(WorkerBuilder("mail").backend(emails).build(send))  # R: Worker[Email]
builder.build(send_with_everything)
builder.build(send_sync_with_keywords)
builder.build(send_positional)
builder.build(send_anything)
builder.build(send_either)
builder.build(Sender())
builder.build(Sender().method)
builder.build(partial(prefixed, "x"))

builder.build(handle_order)  # E: arg-type
builder.build(handle_order_sync)  # E: arg-type
builder.build(handle_nothing)  # E: arg-type
builder.build(handle_keyword)  # E: arg-type
builder.build(7)  # E: arg-type
builder.concurrency("5")  # E: arg-type
builder.backend(7)  # E: arg-type

in_memory_emails = MemoryBackend("emails", Email)
in_memory = WorkerBuilder("mail").backend(in_memory_emails)
reveal_type(in_memory.build(send))  # R: Worker[Email]
in_memory.build(handle_order)  # E: arg-type

mixed: MemoryBackend[Email | Order] = MemoryBackend("mixed", Email | Order)
reveal_type(WorkerBuilder("mixed").backend(mixed).build(send_either))  # R: Worker[Email | Order]
WorkerBuilder("mixed").backend(mixed).build(send)  # E: arg-type

as_backend: Backend[Email] = emails
as_backend_too: Backend[Email] = MemoryBackend("emails", Email)
wider: Backend[object] = emails
wrong: Backend[Order] = emails  # E: assignment


async def run() -> None:
    monitor = Monitor(shutdown_timeout=5).register(builder.build(send)).register(in_memory.build(send))
    reveal_type(monitor)  # R: Monitor
    await monitor.run()
    await builder.build(send).run()
    Monitor().register(send)  # E: arg-type


async def poll() -> None:
    async with emails.poll() as consumer:
        async for task in consumer:
            reveal_type(task)  # R: Task[Email]
            consumer.ack(task)
            consumer.ack(task.args)  # E: arg-type
