"""The guard: a process that runs the server as its child and never lets it outlive its own parent.

It is run as a script, isolated and without ``site``, so that it starts in some hundredths of a second::

    python -I -S _guard.py PARENT_PID DIRECTORY (throw-away | lasting) (UID:GID | -)

Orders come by standard input, one JSON object a line: ``{"start": [program, argument, ...], "log": path}``
and ``{"signal": number}``. Reports go to standard output: ``started PID`` and ``exited STATUS``.

The end of standard input is the order to stop the server, to remove a throw-away directory, and to exit. The
kernel gives that order when the parent dies, however it dies. A parent that forked leaves the pipe open in
its child, so the guard also looks whether its parent is still the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# How to stop a server, as signals and the seconds to wait after each. A throw-away server writes nothing down.
_IMMEDIATELY = ((signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0))
_CLEANLY = ((signal.SIGINT, 30.0), *_IMMEDIATELY)

_PARENT_CHECK_SECONDS = 0.5
_REMOVAL_SECONDS = 10.0
_LINUX_PR_SET_PDEATHSIG = 1
_IPC_RMID = 0
_SHARED_MEMORY_LINE = 6  # of postmaster.pid, counted from zero: key and number


class _Task(NamedTuple):
    parent: int
    directory: str
    throw_away: bool
    identity: tuple[int, int] | None

    @property
    def stopping(self) -> tuple[tuple[signal.Signals, float], ...]:
        return _IMMEDIATELY if self.throw_away else _CLEANLY


def main(arguments: list[str]) -> None:
    """Obey orders until they end, then leave nothing behind."""
    parent, directory, kind, identity = arguments
    uid, _, gid = identity.partition(":")
    task = _Task(int(parent), directory, kind == "throw-away", (int(uid), int(gid)) if gid else None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the orders ends the guard
    wake = _wake_up_on_sigchld()
    server: int | None = None
    try:
        for order in _orders(task.parent, wake):
            if server is not None and _has_ended(server):
                server = None
            if "start" in order:
                server = _start(task, order["start"], order["log"])
            elif "signal" in order and server is not None:
                os.kill(server, order["signal"])
    finally:
        if server is not None:
            _stop(task, server)
        if task.throw_away:
            _remove(task)


def _wake_up_on_sigchld() -> int:
    """A file descriptor to read from when a child has ended."""
    wake, alarm = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(alarm, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
    return wake


def _orders(parent: int, wake: int) -> Iterator[dict[str, Any]]:
    """The parent's orders while it lives, and between them empty ones to look after the server."""
    pending = b""
    while os.getppid() == parent:
        ready, _, _ = select.select([0, wake], [], [], _PARENT_CHECK_SECONDS)
        if wake in ready:
            os.read(wake, 4096)
        yield {}
        if 0 in ready:
            received = os.read(0, 65536)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            yield from map(json.loads, lines)


def _start(task: _Task, command: list[str], log: str) -> int:
    guard = os.getpid()
    server = os.fork()
    if server:
        _report(f"started {server}")
        return server
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _drop_privileges(task)
        if sys.platform == "linux":  # have the kernel stop the server, should the guard itself be killed
            ctypes.CDLL(None).prctl(_LINUX_PR_SET_PDEATHSIG, int(task.stopping[0][0]), 0, 0, 0)
            if os.getppid() != guard:
                os._exit(127)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
        os.dup2(1, 2)
        os.execv(command[0], command)  # noqa: S606 - the parent's own command, and no shell is wanted
    except OSError as error:
        os.write(2, f"{command[0]}: {error}\n".encode())
    finally:
        os._exit(127)  # a forked child must never return into the guard's loop


def _drop_privileges(task: _Task) -> None:
    if task.identity is not None:
        uid, gid = task.identity
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def _has_ended(server: int) -> bool:
    pid, status = os.waitpid(server, os.WNOHANG)
    if pid:
        _report(f"exited {os.waitstatus_to_exitcode(status)}")
    return bool(pid)


def _stop(task: _Task, server: int) -> None:
    for number, seconds in task.stopping:
        if _has_ended(server):
            return
        os.kill(server, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if _has_ended(server):
                return
            time.sleep(0.005)


def _remove(task: _Task) -> None:
    """Remove the directory, and go on while a dying process still writes to it."""
    _remove_shared_memory(task)
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while os.path.lexists(task.directory) and time.monotonic() < deadline:
        shutil.rmtree(task.directory, ignore_errors=True)
        time.sleep(0.005)


def _remove_shared_memory(task: _Task) -> None:
    """Remove the one segment that a killed server leaves outside its directory.

    It is done as the server's account: the number comes from a file that the server could have changed.
    """
    try:
        lines = Path(task.directory, "postmaster.pid").read_text(encoding="utf-8").splitlines()
        segment = int(lines[_SHARED_MEMORY_LINE].split()[1])
    except (OSError, ValueError, IndexError):
        return  # it stopped in order
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        _drop_privileges(task)
        ctypes.CDLL(None).shmctl(segment, _IPC_RMID, None)
    finally:
        os._exit(0)


def _report(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
