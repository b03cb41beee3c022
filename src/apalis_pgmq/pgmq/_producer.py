"""Sending from synchronous code."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, overload

from apalis_pgmq.codecs import JsonCodec
from apalis_pgmq.core import Config, ConfigError, DedupKeys, duration, moment, whole_number, with_group
from apalis_pgmq.delivery import encoder

from ._body_table import bodies_there
from ._connect import address_of
from ._inserts import MANY, insert_part, new_ids, packing, take
from ._keys import Keys, ensure_keys, require_keys, tidy
from ._names import queue_table
from ._on_callers import SERVER, send_synchronously, translated
from ._setup import ensure_queue_on, existing_queue
from ._setup_sql import INSPECT
from ._sql import Statements
from .callers import OwnConnections, complete, synchronous

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime, timedelta
    from types import TracebackType

    from apalis_pgmq.core import AnyCodec, Duration, TaskId

    from ._inserts import Encoded
    from ._setup import Found
    from .callers import SyncCaller, SyncFetch, SyncPort

T = TypeVar("T")

_DEFAULT_SIZE: Final = 4
_INSPECT_AS_JSON: Final = f"SELECT to_jsonb(found)::text FROM ({INSPECT}) AS found"
"""The same row, whatever a driver calls its columns."""


class PgMqProducer(Generic[T]):
    """Sends typed messages to a PGMQ queue from synchronous code: Django, Flask, scripts.

    ::

        emails = PgMqProducer("postgresql://localhost/app", "emails", EmailMessage)
        emails.push(EmailMessage("ada@example.com", "Hello", "..."))  # on a connection of its own
        emails.push(EmailMessage("ada@example.com", "Hello", "..."), connection=session)  # in your transaction

    Make one per queue and process, and use it from any thread: a push takes one of its connections for itself, or
    opens one, and waits while all are in use. What is sent with ``connection=`` needs none of them; a producer that
    only does so never connects. A forked process opens connections of its own.

    Args:
        url_or_connection: a ``postgres://`` or ``postgresql://`` URL, which needs psycopg
            (``pip install 'apalis-pgmq[psycopg]'``); or the connection to send on where a call names none. Handy are
            those that stand for the connection of the current thread, `django.db.connection` and SQLAlchemy's
            ``scoped_session``; any other must not be used by several threads at once.
        queue_or_config: the queue's name, or a `Config`.
        message_type: the type of the messages, as for `PgMqBackend`.
        codec: how messages become JSON; a `JsonCodec` of the message type by default.
        size: how many connections to a URL at most; the default is 4.
        prepared_statements: as for `PgMqBackend`; for a URL.

    Raises:
        ConfigError: a setting that cannot work.
    """

    @overload
    def __init__(
        self,
        url_or_connection: str | SyncCaller,
        queue_or_config: str | Config,
        message_type: type[T],
        *,
        codec: AnyCodec[T] | None = ...,
        size: int = ...,
        prepared_statements: bool | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        url_or_connection: str | SyncCaller,
        queue_or_config: str | Config,
        message_type: Any,
        *,
        codec: AnyCodec[T] | None = ...,
        size: int = ...,
        prepared_statements: bool | None = ...,
    ) -> None: ...
    def __init__(
        self,
        url_or_connection: str | SyncCaller,
        queue_or_config: str | Config,
        message_type: Any,
        *,
        codec: AnyCodec[T] | None = None,
        size: int = _DEFAULT_SIZE,
        prepared_statements: bool | None = None,
    ) -> None:
        self._config = Config.of(queue_or_config)
        self._codec: AnyCodec[T] = JsonCodec(message_type) if codec is None else codec
        size = whole_number("size", size, least=1)
        self._given: SyncCaller | None = None
        self._own: OwnConnections | None = None
        self._address = SERVER
        if isinstance(url_or_connection, str):
            self._address = address_of(url_or_connection)
            self._own = OwnConnections(url_or_connection, size=size, prepared_statements=prepared_statements)
        else:
            synchronous(url_or_connection)  # refuses what it could not use
            self._given = url_or_connection
        self._statements: Statements | None = None
        self._keys = Keys()
        self._setup_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<PgMqProducer {self._config.queue!r} on {self._address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._config.queue

    @property
    def config(self) -> Config:
        """The queue's settings."""
        return self._config

    def setup(self) -> None:
        """Make sure that PGMQ and the queue are there, as `PgMqBackend.setup` does.

        A producer with a URL does it by itself before it sends on a connection of its own for the first time. In a
        transaction of yours nothing is made: there the queue must be there.

        Raises:
            PgMqNotInstalledError, PgMqVersionError, PgMqPermissionError, PgMqUnavailableError: as `PgMqBackend.setup`.
            ConfigError: the producer has no URL.
        """
        if self._own is None:
            raise ConfigError(
                f"a producer that was given a connection makes no queue: run 'apalis-pgmq setup {self.queue}'"
            )
        with translated(self._address, self.queue), self._own.port() as port:
            self._statements = None
            self._ready(port)

    def close(self) -> None:
        """Close the connections to the URL, each when its statement is done; a later use opens new ones."""
        if self._own is not None:
            self._own.close()

    def push(
        self,
        message: T,
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
        connection: SyncCaller | None = None,
    ) -> TaskId:
        """Send one message; return its id once it is durably stored.

        Args:
            message: of the producer's message type.
            delay: how long until it becomes visible, a `timedelta` or seconds; none by default.
            headers: kept beside the message, for the handler to read; must have a JSON form.
            group: the message's group, as in `PgMqBackend.push`.
            dedup_key: not stored again if another message has this key, as in `PgMqBackend.push`.
            dedup_window: for how long the key is taken, as in `PgMqBackend.push`.
            connection: the caller's own connection to the same database: one of psycopg or psycopg2, a `Session` or
                `Connection` of SQLAlchemy on either of them, or `django.db.connection`. The message is sent on it, at
                once, and so if and when the caller's transaction commits.

        Raises:
            EncodeError: the message or its headers have no JSON form, or none that PostgreSQL stores; or it
                is larger than ``max_payload``.
            ConfigError: the delay or the window is not a duration, the key cannot be one, or the connection is of
                another kind.
            PgMqUnavailableError: the server did not answer; the message may or may not have been stored.
            PgMqError: the server refused it.
        """
        wait = duration("delay", delay, allow_zero=True)
        keys = DedupKeys.of_one(dedup_key, dedup_window)
        return self._send([message], wait, with_group(headers, group), keys, connection)[0]

    def push_many(
        self,
        messages: Iterable[T],
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: Callable[[T], str] | None = None,
        dedup_window: Duration | None = None,
        connection: SyncCaller | None = None,
    ) -> list[TaskId]:
        """Send messages, all or none; return their ids in the same order.

        Less than 2,000, or whatever is sent on a connection of the caller's, are one statement; more are several in
        one transaction. Arguments and errors are those of `push`; delay, headers and group are the same for each message, and
        ``dedup_key`` is a function that returns a message's key: with one, all are one statement.
        """
        messages = list(messages)
        wait = duration("delay", delay, allow_zero=True)
        headers = with_group(headers, group)
        keys = DedupKeys.of_many(dedup_key, messages, dedup_window)
        if connection is None and self._given is None and keys is None and len(messages) >= MANY:
            return self._send_parts(messages, wait, headers)
        return self._send(messages, wait, headers, keys, connection) if messages else []

    def schedule(
        self,
        message: T,
        at: datetime | Duration,
        *,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
        connection: SyncCaller | None = None,
    ) -> TaskId:
        """Send one message that becomes visible at a moment; return its id once it is durably stored.

        Args:
            message: of the producer's message type.
            at: when: a `datetime` with a time zone, by the server's clock, or a `timedelta` or seconds from now. At
                once if it is past.
            headers: kept beside the message, for the handler to read; must have a JSON form.
            group: as in `push`.
            dedup_key: as in `push`.
            dedup_window: as in `push`: from now on, not from when the message becomes visible.
            connection: as in `push`.

        Raises:
            ConfigError: ``at`` is neither, has no time zone, or is more than ten years ahead; or as `push`.
            EncodeError, PgMqUnavailableError, PgMqError: as `push`.
        """
        due = moment("at", at)
        keys = DedupKeys.of_one(dedup_key, dedup_window)
        return self._send([message], due, with_group(headers, group), keys, connection)[0]

    def _send(
        self,
        messages: list[T],
        due: datetime | timedelta,
        headers: Mapping[str, object] | None,
        keys: DedupKeys | None,
        connection: SyncCaller | None,
    ) -> list[TaskId]:
        rows = packing(self._encoder, messages, due, headers, keys)()
        given = self._given if connection is None else connection
        if given is not None:
            fetch = synchronous(given)
            statements = self._statements or self._look(fetch)
            if keys is None:
                return send_synchronously(fetch, statements, rows, self.queue)
            self._look_for_keys(fetch)
            with self._keys.used():
                return send_synchronously(fetch, statements, rows, self.queue)
        with translated(self._address, self.queue), self._connections.port() as port:
            statements = self._ready(port)
            if keys is None:
                return send_synchronously(port.fetch_rows, statements, rows, self.queue, self._address)
            self._ready_keys(port)
            with self._keys.used():
                ids = send_synchronously(port.fetch_rows, statements, rows, self.queue, self._address)
            if self._keys.are_due():
                complete(tidy(port.fetch))
            return ids

    def _send_parts(
        self, messages: list[T], delay: timedelta, headers: Mapping[str, object] | None
    ) -> list[TaskId]:
        rows: list[Any] = []
        encoded, left = map(self._encoder(headers), messages), len(messages)
        with translated(self._address, self.queue), self._connections.port() as port:
            statements = self._ready(port)
            with port.transaction_block():
                while part := take(encoded):
                    rows += port.fetch_rows(*insert_part(statements, part, delay, left))
                    left -= len(part)
        return new_ids(rows)

    def _encoder(self, headers: Mapping[str, object] | None) -> Callable[[T], Encoded]:
        return encoder(self._codec, self._config, headers)

    @property
    def _connections(self) -> OwnConnections:
        assert self._own is not None, "a producer has connections of its own unless it was given one"
        return self._own

    def _ready(self, port: SyncPort) -> Statements:
        if self._statements is None:
            with self._setup_lock:
                if self._statements is None:
                    found = complete(ensure_queue_on(port, self.queue))
                    self._statements = self._statements_for(found, port.fetch_rows)
        return self._statements

    def _ready_keys(self, port: SyncPort) -> None:
        if not self._keys.are_there:
            complete(ensure_keys(port))
            self._keys.are_there = True

    def _look_for_keys(self, fetch: SyncFetch) -> None:
        if not self._keys.are_there:
            with translated(SERVER, self.queue):
                require_keys(fetch, self.queue)
            self._keys.are_there = True

    def _look(self, fetch: SyncFetch) -> Statements:
        """Look at the queue on the caller's connection, where none is made: that would lock out others."""
        with translated(SERVER, self.queue):
            [[row]] = fetch(_INSPECT_AS_JSON, (queue_table(self.queue),))
            found = existing_queue(json.loads(row), self.queue)
            self._statements = self._statements_for(found, fetch)
        return self._statements

    def _statements_for(self, found: Found, fetch: SyncFetch) -> Statements:
        return Statements.of(
            self.queue,
            self._config.dead_letter_queue,
            has_last_read_at=found.has_last_read_at,
            is_announced=found.is_announced,
            bodies=bodies_there(self._config, lambda sql, *arguments: fetch(sql, arguments)),
        )
