"""A script sends without asyncio: on connections of its own, in a transaction of psycopg's, and for later.

It runs on a throw-away server. Needs psycopg.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psycopg

from apalis_pgmq import PgMqBackend, PgMqProducer, WorkerBuilder, WorkerContext
from apalis_pgmq.embedded import embedded_postgres


@dataclass
class Report:
    """What is asked for."""

    customer: str


def send(url: str) -> None:
    """Send four messages, and one that is taken back."""
    with PgMqProducer(url, "reports", Report) as reports, psycopg.connect(url) as connection:
        reports.push(Report("Ada"), headers={"asked-by": "a script"})
        reports.push_many([Report("Grace"), Report("Barbara")])
        with connection.transaction():
            connection.execute("CREATE TABLE asked (customer text)")
            reports.schedule(
                Report("Katherine"), datetime.now(UTC) + timedelta(seconds=1), connection=connection
            )
        with connection.transaction(force_rollback=True):
            reports.push(Report("nobody"), connection=connection)


async def work(url: str) -> None:
    """Work the queue: in a process of its own, as a rule."""

    async def write(report: Report, worker: WorkerContext) -> None:
        print(f"Report for {report.customer}")
        if report.customer == "Katherine":
            worker.stop()

    async with PgMqBackend(url, "reports", Report) as reports:
        await WorkerBuilder("reports").backend(reports).build(write).run()


if __name__ == "__main__":
    with embedded_postgres() as database:
        send(database)
        asyncio.run(work(database))
