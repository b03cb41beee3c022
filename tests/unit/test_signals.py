"""SIGTERM and SIGINT, seen from outside the process."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from apalis_pgmq import Monitor

from .support import PATIENCE, Email, build, memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")

PROGRAM = """
import asyncio, signal
from apalis_pgmq import Config, MemoryBackend, Monitor, WorkerBuilder, WorkerContext

async def main():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    backend = MemoryBackend(Config("q", poll_interval=0.005), str)
    await backend.push_many(["one", "two"])

    async def handler(message: str, context: WorkerContext):
        print("started", message, flush=True)
        try:
            while not (FINISHES and context.is_stopping):
                await asyncio.sleep(0.005)
            print("finished", message, flush=True)
        except asyncio.CancelledError:
            print("cancelled", message, flush=True)
            raise

    worker = WorkerBuilder("w").backend(backend).concurrency(1).build(handler)
    run = asyncio.create_task(Monitor(shutdown_timeout=3600).register(worker).run())
    while not worker.is_stopping and not run.done():
        await asyncio.sleep(0.005)
    print("stopping", flush=True)
    await run
    print("left", *(f"{m.payload}:{m.read_ct}" for m in backend.messages), flush=True)
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    print("restored", before == after, flush=True)

asyncio.run(main())
"""


@contextmanager
def program(*, finishes: bool) -> Iterator["subprocess.Popen[str]"]:
    code = PROGRAM.replace("FINISHES", str(finishes))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def rest(process: "subprocess.Popen[str]") -> list[str]:
    output, _ = process.communicate(timeout=PATIENCE)
    return output.split("\n")[:-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_finishes_what_runs(number: signal.Signals) -> None:
    with program(finishes=True) as process:
        assert line(process) == "started one"
        process.send_signal(number)

        assert sorted(rest(process)) == ["finished one", 'left "two":0', "restored True", "stopping"]
        assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_cancels_and_hands_back(number: signal.Signals) -> None:
    with program(finishes=False) as process:
        assert line(process) == "started one"
        process.send_signal(number)
        assert line(process) == "stopping"
        process.send_signal(number)

        output = rest(process)
        assert output[0] == "cancelled one"
        assert output[1] in ('left "one":1 "two":0', 'left "two":0 "one":1')
        assert output[2] == "restored True"
        assert process.returncode == 0


async def test_the_program_may_keep_its_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    async def handler(message: Email) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        monitor.stop()

    backend = memory()
    await backend.push(Email("ada"))
    monitor = Monitor(handle_signals=False).register(build(backend, handler))
    await asyncio.wait_for(monitor.run(), PATIENCE)

    assert seen == [before]


async def test_signals_are_handled_only_while_it_runs() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    async def handler(message: Email) -> None:
        seen.extend([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
        monitor.stop()

    backend = memory()
    await backend.push(Email("ada"))
    monitor = Monitor().register(build(backend, handler))
    await asyncio.wait_for(monitor.run(), PATIENCE)

    assert not set(seen) & set(before)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
