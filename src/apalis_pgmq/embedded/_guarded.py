"""The parent's end of the guard process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ._account import ENVIRONMENT
from ._errors import EmbeddedPostgresError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from signal import Signals

    from ._account import Account

_SCRIPT: Final = Path(__file__).with_name("_guard.py")


class Guard:
    """Start it before anything that must not be left behind exists; `close` it in every case."""

    def __init__(self, directory: Path, kind: Literal["throw-away", "lasting"], account: Account) -> None:
        identity = f"{account.uid}:{account.gid}" if account.switches else "-"
        self._process = subprocess.Popen(  # noqa: S603 - this package's own script
            [sys.executable, "-I", "-S", _SCRIPT, str(os.getpid()), directory, kind, identity],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,  # Ctrl-C must not stop the server before the with-block has ended
        )
        self._received = b""
        self._exited = False

    def start(self, command: Sequence[str], log: Path, *, timeout: float) -> int:
        """Start the server, its output appended to ``log``; wait up to ``timeout`` seconds for its pid."""
        self._exited = False
        self._order({"start": command, "log": str(log)})
        report = self._report(timeout)
        if report is None or not report.startswith("started "):
            raise EmbeddedPostgresError(
                f"the guard process did not start the server: {report or 'no answer'}"
            )
        return int(report.removeprefix("started "))

    def signal(self, number: Signals) -> None:
        """Send a signal to the server, if it still runs."""
        self._order({"signal": int(number)})

    def has_exited(self, *, timeout: float) -> bool:
        """Whether the server has ended, or does so within ``timeout`` seconds."""
        if not self._exited:
            self._exited = self._report(timeout) is not None
        return self._exited

    def close(self, *, timeout: float) -> None:
        """Have the guard stop the server, clean up and exit; wait up to ``timeout`` seconds for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise EmbeddedPostgresError(
                f"the server did not stop within {timeout:g} s; process {self._process.pid} still tries to stop it"
            ) from error
        finally:
            self._process.stdout.close()

    def _order(self, order: dict[str, object]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the missing report tells
            self._process.stdin.write(json.dumps(order).encode() + b"\n")

    def _report(self, timeout: float) -> str | None:
        """The guard's next line, or None after ``timeout`` seconds.

        A guard that is gone reports so: its server is gone with it.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._received:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            received = os.read(self._process.stdout.fileno(), 65536)
            if not received:
                return self._received.decode(errors="replace") or "the guard process is gone"
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace")
