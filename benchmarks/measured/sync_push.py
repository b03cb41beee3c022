"""Sends from synchronous code: `PgMqProducer`, bare psycopg, or pgmq-py.

Its job:
    url, table, channel, queue: the database, and its queue.
    by: ``apalis-pgmq``, ``raw`` (bare psycopg, with payloads that are JSON already), or ``pgmq-py``.
    seconds: one message after the other for so long, each in a transaction of its own; with
        ``transaction``, in one that inserts a row elsewhere too; or
    many: so many messages by one call.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import psycopg

from apalis_pgmq import PgMqProducer
from benchmarks.child import Meter, serve
from benchmarks.payload import Message, encoded, message

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.child import Parent

_SEEN = "INSERT INTO business (n) VALUES (1)"


class _Ours:
    """`PgMqProducer`."""

    def __init__(self, job: dict[str, Any], stack: ExitStack) -> None:
        self.connection = stack.enter_context(psycopg.connect(job["url"], autocommit=True))
        self._producer = stack.enter_context(PgMqProducer(job["url"], job["queue"], Message))
        self._one = message(0)
        self._many = [message(number) for number in range(job.get("many", 0))]

    def push(self) -> object:
        return self._producer.push(self._one)

    def push_here(self) -> object:
        return self._producer.push(self._one, connection=self.connection)

    def push_many(self) -> object:
        return self._producer.push_many(self._many)


class _Raw:
    """Bare psycopg: prepared statements with the NOTIFY in them, and arrays."""

    def __init__(self, job: dict[str, Any], stack: ExitStack) -> None:
        self.connection = stack.enter_context(psycopg.connect(job["url"], autocommit=True))
        # Announced by the statement itself, not by a trigger beside.
        self.connection.execute(f"DROP TRIGGER IF EXISTS apalis_pgmq_notify ON {job['table']}".encode())
        self._cursor = stack.enter_context(psycopg.RawCursor(self.connection))
        self._insert = f"""
            WITH sent AS (
                INSERT INTO {job["table"]} (vt, message) VALUES (now(), $1::text::jsonb) RETURNING msg_id
            )
            SELECT msg_id, pg_notify('{job["channel"]}', '') FROM sent
        """.encode()
        self._insert_many = f"""
            INSERT INTO {job["table"]} (vt, message) SELECT now(), m::jsonb FROM unnest($1::text[]) AS m
        """.encode()
        self._one = encoded(0)
        self._many = [encoded(number) for number in range(job.get("many", 0))]

    def push(self) -> object:
        return self._cursor.execute(self._insert, [self._one]).fetchall()

    push_here = push

    def push_many(self) -> object:
        return self._cursor.execute(self._insert_many, [self._many])


class _Pgmq:
    """PGMQ's functions, called as pgmq-py calls them, on a held connection."""

    def __init__(self, job: dict[str, Any], stack: ExitStack) -> None:
        from pgmq import PGMQueue  # noqa: PLC0415 - a peer, needed only where it is measured

        client = PGMQueue(conn_string=job["url"], init_extension=False)
        stack.callback(client.close)
        self.connection = stack.enter_context(psycopg.connect(job["url"], autocommit=True))
        # Its inserts are announced too, by the trigger that the queue has.
        self._client: Any = client
        self._queue = job["queue"]
        self._one = asdict(message(0))
        self._many = [asdict(message(number)) for number in range(job.get("many", 0))]

    def push(self) -> object:
        return self._client.send(self._queue, self._one)

    def push_here(self) -> object:
        return self._client.send(self._queue, self._one, conn=self.connection)

    def push_many(self) -> object:
        return self._client.send_batch(self._queue, self._many)


async def main(parent: Parent, job: dict[str, Any]) -> None:
    """Send."""
    with ExitStack() as stack:
        kinds: dict[str, type[_Ours | _Raw | _Pgmq]] = {"apalis-pgmq": _Ours, "raw": _Raw, "pgmq-py": _Pgmq}
        by = kinds[job["by"]](job, stack)
        by.push()
        by.connection.execute("CREATE TABLE business (n int)")

        def in_a_transaction() -> None:
            with by.connection.transaction():
                by.connection.execute(_SEEN)
                by.push_here()

        parent.tell("ready")
        await parent.hear_soon()
        meter = Meter()
        began = time.monotonic()
        if "many" in job:
            by.push_many()
            sent = job["many"]
        else:
            sent = _push(in_a_transaction if job.get("transaction") else by.push, began + job["seconds"])
        took = time.monotonic() - began
        facts = meter.read()
        [count] = by.connection.execute(f"SELECT count(*) FROM {job['table']}".encode()).fetchone() or [0]
        if count != sent + 1:
            raise RuntimeError(f"sent {sent + 1} messages, and the queue has {count}")
    parent.tell("result", **facts, sent=sent, took=took, rate=sent / took)


def _push(push: Callable[[], object], until: float) -> int:
    sent = 0
    while time.monotonic() < until:
        push()
        sent += 1
    return sent


if __name__ == "__main__":
    serve(main)
