"""Runs workers together, through failures and signals, to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from apalis_pgmq.core import ApalisError, ConfigError, duration
from apalis_pgmq.delivery import Backoff

from ._signals import stop_signals

if TYPE_CHECKING:
    from collections.abc import Collection, Generator
    from typing import Self

    from apalis_pgmq.core import Duration

    from ._worker import Worker

logger = logging.getLogger("apalis_pgmq")

ShouldRestart: TypeAlias = Callable[["Worker[Any]", Exception, int], bool]
"""``should_restart(worker, error, attempt)``: whether to run a failed worker again. ``attempt`` counts
its failures in a row, from 1; a minute without one starts the count again."""

_HEALTHY_AFTER: Final = 60.0
_MOST_RESTARTS: Final = 10


def default_should_restart(_worker: Worker[Any], error: Exception, attempt: int) -> bool:
    """Restart up to ten times in a row, but not for what a restart does not mend.

    An `ApalisError` says what to do, and that a person has to do it.
    """
    return attempt <= _MOST_RESTARTS and not isinstance(error, ApalisError)


class Monitor:
    """Runs several workers and sees to their end.

    SIGINT or SIGTERM stops all workers: they claim no more, hand back what was not started and finish
    what runs. What still runs after ``shutdown_timeout``, or at a second signal, is cancelled and handed
    back. A third signal ends the process the hard way.

    Args:
        shutdown_timeout: how long running handlers may take to finish, a `timedelta` or seconds; the
            default is 30 s.
        should_restart: whether to run a worker again whose loop failed, asked with the worker, the error
            and how many times in a row this was; by default `default_should_restart`. Restarts back off
            from 1 s to 30 s.
        handle_signals: False leaves SIGINT and SIGTERM to the program.
    """

    def __init__(
        self,
        *,
        shutdown_timeout: Duration = 30.0,
        should_restart: ShouldRestart = default_should_restart,
        handle_signals: bool = True,
    ) -> None:
        self._shutdown_timeout = duration("shutdown_timeout", shutdown_timeout, allow_zero=True)
        self._should_restart = should_restart
        self._handle_signals = handle_signals
        self._workers: dict[str, Worker[Any]] = {}
        self._run: _Run | None = None

    @property
    def workers(self) -> tuple[Worker[Any], ...]:
        """The registered workers."""
        return tuple(self._workers.values())

    def register(self, worker: Worker[Any]) -> Self:
        """Add a worker; return the monitor itself.

        Raises:
            ConfigError: a worker of that name is registered already.
        """
        if worker.name in self._workers:
            raise ConfigError(f"a worker named {worker.name!r} is registered already")
        self._workers[worker.name] = worker
        return self

    def stop(self) -> None:
        """Stop all workers, as the first signal does; called again, hurry, as the second does.

        A plain call, on the event loop; without effect unless `run` is under way.
        """
        if self._run is not None:
            self._run.stop()

    async def run(self) -> None:
        """Run the workers until all have ended: stopped by a signal, by `stop` or each on its own.

        Raises:
            ConfigError: no worker is registered.
            ApalisError: the monitor runs already.
            ExceptionGroup: what the workers failed with that were not restarted; the others were worked
                on until stopped.
        """
        if not self._workers:
            raise ConfigError("a monitor needs at least one worker: call .register(...) before .run()")
        if self._run is not None:
            raise ApalisError("this monitor is running already")
        run = self._run = _Run()
        try:
            with run.signals() if self._handle_signals else contextlib.nullcontext():
                failures = await self._oversee(run)
        finally:
            self._run = None
        if failures:
            raise BaseExceptionGroup("workers failed", failures)

    async def _oversee(self, run: _Run) -> list[BaseException]:
        supervisors = {
            asyncio.create_task(self._supervise(worker, run), name=f"monitor: {worker.name}"): worker
            for worker in self._workers.values()
        }
        try:
            await _first_of(supervisors, run.stopping)
            for supervisor, worker in supervisors.items():
                if not supervisor.done():
                    worker.stop()
            await _first_of(supervisors, run.hurry, self._shutdown_timeout.total_seconds())
            names = [worker.name for supervisor, worker in supervisors.items() if not supervisor.done()]
            if names:
                logger.warning(
                    "cancelling the handlers that still run in %s; their messages are handed back",
                    ", ".join(names),
                    extra={"workers": names},
                )
        finally:
            for supervisor in supervisors:
                supervisor.cancel()
            outcomes = await asyncio.gather(*supervisors, return_exceptions=True)
        return [
            outcome
            for outcome in outcomes
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError)
        ]

    async def _supervise(self, worker: Worker[Any], run: _Run) -> None:
        """Run one worker, again after failures."""
        backoff = Backoff(first=1.0, longest=30.0)
        attempt = 0
        while not run.stopping.is_set():
            started = time.monotonic()
            try:
                await worker.run()
            except Exception as error:
                if time.monotonic() - started > _HEALTHY_AFTER:
                    attempt = 0
                    backoff.reset()
                attempt += 1
                context = {"worker": worker.name, "attempt": attempt}
                if run.stopping.is_set() or not self._should_restart(worker, error, attempt):
                    logger.error(  # noqa: TRY400 - the error itself is raised
                        "worker %s failed and is not restarted: %s", worker.name, error, extra=context
                    )
                    raise
                delay = backoff.delay()
                logger.exception(
                    "worker %s failed, restart %d in %.1f s", worker.name, attempt, delay, extra=context
                )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await run.stopping.wait()
            else:
                return


class _Run:
    """One run of a monitor: whether it is to stop, and whether in a hurry."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()

    def stop(self) -> None:
        if self.stopping.is_set():
            self.hurry.set()
        self.stopping.set()

    @contextlib.contextmanager
    def signals(self) -> Generator[None]:
        """Stop on SIGINT and SIGTERM; the third one finds no handler any more, and ends the process."""

        def on_signal() -> None:
            if self.stopping.is_set():
                restore()
            self.stop()

        with stop_signals(on_signal) as restore:
            yield


async def _first_of(
    tasks: Collection[asyncio.Task[None]], event: asyncio.Event, within: float | None = None
) -> None:
    """Wait until all tasks have ended, the event is set, or the time is over."""
    all_ended = asyncio.create_task(asyncio.wait(tasks))
    event_set = asyncio.create_task(event.wait())
    try:
        await asyncio.wait([all_ended, event_set], timeout=within, return_when=asyncio.FIRST_COMPLETED)
    finally:
        all_ended.cancel()
        event_set.cancel()
        await asyncio.gather(all_ended, event_set, return_exceptions=True)
