"""A worker process of the chaos suite.

Its handler writes to a ledger when it starts and when it ends: a file of its own, opened for appending and
written without a buffer, so that what it says survives the process's sudden death, and no fault that is
caused to the database reaches it.
"""

import asyncio
import os
import sys
import time

from apalis_pgmq import (
    Attempt,
    Config,
    Event,
    Monitor,
    PgMqBackend,
    Started,
    TaskId,
    Transaction,
    WorkerBuilder,
)
from apalis_pgmq.pgmq import _connect


def tell_when_started(event: Event) -> None:
    # Signals are handled by now.
    if isinstance(event, Started):
        sys.stdout.write("started\n")
        sys.stdout.flush()


async def main(
    url: str,
    queue: str,
    name: str,
    on_success: str,
    kind: str,
    visibility: float,
    silence: float,
    path: str,
) -> None:
    # A silent socket is found out sooner than in production, for the sake of a short test.
    _connect._STATEMENT_TIMEOUT = _connect._CONNECT_TIMEOUT = silence
    ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(what: str, task_id: int, attempt: int) -> None:
        os.write(ledger, f"{what} {task_id} {attempt} {time.time():.6f}\n".encode())

    async def handler(seconds: float, task_id: TaskId, attempt: Attempt) -> None:
        write("start", task_id, attempt)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            write("cancelled", task_id, attempt)
            raise
        write("end", task_id, attempt)

    async def in_transaction(seconds: float, task_id: TaskId, attempt: Attempt, tx: Transaction) -> None:
        await tx.connection.execute("INSERT INTO effects VALUES ($1)", task_id)
        await handler(seconds, task_id, attempt)

    assert on_success in {"delete", "archive"}
    config = Config(
        queue,
        visibility_timeout=visibility,
        max_retries=1000,
        on_success="archive" if on_success == "archive" else "delete",
    )
    # Not in a block of its own: entering that one means to have the server there, and a worker waits for it.
    backend = PgMqBackend(url, config, float)
    builder = WorkerBuilder(name).backend(backend).concurrency(16).on_event(tell_when_started)
    worker = builder.build(in_transaction if kind == "transaction" else handler)
    try:
        await Monitor().register(worker).run()
    finally:
        await backend.close()


if __name__ == "__main__":
    url, queue, name, on_success, kind, timeout, silence, path = sys.argv[1:]
    asyncio.run(main(url, queue, name, on_success, kind, float(timeout), float(silence), path))
