"""The narrow port through which messages are claimed and settled, and the claim itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from datetime import datetime, timedelta

    from apalis_pgmq.core import Attempt, DeadLetterReason, Task, TaskId


@dataclass(slots=True, eq=False)
class Claim:
    """A message that is leased to us, from its claim to its settlement.

    Attributes:
        id: the message's id.
        read_ct: how often it has been claimed, this time included.
        vt: what the claim, or its last extension, wrote: when the lease ends by the store's clock.
            Together with ``read_ct`` it is the fence that every later statement names.
        expires: when the lease ends by this process's monotonic clock, in seconds; reckoned from
            before the statement was sent, so never too late.
        payload: the message as JSON text.
        headers: its headers as JSON text, or None.
        enqueued_at: when it was sent.
        let_go_at: when it is not kept any longer, by the monotonic clock, in seconds.
        unsure_vts: what extensions wrote of which we do not know whether they were carried out.
        task: what was made of the claim when it was taken; None while it is buffered.
        settled: its outcome is decided, though perhaps not yet stored.
        returning: its outcome is to be visible again; it may be claimed anew before we hear that it is.
        group: what its group is known by in the store, if that works it in order; None: none.
        leaving: it is being removed outside the settler, and not to be extended meanwhile.
    """

    id: TaskId
    read_ct: Attempt
    vt: datetime
    expires: float
    payload: str | None
    headers: str | None
    enqueued_at: datetime
    let_go_at: float = math.inf
    unsure_vts: tuple[datetime, ...] = ()
    task: Task[Any] | None = None
    settled: bool = False
    returning: bool = False
    leaving: bool = False
    group: int | None = None


@dataclass(slots=True, eq=False)
class Claimed:
    """What came of a claim.

    Attributes:
        claims: the messages.
        rest: seconds for which there will be nothing more to claim, unless the store wakes us; None: ask
            again as soon as there is room.
    """

    claims: list[Claim]
    rest: float | None = None


@dataclass(slots=True, eq=False)
class GiveBack:
    """A claim to make visible again: after ``delay``, its read count lowered by ``refund`` (0 or 1)."""

    claim: Claim
    delay: timedelta
    refund: int


@dataclass(slots=True, eq=False)
class Burial:
    """A claim to move to the dead-letter queue, and why."""

    claim: Claim
    reason: DeadLetterReason
    error: BaseException | None


class Store(Protocol):
    """A queue as a consumer sees it.

    Every call is one atomic statement. All but `claim` are fenced: they touch a message only while its
    ``read_ct`` and ``vt`` are what the claim says, and return the ids of those they touched.

    Each may raise `BackendUnavailableError`: try again later, the statement may or may not have been
    carried out. Any other error is final.
    """

    async def open(self, wake: Callable[[], None], load: Callable[[], float]) -> None:
        """Connect, and make sure that the queue is there.

        Args:
            wake: to be called when messages may have come, until the store is closed.
            load: returns how busy the consumer is, from 0 to 1: of several that could be woken for one message,
                an idle one is to be preferred.
        """
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...

    async def claim(self, limit: int) -> Claimed:
        """Lease up to ``limit`` visible messages, oldest first, each for the visibility timeout."""
        ...

    async def extend(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Lease the claims for a whole visibility timeout from now; update their ``vt``."""
        ...

    async def finish(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Delete or archive handled messages."""
        ...

    async def give_back(self, returns: Sequence[GiveBack]) -> AbstractSet[TaskId]:
        """Make messages visible again."""
        ...

    async def bury(self, burials: Sequence[Burial], worker: str) -> AbstractSet[TaskId]:
        """Move messages to the dead-letter queue."""
        ...

    async def present(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Return the ids that are still in the queue, whoever holds them; not fenced."""
        ...
