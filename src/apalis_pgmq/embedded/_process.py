"""One run of a server: its data directory, its guard, its postmaster."""

from __future__ import annotations

import contextlib
import random
import secrets
import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING, Final, Literal

from ._account import server_account
from ._binaries import find_binaries
from ._cluster import LOG_NAME, init_throw_away, make_directory, new_password, open_lasting
from ._errors import EmbeddedPostgresError
from ._guarded import Guard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ._account import Account

StopMode = Literal["fast", "immediate"]

_DEFAULTS: Final = {"max_connections": "200", "shared_buffers": "128MB"}
# Shared memory in files of the data directory goes with it, even after kill -9.
_THROW_AWAY_DEFAULTS: Final = {"fsync": "off", "dynamic_shared_memory_type": "mmap"}

# Below the range from which systems choose ports for outgoing connections: a port of that range could be
# taken during a restart, even by a client that connects to itself while it tries to reach the server.
_PORTS: Final = range(20000, 32000)
_PASSING_TROUBLES: Final = ("could not bind", "pre-existing shared memory block")

_POLL_SECONDS: Final = 0.005
_CLOSE_SECONDS: Final = 60.0  # more than the guard's own patience with a server that does not stop
_LOG_LINES: Final = 20
_STATUS_LINE: Final = 7  # of postmaster.pid, counted from zero; pg_ctl reads it too


class ServerProcess:
    """A server in ``data_dir``, or in a throw-away directory; `close` it even if `prepare` or `launch` fails."""

    def __init__(self, data_dir: Path | None, settings: Mapping[str, str], timeout: float) -> None:
        account = server_account()
        self._binaries = find_binaries(account)
        self._throw_away = data_dir is None
        self._settings = {**_DEFAULTS, **(_THROW_AWAY_DEFAULTS if self._throw_away else {}), **settings}
        self._timeout = timeout
        self._password = ""
        self._port: int | None = None
        self.pid = 0
        self.directory = data_dir or _throw_away_directory(account)
        self._guard = Guard(self.directory, "throw-away" if self._throw_away else "lasting", account)

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def log_path(self) -> Path:
        return self.directory / LOG_NAME

    def prepare(self) -> None:
        """Make the cluster, or check the one that is there."""
        if self._throw_away:
            self._password = new_password()
            make_directory(self.directory, self._binaries.account)
            init_throw_away(self.directory, self._password, self._binaries, self._timeout)
        else:
            self._password = open_lasting(self.directory, self._binaries, self._timeout)

    def launch(self) -> None:
        """Start the postmaster and wait until it accepts connections.

        A port that somebody else took in the meantime, and the last processes of a killed server, are
        troubles that pass: it tries again, at another port unless there is one that clients know already.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            log_start = self._log_size()
            port = self._port or _free_port()
            self.pid = self._guard.start(self._command(port), self.log_path, timeout=self._timeout)
            if self._becomes_ready(deadline):
                self._port = port
                return
            log = self._log_from(log_start)
            if time.monotonic() > deadline or not any(trouble in log for trouble in _PASSING_TROUBLES):
                raise self._failure(log)
            time.sleep(0.1)

    def halt(self, mode: StopMode) -> None:
        """Stop the postmaster but keep everything else, for another `launch`."""
        self._guard.signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
        if not self._guard.has_exited(timeout=self._timeout):
            raise EmbeddedPostgresError(
                f"the server did not stop within {self._timeout:g} s; see {self.log_path}"
            )

    def close(self) -> None:
        """Stop the server and, if it is a throw-away one, remove its directory."""
        self._guard.close(timeout=_CLOSE_SECONDS)
        if self._throw_away:
            shutil.rmtree(self.directory, ignore_errors=True)  # does nothing, unless the guard was killed

    def _command(self, port: int) -> list[str]:
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
        }
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        return [str(self._binaries.directory / "postgres"), "-D", str(self.directory), *options]

    def _becomes_ready(self, deadline: float) -> bool:
        while not self._guard.has_exited(timeout=_POLL_SECONDS):
            if self._is_ready():
                return True
            if time.monotonic() > deadline:
                return False
        return False

    def _is_ready(self) -> bool:
        """Read the postmaster's own word, as ``pg_ctl`` does: asking by a connection could ask a stranger."""
        with contextlib.suppress(FileNotFoundError, IndexError):
            lines = (self.directory / "postmaster.pid").read_text(encoding="utf-8").splitlines()
            return lines[0] == str(self.pid) and lines[_STATUS_LINE].strip() == "ready"
        return False

    def _log_size(self) -> int:
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def _log_from(self, start: int) -> str:
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")

    def _failure(self, log: str) -> EmbeddedPostgresError:
        if 'lock file "postmaster.pid" already exists' in log:
            return EmbeddedPostgresError(
                f"data_dir {self.directory} is in use by a running server: use that one's URL, stop it, "
                "or choose another directory"
            )
        tail = "\n".join(log.splitlines()[-_LOG_LINES:])
        return EmbeddedPostgresError(
            f"the server did not start; check the settings, and the end of its log:\n{tail}"
        )


def _throw_away_directory(account: Account) -> Path:
    """A name nobody can guess, so that its guard can be told of it before the directory exists."""
    for base in account.temp_dirs():
        return base / f"apalis-pgmq-{secrets.token_hex(8)}"
    raise EmbeddedPostgresError(
        f"no temporary directory that {account.name} can enter: point TMPDIR to one, "
        "or set APALIS_PGMQ_URL to the URL of a PostgreSQL server"
    )


def _free_port() -> int:
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise EmbeddedPostgresError(
        f"no free port from {_PORTS.start} to {_PORTS.stop - 1}: close some listeners"
    )
