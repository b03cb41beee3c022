"""The connections of a process, shared by its queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import asyncpg

from apalis_pgmq.core import ConfigError, whole_number

from ._connect import PoolSource, UrlSource
from ._lanes import Lanes
from ._listener import Listener
from ._ordered_sql import SETTLES

if TYPE_CHECKING:
    from types import TracebackType

    from ._connect import Source

DEFAULT_SIZE: Final = 4

# Every statement of ours finds its rows by an index, and takes arrays. Planned once for all arguments, they
# are planned for few rows, which is right; a plan made for one argument may read a bloated table whole.
_PLANNING: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
}
# A claim that a crash loses was never made: the message is simply delivered again. So its commit need not wait
# for the disk. What removes messages does wait.
_CLAIMING: Final = {**_PLANNING, "synchronous_commit": "off"}
_SETTLING: Final = {**_PLANNING, SETTLES: "on"}
# What has to wait for somebody else's transaction waits on a connection of its own.
_IMPATIENT: Final = {"lock_timeout": "200ms"}


class PgMqPool:
    """Connections that several backends of a process share, so that many queues need few of them.

    ::

        async with PgMqPool("postgresql://localhost/app") as pool:
            emails = PgMqBackend(pool, "emails", EmailMessage)
            bills = PgMqBackend(pool, "bills", Bill)

    One connection listens for all queues. Claiming, settling, sending, sending with keys, and waiting for a key, have
    up to ``size`` each, opened as they are needed; each running handler with a `Transaction` has one of its own. A
    backend that is given a URL makes a pool for itself. One pool serves one event loop.

    Args:
        url_or_pool: a ``postgres://`` or ``postgresql://`` URL, or an `asyncpg.Pool`, which stays the caller's
            to close.
        size: how many claims, settlements and pushes may be under way at once, each; the default is 4.
        prepared_statements: as for `PgMqBackend`.

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any],
        *,
        size: int = DEFAULT_SIZE,
        prepared_statements: bool | None = None,
    ) -> None:
        size = whole_number("size", size, least=1)
        self.source: Source
        if isinstance(url_or_pool, str):
            self.source = UrlSource(url_or_pool, prepared_statements=prepared_statements)
        elif isinstance(url_or_pool, asyncpg.Pool):
            self.source = PoolSource(url_or_pool)
        else:
            raise ConfigError(f"a database URL, a PgMqPool or an asyncpg.Pool is needed, not {url_or_pool!r}")
        # A connection of the program's own pool is not kept from it for the sake of a push now and then.
        hold = not isinstance(self.source, PoolSource)
        self.sending = Lanes(self.source, size=size, hold=hold)
        # These may have to wait for somebody else's transaction, and others that send must not wait with them.
        self.sending_keyed = Lanes(self.source, size=size, settings=_IMPATIENT, hold=hold)
        self.waiting_for_keys = Lanes(self.source, size=size, hold=hold)
        self.claiming = Lanes(self.source, size=size, settings=_CLAIMING)
        self.settling = Lanes(self.source, size=size, settings=_SETTLING)
        self.listener = Listener(self.source)
        self._consumers = 0

    def __repr__(self) -> str:
        return f"<PgMqPool on {self.source.address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later use opens new ones."""
        await self.listener.close()
        await self.claiming.close()
        await self.settling.close()
        await self.sending.close()
        await self.sending_keyed.close()
        await self.waiting_for_keys.close()

    def engage(self) -> None:
        """Count one more consumer that works with these connections."""
        self._consumers += 1

    async def release(self) -> None:
        """Count one less; with the last one go the connections that only consumers need."""
        self._consumers -= 1
        if not self._consumers:
            await self.listener.close()
            await self.claiming.close()
            await self.settling.close()


def pool_of(
    url_or_pool: str | asyncpg.Pool[Any] | PgMqPool, *, prepared_statements: bool | None
) -> tuple[PgMqPool, bool]:
    """Return the pool that is given, or one made of what is given, and whether it is ours to close.

    Raises:
        ConfigError: neither a URL nor a pool; or ``prepared_statements`` together with a `PgMqPool`.
    """
    if not isinstance(url_or_pool, PgMqPool):
        return PgMqPool(url_or_pool, prepared_statements=prepared_statements), True
    if prepared_statements is not None:
        raise ConfigError("prepared_statements is for the PgMqPool: give it there")
    return url_or_pool, False


class OnPool:
    """What is done on a pool, the caller's or one of its own, for the length of a block or until it is closed.

    Args:
        url_or_pool: as for `pool_of`.
        prepared_statements: as for `PgMqBackend`.

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(
        self, url_or_pool: str | asyncpg.Pool[Any] | PgMqPool, *, prepared_statements: bool | None
    ) -> None:
        self._pool, self._owns_pool = pool_of(url_or_pool, prepared_statements=prepared_statements)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._pool.source.address}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later use opens new ones."""
        if self._owns_pool:
            await self._pool.close()
