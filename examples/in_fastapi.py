"""FastAPI: a request sends a message in its own transaction, and a worker handles it.

An order that is stored is confirmed, and one that is not stored is not. It runs on a throw-away server, and asks
itself, in place of a browser. Needs fastapi, httpx and 'sqlalchemy[asyncio]'.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import httpx
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from apalis_pgmq import PgMqBackend, WorkerBuilder, WorkerContext
from apalis_pgmq.embedded import embedded_postgres


@dataclass
class Order:
    """What is sent when an order was placed."""

    id: int
    customer: str


def application(sessions: async_sessionmaker[AsyncSession], orders: PgMqBackend[Order]) -> FastAPI:
    """Return the web application."""
    app = FastAPI()

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions.begin() as session:  # committed when the request was answered, unless it failed
            yield session

    @app.post("/orders")
    async def place(customer: str, session: Annotated[AsyncSession, Depends(session)]) -> int:
        insert = text("INSERT INTO orders (customer) VALUES (:customer) RETURNING id")
        number = (await session.execute(insert, {"customer": customer})).scalar_one()
        await orders.push(Order(number, customer), connection=session)
        if customer == "Mallory":
            raise HTTPException(403, "no credit")  # takes the message back with the order
        return int(number)

    return app


async def confirm(order: Order, worker: WorkerContext) -> None:
    """Confirm an order; the example ends with Ada's."""
    print(f"Order {order.id} of {order.customer} confirmed")
    if order.customer == "Ada":
        worker.stop()


async def main(url: str) -> None:
    """Place two orders, of which one fails, and have the other one confirmed."""
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.execute(
            text("CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, customer text)")
        )
    async with PgMqBackend(url, "orders", Order) as orders:
        app = application(async_sessionmaker(engine), orders)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as browser:
            for customer in ("Mallory", "Ada"):
                answer = await browser.post("/orders", params={"customer": customer})
                print(f"{customer} was answered {answer.status_code}")
        await WorkerBuilder("orders").backend(orders).build(confirm).run()
    await engine.dispose()


if __name__ == "__main__":
    with embedded_postgres() as database:
        asyncio.run(main(database))
