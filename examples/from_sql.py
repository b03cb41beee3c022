"""A trigger feeds a queue: every order that is placed sends a message, in the same transaction.

It runs on a throw-away server.
"""

import asyncio
from dataclasses import dataclass

import asyncpg

from apalis_pgmq import PgMqBackend, WorkerBuilder, WorkerContext
from apalis_pgmq.embedded import embedded_postgres

SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS IDENTITY, customer text NOT NULL);

CREATE OR REPLACE FUNCTION order_placed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pgmq.send('orders', jsonb_build_object('id', NEW.id, 'customer', NEW.customer));
    RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER order_placed AFTER INSERT ON orders
    FOR EACH ROW EXECUTE FUNCTION order_placed();
"""


@dataclass
class Order:
    """What the trigger sends."""

    id: int
    customer: str


async def confirm(order: Order, worker: WorkerContext) -> None:
    """Confirm an order; one is enough for an example."""
    print(f"Order {order.id} of {order.customer} confirmed")
    worker.stop()


async def main(url: str) -> None:
    """Place an order with SQL and have it confirmed by a worker."""
    async with PgMqBackend(url, "orders", Order) as orders:
        connection = await asyncpg.connect(url)
        await connection.execute(SCHEMA)
        await connection.execute("INSERT INTO orders (customer) VALUES ('Ada')")
        await connection.close()
        await WorkerBuilder("orders").backend(orders).build(confirm).run()


if __name__ == "__main__":
    with embedded_postgres() as database:
        asyncio.run(main(database))
