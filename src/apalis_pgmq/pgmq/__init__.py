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
from ._queue_facts import Partitions, QueueInfo, QueueMetrics, TopicBinding
from ._queues import PgMqQueues
from ._topic import PgMqTopic
from ._transaction import Transaction

__all__ = [
    "BareQueue",
    "Partitions",
    "PgMqBackend",
    "PgMqContext",
    "PgMqError",
    "PgMqNotInstalledError",
    "PgMqPermissionError",
    "PgMqPool",
    "PgMqProducer",
    "PgMqQueueMissingError",
    "PgMqQueues",
    "PgMqTopic",
    "PgMqUnavailableError",
    "PgMqVersionError",
    "QueueInfo",
    "QueueMetrics",
    "TopicBinding",
    "Transaction",
]
