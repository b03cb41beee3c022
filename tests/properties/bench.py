"""The two stores as the state machine sees them: their port, and a way to look and reach behind it."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import asyncpg

from apalis_pgmq import Config, MemoryBackend, PgMqBackend
from apalis_pgmq.delivery import Store
from apalis_pgmq.memory._store import MemoryStore
from apalis_pgmq.pgmq._store import PgMqStore

T = TypeVar("T")
Headers = dict[str, Any] | None

STORES = 3


@dataclass
class Row:
    """A message as it is stored."""

    read_ct: int
    vt: datetime
    payload: str
    headers: Headers
    is_visible: bool


class Bench(Protocol):
    """A queue, several stores on it, and what a test needs beside the port."""

    stores: list[Store]
    loses_answers: bool

    def run(self, call: Coroutine[Any, Any, T]) -> T: ...
    def clear(self) -> None: ...
    def send(self, payload: str, headers: Headers) -> int: ...
    def rows(self) -> dict[int, Row]: ...
    def dead(self) -> list[tuple[str, dict[str, Any]]]: ...
    def write(self, message: int, read_ct: int, vt: datetime) -> None: ...
    def close(self) -> None: ...


class MemoryBench:
    """The store in memory."""

    loses_answers = False

    def __init__(self, config: Config) -> None:
        self._runner = asyncio.Runner()
        self._config = config
        self.clear()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def clear(self) -> None:
        self._queue = MemoryBackend(self._config, str)._queue
        self.stores: list[Store] = [MemoryStore(self._queue) for _ in range(STORES)]

    def send(self, payload: str, headers: Headers) -> int:
        return self._queue.add(payload, None if headers is None else json.dumps(headers), timedelta(0))

    def rows(self) -> dict[int, Row]:
        now = datetime.now(UTC)
        return {
            message.id: Row(
                message.read_ct, message.vt, message.payload, _parsed(message.headers), message.vt <= now
            )
            for message in self._queue.messages.values()
        }

    def dead(self) -> list[tuple[str, dict[str, Any]]]:
        return [(letter.payload, json.loads(letter.headers or "{}")) for letter in self._queue.dead.values()]

    def write(self, message: int, read_ct: int, vt: datetime) -> None:
        [row] = [row for row in self._queue.messages.values() if row.id == message]
        row.read_ct = read_ct
        self._queue.show(row, vt)

    def close(self) -> None:
        self._runner.close()


class PgMqBench:
    """The store on PGMQ's tables."""

    loses_answers = True

    def __init__(self, url: str, config: Config) -> None:
        self._runner = asyncio.Runner()
        self._table = f"pgmq.q_{config.queue}"
        self._backend = PgMqBackend(url, config, str)
        self._dead = PgMqBackend(url, Config(config.dead_letter_queue, dead_letter=None), str)
        self.run(self._backend.setup())
        self.run(self._dead.setup())
        self._db = self.run(_connect(url))
        self.stores: list[Store] = [
            PgMqStore(self._backend._pool, config, self._backend._ready) for _ in range(STORES)
        ]
        for store in self.stores:
            self.run(store.open(lambda: None, lambda: 0.0))

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    def clear(self) -> None:
        self._do(lambda: self._db.execute(f"DELETE FROM {self._table}; DELETE FROM {self._table}_dlq"))

    def send(self, payload: str, headers: Headers) -> int:
        sent: int = self._do(
            lambda: self._db.fetchval(
                f"INSERT INTO {self._table} (vt, message, headers) VALUES (now(), $1::text::jsonb, $2::text::jsonb) "
                "RETURNING msg_id",
                payload,
                None if headers is None else json.dumps(headers),
            )
        )
        return sent

    def rows(self) -> dict[int, Row]:
        rows = self._do(
            lambda: self._db.fetch(
                "SELECT msg_id, read_ct, vt, message::text, headers::text, vt <= now() AS is_visible "
                f"FROM {self._table}"
            )
        )
        return {
            row["msg_id"]: Row(
                row["read_ct"], row["vt"], row["message"], _parsed(row["headers"]), row["is_visible"]
            )
            for row in rows
        }

    def dead(self) -> list[tuple[str, dict[str, Any]]]:
        rows = self._do(lambda: self._db.fetch(f"SELECT message::text, headers::text FROM {self._table}_dlq"))
        return [(row["message"], json.loads(row["headers"])) for row in rows]

    def write(self, message: int, read_ct: int, vt: datetime) -> None:
        self._do(
            lambda: self._db.execute(
                f"UPDATE {self._table} SET read_ct = $2, vt = $3 WHERE msg_id = $1", message, read_ct, vt
            )
        )

    def close(self) -> None:
        for store in self.stores:
            self.run(store.close())
        self.run(self._db.close())
        self.run(self._backend.close())
        self.run(self._dead.close())
        self._runner.close()

    def _do(self, call: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            return await call()

        return self.run(inside())


async def _connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url)


def _parsed(headers: str | None) -> Headers:
    return None if headers is None else json.loads(headers)
