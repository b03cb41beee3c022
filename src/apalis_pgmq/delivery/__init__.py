"""Claiming, leasing and settling messages, for any store. Standard library only."""

from ._backend import QueueBackend
from ._consumer import QueueConsumer
from ._encoding import encoder
from ._outage import Backoff
from ._store import Burial, Claim, Claimed, GiveBack, Store

__all__ = [
    "Backoff",
    "Burial",
    "Claim",
    "Claimed",
    "GiveBack",
    "QueueBackend",
    "QueueConsumer",
    "Store",
    "encoder",
]
