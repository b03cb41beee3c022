"""The backend in memory."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from apalis_pgmq.codecs import JsonCodec
from apalis_pgmq.core import (
    Config,
    DeadLetter,
    DedupKeys,
    Redrive,
    duration,
    headers_of,
    moment,
    redriven_headers,
    require_dead_letter_queue,
    whole_number,
    with_group,
)
from apalis_pgmq.delivery import QueueBackend

from ._store import MemoryQueue, MemoryStore, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from apalis_pgmq.core import AnyCodec, Duration, TaskId

T = TypeVar("T")


class MemoryBackend(QueueBackend[T]):
    """A queue in memory, for tests of handlers and for trying things without a database.

    It behaves like a PGMQ queue: visibility timeout, retries, dead letters, leases and their fence. What
    does not survive the process is the messages.

    Args:
        queue_or_config: the queue's name, or a `Config`.
        message_type: the type of the messages.
        codec: how messages become JSON; a `JsonCodec` of the message type by default. A `LayeredCodec`
            compresses or encrypts them as well. Messages are encoded and decoded here too, so that a test finds what
            would not survive the way.

    Raises:
        ConfigError: a setting that cannot work.
    """

    @overload
    def __init__(
        self, queue_or_config: str | Config, message_type: type[T], *, codec: AnyCodec[T] | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self, queue_or_config: str | Config, message_type: Any, *, codec: AnyCodec[T] | None = ...
    ) -> None: ...
    def __init__(
        self, queue_or_config: str | Config, message_type: Any, *, codec: AnyCodec[T] | None = None
    ) -> None:
        super().__init__(
            Config.of(queue_or_config), message_type, JsonCodec(message_type) if codec is None else codec
        )
        self._queue = MemoryQueue(self._config)

    @property
    def messages(self) -> list[Message]:
        """What is in the queue now, in flight or visible, oldest first."""
        return list(self._queue.messages.values())

    @property
    def archived(self) -> list[Message]:
        """What was handled or given up, as far as the queue's config archives it, oldest first."""
        return list(self._queue.archived)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def setup(self) -> None:
        """Nothing to prepare; there to take the place of a backend that has."""

    async def close(self) -> None:
        """Nothing to close; there to take the place of a backend that has."""

    async def push(
        self,
        message: T,
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
    ) -> TaskId:
        """Send one message; return its id.

        Args:
            message: of the backend's message type.
            delay: how long until it becomes visible, a `timedelta` or seconds; none by default.
            headers: kept beside the message, for the handler to read.
            group: the message's group, as its header ``x-pgmq-group``; None: no group.
            dedup_key: as for `PgMqBackend.push`; remembered by this backend only.
            dedup_window: the same.

        Raises:
            EncodeError: the message or its headers have no JSON form, or it is larger than ``max_payload``.
            ConfigError: the delay or the window is not a duration, or the key cannot be one.
        """
        wait = duration("delay", delay, allow_zero=True)
        keys = DedupKeys.of_one(dedup_key, dedup_window)
        return self._add([message], wait, with_group(headers, group), keys)[0]

    async def push_many(
        self,
        messages: Iterable[T],
        *,
        delay: Duration = 0,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: Callable[[T], str] | None = None,
        dedup_window: Duration | None = None,
    ) -> list[TaskId]:
        """Send messages, all or none; return their ids in the same order.

        Args and errors are those of `push`; delay, headers and group are the same for each message, and ``dedup_key`` is
        a function that returns a message's key.
        """
        messages = list(messages)
        wait = duration("delay", delay, allow_zero=True)
        keys = DedupKeys.of_many(dedup_key, messages, dedup_window)
        return self._add(messages, wait, with_group(headers, group), keys)

    async def schedule(
        self,
        message: T,
        at: datetime | Duration,
        *,
        headers: Mapping[str, object] | None = None,
        group: str | None = None,
        dedup_key: str | None = None,
        dedup_window: Duration | None = None,
    ) -> TaskId:
        """Send one message that becomes visible at a moment; return its id.

        Args:
            message: of the backend's message type.
            at: when: a `datetime` with a time zone, or a `timedelta` or seconds from now. At once if it is past.
            headers: kept beside the message, for the handler to read.
            group: the message's group, as in `push`.
            dedup_key: as in `push`.
            dedup_window: as in `push`: from now on, not from when the message becomes visible.

        Raises:
            EncodeError: as `push`.
            ConfigError: ``at`` is neither, has no time zone, or is more than ten years ahead; or as `push`.
        """
        due = moment("at", at)
        keys = DedupKeys.of_one(dedup_key, dedup_window)
        return self._add([message], due, with_group(headers, group), keys)[0]

    async def dead_letters(self, limit: int = 100, after: int | None = None) -> list[DeadLetter]:
        """Return what is in the dead-letter queue, oldest first.

        Args:
            limit: at most so many.
            after: only those with a greater id: the ``id`` of the last one of the page before.

        Raises:
            ConfigError: the queue's config sends dead letters elsewhere, or an argument makes no sense.
        """
        require_dead_letter_queue(self._config)
        whole_number("limit", limit, least=0)
        if after is not None:
            whole_number("after", after, least=-(2**63))
        page = [letter for letter in self._queue.dead.values() if after is None or letter.id > after]
        return [DeadLetter.of(letter.id, letter.payload, letter.headers) for letter in page[:limit]]

    async def redrive(
        self, ids: Iterable[int] | None = None, *, limit: int | None = None, rate: float | None = None
    ) -> int:
        """Put dead letters back into the queue, visible at once; return how many were moved.

        Args:
            ids: which ones, by their ids in the dead-letter queue; None: all that are there now.
            limit: at most so many, oldest first; None: no limit.
            rate: at most so many per second; None: as fast as it goes.

        Raises:
            ConfigError: the queue's config sends dead letters elsewhere, or an argument makes no sense.
        """
        require_dead_letter_queue(self._config)
        plan = Redrive(ids, limit, rate)
        wanted = list(self._queue.dead) if plan.ids is None else list(plan.ids)
        moved, pause = 0, 0.0
        while (size := plan.batch(moved)) and wanted:
            await asyncio.sleep(pause)
            began = monotonic()
            # Whatever has gone since is not waited for.
            wanted = [message_id for message_id in wanted if message_id in self._queue.dead]
            batch, wanted = wanted[:size], wanted[size:]
            self._put_back(batch)
            moved += len(batch)
            pause = began + plan.pause(len(batch)) - monotonic()
        return moved

    async def purge_dead_letters(self) -> int:
        """Delete all that is in the dead-letter queue now; return how many there were.

        Raises:
            ConfigError: the queue's config sends dead letters elsewhere.
        """
        require_dead_letter_queue(self._config)
        count = len(self._queue.dead)
        self._queue.dead.clear()
        return count

    def _store(self) -> MemoryStore:
        return MemoryStore(self._queue)

    def _add(
        self,
        messages: Sequence[T],
        due: datetime | timedelta,
        headers: Mapping[str, object] | None,
        keys: DedupKeys | None,
    ) -> list[TaskId]:
        if keys is None:
            rows = list(map(self._encoder(headers), messages))
            ids = [self._queue.add(payload, text, due) for payload, text in rows]
        else:
            each = zip(messages, keys.headers(headers), strict=True)
            rows = [self._encoder(its_headers)(message) for message, its_headers in each]
            ids = [
                self._queue.add_once(payload, text, due, key, keys.window)
                for (payload, text), key in zip(rows, keys.keys, strict=True)
            ]
        self._poke()
        return ids

    def _put_back(self, ids: Iterable[TaskId]) -> None:
        for message_id in ids:
            letter = self._queue.dead.pop(message_id)
            headers = redriven_headers(headers_of(letter.headers))
            self._queue.add(letter.payload, json.dumps(headers), timedelta(0))
        self._poke()
