"""A queue in memory, with PGMQ's semantics."""

from __future__ import annotations

import heapq
import itertools
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

from apalis_pgmq.core import Attempt, TaskId, dead_letter_headers, headers_of
from apalis_pgmq.delivery import Claim, Claimed

from ._groups import Groups

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from apalis_pgmq.core import Config
    from apalis_pgmq.delivery import Burial, GiveBack


@dataclass(slots=True, eq=False)
class Message:
    """A message that is in a queue in memory.

    Attributes:
        id: its id.
        payload: the message as JSON text.
        headers: its headers as JSON text, or None.
        enqueued_at: when it was sent.
        vt: from when on it is visible.
        read_ct: how often it has been claimed.
        group: its group, where the queue is ordered and it has one.
    """

    id: TaskId
    payload: str
    headers: str | None
    enqueued_at: datetime
    vt: datetime
    read_ct: int = 0
    group: str | None = None


class MemoryQueue:
    """The messages of one queue, and what became of them.

    Attributes:
        config: its settings.
        messages: what is in it, by id.
        archived: what was moved to the archive, oldest first.
        dead: its dead-letter queue, by the ids there, oldest first.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.messages: dict[TaskId, Message] = {}
        self.archived: list[Message] = []
        self.dead: dict[TaskId, Message] = {}
        self._groups = Groups(self.messages)
        self._ids = itertools.count(1)
        self._dead_ids = itertools.count(1)
        self._keys: dict[str, TaskId] = {}
        self._expiring: list[tuple[float, str]] = []
        # May hold entries whose message is gone or has another vt by now; they are skipped.
        self._by_visibility: list[tuple[datetime, TaskId]] = []

    def add(self, payload: str, headers: str | None, due: datetime | timedelta) -> TaskId:
        """Put a message into the queue, visible at a moment or after a delay; return its id."""
        now = datetime.now(UTC)
        vt = max(due, now) if isinstance(due, datetime) else now + due
        message = Message(TaskId(next(self._ids)), payload, headers, now, vt)
        self.messages[message.id] = message
        if self.config.ordered:
            message.group = self._groups.add(message.id, headers)
        self.show(message, message.vt)
        return message.id

    def add_once(
        self, payload: str, headers: str | None, due: datetime | timedelta, key: str, window: timedelta
    ) -> TaskId:
        """Put a message into the queue unless its key is taken; return the id of the one that has the key."""
        now = monotonic()
        while self._expiring and self._expiring[0][0] <= now:
            del self._keys[heapq.heappop(self._expiring)[1]]
        if key in self._keys:
            return self._keys[key]
        self._keys[key] = self.add(payload, headers, due)
        heapq.heappush(self._expiring, (now + window.total_seconds(), key))
        return self._keys[key]

    def add_dead(self, payload: str, headers: str | None) -> TaskId:
        """Put a message into the dead-letter queue; return its id there."""
        now = datetime.now(UTC)
        message = Message(TaskId(next(self._dead_ids)), payload, headers, now, now)
        self.dead[message.id] = message
        return message.id

    def show(self, message: Message, vt: datetime) -> None:
        """Make a message visible from ``vt`` on."""
        message.vt = vt
        heapq.heappush(self._by_visibility, (vt, message.id))

    def remove(self, message: Message) -> None:
        """Take a message out of the queue; the next one of its group is visible anew, if it is visible."""
        del self.messages[message.id]
        if message.group is not None and (head := self._groups.head(message.group)) is not None:
            now = datetime.now(UTC)
            if self.messages[head].vt <= now:
                self.show(self.messages[head], now)

    def visible(self, limit: int) -> Iterator[Message]:
        """Take up to ``limit`` visible messages, oldest visibility first; each must be shown anew.

        What is not the head of its group is passed over: it is shown again when it is.
        """
        now = datetime.now(UTC)
        while limit and self._by_visibility and self._by_visibility[0][0] <= now:
            vt, message_id = heapq.heappop(self._by_visibility)
            message = self.messages.get(message_id)
            if (
                message is not None
                and message.vt == vt
                and (message.group is None or self._groups.head(message.group) == message_id)
            ):
                limit -= 1
                yield message


class MemoryStore:
    """A `MemoryQueue` as a store of messages to claim and settle."""

    def __init__(self, queue: MemoryQueue) -> None:
        self._queue = queue
        self._timeout = queue.config.visibility_timeout
        self._wake: Callable[[], None] = _nobody

    async def open(self, wake: Callable[[], None], load: Callable[[], float]) -> None:  # noqa: ARG002 - the port
        """Nothing to open; the next of a group is claimed as soon as its head has gone."""
        if self._queue.config.ordered:
            self._wake = wake

    async def close(self) -> None:
        """Nothing to close."""

    async def claim(self, limit: int) -> Claimed:
        """Lease visible messages."""
        expires = monotonic() + self._timeout.total_seconds()
        claims = []
        for message in self._queue.visible(limit):
            self._queue.show(message, datetime.now(UTC) + self._timeout)
            message.read_ct += 1
            claims.append(
                Claim(
                    message.id,
                    Attempt(message.read_ct),
                    message.vt,
                    expires,
                    message.payload,
                    message.headers,
                    message.enqueued_at,
                )
            )
        return Claimed(claims, None if claims else self._queue.config.poll_interval.total_seconds())

    async def extend(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Lease the claims for a whole visibility timeout from now."""
        kept = set()
        for claim in claims:
            if (message := self._ours(claim)) is not None:
                self._queue.show(message, datetime.now(UTC) + self._timeout)
                claim.vt = message.vt
                claim.expires = monotonic() + self._timeout.total_seconds()
                if claim.task is not None:
                    claim.task.visible_until = claim.vt
                kept.add(claim.id)
        return kept

    async def finish(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Delete or archive handled messages."""
        done = set()
        for claim in claims:
            if (message := self._ours(claim)) is not None:
                self._queue.remove(message)
                if self._queue.config.on_success == "archive":
                    self._queue.archived.append(message)
                done.add(claim.id)
        self._wake()
        return done

    async def give_back(self, returns: Sequence[GiveBack]) -> AbstractSet[TaskId]:
        """Make messages visible again."""
        done = set()
        for item in returns:
            if (message := self._ours(item.claim)) is not None:
                message.read_ct -= item.refund
                self._queue.show(message, datetime.now(UTC) + item.delay)
                done.add(message.id)
        return done

    async def bury(self, burials: Sequence[Burial], worker: str) -> AbstractSet[TaskId]:
        """Give messages up, as the config says."""
        done = set()
        for burial in burials:
            if (message := self._ours(burial.claim)) is not None:
                self._queue.remove(message)
                if self._queue.config.dead_letter == "archive":
                    message.headers = self._headers(message, burial, worker)
                    self._queue.archived.append(message)
                elif self._queue.config.dead_letter == "queue":
                    self._queue.add_dead(message.payload, self._headers(message, burial, worker))
                done.add(message.id)
        self._wake()
        return done

    async def present(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        """Return the ids that are still in the queue."""
        return {claim.id for claim in claims if claim.id in self._queue.messages}

    def _headers(self, message: Message, burial: Burial, worker: str) -> str:
        """Return a message's own headers and those that tell why it is given up, as PGMQ's store does."""
        why = dead_letter_headers(
            reason=burial.reason.value,
            queue=self._queue.config.queue,
            message_id=message.id,
            attempts=message.read_ct,
            worker=worker,
            error=burial.error,
            now=datetime.now(UTC),
        )
        sent = {"x-dead-letter-enqueued-at": message.enqueued_at.isoformat()}
        return json.dumps({**headers_of(message.headers), **sent, **why})

    def _ours(self, claim: Claim) -> Message | None:
        message = self._queue.messages.get(claim.id)
        if message is None or message.read_ct != claim.read_ct or message.vt != claim.vt:
            return None
        return message


def _nobody() -> None:
    """Wake nobody."""
