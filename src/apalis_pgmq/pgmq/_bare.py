"""The bare loops: what the driver and the server can do at most, for whoever measures the rest."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from ._connect import UrlSource
from ._errors import DRIVER_ERRORS, PgMqError, translate
from ._names import SCHEMA, insert_channel, literal, queue_table, quote
from ._setup_sql import INSPECT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence
    from types import TracebackType

    from asyncpg.prepared_stmt import PreparedStatement

    from ._connect import Connection

_TRANSACTIONS: Final = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"


class BareQueue:
    """A queue and one connection, with the least that could do the job, to measure against.

    Nothing is typed, fenced, retried or extended: whatever a worker costs more than this is the price of its
    guarantees. It is no means of doing work: messages are deleted whatever becomes of them.

    Use it as ``async with``. Its methods are for one task at a time, and raise what the backend's do.

    Args:
        url: the database.
        queue: the name of a queue that is there.

    Raises:
        ConfigError: not a database URL.
    """

    def __init__(self, url: str, queue: str) -> None:
        self._source = UrlSource(url, prepared_statements=None)
        self._queue = queue
        self._table = f"{SCHEMA}.{quote(queue_table(queue))}"
        self._opened: Connection | None = None
        self._prepared: dict[str, PreparedStatement[Any]] = {}

    async def __aenter__(self) -> Self:
        with self._translated():
            self._opened = await self._source.connect()
        if not self._source.prepared_statements:
            await self._close()
            raise PgMqError(
                f"{self._source.address} is a pooler, behind which there is no bare loop to measure against: "
                "give the URL of the server itself"
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    @property
    def server_version(self) -> str:
        """The server's version, such as 18.1."""
        version = self._connection.get_server_version()
        return f"{version.major}.{version.minor}"

    async def drain(self, handle: Callable[[int], object], *, batch: int = 100) -> None:
        """Claim and delete by turns until there is nothing to claim.

        Args:
            handle: called with the number of messages of each claim, before they are deleted.
            batch: how many to claim at once.
        """
        with self._translated():
            claim, delete = await self._claim_and_delete()
            while rows := await claim.fetch(batch):
                handle(len(rows))
                await delete.fetch([row[0] for row in rows])

    @asynccontextmanager
    async def listening(
        self, handle: Callable[[Sequence[str]], object], *, batch: int = 10
    ) -> AsyncGenerator[None]:
        """Claim and delete what is announced, from the beginning of the block to its end.

        Args:
            handle: called with the JSON of the messages of each claim, before they are deleted.
            batch: how many to claim at once.
        """
        channel = self._channel()
        announced = asyncio.Event()

        def hear(*_: object) -> None:
            announced.set()

        async def work() -> None:
            with self._translated():
                while True:
                    await announced.wait()
                    announced.clear()
                    while rows := await claim.fetch(batch):
                        handle([row[4] for row in rows])
                        await delete.fetch([row[0] for row in rows])
                        if len(rows) < batch:
                            break

        with self._translated():
            claim, delete = await self._claim_and_delete()
            await self._connection.add_listener(channel, hear)
        async with asyncio.TaskGroup() as group:
            working = group.create_task(work(), name="apalis-pgmq: bare loop")
            yield
            working.cancel()

    async def insert(self, payload: str) -> None:
        """Send one message, given as JSON, and announce it; return once it is durable."""
        with self._translated():
            await (await self._statement(self._insert_sql(announce=True))).fetch(payload)

    async def commit(self) -> None:
        """Make the least transaction that has to wait for the disk: send one message, unannounced."""
        with self._translated():
            await (await self._statement(self._insert_sql(announce=False))).fetch("null")

    async def round_trip(self) -> None:
        """Ask the server for next to nothing."""
        with self._translated():
            await (await self._statement("SELECT 1")).fetch()

    async def settle(self) -> None:
        """Vacuum and analyze the queue's table, as the server does by itself to a table that is in use."""
        with self._translated():
            await self._connection.execute(f"VACUUM (ANALYZE) {self._table}")

    async def transactions(self) -> int | None:
        """Return how many transactions the database has committed; None if the server does not tell.

        Those of everybody, as far as their sessions have reported them: at the latest when they end.
        """
        with self._translated():
            count: int | None = await self._connection.fetchval(_TRANSACTIONS)
        return count

    @property
    def _connection(self) -> Connection:
        if self._opened is None:
            raise PgMqError("a BareQueue is open inside its 'async with' only")
        return self._opened

    async def _close(self) -> None:
        connection, self._opened = self._opened, None
        self._prepared.clear()
        if connection is not None:
            await self._source.release(connection)

    async def _statement(self, sql: str) -> PreparedStatement[Any]:
        if sql not in self._prepared:
            self._prepared[sql] = await self._connection.prepare(sql)
        return self._prepared[sql]

    async def _claim_and_delete(self) -> tuple[PreparedStatement[Any], PreparedStatement[Any]]:
        [found] = await self._connection.fetch(INSPECT, queue_table(self._queue))
        read_at = ", last_read_at = now()" if found["has_last_read_at"] else ""
        claim = f"""
            WITH next AS (
                SELECT msg_id FROM {self._table} WHERE vt <= now()
                ORDER BY vt LIMIT $1 FOR UPDATE SKIP LOCKED
            )
            UPDATE {self._table} AS m SET vt = now() + interval '30 s', read_ct = read_ct + 1{read_at}
            FROM next WHERE m.msg_id = next.msg_id
            RETURNING m.msg_id, m.read_ct, m.enqueued_at, m.vt, m.message, m.headers
        """
        delete = f"DELETE FROM {self._table} WHERE msg_id = ANY ($1::bigint[])"
        return await self._statement(claim), await self._statement(delete)

    def _insert_sql(self, *, announce: bool) -> str:
        insert = f"INSERT INTO {self._table} (vt, message) VALUES (now(), $1::text::jsonb) RETURNING msg_id"
        if not announce:
            return insert
        return f"WITH sent AS ({insert}) SELECT msg_id, pg_notify({literal(self._channel())}, '') FROM sent"

    def _channel(self) -> str:
        channel = insert_channel(self._queue)
        if channel is None:
            raise PgMqError(f"the name of queue {self._queue!r} is too long for its inserts to be announced")
        return channel

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except DRIVER_ERRORS as error:
            raise translate(error, server=self._source.address, queue=self._queue) from error
