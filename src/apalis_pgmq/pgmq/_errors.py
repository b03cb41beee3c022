"""What goes wrong with PostgreSQL and PGMQ, translated from the driver's errors.

::

    ApalisError
    └── PgMqError                          the database refused something; the text says what to do
        ├── PgMqUnavailableError           it does not answer now (also BackendUnavailableError)
        ├── PgMqNotInstalledError          PGMQ is not in the database, and could not be put there
        ├── PgMqVersionError               PGMQ is there, but too old
        ├── PgMqPermissionError            the database role lacks a right
        └── PgMqQueueMissingError          the queue was dropped, or never made
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from apalis_pgmq.core import ApalisError, BackendUnavailableError, EncodeError

if TYPE_CHECKING:
    from typing import Final


class PgMqError(ApalisError):
    """PostgreSQL or PGMQ refused something."""


class PgMqUnavailableError(PgMqError, BackendUnavailableError):
    """PostgreSQL does not answer now, or cannot take this statement now; trying later helps."""


class PgMqNotInstalledError(PgMqError):
    """PGMQ is not in the database, and could not be put there."""


class PgMqVersionError(PgMqError):
    """PGMQ is in the database, but older than what was asked of it needs: 1.5.1 for all, 1.11 for topics."""


class PgMqPermissionError(PgMqError):
    """The database role lacks a right."""


class PgMqQueueMissingError(PgMqError):
    """The queue's tables are not there."""


_PASSING: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,  # the connection is closed or broken
    asyncpg.InternalClientError,
    asyncpg.TargetServerAttributeNotMatched,  # fail-over: no primary among the hosts yet
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.TransactionRollbackError,  # class 40: deadlock, serialization failure
    asyncpg.InsufficientResourcesError,  # class 53: too many connections, disk full
    asyncpg.OperatorInterventionError,  # class 57: shutdown, cancelled, starting up
    asyncpg.PostgresSystemError,  # class 58: an I/O error
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # fail-over: this is a standby now
    asyncpg.InvalidCachedStatementError,  # the table was changed; the next try prepares anew
)

_REFUSED_PAYLOADS: Final = (
    asyncpg.UntranslatableCharacterError,  # \u0000 has no place in jsonb
    asyncpg.CharacterNotInRepertoireError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,  # jsonb: a string or an object that is too large
)

DRIVER_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""All that the driver raises; `TimeoutError` is an `OSError`."""


def translate(error: Exception, *, server: str, queue: str) -> ApalisError:
    """Return what to raise for an error of the driver.

    Args:
        error: one of `DRIVER_ERRORS`.
        server: the server's address, without a password.
        queue: the queue that the statement was for.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, asyncpg.InterfaceError) and "pool is clos" in text:
        return PgMqError(f"the connection pool given for queue {queue!r} was closed")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return PgMqUnavailableError(f"{server} is unavailable: no host is what target_session_attrs asks for")
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return PgMqPermissionError(f"{server} does not let us in: {text}; check user and password")
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return PgMqError(f"{server}: {text}; create it, or correct the URL")
    if isinstance(error, asyncpg.ClientConfigurationError):
        return PgMqError(f"{server}: {text}; correct the URL")
    if isinstance(error, _PASSING):
        return PgMqUnavailableError(f"{server} is unavailable: {text}")
    if isinstance(error, asyncpg.UndefinedTableError):
        return PgMqQueueMissingError(
            f"queue {queue!r} is not there ({text}); create it with 'apalis-pgmq setup' or backend.setup()"
        )
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return PgMqPermissionError(
            f"the database role lacks a right on queue {queue!r}: {text}; a worker needs USAGE on schema "
            "pgmq and SELECT, INSERT, UPDATE, DELETE on the queue's tables (see docs/security.md)"
        )
    if isinstance(error, _REFUSED_PAYLOADS):
        detail = getattr(error, "detail", None)
        return EncodeError(
            f"PostgreSQL cannot store the message for queue {queue!r}: {text}"
            + (f" ({detail})" if detail else "")
        )
    return PgMqError(f"queue {queue!r}: {text}")
