"""A backend made where it is used needs no variable and no annotation."""

from dataclasses import dataclass
from typing import reveal_type

from apalis_pgmq import Config, MemoryBackend, PgMqBackend, WorkerBuilder


@dataclass
class Email:
    to: str


async def send(message: Email) -> None: ...


async def count(number: int) -> None: ...


in_memory = WorkerBuilder("mail").backend(MemoryBackend("emails", Email)).build(send)
reveal_type(in_memory)  # R: Worker[Email]
in_database = WorkerBuilder("mail").backend(PgMqBackend("url", Config("q"), Email)).build(send)
reveal_type(in_database)  # R: Worker[Email]
WorkerBuilder("mail").backend(MemoryBackend("emails", Email)).build(count)  # E: arg-type
