"""What a worker costs: ``python -m tests.chaos.measure idle 60``, ``python -m tests.chaos.measure outage 60``.

``idle``: one worker on an empty queue. ``outage``: one worker with five running handlers, whose server is stopped for
that long; they end three seconds after it is back.
"""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import time

import asyncpg

from apalis_pgmq import Config, PgMqBackend, WorkerBuilder
from apalis_pgmq.embedded import EmbeddedServer

_SETTLE = 5.0
_logged: list[str] = []


class _Noted(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _logged.append(record.getMessage())


def _megabytes() -> float:
    gc.collect()
    ps = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(ps, capture_output=True, text=True, check=True).stdout) / 1024


def _show(text: str) -> None:
    sys.stdout.write(text + "\n")


async def main(mode: str, seconds: float) -> None:
    logger = logging.getLogger("apalis_pgmq")
    logger.addHandler(_Noted())
    logger.setLevel(logging.INFO)
    starts = 0
    over = asyncio.Event()

    async def handler(message: int) -> None:
        nonlocal starts
        starts += 1
        if mode == "outage":
            await over.wait()

    with EmbeddedServer(settings={"shared_preload_libraries": "pg_stat_statements"}) as server:
        async with PgMqBackend(server.url, Config("measured"), int) as backend:
            worker = WorkerBuilder("w").backend(backend).concurrency(10).build(handler)
            run = asyncio.create_task(worker.run())
            await backend.push_many(range(5))
            await asyncio.sleep(_SETTLE)
            _logged.clear()
            before, used, began = _megabytes(), time.process_time(), time.monotonic()
            if mode == "idle":
                await _statements(server.url, seconds)
            else:
                with server.down():
                    await asyncio.sleep(seconds)
            share = (time.process_time() - used) / (time.monotonic() - began)
            _show(f"memory: {before:.1f} MB before, {_megabytes():.1f} MB after; processor: {share:.2%}")
            if mode == "outage":
                await asyncio.sleep(3)
                over.set()
                await asyncio.sleep(_SETTLE)
                _show(f"handlers started: {starts}, for 5 messages")
            _show("\n  ".join([f"log lines: {len(_logged)}", *_logged]))
            worker.stop()
            await run


async def _statements(url: str, seconds: float) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE EXTENSION pg_stat_statements")
    await connection.execute("SELECT pg_stat_statements_reset()")
    await asyncio.sleep(seconds)
    calls = await connection.fetchval("SELECT sum(calls)::int - 1 FROM pg_stat_statements")
    _show(f"statements: {calls}, {calls / seconds:.2f} per second")
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
