"""``apalis-pgmq run`` in one process."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from apalis_pgmq.worker import Monitor

from ._exits import UsageError
from ._target import find, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._lifeline import Lifeline
    from ._target import Target


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and how.

    Attributes:
        target: as ``module:attribute``.
        shutdown_timeout: in seconds, for a Worker; None for the default, or the Monitor's own.
        log_level: a name that `logging` knows, in lower case.
        uvloop: whether to run it on uvloop's event loop.
    """

    target: str
    shutdown_timeout: float | None
    log_level: str
    uvloop: bool = False

    def run(self, lifeline: Lifeline | None = None) -> None:
        """Run it to its end.

        Args:
            lifeline: tells when a supervisor wants it to stop, or is gone.

        Raises:
            UsageError: there is no such target, it does not go with the options, or there is no uvloop.
            ExceptionGroup: what workers failed with.
            Exception: whatever the user's own code raises.
        """
        loop_factory = _uvloop() if self.uvloop else None
        # Imported outside the event loop: a module may well use one of its own while it is imported.
        found = find(self.target)
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(self._run(found, lifeline))
        finally:
            if lifeline is not None:
                lifeline.release()

    async def _run(self, found: Target, lifeline: Lifeline | None) -> None:
        monitor = await self._monitor(found)
        configure_logging(self.log_level, with_process=lifeline is not None)
        if lifeline is not None:
            lifeline.attach(monitor)
        await monitor.run()

    async def _monitor(self, found: Target) -> Monitor:
        runnable = await make(self.target, found)
        if isinstance(runnable, Monitor):
            if self.shutdown_timeout is not None:
                raise UsageError(
                    f"--shutdown-timeout is for a Worker, and {self.target!r} is a Monitor: "
                    "write Monitor(shutdown_timeout=...) there"
                )
            return runnable
        if self.shutdown_timeout is None:
            return Monitor().register(runnable)
        return Monitor(shutdown_timeout=self.shutdown_timeout).register(runnable)


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - it need not be there
    except ModuleNotFoundError as error:
        if error.name != "uvloop":
            raise
        raise UsageError(
            "--uvloop: uvloop is not installed (there is none for Windows); pip install 'apalis-pgmq[uvloop]'"
        ) from None
    return uvloop.new_event_loop


def configure_logging(level: str, *, with_process: bool) -> None:
    """Log to stderr, a line each, unless the program has set up logging itself."""
    process = " [%(process)d]" if with_process else ""
    logging.basicConfig(
        level=level.upper(), format=f"%(asctime)s{process} %(levelname)-8s %(name)s: %(message)s"
    )
