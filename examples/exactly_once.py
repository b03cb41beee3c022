"""Money moves exactly once: the transfer and the removal of its message are one transaction.

The handler raises after it has moved the money, the first time: nothing of that attempt remains. It runs on a
throw-away server.
"""

import asyncio
from dataclasses import dataclass

import asyncpg

from apalis_pgmq import Attempt, PgMqBackend, RetryAfterError, Transaction, WorkerBuilder, WorkerContext
from apalis_pgmq.embedded import embedded_postgres


@dataclass
class Transfer:
    """So much money from one account to another."""

    source: str
    target: str
    cents: int


async def transfer(message: Transfer, tx: Transaction, attempt: Attempt, worker: WorkerContext) -> None:
    """Move the money; fail after that at the first attempt."""
    move = "UPDATE accounts SET cents = cents + $1 WHERE name = $2"
    await tx.connection.execute(move, -message.cents, message.source)
    await tx.connection.execute(move, message.cents, message.target)
    if attempt == 1:
        raise RetryAfterError(0.1, "the power failed at the worst moment")
    worker.stop()


async def main(url: str) -> None:
    """Send one transfer and show what it came to."""
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE accounts (name text PRIMARY KEY, cents bigint NOT NULL)")
    await connection.execute("INSERT INTO accounts VALUES ('ada', 10000), ('grace', 0)")
    async with PgMqBackend(url, "transfers", Transfer) as transfers:
        await transfers.push(Transfer("ada", "grace", 2500))
        await WorkerBuilder("bank").backend(transfers).build(transfer).run()
    for name, cents in await connection.fetch("SELECT name, cents FROM accounts ORDER BY name"):
        print(f"{name} has {cents / 100:.2f}")
    await connection.close()


if __name__ == "__main__":
    with embedded_postgres() as database:
        asyncio.run(main(database))
