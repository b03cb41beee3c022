"""The backend for PGMQ, the message queue in PostgreSQL."""

from ._backend import PgMqBackend
from ._context import PgMqContext
from ._errors import (
    PgMqError,
    PgMqNotInstalledError,
    PgMqPermissionError,
    PgMqQueueMissingError,
    PgMqUnavailableError,
    PgMqVersionError,
)

__all__ = [
    "PgMqBackend",
    "PgMqContext",
    "PgMqError",
    "PgMqNotInstalledError",
    "PgMqPermissionError",
    "PgMqQueueMissingError",
    "PgMqUnavailableError",
    "PgMqVersionError",
]
