"""A module for ``apalis-pgmq run examples.worker:monitor``.

The database is that of the environment variable DATABASE_URL.
"""

import os
from dataclasses import dataclass

from apalis_pgmq import Attempt, Config, Data, Monitor, PgMqBackend, RetryAfterError, Timeout, WorkerBuilder

DATABASE_URL = os.environ.get("DATABASE_URL", "postgresql://postgres:postgres@localhost:5432/postgres")


@dataclass
class Invoice:
    """What to bill."""

    number: str
    amount_cents: int


class Printer:
    """Something that handlers need, made once."""

    def print(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


async def send_invoice(invoice: Invoice, printer: Data[Printer], attempt: Attempt) -> None:
    """Send an invoice; the big ones need a second try."""
    if invoice.amount_cents > 100_000 and attempt == 1:
        raise RetryAfterError(0.5, "the printer is warming up")
    printer.print(f"invoice {invoice.number}: {invoice.amount_cents / 100:.2f}")


invoices = PgMqBackend(DATABASE_URL, Config("invoices").with_max_retries(3), Invoice)

monitor = Monitor(shutdown_timeout=10).register(
    WorkerBuilder("invoices")
    .backend(invoices)
    .concurrency(20)
    .data(Printer())
    .middleware(Timeout(60))
    .build(send_invoice)
)
