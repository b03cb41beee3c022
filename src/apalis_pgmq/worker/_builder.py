"""Building workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, Literal, TypeAlias, TypeVar, cast

from apalis_pgmq.core import ConfigError, HandlerError, duration

from ._inject import describe
from ._retry import DEFAULT_POLICY, RetryPolicy, retry_policy
from ._worker import Batching, Worker

if TYPE_CHECKING:
    from apalis_pgmq.core import Backend, Duration, EventListener

    from ._batch import Batch
    from ._retry import DelayFunction
    from .middleware import Middleware

T = TypeVar("T")
U = TypeVar("U")

Handler: TypeAlias = Callable[Concatenate[T, ...], object]
"""Takes the message first, then whatever its annotations ask for; a coroutine function or a plain one."""

DEFAULT_CONCURRENCY: Final = 10
_MOST_CONCURRENCY: Final = 100_000
_LARGEST_BATCH: Final = 10_000


@dataclass(frozen=True, slots=True)
class WorkerBuilder(Generic[T]):
    """Builds a `Worker`, a setting at a time; every method returns a new builder.

    ::

        worker = (
            WorkerBuilder("email-worker")
            .backend(emails)
            .concurrency(50)
            .data(smtp_client)
            .build(send_email)
        )

    Args:
        name: the worker's name, for events, logs and dead-letter headers.
    """

    name: str
    _backend: Backend[T] | None = None
    _concurrency: int = DEFAULT_CONCURRENCY
    _data: tuple[object, ...] = ()
    _middleware: tuple[Middleware, ...] = ()
    _listeners: tuple[EventListener, ...] = ()
    _batching: Batching | None = None
    _policy: RetryPolicy = DEFAULT_POLICY
    _cancel_on_lost_lease: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigError(f"a worker's name must be a non-empty text, not {self.name!r}")

    def backend(self, backend: Backend[U]) -> WorkerBuilder[U]:
        """Set where the messages come from."""
        return replace(cast("WorkerBuilder[U]", self), _backend=backend)

    def concurrency(self, limit: int) -> WorkerBuilder[T]:
        """Set how many handlers run at the same time, at most; the default is 10.

        Raises:
            ConfigError: not a whole number between 1 and 100,000.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST_CONCURRENCY:
            raise ConfigError(f"concurrency must be between 1 and {_MOST_CONCURRENCY:,}, not {limit!r}")
        return replace(self, _concurrency=limit)

    def data(self, value: object) -> WorkerBuilder[T]:
        """Offer a value to handlers, which ask for it by its class: ``Data[Mailer]``."""
        return replace(self, _data=(*self._data, value))

    def middleware(self, middleware: Middleware) -> WorkerBuilder[T]:
        """Put a middleware around the handler; the first one added is the outermost.

        Raises:
            ConfigError: it cannot be called.
        """
        if not callable(middleware):
            raise ConfigError(f"a middleware must be callable, not {middleware!r}")
        return replace(self, _middleware=(*self._middleware, middleware))

    def retry(
        self,
        delay: Duration | DelayFunction | None = None,
        *,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
        abort_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    ) -> WorkerBuilder[T]:
        """Set what becomes of a message whose handler raised, within the queue's ``max_retries``.

        What a handler says by `RetryAfterError` or `AbortError` goes first.

        Args:
            delay: how long until the next attempt: a `timedelta` or seconds, an `Exponential`, or a function
                of the error and the attempt (from 1). None, the default: until the visibility timeout ends.
            retry_on: the errors to try again after; all by default. Others dead-letter the message at once.
            abort_on: errors to dead-letter the message at once after, even if they are among ``retry_on``.

        Raises:
            ConfigError: a value that cannot work.
        """
        return replace(self, _policy=retry_policy(delay, retry_on, abort_on))

    def on_lost_lease(self, action: Literal["cancel", "finish"]) -> WorkerBuilder[T]:
        """Set what becomes of a handler whose message is not ours any more.

        It is cancelled (the default), or may finish. Either way its result changes nothing; a synchronous
        handler cannot be cancelled.

        Raises:
            ConfigError: neither of the two.
        """
        if action not in ("cancel", "finish"):
            raise ConfigError(f"on_lost_lease must be 'cancel' or 'finish', not {action!r}")
        return replace(self, _cancel_on_lost_lease=action == "cancel")

    def batch(self, size: int, wait: Duration = 0.1) -> WorkerBuilder[Batch[T]]:
        """Have the handler given a `Batch` of messages rather than one; call it after `backend`.

        ``concurrency`` then counts batches.

        Args:
            size: how many messages make a batch, at most; 1 to 10,000.
            wait: how long to wait for a batch to fill up once it has a message, a `timedelta` or seconds; the
                default is 0.1 s.

        Raises:
            ConfigError: a value that cannot work.
        """
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST_BATCH:
            raise ConfigError(f"a batch's size must be between 1 and {_LARGEST_BATCH:,}, not {size!r}")
        seconds = duration("wait", wait, allow_zero=True).total_seconds()
        return replace(cast("WorkerBuilder[Batch[T]]", self), _batching=Batching(size, seconds))

    def on_event(self, listener: EventListener) -> WorkerBuilder[T]:
        """Have a plain function called with every event, on the event loop.

        Raises:
            ConfigError: it cannot be called, or is a coroutine function, which nobody would await.
        """
        if not callable(listener) or _is_async(listener):
            raise ConfigError(f"an event listener must be a plain function, not {listener!r}")
        return replace(self, _listeners=(*self._listeners, listener))

    def build(self, handler: Handler[T]) -> Worker[T]:
        """Return the worker that runs ``handler`` for each message.

        A coroutine function runs on the event loop, a plain function in one of ``concurrency`` threads.

        Raises:
            ConfigError: there is no backend.
            HandlerError: the handler asks for something that nobody provides, by name.
        """
        if self._backend is None:
            raise ConfigError(f"worker {self.name!r} has no backend: call .backend(...) before .build(...)")
        if not callable(handler):
            raise HandlerError(f"{describe(handler)} cannot be called")
        if isgeneratorfunction(handler) or isasyncgenfunction(handler):
            raise HandlerError(f"{describe(handler)} contains a 'yield': calling it would run nothing")
        return Worker(
            self.name,
            self._backend,
            handler,
            is_async=_is_async(handler),
            concurrency=self._concurrency,
            batching=self._batching,
            policy=self._policy,
            cancel_on_lost_lease=self._cancel_on_lost_lease,
            data=self._data,
            middleware=self._middleware,
            listeners=self._listeners,
        )


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    return iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)
