"""Other people's connections: sending on them, in their transaction, whatever their driver.

Nothing here imports SQLAlchemy, Django or psycopg2: whoever has a connection of theirs has imported them. psycopg
is imported for its connections only.
"""

from ._errors import driver_error
from ._find import asynchronous, synchronous
from ._kinds import AsyncCaller, AsyncFetch, SyncCaller, SyncFetch
from ._own import OwnConnections, SyncPort, complete

__all__ = [
    "AsyncCaller",
    "AsyncFetch",
    "OwnConnections",
    "SyncCaller",
    "SyncFetch",
    "SyncPort",
    "asynchronous",
    "complete",
    "driver_error",
    "synchronous",
]
