"""The operating system account that the server runs under.

PostgreSQL refuses to run as root, so root hands the server to an unprivileged account. Everybody
else runs it as themselves.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from ._errors import EmbeddedPostgresError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A clean environment: the caller's PG*, LC_* and LD_* variables must not steer the server. macOS
# needs LC_ALL in any case, or the postmaster "becomes multithreaded" and stops.
ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

_UNPRIVILEGED: Final = ("postgres", "_postgres", "nobody")
_PROBE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the server.

    Attributes:
        name: the login name, for messages.
        uid: the user id.
        gid: the group id.
        switches: whether processes must be switched to it, that is, whether we are root.
    """

    name: str
    uid: int
    gid: int
    switches: bool

    def run(
        self, command: Sequence[str | Path], *, timeout: float, stdin: IO[bytes] | int = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` under this account to its end, with stdout and stderr as one text.

        Args:
            command: the program, by its full path, and its arguments.
            timeout: seconds after which it is killed.
            stdin: what it reads; nothing by default.

        Raises:
            OSError: it could not be started, for example for want of permission.
            subprocess.TimeoutExpired: it took too long.
        """
        return subprocess.run(  # noqa: S603 - no shell, and the arguments are this package's own
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
            cwd="/",  # the caller's directory may be closed to the account
            env=ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is the caller's to handle
            user=self.uid if self.switches else None,
            group=self.gid if self.switches else None,
            extra_groups=[] if self.switches else None,
        )

    def can_enter(self, directory: str | Path) -> bool:
        """Whether the account reaches ``directory``, found by trying, so that ACLs count too."""
        script = 'cd -- "$1"'
        return self.run(["/bin/sh", "-c", script, "sh", directory], timeout=_PROBE_SECONDS).returncode == 0

    def temp_dirs(self) -> Iterator[Path]:
        """The temporary directories that both we and the account can use, the preferred one first."""
        for name in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108 - only unguessable or verified names are made there
            directory = Path(name).resolve()
            if os.access(directory, os.W_OK | os.X_OK) and self.can_enter(directory):
                yield directory


def server_account() -> Account:
    """The account to run a server under: our own, or for root an unprivileged one.

    Raises:
        EmbeddedPostgresError: on Windows, or when root finds no account to switch to.
    """
    if os.name != "posix":
        raise EmbeddedPostgresError(
            "the embedded server runs on Linux and macOS only: "
            "set APALIS_PGMQ_URL to the URL of a PostgreSQL server"
        )
    import pwd  # noqa: PLC0415 - does not exist on Windows, where this package must still import

    if os.geteuid() != 0:
        return Account(f"uid {os.geteuid()}", os.geteuid(), os.getegid(), switches=False)
    for name in _UNPRIVILEGED:
        try:
            entry = pwd.getpwnam(name)
            account = Account(name, entry.pw_uid, entry.pw_gid, switches=True)
            if account.can_enter("/"):
                return account
        except (KeyError, OSError):
            continue  # no such account, or a container that does not let us become it
    raise EmbeddedPostgresError(
        f"PostgreSQL does not run as root, and there is no account among {', '.join(_UNPRIVILEGED)} to switch to: "
        "run as an ordinary user, add one (useradd --system postgres), "
        "or set APALIS_PGMQ_URL to the URL of a PostgreSQL server"
    )
