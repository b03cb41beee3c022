"""Flask: a request sends a message in its SQLAlchemy session, and a worker handles it.

It runs on a throw-away server, and asks itself, in place of a browser. Needs flask, sqlalchemy and psycopg.
"""

import asyncio
from dataclasses import dataclass

from flask import Flask, request
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from apalis_pgmq import PgMqBackend, PgMqProducer, WorkerBuilder, WorkerContext
from apalis_pgmq.embedded import embedded_postgres


@dataclass
class Order:
    """What is sent when an order was placed."""

    id: int
    customer: str


def application(sessions: sessionmaker[Session], orders: PgMqProducer[Order]) -> Flask:
    """Return the web application."""
    app = Flask(__name__)

    @app.post("/orders")
    def place() -> tuple[str, int]:
        customer = request.form["customer"]
        with sessions() as session:
            insert = text("INSERT INTO orders (customer) VALUES (:customer) RETURNING id")
            number = session.execute(insert, {"customer": customer}).scalar_one()
            orders.push(Order(number, customer), connection=session)
            if customer == "Mallory":
                return "no credit", 403  # not committed: the message goes with the order
            session.commit()
        return str(number), 201

    return app


async def confirm(order: Order, worker: WorkerContext) -> None:
    """Confirm an order; the example ends with Ada's."""
    print(f"Order {order.id} of {order.customer} confirmed")
    if order.customer == "Ada":
        worker.stop()


async def work(url: str) -> None:
    """Work the queue: in a process of its own, as a rule."""
    async with PgMqBackend(url, "orders", Order) as backend:
        await WorkerBuilder("orders").backend(backend).build(confirm).run()


def main(url: str) -> None:
    """Place two orders, of which one fails, and have the other one confirmed."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(
            text("CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY, customer text)")
        )
    with PgMqProducer(url, "orders", Order) as orders:
        orders.setup()
        browser = application(sessionmaker(engine), orders).test_client()
        for customer in ("Mallory", "Ada"):
            answer = browser.post("/orders", data={"customer": customer})
            print(f"{customer} was answered {answer.status_code}")
    engine.dispose()
    asyncio.run(work(url))


if __name__ == "__main__":
    with embedded_postgres() as database:
        main(database)
