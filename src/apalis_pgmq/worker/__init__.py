"""Workers: building them, running them, and what surrounds their handlers. Standard library only."""

from ._builder import DEFAULT_CONCURRENCY, Handler, WorkerBuilder
from ._inject import Data
from ._monitor import Monitor, ShouldRestart, default_should_restart
from ._worker import Worker, WorkerContext

__all__ = [
    "DEFAULT_CONCURRENCY",
    "Data",
    "Handler",
    "Monitor",
    "ShouldRestart",
    "Worker",
    "WorkerBuilder",
    "WorkerContext",
    "default_should_restart",
]
