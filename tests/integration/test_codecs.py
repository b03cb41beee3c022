"""Codecs and layers on real queues."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from pgmq import PGMQueue

from apalis_pgmq import (
    Compression,
    Config,
    Encryption,
    JsonCodec,
    KeyRing,
    LayeredCodec,
    MsgspecCodec,
    PgMqBackend,
    Transaction,
    WorkerBuilder,
)
from apalis_pgmq.pgmq._sink import MANY

from .conftest import Email, Table, running

Eventually = Callable[..., Awaitable[None]]

KEYS = KeyRing({"new": b"n" * 32, "old": b"o" * 32})
LARGE = Email("grace", body="x" * 5000)


def layered(**settings: Any) -> LayeredCodec[Email]:
    return LayeredCodec(JsonCodec(Email), Compression(), Encryption(KEYS, **settings))


def opened(url: str, queue: str, codec: Any = None) -> PgMqBackend[Email]:
    return PgMqBackend(url, Config(queue, poll_interval=0.02, max_retries=0), Email, codec=codec)


async def handled(backend: PgMqBackend[Email], eventually: Eventually, table: Table) -> list[Email]:
    """Let a worker of one handler empty the queue; return what it handled, in that order."""
    messages: list[Email] = []

    async def handler(message: Email) -> None:
        messages.append(message)

    worker = WorkerBuilder("worker").backend(backend).concurrency(1).build(handler)
    async with running(worker):
        await eventually(table.is_empty)
    return messages


async def test_what_is_stored_is_jsonb_that_shows_nothing(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually
) -> None:
    async with opened(pgmq_url, queue, layered()) as backend:
        await backend.push(Email("hunter2"), headers={"k": 1})
        await backend.push(LARGE)
        small, large = await table.rows()
        assert small["headers"] == json.dumps(
            {"k": 1, "x-encryption-key": "new", "x-content-encoding": "aes-256-gcm-hkdf"}
        )
        assert json.loads(large["headers"])["x-content-encoding"] == "gzip, aes-256-gcm-hkdf"
        assert b"hunter2" not in base64.b64decode(json.loads(small["message"]))
        assert len(large["message"]) < 500
        assert await handled(backend, eventually, table) == [Email("hunter2"), LARGE]


@pytest.mark.parametrize("count", [1, 7, MANY + 500])
async def test_push_many_gives_each_message_its_headers_and_keeps_the_order(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, count: int
) -> None:
    """Every other one is compressed, so that their headers differ within one statement."""
    messages = [Email(str(n), body="x" * 2000 if n % 2 else "") for n in range(count)]
    async with opened(pgmq_url, queue, LayeredCodec(JsonCodec(Email), Compression())) as backend:
        await backend.push_many(messages, headers={"k": 1})
        for row, message in zip(await table.rows(), messages, strict=True):
            headers = json.loads(row["headers"])
            assert headers.pop("k") == 1
            assert headers == ({"x-content-encoding": "gzip"} if message.body else {})
        assert await handled(backend, eventually, table) == messages


async def test_old_and_new_messages_are_worked_side_by_side(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, db: asyncpg.Connection
) -> None:
    """Messages of before a migration, of two keys, and of a producer in SQL."""
    old_key = LayeredCodec(JsonCodec(Email), Encryption(KeyRing({"old": b"o" * 32})))
    async with (
        opened(pgmq_url, queue) as plain,
        opened(pgmq_url, queue, old_key) as old,
        opened(pgmq_url, queue, LayeredCodec(MsgspecCodec(Email), Compression("zstd"))) as compressed,
        opened(pgmq_url, queue, layered(accept_plain=True)) as new,
    ):
        sent = [Email("plain"), Email("old"), LARGE, Email("new"), Email("sql")]
        await plain.push(sent[0], headers={"k": 1})
        await old.push(sent[1])
        await compressed.push(sent[2])
        await new.push(sent[3])
        await db.execute('SELECT pgmq.send($1::text, \'{"to": "sql"}\'::jsonb)', queue)
        assert await handled(new, eventually, table) == sent
        assert await table.dead() == []


async def test_an_unknown_encoding_is_dead_lettered_and_read_after_a_redrive(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually
) -> None:
    async with (
        opened(pgmq_url, queue) as plain,
        opened(pgmq_url, queue, layered()) as encrypted,
    ):
        await encrypted.push(LARGE, headers={"k": 1})
        [sent] = await table.rows()
        await plain.push(Email("ada"))
        assert await handled(plain, eventually, table) == [Email("ada")]
        [letter] = await plain.dead_letters()
        assert letter.reason == "undecodable"
        assert letter.attempts == 1
        assert letter.error == (
            "the payload is encoded as 'gzip, aes-256-gcm-hkdf', and this worker's codec reads plain JSON only, not "
            "'gzip, aes-256-gcm-hkdf'; give its backend codec=LayeredCodec(JsonCodec(<message type>), Compression(), "
            "Encryption(keys)) and redrive the message"
        )
        assert letter.headers.items() >= json.loads(sent["headers"]).items()
        assert letter.payload == sent["message"]
        # What it says there, done here.
        assert layered().unpack(letter.payload, letter.headers) == LARGE
        assert await plain.redrive() == 1
        [back] = await table.rows()
        assert json.loads(back["headers"]) == {**json.loads(sent["headers"]), "x-redrive-count": 1}
        assert await handled(encrypted, eventually, table) == [LARGE]


async def test_what_was_tampered_with_or_forged_is_dead_lettered(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually, db: asyncpg.Connection
) -> None:
    async with opened(pgmq_url, queue, layered()) as backend:
        await backend.push_many([Email("first"), Email("second"), Email("third"), Email("fourth")])
        q = f"pgmq.q_{queue}"
        first, second, third, _ = [row["msg_id"] for row in await table.rows()]
        # A payload with its first byte replaced, a header stripped, and a key named that is not there.
        await db.execute(
            f"""UPDATE {q} SET message = to_jsonb('A' || substr(message #>> '{{}}', 2)) WHERE msg_id = $1""",
            first,
        )
        await db.execute(f"UPDATE {q} SET headers = headers - 'x-content-encoding' WHERE msg_id = $1", second)
        await db.execute(
            f"""UPDATE {q} SET headers = headers || '{{"x-encryption-key": "theirs"}}' WHERE msg_id = $1""",
            third,
        )
        await db.execute('SELECT pgmq.send($1::text, \'{"to": "forged"}\'::jsonb)', queue)
        assert await handled(backend, eventually, table) == [Email("fourth")]
        errors = [letter.error or "" for letter in await backend.dead_letters()]
        assert len(errors) == 4
        for says in ("it was changed", "not encoded with aes", "key 'theirs'", "not encoded with aes"):
            assert any(says in error for error in errors)


async def test_a_handler_in_a_transaction_gets_and_sends_them_too(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually
) -> None:
    async with opened(pgmq_url, queue, layered()) as backend:

        async def handler(message: Email, tx: Transaction) -> None:
            if message.to == "grace":
                await tx.push(backend, Email("done"))
            else:
                finished.set()

        finished = asyncio.Event()
        await backend.push(LARGE)
        async with running(WorkerBuilder("worker").backend(backend).build(handler)):
            async with asyncio.timeout(20):
                await finished.wait()
            await eventually(table.is_empty)
        assert await table.dead() == []


@pytest.mark.parametrize(
    "codec", [JsonCodec(Email), MsgspecCodec(Email), LayeredCodec(JsonCodec(Email), Compression())]
)
async def test_pgmqs_own_client_reads_what_is_plain(pgmq_url: str, queue: str, codec: Any) -> None:
    async with opened(pgmq_url, queue, codec) as backend:
        await backend.push(Email("ada"))

    def read() -> Any:
        client = PGMQueue(conn_string=pgmq_url, init_extension=False)
        try:
            return client.read(queue, vt=30)
        finally:
            client.close()

    message = await asyncio.to_thread(read)
    assert message.message == {"to": "ada", "subject": "s", "body": "b"}


async def test_text_that_postgresql_cannot_store_as_jsonb_goes_through_encryption(
    pgmq_url: str, queue: str, table: Table, eventually: Eventually
) -> None:
    async with opened(pgmq_url, queue, layered()) as backend:
        await backend.push(Email("nul \0"))
        assert await handled(backend, eventually, table) == [Email("nul \0")]
