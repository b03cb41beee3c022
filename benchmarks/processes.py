"""Measured processes, as the harness sees them: started, spoken with, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

ROOT: Final = Path(__file__).parent.parent
"""The checkout; measured modules are found from there."""

_LONGEST_LINE: Final = 64 * 1024 * 1024
_START_SECONDS: Final = 60.0
_SHOWN_LINES: Final = 12


class ProcessError(Exception):
    """A measured process failed; the text says which one, and what it wrote."""


class Measured:
    """A running measured process; made by `measured`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self.name = name
        self._process = process
        self._errors = errors
        self._chatter: list[str] = []

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def say(self, **words: Any) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        await self._process.stdin.drain()

    async def hear(self, within: float) -> dict[str, Any]:
        """Return the next line that it sends.

        Raises:
            ProcessError: it ended or was silent for ``within`` seconds.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within):
                while line := await self._process.stdout.readline():
                    message = _message(line)
                    if message is not None:
                        return message
                    self._chatter.append(line.decode(errors="replace").rstrip())
                code = await self._process.wait()
        except TimeoutError:
            raise ProcessError(f"{self.name} was silent for {within:g} s{self._said()}") from None
        raise ProcessError(f"{self.name} ended with {code}{self._said()}")

    async def expect(self, event: str, within: float) -> dict[str, Any]:
        """Return the next line of a kind, passing over others.

        Raises:
            ProcessError: there was none within so many seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        while True:
            message = await self.hear(max(0.001, deadline - loop.time()))
            if message["event"] == event:
                return message

    async def result(self, within: float) -> dict[str, Any]:
        """Return its result, and wait for its end, so that its connections are closed.

        Raises:
            ProcessError: it did not send one within so many seconds, or did not end well.
        """
        message = await self.expect("result", within)
        try:
            async with asyncio.timeout(_START_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            raise ProcessError(f"{self.name} does not end{self._said()}") from None
        if code != 0:
            raise ProcessError(f"{self.name} ended with {code}{self._said()}")
        del message["event"]
        return message

    async def kill(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Both, so that nothing of it outlives the event loop.
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        await self._process.stdout.read()
        await self._process.wait()

    def _said(self) -> str:
        self._errors.seek(0)
        errors = self._errors.read().decode(errors="replace").splitlines()
        lines = [line for line in (*self._chatter, *errors) if line.strip()][-_SHOWN_LINES:]
        return ":\n  " + "\n  ".join(lines) if lines else ""


def _message(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and "event" in found:
            return found
    return None


@contextlib.asynccontextmanager
async def measured(
    module: str,
    job: Mapping[str, Any],
    *,
    python: Path | str = sys.executable,
    name: str = "",
    ready_within: float = _START_SECONDS,
) -> AsyncGenerator[Measured]:
    """Have a process run a module of `benchmarks` on a job; it is ready, and waits for its ``go``.

    Args:
        module: its name below ``benchmarks``.
        job: what to do, as JSON.
        python: the interpreter, of the environment that the module needs.
        name: for error texts.
        ready_within: seconds that it may take to be ready.

    Raises:
        ProcessError: it did not start.
    """
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            str(python),
            "-m",
            f"benchmarks.{module}",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            cwd=ROOT,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )
        one = Measured(name or module, process, errors)
        try:
            await one.say(**job)
            await one.expect("ready", ready_within)
            yield one
        finally:
            await one.kill()


async def run(
    module: str,
    job: Mapping[str, Any],
    *,
    within: float,
    python: Path | str = sys.executable,
    name: str = "",
) -> dict[str, Any]:
    """Run a measured process from its start to its end; return its result.

    Raises:
        ProcessError: it failed, or took longer than ``within`` seconds.
    """
    async with measured(module, job, python=python, name=name) as one:
        await one.say(go=True)
        return await one.result(within)
