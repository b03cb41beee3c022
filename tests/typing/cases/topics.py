"""What is sent to a topic, or with a key in a transaction, is what its type says."""

from dataclasses import dataclass
from typing import reveal_type

from apalis_pgmq import MemoryBackend, PgMqBackend, PgMqQueues, PgMqTopic, Transaction


@dataclass
class Order:
    number: int


@dataclass
class Urgent(Order):
    pass


async def topic() -> None:
    orders = PgMqTopic("postgres://localhost", Order)
    reveal_type(orders)  # R: PgMqTopic[Order]
    reveal_type(await orders.push("a.b", Order(1)))  # R: dict[str, TaskId]
    reveal_type(await orders.push_many("a.b", [Order(1)], delay=1))  # R: dict[str, list[TaskId]]
    await orders.push("a.b", "order")  # E: arg-type


async def queues() -> None:
    async with PgMqQueues("postgres://localhost") as opened:
        reveal_type(await opened.create("q", unlogged=True))  # R: bool
        reveal_type(await opened.all())  # R: list[QueueInfo]
        reveal_type(await opened.metrics("q"))  # R: QueueMetrics
        reveal_type(await opened.bindings())  # R: list[TopicBinding]


async def transaction(tx: Transaction, orders: PgMqBackend[Order], memory: MemoryBackend[Order]) -> None:
    await tx.push(orders, Order(1), dedup_key="1")
    await tx.push_many(orders, [Order(1)], dedup_key=lambda order: f"{order.number}", dedup_window=60)
    await tx.push(orders, Urgent(1), dedup_key="1")
    await tx.push(orders, "order")  # E: misc
    await memory.push_many([Order(1)], dedup_key=lambda order: f"{order.number}")
    await memory.push_many([Order(1)], dedup_key=str)
