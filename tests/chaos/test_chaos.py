"""Four worker processes under random faults: nothing is lost, nobody works on what is not theirs.

``pytest tests/chaos`` is the short form; ``pytest tests/chaos --chaos-seconds 60 --chaos-seed 7`` lasts longer and
draws the faults from that seed. The seed is printed.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from apalis_pgmq import Config, PgMqBackend, PgMqUnavailableError
from apalis_pgmq.embedded import EmbeddedServer

from .judge import Delivery, Fault, Removal, Times, deliveries, judge
from .proxy import Proxy

WORKERS = 4
QUEUE = "chaos"
VISIBILITY_TIMEOUT = 3.0
SILENCE_FOUND_OUT = 1.5
"""Seconds after which a worker takes a silent socket for a broken one."""
REST = 60.0
"""Seconds within which the queue must be empty once the faults have ended."""
SCRIPT = Path(__file__).with_name("worker.py")

# One pass through a shuffled deck takes some five seconds.
NO_CRASH = ("kill", "kill", "terminate", "terminate", "terminate", "silence", "silence", "silence", "stop")
EVERYTHING = (*NO_CRASH, "crash")
# None of these is a reason to deliver a message twice.
HARMLESS = ("terminate", "terminate", "stop")

# What leaves the queue is noted by the same transaction.
NOTE_REMOVALS = f"""
CREATE TABLE removals (msg_id bigint, read_ct int, at timestamptz);
CREATE TABLE effects (id bigint);
CREATE FUNCTION note_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO removals VALUES (OLD.msg_id, OLD.read_ct, clock_timestamp());
    RETURN NULL;
END $$;
CREATE TRIGGER note_removal AFTER DELETE ON pgmq.q_{QUEUE} FOR EACH ROW EXECUTE FUNCTION note_removal();
"""


class Slot:
    """One of the workers: a process, replaced when it ends, behind a proxy of its own."""

    def __init__(self, number: int, proxy: Proxy, directory: Path, on_success: str, kind: str) -> None:
        self.number = number
        self.proxy = proxy
        self.busy = False
        self._directory = directory
        self._on_success = on_success
        self._kind = kind
        self._incarnation = 0
        self._process: asyncio.subprocess.Process
        self.deliveries: list[Delivery] = []

    @property
    def owner(self) -> str:
        """The name of the present process."""
        return f"{self.number}-{self._incarnation}"

    @property
    def ledger(self) -> Path:
        return self._directory / f"{self.owner}.ledger"

    @property
    def log(self) -> Path:
        return self._directory / f"{self.owner}.log"

    async def start(self) -> None:
        self._incarnation += 1
        arguments = (
            self.proxy.url,
            QUEUE,
            self.owner,
            self._on_success,
            self._kind,
            str(VISIBILITY_TIMEOUT),
            str(SILENCE_FOUND_OUT),
            str(self.ledger),
        )
        with self.log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, str(SCRIPT), *arguments, stdout=log, stderr=log
            )

    def check(self) -> None:
        """No worker ends by itself."""
        assert self._process.returncode is None, f"worker {self.owner} ended:\n{self.log.read_text()}"

    async def kill(self) -> Fault:
        self.check()
        self._process.kill()
        killed = time.time()
        await self._process.wait()
        self._read(time.time())
        return Fault("kill", self.owner, killed, time.time())

    async def stop(self) -> None:
        """Stop it in the orderly way: what runs is finished and stored."""
        async with asyncio.timeout(REST):
            while "started" not in self.log.read_text():
                self.check()
                await asyncio.sleep(0.02)
            self._process.send_signal(signal.SIGTERM)
            code = await self._process.wait()
        assert code == 0, f"worker {self.owner} ended with {code}:\n{self.log.read_text()}"
        self._read(time.time())

    async def end(self) -> None:
        """Leave no process behind, whatever has happened."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def _read(self, died: float) -> None:
        if self.ledger.exists():
            lines = self.ledger.read_text().splitlines()
            self.deliveries += deliveries(lines, self.owner, died)


class Chaos:
    """The faults, one after the other, as the seed says."""

    def __init__(self, seed: int, deck: tuple[str, ...], server: EmbeddedServer, slots: list[Slot]) -> None:
        self._deck = deck
        self._random = random.Random(seed)
        self._server = server
        self._slots = slots
        self.faults: list[Fault] = []
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Cause faults for that long, and see those to their end that last for a while."""
        ends = time.monotonic() + seconds
        deck: list[str] = []
        async with asyncio.TaskGroup() as lasting:
            while time.monotonic() < ends:
                await asyncio.sleep(self._random.uniform(0.2, 0.8))
                if not deck:
                    deck = self._random.sample(self._deck, len(self._deck))
                kind = deck.pop()
                slot = self._random.choice(self._slots)
                if kind == "terminate":
                    await self._terminate()
                elif kind == "crash":
                    await self._crash()
                elif slot.busy:
                    continue
                else:
                    slot.busy = True
                    lasting.create_task(self._hit(kind, slot))
                self.counts[kind] += 1
                for one in self._slots:
                    if not one.busy:
                        one.check()

    async def _hit(self, kind: str, slot: Slot) -> None:
        if kind == "kill":
            self.faults.append(await slot.kill())
            await slot.start()
        elif kind == "stop":
            await slot.stop()
            await slot.start()
        else:
            await self._silence(slot)
        slot.busy = False

    async def _silence(self, slot: Slot) -> None:
        ending = self._random.choice(("heals", "is cut", "never ends"))
        # Half of them make leases run out, while what was claimed runs on.
        outlasts_leases = self._random.random() < 0.5
        seconds = VISIBILITY_TIMEOUT * (
            self._random.uniform(1.2, 1.6) if outlasts_leases else self._random.uniform(0.1, 0.9)
        )
        new_ones_too = outlasts_leases or self._random.random() < 0.3
        self.counts[f"silence that {ending}"] += 1
        start = time.time()
        slot.proxy.silence(new_ones_too=new_ones_too)
        await asyncio.sleep(seconds)
        if ending == "heals":
            slot.proxy.heal()
        elif ending == "is cut":
            slot.proxy.cut()
        else:
            # What is connected stays silent for ever; what connects from now on is not concerned.
            slot.proxy.swallow_new_ones(swallow=False)
        # The settling connection is used at every third of the visibility timeout, and what was found out then
        # takes effect by the next.
        aftermath = 2 * VISIBILITY_TIMEOUT / 3 + 2 * SILENCE_FOUND_OUT
        self.faults.append(Fault("silence", slot.owner, start, time.time() + aftermath))

    async def _terminate(self) -> None:
        async with _connected(self._server.url) as connection:
            rows = await connection.fetch(
                "SELECT pid FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid"
            )
            count = self._random.randint(1, 4)
            victims = self._random.sample(rows, min(count, len(rows)))
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid",
                [row["pid"] for row in victims],
            )

    async def _crash(self) -> None:
        start = time.time()
        await asyncio.to_thread(self._server.restart, "immediate")
        self.faults.append(Fault("crash", None, start, time.time()))


class Producer:
    """Sends messages all the while, through a proxy that is cut now and then."""

    def __init__(self, seed: int, backend: PgMqBackend[float], proxy: Proxy) -> None:
        self._random = random.Random(f"producer {seed}")
        self._backend = backend
        self._proxy = proxy
        self.promised: list[int] = []
        self.refused = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            if self._random.random() < 0.02:
                self._proxy.cut()
            await self.push(20)

    async def push(self, count: int) -> None:
        try:
            self.promised += await self._backend.push_many(self._seconds() for _ in range(count))
        except PgMqUnavailableError:
            # Stored or not, nobody knows. What was stored must be handled like everything else.
            self.refused += 1

    def _seconds(self) -> float:
        chance = self._random.random()
        if chance < 0.004:
            return VISIBILITY_TIMEOUT * self._random.uniform(1.5, 2.0)
        if chance < 0.05:
            return self._random.uniform(0.05, 0.3)
        return self._random.uniform(0.0, 0.02)


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, timeout=30)
    try:
        yield connection
    finally:
        connection.terminate()


@contextlib.asynccontextmanager
async def _started(server: EmbeddedServer) -> AsyncIterator[EmbeddedServer]:
    await asyncio.to_thread(server.start)
    try:
        yield server
    finally:
        await asyncio.to_thread(server.stop)


async def _until_empty(url: str, slots: list[Slot]) -> float:
    started = time.monotonic()
    async with _connected(url) as connection:
        while left := await connection.fetchval(f"SELECT count(*) FROM pgmq.q_{QUEUE}"):
            for slot in slots:
                slot.check()
            assert time.monotonic() < started + REST, f"{left} messages are still in the queue"
            await asyncio.sleep(0.1)
    return time.monotonic() - started


@dataclass
class Aftermath:
    """What is there to look at when all is over."""

    producer: Producer
    chaos: Chaos
    deliveries: list[Delivery]
    removals: list[Removal]
    archived: int
    has_dead_letters: bool
    effects: list[int]
    rest: float


async def storm(
    share: float, seconds: float, seed: int, deck: Sequence[str], directory: Path, *, kind: str = "plain"
) -> Aftermath:
    """Send messages and cause faults for a time, then wait until the queue is empty."""
    on_success = "archive" if seed % 2 else "delete"
    config = Config(QUEUE, visibility_timeout=VISIBILITY_TIMEOUT)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(_started(EmbeddedServer(settings={"fsync": "on"})))
        proxy = await stack.enter_async_context(Proxy(server.url))
        backend = await stack.enter_async_context(PgMqBackend(proxy.url, config, float))
        async with _connected(server.url) as connection:
            await connection.execute(NOTE_REMOVALS)
        producer = Producer(seed, backend, proxy)
        # So that there are 10,000 in all, in the short form too.
        await producer.push(int(share * 10_000))
        slots = []
        for number in range(WORKERS):
            own = await stack.enter_async_context(Proxy(server.url))
            slot = Slot(number, own, directory, on_success, kind)
            await slot.start()
            stack.push_async_callback(slot.end)
            slots.append(slot)

        chaos = Chaos(seed, deck, server, slots)
        producing = asyncio.create_task(producer.run())
        try:
            await chaos.run(seconds * share)
        finally:
            producing.cancel()
            await asyncio.gather(producing, return_exceptions=True)
        rest = await _until_empty(server.url, slots)
        for slot in slots:
            await slot.stop()

        async with _connected(server.url) as connection:
            rows = await connection.fetch(
                "SELECT msg_id, read_ct, extract(epoch FROM at)::float AS at FROM removals"
            )
            archived = await connection.fetchval(f"SELECT count(*) FROM pgmq.a_{QUEUE}")
            assert archived == (len(rows) if on_success == "archive" else 0)
            dead = await connection.fetchval(f"SELECT to_regclass('pgmq.q_{QUEUE}_dlq')")
            effects = await connection.fetch("SELECT id FROM effects")
    return Aftermath(
        producer,
        chaos,
        [delivery for slot in slots for delivery in slot.deliveries],
        [Removal(*row) for row in rows],
        archived,
        dead is not None,
        [row[0] for row in effects],
        rest,
    )


@pytest.mark.skipif(
    bool(os.environ.get("APALIS_PGMQ_URL")), reason="a server that is not ours is not crashed"
)
@pytest.mark.chaos_length
@pytest.mark.parametrize(
    "share", [pytest.param(0.8, id="all faults"), pytest.param(0.2, id="harmless faults")]
)
async def test_nothing_is_lost_and_nobody_works_on_what_is_not_theirs(
    share: float,
    chaos_seconds: float,
    chaos_seed: int,
    tmp_path: Path,
    say: Callable[[str], None],
) -> None:
    harmless = share < 0.5
    # A crash is a reason to deliver much of what is there again; without it the judge is more strict.
    deck = HARMLESS if harmless else NO_CRASH if chaos_seed % 3 == 0 else EVERYTHING
    say(f"\nchaos: --chaos-seconds {chaos_seconds:g} --chaos-seed {chaos_seed}")
    after = await storm(share, chaos_seconds, chaos_seed, deck, tmp_path)
    verdict = judge(
        promised=after.producer.promised,
        deliveries=after.deliveries,
        removals=after.removals,
        faults=after.chaos.faults,
        times=Times(VISIBILITY_TIMEOUT),
    )
    say(
        f"chaos: seed {chaos_seed}: {len(after.removals)} messages ({after.archived} archived), "
        f"{len(after.deliveries)} deliveries, faults {dict(after.chaos.counts)}, delivered again "
        f"{dict(verdict.again)}, overlaps {verdict.overlaps}, {after.producer.refused} pushes refused, "
        f"at rest after {after.rest:.1f} s",
    )
    assert not verdict.violations, "\n".join(
        [f"seed {chaos_seed}", *verdict.violations[:20], *map(str, after.chaos.faults)]
    )
    if harmless:
        assert len(after.deliveries) == len(after.removals)
    assert not after.has_dead_letters
    assert len(after.removals) >= len(after.producer.promised)
    # On a busy machine one of them may come too late to get any.
    assert len({delivery.owner.partition("-")[0] for delivery in after.deliveries}) > 1


@pytest.mark.skipif(
    bool(os.environ.get("APALIS_PGMQ_URL")), reason="a server that is not ours is not crashed"
)
@pytest.mark.chaos_length
async def test_the_effects_of_transactional_handlers_happen_exactly_once(
    chaos_seconds: float, chaos_seed: int, tmp_path: Path, say: Callable[[str], None]
) -> None:
    say(f"\nchaos: --chaos-seconds {chaos_seconds:g} --chaos-seed {chaos_seed}")
    after = await storm(0.4, chaos_seconds, chaos_seed, EVERYTHING, tmp_path, kind="transaction")
    removed = sorted(removal.message for removal in after.removals)
    say(
        f"chaos: seed {chaos_seed}: {len(removed)} messages in transactions, {len(after.deliveries)} deliveries, "
        f"{len(after.effects)} effects, faults {dict(after.chaos.counts)}, at rest after {after.rest:.1f} s"
    )
    assert sorted(after.effects) == removed
    assert len(set(removed)) == len(removed)
    assert set(after.producer.promised) <= set(removed)
    assert not after.has_dead_letters
