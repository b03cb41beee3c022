"""Workers: building them, running them, and what surrounds their handlers. Standard library only."""

from ._batch import Batch
from ._builder import DEFAULT_CONCURRENCY, Handler, WorkerBuilder
from ._inject import Data
from ._monitor import Monitor, ShouldRestart, default_should_restart
from ._outcomes import WorkerStats
from ._retry import DelayFunction, Exponential
from ._signals import stop_signals
from ._worker import Worker, WorkerContext

__all__ = [
    "DEFAULT_CONCURRENCY",
    "Batch",
    "Data",
    "DelayFunction",
    "Exponential",
    "Handler",
    "Monitor",
    "ShouldRestart",
    "Worker",
    "WorkerBuilder",
    "WorkerContext",
    "WorkerStats",
    "default_should_restart",
    "stop_signals",
]
