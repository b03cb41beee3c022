"""What can be sent is what the queue's type says, whichever the backend."""

from dataclasses import dataclass
from datetime import timedelta
from typing import reveal_type

from apalis_pgmq import Config, MemoryBackend, PgMqBackend, TaskId


@dataclass
class Email:
    to: str


@dataclass
class Urgent(Email):
    pass


@dataclass
class Order:
    number: int


async def pgmq() -> None:
    emails = PgMqBackend("postgres://localhost", "emails", Email)
    reveal_type(emails)  # R: PgMqBackend[Email]
    reveal_type(await emails.push(Email("ada")))  # R: TaskId
    reveal_type(await emails.push_many([Email("ada")]))  # R: list[TaskId]
    await emails.push(Urgent("ada"), delay=1.5, headers={"k": 1})
    await emails.push(Email("ada"), delay=timedelta(seconds=1))
    await emails.push(Order(1))  # E: arg-type
    await emails.push("ada")  # E: arg-type
    await emails.push_many([Order(1)])  # E: list-item
    await emails.push(Email("ada"), delay="1s")  # E: arg-type
    await emails.push(Email("ada"), dedup_key="ada", dedup_window=60)
    await emails.push_many([Email("ada")], dedup_key=lambda email: email.to)
    await emails.push_many([Email("ada")], dedup_key="ada")  # E: arg-type
    await emails.push_many([Email("ada")], dedup_key=lambda email: email.number)  # E: attr-defined
    async with PgMqBackend("postgres://localhost", Config("emails"), Email) as opened:
        reveal_type(opened)  # R: PgMqBackend[Email]


async def memory() -> None:
    emails = MemoryBackend("emails", Email)
    reveal_type(emails)  # R: MemoryBackend[Email]
    reveal_type(await emails.push(Email("ada")))  # R: TaskId
    reveal_type(await emails.push_many([Email("ada")]))  # R: list[TaskId]
    await emails.push(Urgent("ada"), delay=1.5, headers={"k": 1})
    await emails.push(Email("ada"), delay=timedelta(seconds=1))
    await emails.push(Order(1))  # E: arg-type
    await emails.push("ada")  # E: arg-type
    await emails.push_many([Order(1)])  # E: list-item
    await emails.push(Email("ada"), delay="1s")  # E: arg-type


async def union() -> None:
    annotated: PgMqBackend[Email | Order] = PgMqBackend("postgres://localhost", "mixed", Email | Order)
    await annotated.push(Email("ada"))
    await annotated.push(Order(1))
    await annotated.push("ada")  # E: arg-type
    in_memory: MemoryBackend[Email | Order] = MemoryBackend("mixed", Email | Order)
    await in_memory.push(Email("ada"))
    await in_memory.push("ada")  # E: arg-type


def ids(task_id: TaskId) -> TaskId:
    number: int = task_id
    return number  # E: return-value
