"""The vocabulary of workers and queues. Standard library only, no input or output."""

from ._backend import Backend, Consumer, DeadLetterReason, Sink, SupportsInjection, SupportsSetup
from ._codec import Codec
from ._config import Config, DeadLetter, OnSuccess
from ._durations import Duration, duration
from ._errors import (
    AbortError,
    ApalisError,
    BackendUnavailableError,
    CodecError,
    ConfigError,
    DecodeError,
    EncodeError,
    HandlerError,
    RetryAfterError,
)
from ._events import (
    DeadLettered,
    Engaged,
    Event,
    EventListener,
    Failed,
    Idle,
    LeaseLost,
    MessageEvent,
    Stalled,
    Started,
    Stopped,
    Succeeded,
)
from ._task import Attempt, Task, TaskId

__all__ = [
    "AbortError",
    "ApalisError",
    "Attempt",
    "Backend",
    "BackendUnavailableError",
    "Codec",
    "CodecError",
    "Config",
    "ConfigError",
    "Consumer",
    "DeadLetter",
    "DeadLetterReason",
    "DeadLettered",
    "DecodeError",
    "Duration",
    "EncodeError",
    "Engaged",
    "Event",
    "EventListener",
    "Failed",
    "HandlerError",
    "Idle",
    "LeaseLost",
    "MessageEvent",
    "OnSuccess",
    "RetryAfterError",
    "Sink",
    "Stalled",
    "Started",
    "Stopped",
    "Succeeded",
    "SupportsInjection",
    "SupportsSetup",
    "Task",
    "TaskId",
    "duration",
]
