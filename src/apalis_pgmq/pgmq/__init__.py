"""The backend for PGMQ, the message queue in PostgreSQL."""

from ._backend import PgMqBackend
from ._bare import BareQueue
from ._context import PgMqContext
from ._errors import (
    PgMqError,
    PgMqNotInstalledError,
    PgMqPermissionError,
    PgMqQueueMissingError,
    PgMqUnavailableError,
    PgMqVersionError,
)
from ._pool import PgMqPool
from ._producer import PgMqProducer
from ._queues import create_queue, drop_queue, queue_length, sweep_bodies
from ._transaction import Transaction

__all__ = [
    "BareQueue",
    "PgMqBackend",
    "PgMqContext",
    "PgMqError",
    "PgMqNotInstalledError",
    "PgMqPermissionError",
    "PgMqPool",
    "PgMqProducer",
    "PgMqQueueMissingError",
    "PgMqUnavailableError",
    "PgMqVersionError",
    "Transaction",
    "create_queue",
    "drop_queue",
    "queue_length",
    "sweep_bodies",
]
