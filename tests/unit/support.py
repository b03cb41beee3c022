"""What the unit tests share: a message, short settings, waiting with a deadline, a store that can fail."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from apalis_pgmq import BackendUnavailableError, Config, Event, MemoryBackend, TaskId, Worker, WorkerBuilder
from apalis_pgmq.core import ApalisError
from apalis_pgmq.delivery import Burial, Claim, Claimed, GiveBack, QueueConsumer
from apalis_pgmq.memory._store import MemoryStore

PATIENCE = 20.0
"""Seconds until a test that waits gives up: far more than is needed, for a busy machine."""


@dataclass
class Email:
    to: str


def settings(*, visibility_timeout: float = 30.0, poll_interval: float = 0.005, **others: Any) -> Config:
    return Config("emails", visibility_timeout=visibility_timeout, poll_interval=poll_interval, **others)


def memory(**others: Any) -> MemoryBackend[Email]:
    return MemoryBackend(settings(**others), Email)


def emails(count: int) -> list[Email]:
    return [Email(str(number)) for number in range(count)]


def push_raw(backend: MemoryBackend[Any], payload: str) -> TaskId:
    """Send as a producer in another language may, past the codec."""
    return backend._queue.add(payload, None, timedelta(0))


def steal(backend: MemoryBackend[Any], message_id: TaskId) -> None:
    """Claim a message for somebody else, as happens once its lease has run out."""
    message = backend._queue.messages[message_id]
    message.read_ct += 1
    backend._queue.show(message, message.vt + timedelta(hours=1))


async def eventually(condition: Callable[[], object], within: float = PATIENCE) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.002)


async def within_patience(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await event.wait()


@asynccontextmanager
async def running(*workers: Worker[Any]) -> AsyncIterator[None]:
    """Run workers for the length of a block, then stop them and see that they end well."""
    runs = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
        for worker in workers:
            worker.stop()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*runs)
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)


async def run_until_empty(backend: MemoryBackend[Any], worker: Worker[Any]) -> None:
    async with running(worker):
        await eventually(lambda: not backend.messages)


class Events(list[Event]):
    """Every event that a worker told, to be given to `WorkerBuilder.on_event`."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, *kinds: type[Event]) -> list[Any]:
        return [event for event in self if isinstance(event, kinds)]

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self]


def build(backend: Any, handler: Callable[..., Any], *, concurrency: int = 10) -> Worker[Any]:
    return WorkerBuilder("worker").backend(backend).concurrency(concurrency).build(handler)


def away() -> BackendUnavailableError:
    return BackendUnavailableError("no route to host")


def refused() -> ApalisError:
    return ApalisError("permission denied")


class FaultyStore(MemoryStore):
    """A store in memory whose statements fail as they are told.

    ``before[name]`` and ``after[name]`` hold what the next calls of a statement raise, before or after
    they are carried out; ``always[name]`` is raised by every call.
    """

    def __init__(self, backend: MemoryBackend[Any]) -> None:
        super().__init__(backend._queue)
        self.before: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self.after: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self.always: dict[str, Exception] = {}
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.closed = False

    async def _carry_out(self, name: str, statement: Callable[[], Any]) -> Any:
        self.calls[name] += 1
        await asyncio.sleep(0)
        if name in self.always:
            raise self.always[name]
        if self.before[name]:
            raise self.before[name].popleft()
        result = await statement()
        if self.after[name]:
            raise self.after[name].popleft()
        return result

    async def open(self, wake: Callable[[], None], load: Callable[[], float]) -> None:
        inner = super().open
        await self._carry_out("open", lambda: inner(wake, load))

    async def close(self) -> None:
        self.closed = True

    async def claim(self, limit: int) -> Claimed:
        inner = super().claim
        return await self._carry_out("claim", lambda: inner(limit))

    async def extend(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        inner = super().extend
        return await self._carry_out("extend", lambda: inner(claims))

    async def finish(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        inner = super().finish
        return await self._carry_out("finish", lambda: inner(claims))

    async def give_back(self, returns: Sequence[GiveBack]) -> AbstractSet[TaskId]:
        inner = super().give_back
        return await self._carry_out("give_back", lambda: inner(returns))

    async def bury(self, burials: Sequence[Burial], worker: str) -> AbstractSet[TaskId]:
        inner = super().bury
        return await self._carry_out("bury", lambda: inner(burials, worker))

    async def present(self, claims: Sequence[Claim]) -> AbstractSet[TaskId]:
        inner = super().present
        return await self._carry_out("present", lambda: inner(claims))


class FaultyBackend(MemoryBackend[Email]):
    """A queue in memory behind a `FaultyStore`."""

    def __init__(self, **others: Any) -> None:
        super().__init__(settings(**others), Email)
        self.store = FaultyStore(self)

    def poll(
        self,
        *,
        worker: str = "worker",
        capacity: int = 10,
        on_event: Callable[[Event], None] | None = None,
        on_lost: Callable[[TaskId], None] | None = None,
    ) -> QueueConsumer[Email]:
        consumer = QueueConsumer(
            self.store,
            self._codec,
            self.config,
            worker=worker,
            capacity=capacity,
            on_event=on_event,
            on_lost=on_lost,
        )
        self._consumers.add(consumer)
        return consumer
