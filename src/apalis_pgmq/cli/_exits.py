"""How commands end: a line per error for what its user can mend, a traceback for all else."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import typer

from apalis_pgmq.core import ApalisError

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("apalis_pgmq")


class ExitCode(IntEnum):
    """What the command tells its caller; the package's docstring says when."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class UsageError(Exception):
    """The command was called wrongly; the text says how, and what to write instead."""


@contextmanager
def exits(*, mistakes_are_shown: bool = True) -> Iterator[None]:
    """Turn whatever a command raises into its exit code.

    Args:
        mistakes_are_shown: False leaves it to another process to tell of a `UsageError`.

    Raises:
        SystemExit: with an `ExitCode`.
    """
    try:
        yield
    except UsageError as error:
        if mistakes_are_shown:
            show_error(str(error))
        raise SystemExit(ExitCode.USAGE) from None
    except KeyboardInterrupt:
        raise SystemExit(ExitCode.INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - the end of the road for all of them
        _show(error)
        raise SystemExit(ExitCode.FAILED) from None


def show_error(text: str) -> None:
    """Print one red line on stderr."""
    typer.secho(f"apalis-pgmq: {' '.join(text.split())}", fg=typer.colors.RED, err=True)


def _show(error: Exception) -> None:
    if isinstance(error, ExceptionGroup):
        for part in error.exceptions:
            _show(part)
    elif isinstance(error, ApalisError):
        show_error(str(error))
    else:
        # Nobody foresaw it, in the user's program or in this one: whoever debugs it needs the traceback.
        logger.critical("%s: %s", type(error).__name__, error, exc_info=error)
