"""Sending by routing key, to every queue that is bound to it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

import asyncpg

from apalis_pgmq.codecs import JsonCodec
from apalis_pgmq.core import Config, ConfigError, TaskId, duration
from apalis_pgmq.delivery import encoder

from ._errors import PgMqError, PgMqNotInstalledError, PgMqVersionError
from ._on_callers import SERVER, translated
from ._pool import OnPool, PgMqPool
from ._queue_sql import SEND_TOPIC
from .callers import asynchronous, driver_error

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from apalis_pgmq.core import AnyCodec, Duration

    from .callers import AsyncCaller

T = TypeVar("T")

_ROUTING_KEY: Final = "x-routing-key"
"""The header that tells a handler, and whoever looks at a dead letter, by which key a message came."""
_MEBIBYTE: Final = 1024 * 1024


class PgMqTopic(OnPool, Generic[T]):
    """Typed messages that go, by routing key, to every queue that is bound to a pattern that the key matches.

    ::

        async with PgMqTopic("postgresql://localhost/app", Order) as orders:
            await orders.push("orders.created.eu", Order(42))

    Queues are bound with `PgMqQueues.bind`; they are plain PGMQ queues, worked as any other. A key that no pattern
    matches reaches nobody, and the message is gone. Needs PGMQ 1.11 or later.

    Args:
        url_or_pool: a ``postgres://`` or ``postgresql://`` URL, a `PgMqPool` or an `asyncpg.Pool`. Pools stay the
            caller's to close.
        message_type: the type of the messages, as for `PgMqBackend`; the queues' backends should have the same, or one
            that takes what this one sends: what does not fit is dead-lettered there as undecodable.
        codec: how messages become JSON; a `JsonCodec` of the message type by default.
        max_payload: how many bytes a message may have as JSON; 1 MiB by default, None is without bound.
        prepared_statements: as for `PgMqBackend`.

    Raises:
        ConfigError: a setting that cannot work.
    """

    @overload
    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any] | PgMqPool,
        message_type: type[T],
        *,
        codec: AnyCodec[T] | None = ...,
        max_payload: int | None = ...,
        prepared_statements: bool | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any] | PgMqPool,
        message_type: Any,
        *,
        codec: AnyCodec[T] | None = ...,
        max_payload: int | None = ...,
        prepared_statements: bool | None = ...,
    ) -> None: ...
    def __init__(
        self,
        url_or_pool: str | asyncpg.Pool[Any] | PgMqPool,
        message_type: Any,
        *,
        codec: AnyCodec[T] | None = None,
        max_payload: int | None = _MEBIBYTE,
        prepared_statements: bool | None = None,
    ) -> None:
        self._codec: AnyCodec[T] = JsonCodec(message_type) if codec is None else codec
        self._config = Config("topic", max_payload=max_payload)
        super().__init__(url_or_pool, prepared_statements=prepared_statements)

    async def push(
        self,
        routing_key: str,
        message: T,
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        connection: AsyncCaller | None = None,
    ) -> dict[str, TaskId]:
        """Send one message to every queue that is bound to the key, to all or none, once to each.

        Args:
            routing_key: words of letters, digits, ``-`` and ``_`` with dots between them, up to 255 characters;
                kept in the header ``x-routing-key``.
            message: of the topic's message type.
            delay: how long until it becomes visible, a `timedelta` or seconds; none by default.
            headers: kept beside the message, for the handlers to read; must have a JSON form.
            connection: the caller's own connection to the same database, as for `PgMqBackend.push`: the message is sent
                on it, and so if and when the caller's transaction commits.

        Returns:
            Its id in each queue, by the queue's name; empty if none is bound to the key.

        Raises:
            ConfigError: the routing key or the delay cannot work.
            EncodeError: the message or its headers have no JSON form, or none that PostgreSQL stores; or it
                is larger than ``max_payload``.
            PgMqVersionError: the database's PGMQ has no topics.
            PgMqUnavailableError: the server did not answer; the message may or may not have been stored.
            PgMqError: the server refused it.
        """
        sent = await self.push_many(
            routing_key, [message], delay=delay, headers=headers, connection=connection
        )
        return {queue: ids[0] for queue, ids in sent.items()}

    async def push_many(
        self,
        routing_key: str,
        messages: Iterable[T],
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        connection: AsyncCaller | None = None,
    ) -> dict[str, list[TaskId]]:
        """Send messages to every queue that is bound to the key, all or none, in one statement.

        Args:
            routing_key: as in `push`.
            messages: of the topic's message type.
            delay: how long until they become visible, a `timedelta` or seconds; none by default.
            headers: the same for each message.
            connection: as in `push`.

        Returns:
            Their ids in each queue, in the order of the messages, by the queue's name.

        Raises:
            ConfigError, EncodeError, PgMqVersionError, PgMqUnavailableError, PgMqError: as `push`.
        """
        wait = duration("delay", delay, allow_zero=True)
        encode = encoder(self._codec, self._config, {**(headers or {}), _ROUTING_KEY: routing_key})
        encoded = list(map(encode, messages))
        if not encoded:
            return {}
        arguments = (
            routing_key,
            [payload for payload, _ in encoded],
            [text for _, text in encoded],
            wait,
        )
        rows: Sequence[Sequence[Any]]
        with topic_errors():
            if connection is None:
                rows = await self._pool.sending.lane(routing_key).fetch(SEND_TOPIC, *arguments)
            else:
                fetch = asynchronous(connection)
                with translated(SERVER, routing_key):
                    rows = await fetch(SEND_TOPIC, arguments)
        ids: dict[str, list[TaskId]] = {}
        for queue, message_id in sorted(tuple(row) for row in rows):
            ids.setdefault(queue, []).append(TaskId(message_id))
        return ids


@contextmanager
def topic_errors() -> Generator[None]:
    """Say in a topic's words what its functions refuse."""
    try:
        yield
    except PgMqError as error:
        own = error.__cause__
        # Whatever the driver.
        cause = None if own is None or (found := driver_error(own)) is None else found[0]
        if isinstance(cause, asyncpg.UndefinedFunctionError):
            raise PgMqVersionError(
                "topics need PGMQ 1.11 or later, and this database has an older one: ALTER EXTENSION pgmq UPDATE"
            ) from own
        if isinstance(cause, asyncpg.InvalidSchemaNameError):
            raise PgMqNotInstalledError(
                "PGMQ is not in this database; 'apalis-pgmq setup QUEUE' puts it there"
            ) from own
        if isinstance(cause, asyncpg.RaiseError):
            # Its validation of routing keys and patterns, and its look for the queue.
            raise ConfigError(f"PGMQ refuses it: {cause}") from own
        raise
