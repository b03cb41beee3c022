"""Stores what became of claimed messages, a batch at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import ApalisError, BackendUnavailableError

from ._outage import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from collections.abc import Set as AbstractSet

    from apalis_pgmq.core import TaskId

    from ._outage import Outage
    from ._store import Burial, Claim, GiveBack, Store

logger = logging.getLogger("apalis_pgmq")

_LARGEST_BATCH: Final = 2000


class Settler:
    """The part of a consumer that acks, gives back and dead-letters.

    There is no timer: what gathers while one batch is being stored is the next batch. While the store
    is away outcomes wait and are stored late, as far as their leases still stand.

    Args:
        store: where to settle.
        worker: who settles, for the dead-letter headers.
        settled: is given the claims that were settled.
        lose: is given each claim that was not ours any more.
        buried: is given each message that was dead-lettered.
        outage: shared by the parts of a consumer.
    """

    def __init__(
        self,
        store: Store,
        *,
        worker: str,
        settled: Callable[[Sequence[Claim]], None],
        lose: Callable[[Claim], None],
        buried: Callable[[Burial], None],
        outage: Outage,
    ) -> None:
        self._store = store
        self._worker = worker
        self._settled = settled
        self._lose = lose
        self._buried = buried
        self._outage = outage
        self._finished: list[Claim] = []
        self._returned: list[GiveBack] = []
        self._dead: list[Burial] = []
        self._work = asyncio.Event()
        self._all_stored = asyncio.Event()
        self._all_stored.set()

    def finish(self, claim: Claim) -> None:
        """Delete or archive a handled message."""
        self._finished.append(claim)
        if not self._work.is_set():
            self._there_is_work()

    def give_back(self, item: GiveBack) -> None:
        """Make a message visible again."""
        self._returned.append(item)
        self._there_is_work()

    def bury(self, burial: Burial) -> None:
        """Move a message to the dead-letter queue."""
        self._dead.append(burial)
        self._there_is_work()

    async def drained(self) -> None:
        """Wait until everything is stored."""
        await self._all_stored.wait()

    @property
    def unstored(self) -> int:
        """How many outcomes wait to be stored, those of the statement under way aside."""
        return len(self._finished) + len(self._returned) + len(self._dead)

    async def run(self) -> None:
        """Store outcomes as they come, for ever.

        Raises:
            ApalisError: acks are refused for good (a permission is missing, say). To go on would handle
                every message again and again.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            while self.unstored:
                await self._flush()
            self._all_stored.set()

    def _there_is_work(self) -> None:
        self._all_stored.clear()
        self._work.set()

    async def _flush(self) -> None:
        finished, self._finished = self._finished[:_LARGEST_BATCH], self._finished[_LARGEST_BATCH:]
        returned, self._returned = self._returned[:_LARGEST_BATCH], self._returned[_LARGEST_BATCH:]
        dead, self._dead = self._dead[:_LARGEST_BATCH], self._dead[_LARGEST_BATCH:]
        if finished:
            done = await self._until_available(lambda: self._store.finish(finished), finished, removes=True)
            self._close(finished, done)
        if returned:
            claims = [item.claim for item in returned]
            done = await self._until_available(lambda: self._store.give_back(returned), claims, removes=False)
            self._close(claims, done)
        if dead:
            await self._bury(dead)

    async def _bury(self, burials: Sequence[Burial]) -> None:
        claims = [burial.claim for burial in burials]
        try:
            done = await self._until_available(
                lambda: self._store.bury(burials, self._worker), claims, removes=True
            )
        except ApalisError as error:
            # Nothing is lost: they stay in the queue and are tried again when their leases end.
            logger.error(  # noqa: TRY400 - the text says it all
                "worker %s: %d messages cannot be dead-lettered and stay in the queue: %s",
                self._worker,
                len(burials),
                error,
                extra={"worker": self._worker, "ids": [claim.id for claim in claims[:10]]},
            )
            self._settled(claims)
            return
        self._close(claims, done)
        for burial in burials:
            if burial.claim.id in done:
                self._buried(burial)

    async def _until_available(
        self,
        statement: Callable[[], Awaitable[AbstractSet[TaskId]]],
        claims: Sequence[Claim],
        *,
        removes: bool,
    ) -> AbstractSet[TaskId]:
        """Carry out a statement, however long that takes; return the ids that are settled by it."""
        backoff = Backoff()
        unsure = False
        while True:
            try:
                done = await statement()
                if unsure and len(done) < len(claims):
                    done = await self._benefit_of_doubt(claims, done, removes=removes)
            except BackendUnavailableError as error:
                # It may have been carried out before the connection broke.
                unsure = True
                self._outage.begins("settler", error)
                await asyncio.sleep(backoff.delay())
            else:
                self._outage.is_over("settler")
                return done

    async def _benefit_of_doubt(
        self, claims: Sequence[Claim], done: AbstractSet[TaskId], *, removes: bool
    ) -> AbstractSet[TaskId]:
        """After a broken try: what is gone was removed by it, what is still there is another's now."""
        missing = [claim for claim in claims if claim.id not in done]
        if removes:
            present = await self._store.present(missing)
            return done | {claim.id for claim in missing if claim.id not in present}
        # Visible again, by that try or because the lease ended: not ours either way, and no harm done.
        return done | {claim.id for claim in missing}

    def _close(self, claims: Sequence[Claim], done: AbstractSet[TaskId]) -> None:
        if len(done) == len(claims):
            self._settled(claims)
            return
        self._settled([claim for claim in claims if claim.id in done])
        for claim in claims:
            if claim.id not in done:
                self._lose(claim)
