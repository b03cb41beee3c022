"""What all backends have in common whose queue is a `Store`."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from ._consumer import QueueConsumer
from ._encoding import encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apalis_pgmq.core import AnyCodec, Config, Event, TaskId

    from ._store import Store

T = TypeVar("T")

_DEFAULT_CAPACITY: Final = 10


class QueueBackend(ABC, Generic[T]):
    """A queue's settings, message type and codec, and the consumers that are open on it.

    Args:
        config: the queue's settings.
        message_type: the type of the messages, as given.
        codec: how messages become JSON.
    """

    def __init__(self, config: Config, message_type: Any, codec: AnyCodec[T]) -> None:
        self._config = config
        self._message_type = message_type
        self._codec = codec
        self._bare = encoder(codec, config, None)
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

    def poll(
        self,
        *,
        worker: str = "apalis-pgmq",
        capacity: int = _DEFAULT_CAPACITY,
        on_event: Callable[[Event], None] | None = None,
        on_lost: Callable[[TaskId], None] | None = None,
    ) -> QueueConsumer[T]:
        """Open a claim on the queue: an asynchronous iterator of tasks, to be settled one by one.

        ::

            async with emails.poll() as consumer:
                async for task in consumer:
                    await send_email(task.args)
                    consumer.ack(task)

        What a `Worker` is built on; the arguments are those of `Backend.poll`.
        """
        consumer = QueueConsumer(
            self._store(),
            self._codec,
            self._config,
            worker=worker,
            capacity=capacity,
            on_event=on_event,
            on_lost=on_lost,
        )
        self._consumers.add(consumer)
        return consumer

    @abstractmethod
    def _store(self) -> Store:
        """Return the queue as a store, for one consumer."""

    def _encoder(self, headers: Mapping[str, object] | None) -> Callable[[T], tuple[str, str | None]]:
        return self._bare if headers is None else encoder(self._codec, self._config, headers)

    def _poke(self) -> None:
        """Have the workers of this process look now rather than at their next poll."""
        for consumer in self._consumers:
            consumer.poke()
