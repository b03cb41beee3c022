"""The backend in memory, for tests and for trying things without a database."""

from ._backend import MemoryBackend
from ._store import Message

__all__ = ["MemoryBackend", "Message"]
