"""Hears of messages as they are sent: one connection that listens for all queues of a pool."""

from __future__ import annotations

import asyncio
import logging
import zlib
from hashlib import blake2s
from time import monotonic
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import ApalisError
from apalis_pgmq.delivery import Backoff

from ._connect import bounded, is_pooled, statement_timeout
from ._errors import DRIVER_ERRORS
from ._names import insert_channel, queue_table
from ._setup_sql import ANNOUNCED
from ._sql import RANK, UNRANK
from ._turns import Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._connect import Connection, Source

logger = logging.getLogger("apalis_pgmq")

PROBE_INTERVAL: Final = 60.0
"""Seconds between two looks at whether the connection still lives: one that has gone silent is found out
within this time and that of a statement."""
_COMPANY_LASTS: Final = 2.5 * PROBE_INTERVAL
_RANKS: Final = 64
_GOODBYE: Final = 2.0
"""Seconds that taking leave of a connection may take."""


def talk_channel(queue: str) -> str:
    """Return the channel on which the workers of a queue talk to each other."""
    return f"apalis_pgmq_{blake2s(queue_table(queue).encode(), digest_size=16).hexdigest()}"


class Subscription:
    """What is heard for one consumer of a queue.

    Attributes:
        queue: its name.
        turn: when it answers to an announcement.
        is_heard: whether announcements reach us now.
        is_announced: whether every insert is announced now, and it is heard.
    """

    def __init__(self, queue: str, wake: Callable[[], None], load: Callable[[], float]) -> None:
        self.queue = queue
        self.table = queue_table(queue)
        self.turn = Turn(wake, load, company_lasts=_COMPANY_LASTS)
        self.is_heard = False
        self.is_announced = False

    @property
    def channels(self) -> list[str]:
        """The channels on which inserts are announced; PGMQ 1.13.1 keeps upper case in their names."""
        own = insert_channel(self.queue)
        return [] if own is None else sorted({own, f"pgmq.q_{self.queue}.INSERT"})


class Listener:
    """Listens for as many queues as are subscribed to, as long as there are any.

    It does without, and tries again, when it cannot: polling goes on all the same. Behind a pooler nobody
    can listen.

    Args:
        source: where its connection comes from.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._subscriptions: list[Subscription] = []
        self._heard: dict[str, list[Callable[[str], None]]] = {}
        self._channels: set[str] = set()
        self._left: list[tuple[str, int]] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def subscribe(self, queue: str, wake: Callable[[], None], load: Callable[[], float]) -> Subscription:
        """Have ``wake`` called when messages may have come; for ``load`` see `Turn`."""
        subscription = Subscription(queue, wake, load)
        self._subscriptions.append(subscription)
        self._changed.set()
        if self._task is None and self._source.may_listen:
            self._task = asyncio.create_task(self._run(), name="apalis-pgmq listener")
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Call it no more."""
        subscription.turn.close()
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            if subscription.turn.rank is not None:
                self._left.append((subscription.table, subscription.turn.rank))
            self._changed.set()

    def suspect(self) -> None:
        """Look at once whether the connection still lives: another one to the same server has broken."""
        self._changed.set()

    async def close(self) -> None:
        """Listen no more, until somebody subscribes anew."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            began = monotonic()
            try:
                connection = await self._source.connect()
                try:
                    if await bounded(is_pooled(connection)):
                        logger.info(
                            "%s is behind a pooler, which nobody can listen through: polling instead",
                            self._source.address,
                        )
                        return
                    await self._listen(connection)
                finally:
                    await self._let_go(connection)
            except (*DRIVER_ERRORS, ApalisError) as error:
                # Whoever claims finds out as well, and says so.
                logger.debug("%s: listening ended: %s", self._source.address, error)
            except Exception:
                logger.exception("%s: listening failed, polling meanwhile", self._source.address)
            if monotonic() - began > PROBE_INTERVAL:
                backoff.reset()
            await asyncio.sleep(backoff.delay())

    async def _listen(self, connection: Connection) -> None:
        """Listen until the connection breaks."""
        connection.add_termination_listener(self._on_end)
        while not connection.is_closed():
            self._changed.clear()
            await self._tune_in(connection)
            await self._probe(connection)
            try:
                async with asyncio.timeout(PROBE_INTERVAL):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _tune_in(self, connection: Connection) -> None:
        """Listen to the channels of those who are subscribed, and to no others."""
        heard: dict[str, list[Callable[[str], None]]] = {}
        for one in self._subscriptions:
            for channel in one.channels:
                heard.setdefault(channel, []).append(one.turn.announced)
            heard.setdefault(talk_channel(one.queue), []).append(one.turn.told)
        self._heard = heard
        for channel in heard.keys() - self._channels:
            await bounded(connection.add_listener(channel, self._on_notification))
            self._channels.add(channel)
        for channel in self._channels - heard.keys():
            await bounded(connection.remove_listener(channel, self._on_notification))
            self._channels.discard(channel)

    async def _probe(self, connection: Connection) -> None:
        """See that the connection lives, which queues announce their inserts, and who comes first."""
        while self._left:
            table, rank = self._left[-1]
            await bounded(connection.execute(UNRANK, _key(table), rank))
            self._left.pop()
        subscriptions = list(self._subscriptions)
        rows = await bounded(connection.fetch(ANNOUNCED, [one.table for one in subscriptions]))
        announced = {row[0] for row in rows}
        for one in subscriptions:
            if one.turn.rank != 0:
                await self._rank(connection, one)
            was = one.is_heard, one.is_announced
            one.is_heard = True
            one.is_announced = one.table in announced and insert_channel(one.queue) is not None
            if was != (one.is_heard, one.is_announced):
                # What was sent before we listened was not heard; or it has to be polled for from now on.
                one.turn.now()

    async def _rank(self, connection: Connection, one: Subscription) -> None:
        """Move up as far as others have left."""
        key = _key(one.table)
        ours = [
            other.turn.rank
            for other in self._subscriptions
            if other.table == one.table and other.turn.rank is not None
        ]
        old = one.turn.rank
        [row] = await bounded(
            connection.fetch(RANK, key, _RANKS if old is None else old, ours, talk_channel(one.queue))
        )
        if row[0] is None:
            return
        if one not in self._subscriptions:
            # It left meanwhile.
            self._left.append((one.table, row[0]))
            self._changed.set()
            return
        one.turn.rank = row[0]
        if old is not None:
            await bounded(connection.execute(UNRANK, key, old))

    def _on_notification(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        for hear in self._heard.get(channel, ()):
            hear(str(payload))

    def _on_end(self, _connection: object) -> None:
        self._changed.set()

    async def _let_go(self, connection: Connection) -> None:
        channels, self._channels = self._channels, set()
        self._left.clear()
        for one in self._subscriptions:
            one.turn.rank = None
            if one.is_heard:
                one.is_heard = one.is_announced = False
                one.turn.now()
        connection.remove_termination_listener(self._on_end)
        try:
            async with statement_timeout(_GOODBYE):
                for channel in channels:
                    await connection.remove_listener(channel, self._on_notification)
        except DRIVER_ERRORS:
            connection.terminate()
        await self._source.release(connection)


def _key(table: str) -> int:
    """Return under which number the ranks of a queue are locked, as PostgreSQL's ``int``."""
    number = zlib.crc32(f"apalis-pgmq {table}".encode())
    return number - 2**32 if number >= 2**31 else number
