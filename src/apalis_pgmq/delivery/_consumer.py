"""The consumer: the one registry of what is held, and the parts that work on it."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from apalis_pgmq.core import (
    LONGEST,
    BackendUnavailableError,
    ConfigError,
    Consumer,
    DeadLetterReason,
    LeaseLostError,
    Task,
    headers_of,
)

from ._encoding import decoders
from ._fetcher import Fetcher
from ._inbox import Demand, Inbox
from ._keeper import LeaseKeeper
from ._outage import Backoff, Outage
from ._reports import Reports
from ._settler import Settler
from ._store import Burial, GiveBack

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
    from types import TracebackType

    from apalis_pgmq.core import AnyCodec, Config, Event, TaskId

    from ._store import Claim, Store

T = TypeVar("T")

_NO_DELAY: Final = timedelta(0)
_CLOSE_TIMEOUT: Final = 5.0
"""Seconds that closing waits for the store to take the last settlements."""


class QueueConsumer(Consumer[T]):
    """An open claim on a queue, for any `Store`; see `apalis_pgmq.core.Consumer` for the contract.

    Args:
        store: where messages are claimed and settled; the consumer opens and closes it.
        codec: decodes payloads, by their headers where it is one that does.
        config: the queue's settings.
        worker: who claims, for events, logs and dead-letter headers.
        capacity: how many tasks are worked at the same time, at most.
        on_event: is given idle, dead-lettered and lease-lost events.
        on_lost: is given the id of each taken task whose lease was lost.

    Raises:
        ConfigError: the capacity is not at least 1.
    """

    def __init__(
        self,
        store: Store,
        codec: AnyCodec[T],
        config: Config,
        *,
        worker: str,
        capacity: int,
        on_event: Callable[[Event], None] | None,
        on_lost: Callable[[TaskId], None] | None,
    ) -> None:
        if capacity < 1:
            raise ConfigError(f"capacity must be at least 1, not {capacity}")
        self._store = store
        self._decode, self._decode_by = decoders(codec)
        self._config = config
        self._worker = worker
        self._reports = Reports(worker, config, on_event)
        self._on_lost = on_lost
        self._most_deliveries = 1 + config.max_retries
        self._max_lease = (
            math.inf
            if config.max_lease is None
            else max(config.max_lease, config.visibility_timeout).total_seconds()
        )
        self._held: dict[TaskId, Claim] = {}
        self._is_idle = False
        self._stopping = False
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._parts: dict[str, asyncio.Task[None]] = {}
        self._inbox = Inbox()
        self._demand = Demand(capacity, time.monotonic)
        self._outage = Outage(worker, config.queue)
        self._fetcher = Fetcher(
            store,
            self._inbox,
            self._demand,
            held=self._held.__len__,
            receive=self._receive,
            on_empty=self._on_empty,
            outage=self._outage,
        )
        self._keeper = LeaseKeeper(
            store,
            self._held,
            lose=self._lose,
            overdue=self._let_go,
            stalled=self._reports.stalled,
            visibility_timeout=config.visibility_timeout.total_seconds(),
            outage=self._outage,
        )
        self._settler = Settler(
            store,
            worker=worker,
            settled=self._settled,
            lose=self._lose,
            buried=self._reports.buried,
            outage=self._outage,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._store.close()
            raise
        self._start("fetcher", self._fetcher.run())
        self._start("lease keeper", self._keeper.run())
        self._start("settler", self._settler.run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None:
        self.stop()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                # A claim under way is waited for: its messages would be out of reach for a whole
                # visibility timeout otherwise.
                await asyncio.wait([self._parts["fetcher"]])
                for claim in [claim for claim in self._held.values() if not claim.settled]:
                    self._give_back(claim, _NO_DELAY, refund=0)
                await self._stored()
        except TimeoutError:
            self._reports.unstored(len(self._held))
        finally:
            for part in self._parts.values():
                part.cancel()
            await asyncio.gather(*self._parts.values(), return_exceptions=True)
            await self._store.close()
        if kind is None and self._failure is not None:
            # It broke after the last task was taken.
            raise self._failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Task[T]:
        while True:
            if (task := self.take()) is not None:
                return task
            if self._failure is not None:
                raise self._failure
            if self._inbox.closed:
                raise StopAsyncIteration
            await self._inbox.arrival()

    def take(self) -> Task[T] | None:
        """Return the next task if there is one to be had without waiting."""
        claims = self._inbox.claims
        while claims:
            claim = claims.popleft()
            if self._fetcher.is_full and len(claims) <= self._demand.low_water:
                self._fetcher.has_room()
            if (task := self._open_claim(claim)) is not None:
                self._demand.took()
                return task
        return None

    def ack(self, task: Task[Any]) -> bool:
        """Settle a handled task: its message is deleted or archived."""
        if (claim := self._settle(task)) is None:
            return False
        self._settler.finish(claim)
        return True

    def retry(self, task: Task[Any], *, after: timedelta | None = None) -> bool:
        """Give a failed task back: visible after the delay, or when its visibility timeout ends."""
        if (claim := self._settle(task)) is None:
            return False
        if after is None:
            # Nothing to write: the lease is just not extended any more.
            self._settled((claim,))
        else:
            self._return(claim, min(max(after, _NO_DELAY), LONGEST), refund=0)
        return True

    def dead_letter(
        self, task: Task[Any], reason: DeadLetterReason, error: BaseException | None = None
    ) -> bool:
        """Give the task up: its message moves to the dead-letter queue."""
        if (claim := self._settle(task)) is None:
            return False
        self._settler.bury(Burial(claim, reason, error))
        return True

    def hand_back(self, task: Task[Any], *, spend_attempt: bool, after: timedelta = _NO_DELAY) -> bool:
        """Give an unfinished task back, visible after the delay; what never ran need not spend an attempt."""
        if (claim := self._settle(task)) is None:
            return False
        self._return(claim, after, refund=0 if spend_attempt else 1)
        return True

    @asynccontextmanager
    async def removing(self, tasks: Sequence[Task[Any]]) -> AsyncGenerator[list[Claim]]:
        """Have the tasks' messages removed by the block instead of by an ack.

        Their leases are not extended within the block. A block that ends without an error has settled them;
        after one that raises they are as before.

        Raises:
            LeaseLostError: one of them is not ours any more.
        """
        claims = []
        for task in tasks:
            if not self.holds(task):
                raise LeaseLostError(
                    f"message {task.id} on queue {self._config.queue!r} is not ours any more"
                )
            claims.append(self._held[task.id])
        for claim in claims:
            claim.leaving = True
        try:
            yield claims
        except BaseException:
            for claim in claims:
                claim.leaving = False
            raise
        for claim in claims:
            self._decide(claim)
        self._settled(claims)

    def holds(self, task: Task[Any]) -> bool:
        """Tell whether a task that was taken is still ours to settle."""
        claim = self._held.get(task.id)
        return claim is not None and claim.task is task and not claim.settled

    def lost(self, claim: Claim) -> None:
        """Take note that the caller, who works on the task, found its claim lost."""
        self._lose(claim, tell=False)

    def poke(self) -> None:
        """Ask the queue now, because there is a hint that a message came."""
        self._fetcher.poke()

    def stop(self) -> None:
        """Claim no more and hand back at once what was claimed but not taken; the iteration ends."""
        if self._stopping:
            return
        self._stopping = True
        self._ended.set()
        self._fetcher.stop()
        for claim in self._inbox.close():
            self._give_back(claim, _NO_DELAY, refund=1)

    def adjust_capacity(self, by: int) -> None:
        """Work more, or fewer, tasks at the same time from now on."""
        self._demand.capacity += by
        self._fetcher.has_room()

    async def ended(self) -> None:
        """Wait until no more tasks will come: it was stopped, or has failed."""
        await self._ended.wait()

    async def _open(self) -> None:
        backoff = Backoff()
        while not self._stopping:
            try:
                await self._store.open(self._fetcher.poke, self._demand.load)
            except BackendUnavailableError as error:
                self._outage.begins("opening", error)
                await self._fetcher.back_off(backoff.delay())
            else:
                self._outage.is_over("opening")
                return

    async def _stored(self) -> None:
        """Wait until every outcome is stored, or the settler has failed."""
        drained = asyncio.create_task(self._settler.drained())
        try:
            await asyncio.wait([drained, self._parts["settler"]], return_when=asyncio.FIRST_COMPLETED)
        finally:
            drained.cancel()

    def _start(self, name: str, part: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(part, name=f"{self._worker}: {name}")
        task.add_done_callback(self._part_ended)
        self._parts[name] = task

    def _part_ended(self, part: asyncio.Task[None]) -> None:
        if not part.cancelled() and (failure := part.exception()) is not None:
            self._failure = self._failure or failure
            self.stop()

    def _receive(self, claims: Sequence[Claim]) -> None:
        self._is_idle = False
        let_go_at = time.monotonic() + self._max_lease
        new = []
        for claim in claims:
            if claim.id in self._held and self._is_held_already(claim):
                continue
            self._held[claim.id] = claim
            claim.let_go_at = let_go_at
            new.append(claim)
        if self._stopping:
            for claim in new:
                self._give_back(claim, _NO_DELAY, refund=1)
        else:
            self._inbox.put(new)

    def _is_held_already(self, claim: Claim) -> bool:
        """Tell whether it was ourselves who held the message, and nobody between us and us.

        That is so after an outage in which our leases ran out. What runs goes on, under the new claim.
        """
        held = self._held[claim.id]
        if held.returning:
            return False
        if claim.read_ct == held.read_ct + 1:
            held.read_ct, held.vt, held.unsure_vts = claim.read_ct, claim.vt, ()
            held.expires = claim.expires
            if held.task is not None:
                held.task.visible_until = held.vt
            return True
        self._lose(held)
        return False

    def _on_empty(self) -> None:
        if not self._held and not self._is_idle:
            self._is_idle = True
            self._reports.idle()

    def _open_claim(self, claim: Claim) -> Task[T] | None:
        """Make a task of a claim; None if there is nothing to run."""
        if self._held.get(claim.id) is not claim:
            return None
        if claim.expires <= time.monotonic():
            # Another worker may have it already: running it here would break the one-owner promise.
            self._lose(claim)
            return None
        if claim.read_ct > self._most_deliveries:
            self._discard(claim, DeadLetterReason.DELIVERIES_EXHAUSTED, None)
            return None
        try:
            payload = "null" if claim.payload is None else claim.payload
            args = self._decode(payload) if claim.headers is None else self._decode_by(payload, claim.headers)
        except Exception as error:  # noqa: BLE001 - validators are the user's code: one message's fault
            self._discard(claim, DeadLetterReason.UNDECODABLE, error)
            return None
        # What is decoded need not be kept as text, nor what is settled in any form.
        claim.payload = None
        claim.task = task = Task(
            args,
            claim.id,
            claim.read_ct,
            {} if claim.headers is None else headers_of(claim.headers),
            claim.enqueued_at,
            claim.vt,
            self._config.queue,
        )
        return task

    def _settle(self, task: Task[Any]) -> Claim | None:
        """Return the task's claim if it is ours to settle still, and mark it as decided."""
        claim = self._held.get(task.id)
        # Not the same task: the message was lost, and has since been claimed again by ourselves.
        if claim is None or claim.task is not task or claim.settled:
            return None
        claim.settled = True
        claim.task = None
        self._freed()
        return claim

    def _give_back(self, claim: Claim, delay: timedelta, *, refund: int) -> None:
        self._decide(claim)
        self._return(claim, delay, refund=refund)

    def _return(self, claim: Claim, delay: timedelta, *, refund: int) -> None:
        claim.returning = True
        self._settler.give_back(GiveBack(claim, delay, refund))

    def _discard(self, claim: Claim, reason: DeadLetterReason, error: BaseException | None) -> None:
        self._decide(claim)
        self._settler.bury(Burial(claim, reason, error))

    def _decide(self, claim: Claim) -> None:
        claim.settled = True
        if claim.task is not None:
            claim.task = None
            self._freed()

    def _freed(self) -> None:
        """A handler is free for another message."""
        self._demand.running -= 1
        if self._fetcher.is_full:
            self._fetcher.has_room()

    def _settled(self, claims: Sequence[Claim]) -> None:
        held = self._held
        for claim in claims:
            if held.get(claim.id) is claim:
                del held[claim.id]
        if self._fetcher.is_full:
            self._fetcher.has_room()

    def _lose(self, claim: Claim, *, tell: bool = True) -> None:
        if self._held.get(claim.id) is not claim:
            return
        del self._held[claim.id]
        self._fetcher.has_room()
        if claim.task is not None and not claim.settled:
            self._decide(claim)
            if tell and self._on_lost is not None:
                self._on_lost(claim.id)
        self._reports.lost(claim)

    def _let_go(self, claim: Claim) -> None:
        self._reports.overdue(claim)
        self._lose(claim)
