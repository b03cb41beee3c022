"""A worker process of an ordered queue, which notes when its handlers start and end: see `test_ordering`."""

import asyncio
import os
import random
import sys
import time

from apalis_pgmq import Config, Monitor, PgMqBackend, TaskId, WorkerBuilder


async def main(url: str, queue: str, path: str, visibility: float) -> None:
    ledger = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(what: str, group: str, task_id: int) -> None:
        os.write(ledger, f"{what} {group} {task_id} {os.getpid()} {time.monotonic():.6f}\n".encode())

    async def handler(group: str, task_id: TaskId) -> None:
        write("start", group, task_id)
        await asyncio.sleep(random.uniform(0, 0.01))
        if random.random() < 0.1:
            write("failed", group, task_id)
            raise RuntimeError("by chance")
        write("end", group, task_id)

    config = Config(queue, visibility_timeout=visibility, max_retries=1000, ordered=True)
    async with PgMqBackend(url, config, str) as backend:
        builder = WorkerBuilder("ordered").backend(backend).concurrency(5)
        await Monitor().register(builder.retry(lambda _: 0.02).build(handler)).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
