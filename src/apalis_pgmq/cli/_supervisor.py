"""``apalis-pgmq run --workers N``: several processes, and one that sees to them."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from apalis_pgmq.delivery import Backoff
from apalis_pgmq.worker import stop_signals

from ._exits import ExitCode
from ._lifeline import HURRY, STOP
from ._run import configure_logging

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

    from ._run import Program

logger = logging.getLogger("apalis_pgmq")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_HEALTHY_AFTER: Final = 60.0
_MOST_RESTARTS: Final = 10
_FINAL: Final = (ExitCode.FAILED, ExitCode.USAGE)


def supervise(program: Program, count: int) -> int:
    """Run the program in ``count`` processes until they have ended; return the exit code.

    This process never imports the program itself, so nothing in it can bring the supervisor down.
    """
    configure_logging(program.log_level, with_process=True)
    return asyncio.run(Supervisor(program, count).run())


class Supervisor:
    """Keeps processes running.

    One that dies (is killed, crashes, runs out of memory) is started again, with back-off, up to ten
    times in a row. One that *fails* has said why, and starting it again would not help: the others are
    stopped, and its exit code is the supervisor's. One that ends well was told to, and is not missed.

    The first signal stops the processes as it would stop one, the second hurries them, the third kills
    them. They are in sessions of their own: Ctrl-C in a terminal reaches this process alone.

    Args:
        program: what they run.
        count: how many.
    """

    def __init__(self, program: Program, count: int) -> None:
        self._program = program
        self._count = count
        self._processes: dict[int, Process] = {}
        self._stopping = asyncio.Event()
        self._stops = 0
        self._code = ExitCode.OK

    async def run(self) -> int:
        """Run them to their end; return the exit code."""
        with stop_signals(self.stop):
            logger.info("starting %d processes of %s", self._count, self._program.target)
            await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))
        return self._code

    def stop(self) -> None:
        """Stop all processes; called again, hurry them; called once more, kill them."""
        self._stops += 1
        self._stopping.set()
        for process in self._processes.values():
            self._tell(process)

    def _tell(self, process: Process) -> None:
        if self._stops > 2:  # noqa: PLR2004 - stop, hurry, kill
            with suppress(ProcessLookupError):
                process.kill()
        elif process.stdin is not None:
            # A pipe takes a byte without waiting, and one whose reader is gone is none of our business.
            process.stdin.write(HURRY if self._stops > 1 else STOP)

    async def _keep(self, number: int) -> None:
        """Run one of the processes, again after it dies."""
        backoff = Backoff(first=1.0, longest=30.0)
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            pid, code = await self._run_one(number)
            if code == ExitCode.OK:
                logger.info("process %d ended", pid)
                return
            if code in _FINAL:
                self._fail(ExitCode(code), f"process {pid} failed with exit code {code}")
                return
            if self._stopping.is_set():
                if -code not in _SIGNALS:  # one of those came before it could handle it
                    self._fail(ExitCode.FAILED, f"process {pid} {_how(code)} before it had stopped")
                return
            if time.monotonic() - started > _HEALTHY_AFTER:
                deaths = 0
                backoff.reset()
            deaths += 1
            if deaths > _MOST_RESTARTS:
                self._fail(ExitCode.FAILED, f"process {pid} {_how(code)}, {deaths} times in a row")
                return
            delay = backoff.delay()
            logger.error("process %d %s; a new one starts in %.1f s", pid, _how(code), delay)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()

    async def _run_one(self, number: int) -> tuple[int, int]:
        process = await asyncio.create_subprocess_exec(
            *self._command(number), stdin=subprocess.PIPE, start_new_session=True
        )
        self._processes[number] = process
        logger.info("process %d started", process.pid)
        if self._stops:  # it came while the process was being started
            self._tell(process)
        try:
            return process.pid, await process.wait()
        finally:
            del self._processes[number]

    def _command(self, number: int) -> Sequence[str]:
        program = self._program
        command = [sys.executable, "-m", "apalis_pgmq.cli", "run", program.target]
        command += ["--process", str(number), "--log-level", program.log_level]
        if program.shutdown_timeout is not None:
            command += ["--shutdown-timeout", str(program.shutdown_timeout)]
        if program.uvloop:
            command.append("--uvloop")
        return command

    def _fail(self, code: ExitCode, text: str) -> None:
        logger.error("%s", text)
        if self._code == ExitCode.OK:
            self._code = code
        if not self._stopping.is_set():
            self.stop()


def _how(code: int) -> str:
    """Say how a process died."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
