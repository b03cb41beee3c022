"""The backend in memory."""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from apalis_pgmq.codecs import JsonCodec
from apalis_pgmq.core import Config, EncodeError, duration
from apalis_pgmq.delivery import QueueConsumer

from ._store import DeadLetter, MemoryQueue, MemoryStore, Message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from apalis_pgmq.core import Codec, Duration, Event, TaskId

T = TypeVar("T")


class MemoryBackend(Generic[T]):
    """A queue in memory, for tests of handlers and for trying things without a database.

    It behaves like a PGMQ queue: visibility timeout, retries, dead letters, leases and their fence. What
    does not survive the process is the messages.

    Args:
        queue_or_config: the queue's name, or a `Config`.
        message_type: the type of the messages.
        codec: how messages become JSON; a `JsonCodec` of the message type by default. Messages are
            encoded and decoded here too, so that a test finds what would not survive the way.

    Raises:
        ConfigError: a setting that cannot work.
    """

    @overload
    def __init__(
        self, queue_or_config: str | Config, message_type: type[T], *, codec: Codec[T] | None = ...
    ) -> None: ...
    @overload
    def __init__(
        self, queue_or_config: str | Config, message_type: Any, *, codec: Codec[T] | None = ...
    ) -> None: ...
    def __init__(
        self, queue_or_config: str | Config, message_type: Any, *, codec: Codec[T] | None = None
    ) -> None:
        self._config = Config.of(queue_or_config)
        self._message_type = message_type
        self._codec: Codec[T] = JsonCodec(message_type) if codec is None else codec
        self._queue = MemoryQueue(self._config)
        self._consumers: weakref.WeakSet[QueueConsumer[T]] = weakref.WeakSet()

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self._config.queue

    @property
    def config(self) -> Config:
        """The queue's settings."""
        return self._config

    @property
    def message_type(self) -> Any:
        """The type of the queue's messages, as given."""
        return self._message_type

    @property
    def messages(self) -> list[Message]:
        """What is in the queue now, in flight or visible, oldest first."""
        return list(self._queue.messages.values())

    @property
    def archived(self) -> list[Message]:
        """What was handled, if the queue archives."""
        return list(self._queue.archived)

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What was given up, oldest first."""
        return list(self._queue.dead_letters)

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
        self, message: T, *, delay: Duration = 0, headers: Mapping[str, object] | None = None
    ) -> TaskId:
        """Send one message; return its id.

        Args:
            message: of the backend's message type.
            delay: how long until it becomes visible, a `timedelta` or seconds; none by default.
            headers: kept beside the message, for the handler to read.

        Raises:
            EncodeError: the message or its headers have no JSON form.
            ConfigError: the delay is not a duration.
        """
        return (await self.push_many([message], delay=delay, headers=headers))[0]

    async def push_many(
        self, messages: Iterable[T], *, delay: Duration = 0, headers: Mapping[str, object] | None = None
    ) -> list[TaskId]:
        """Send messages, all or none; return their ids in the same order.

        Args and errors are those of `push`; delay and headers are the same for each message.
        """
        wait = duration("delay", delay, allow_zero=True)
        try:
            text = None if headers is None else json.dumps(dict(headers), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise EncodeError(f"the headers have no JSON form: {error}") from error
        payloads = [self._codec.encode(message) for message in messages]
        ids = [self._queue.add(payload, text, wait) for payload in payloads]
        for consumer in self._consumers:
            consumer.poke()
        return ids

    def poll(
        self,
        *,
        worker: str = "apalis-pgmq",
        capacity: int = 10,
        on_event: Callable[[Event], None] | None = None,
        on_lost: Callable[[TaskId], None] | None = None,
    ) -> QueueConsumer[T]:
        """Open a claim on the queue: an asynchronous iterator of tasks, to be settled one by one."""
        consumer = QueueConsumer(
            MemoryStore(self._queue),
            self._codec,
            self._config,
            worker=worker,
            capacity=capacity,
            on_event=on_event,
            on_lost=on_lost,
        )
        self._consumers.add(consumer)
        return consumer
