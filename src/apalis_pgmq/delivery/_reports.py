"""What a consumer says of itself: a log line and an event for all that a person would want to know."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from apalis_pgmq.core import Attempt, DeadLettered, Idle, LeaseLost, Stalled, error_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from apalis_pgmq.core import Config, Event

    from ._store import Burial, Claim

logger = logging.getLogger("apalis_pgmq")


class Reports:
    """Logs, and tells a listener.

    Args:
        worker: who speaks.
        config: of the queue.
        on_event: is given the events; None if nobody listens.
    """

    def __init__(self, worker: str, config: Config, on_event: Callable[[Event], None] | None) -> None:
        self._worker = worker
        self._config = config
        self._queue = config.queue
        self._on_event = on_event

    def idle(self) -> None:
        """The queue is empty and nothing is held."""
        if self._on_event is not None:
            self._on_event(Idle(worker=self._worker, queue=self._queue))

    def lost(self, claim: Claim) -> None:
        """A message is not ours any more."""
        logger.warning(
            "worker %s: lost the lease of message %d on queue %s (attempt %d); "
            "another worker may have it now, and this one can change nothing",
            self._worker,
            claim.id,
            self._queue,
            claim.read_ct,
            extra=self._about(claim),
        )
        if self._on_event is not None:
            self._on_event(
                LeaseLost(worker=self._worker, queue=self._queue, id=claim.id, attempt=Attempt(claim.read_ct))
            )

    def overdue(self, claim: Claim) -> None:
        """A message has been held for too long."""
        logger.error(
            "worker %s: message %d on queue %s has been held for longer than max_lease (%s); "
            "its handler probably hangs",
            self._worker,
            claim.id,
            self._queue,
            self._config.max_lease,
            extra=self._about(claim),
        )

    def stalled(self, seconds: float) -> None:
        """Something blocked the event loop."""
        logger.warning(
            "worker %s: something blocked the event loop for %.1f s, and leases on queue %s run out after "
            "%g s; give blocking work a plain 'def' handler, which runs in a thread",
            self._worker,
            seconds,
            self._queue,
            self._config.visibility_timeout.total_seconds(),
            extra={"worker": self._worker, "queue": self._queue, "seconds": seconds},
        )
        if self._on_event is not None:
            self._on_event(Stalled(worker=self._worker, queue=self._queue, seconds=seconds))

    def buried(self, burial: Burial) -> None:
        """A message was given up."""
        claim = burial.claim
        fate = "was deleted" if self._config.dead_letter is None else "was dead-lettered"
        logger.error(
            "worker %s: message %d on queue %s %s after attempt %d (%s)%s",
            self._worker,
            claim.id,
            self._queue,
            fate,
            claim.read_ct,
            burial.reason.value,
            "" if burial.error is None else f": {type(burial.error).__name__}: {error_text(burial.error)}",
            extra={**self._about(claim), "reason": burial.reason.value},
        )
        if self._on_event is not None:
            self._on_event(
                DeadLettered(
                    worker=self._worker,
                    queue=self._queue,
                    id=claim.id,
                    attempt=Attempt(claim.read_ct),
                    reason=burial.reason.value,
                    error=burial.error,
                )
            )

    def unstored(self, count: int) -> None:
        """Closed before every outcome was stored."""
        logger.warning(
            "worker %s: closed before %d outcomes on queue %s could be stored; "
            "those messages are delivered again when their leases end",
            self._worker,
            count,
            self._queue,
            extra={"worker": self._worker, "queue": self._queue, "held": count},
        )

    def _about(self, claim: Claim) -> dict[str, object]:
        return {"worker": self._worker, "queue": self._queue, "id": claim.id, "attempt": claim.read_ct}
