"""Whatever several workers do to a queue, in whatever order: each store does as a simple model says.

The same machine drives the store on PGMQ's tables and the store in memory. Leases are an hour long, so no time
passes but by the rule that says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from apalis_pgmq import Config, DeadLetterReason
from apalis_pgmq.delivery import Burial, Claim, GiveBack, Store

from .bench import STORES, Bench, Headers, MemoryBench, PgMqBench

LEASE = timedelta(hours=1)
WORKER = st.integers(0, STORES - 1)
CHOICE = st.just(2**16 - 1) | st.integers(0, 2**16 - 1)
"""Bits that say which of the claims at hand a call is about."""


@dataclass
class Message:
    """What the model knows of a message.

    Attributes:
        payload: as it was sent.
        headers: as they were sent.
        read_ct: how often it has been claimed, less what was refunded.
        owner: the claim that may still touch it; None if there is none.
        is_visible: whether a claim would get it.
        before_claim: what it was before its last claim, as long as nothing was written since.
    """

    payload: str
    headers: Headers
    read_ct: int = 0
    owner: Claim | None = None
    is_visible: bool = True
    before_claim: "tuple[int, datetime, Claim | None, tuple[int, datetime, Claim | None] | None] | None" = (
        None
    )


class Machine(RuleBasedStateMachine):
    """Workers, each with all the claims it ever made: it may come late with any of them."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.messages: dict[int, Message] = {}
        self.dead: dict[int, tuple[Message, DeadLetterReason]] = {}
        self.claims: list[list[Claim]] = [[] for _ in range(STORES)]

    @initialize()
    def start_empty(self) -> None:
        self.bench.clear()
        for headers in (None, {}, {"k": "v"}, {"k": "w"}):
            self.send('"first"', headers, 1)

    # What happens.

    @rule(
        text=st.sampled_from(["1", '"text"', "[1, 2]"]),
        headers=st.sampled_from([{"k": "v"}, None, {}]),
        count=st.integers(1, 4),
    )
    def send(self, text: str, headers: Headers, count: int) -> None:
        for _ in range(count):
            message = self.bench.send(text, headers)
            assert message not in self.messages
            self.messages[message] = Message(text, headers)

    @rule(worker=WORKER, limit=st.integers(1, 4))
    def claim(self, worker: int, limit: int) -> None:
        before = self.bench.rows()
        claims = self.bench.run(self.bench.stores[worker].claim(limit)).claims
        visible = sorted(row.vt for row in before.values() if row.is_visible)
        assert len(claims) == min(limit, len(visible))
        # Oldest first.
        assert sorted(before[claim.id].vt for claim in claims) == visible[: len(claims)]
        for claim in claims:
            message = self.messages[claim.id]
            assert message.is_visible
            message.before_claim = (
                message.read_ct,
                before[claim.id].vt,
                message.owner,
                message.before_claim,
            )
            message.read_ct += 1
            message.owner = claim
            message.is_visible = False
            assert claim.read_ct == message.read_ct
            assert claim.payload == message.payload
            self.claims[worker].append(claim)

    @precondition(lambda self: any(self.claims))
    @rule(worker=WORKER, choice=CHOICE)
    def extend(self, worker: int, choice: int) -> None:
        store, chosen = self._choose(worker, choice)
        ours = self._ours(chosen)
        assert self.bench.run(store.extend(chosen)) == ours
        for message in ours:
            self._written(message)

    @precondition(lambda self: self.bench.loses_answers and any(self.claims))
    @rule(worker=WORKER, choice=CHOICE, carried_out=st.booleans())
    def extend_and_lose_the_answer(self, worker: int, choice: int, carried_out: bool) -> None:  # noqa: FBT001
        store, chosen = self._choose(worker, choice)
        ours = self._ours(chosen)
        known = {claim.id: (claim.vt, claim.expires, claim.unsure_vts) for claim in chosen}
        if carried_out:
            self.bench.run(store.extend(chosen))
        for claim in chosen:
            vt, expires, unsure_vts = known[claim.id]
            written = claim.vt if claim.id in ours and carried_out else vt + timedelta(minutes=7)
            claim.vt, claim.expires, claim.unsure_vts = vt, expires, (*unsure_vts, written)
        if carried_out:
            for message in ours:
                self._written(message)

    @precondition(lambda self: any(self.claims))
    @rule(worker=WORKER, choice=CHOICE)
    def finish(self, worker: int, choice: int) -> None:
        store, chosen = self._choose(worker, choice)
        ours = self._ours(chosen)
        assert self.bench.run(store.finish(chosen)) == ours
        for message in ours:
            del self.messages[message]

    @precondition(lambda self: any(self.claims))
    @rule(
        worker=WORKER, choice=CHOICE, delay=st.sampled_from([timedelta(0), LEASE]), refund=st.integers(0, 1)
    )
    def give_back(self, worker: int, choice: int, delay: timedelta, refund: int) -> None:
        store, chosen = self._choose(worker, choice)
        ours = self._ours(chosen)
        returns = [GiveBack(claim, delay, refund) for claim in chosen]
        assert self.bench.run(store.give_back(returns)) == ours
        for message in ours:
            self._written(message)
            self.messages[message].owner = None
            self.messages[message].read_ct -= refund
            self.messages[message].is_visible = not delay

    @precondition(lambda self: any(self.claims))
    @rule(worker=WORKER, choice=CHOICE, reason=st.sampled_from(DeadLetterReason))
    def bury(self, worker: int, choice: int, reason: DeadLetterReason) -> None:
        store, chosen = self._choose(worker, choice)
        ours = self._ours(chosen)
        burials = [Burial(claim, reason, ValueError("why")) for claim in chosen]
        assert self.bench.run(store.bury(burials, "w")) == ours
        for message in ours:
            self.dead[message] = (self.messages.pop(message), reason)

    @precondition(lambda self: any(self.claims))
    @rule(worker=WORKER, choice=CHOICE)
    def present(self, worker: int, choice: int) -> None:
        store, chosen = self._choose(worker, choice)
        expected = {claim.id for claim in chosen if claim.id in self.messages}
        assert self.bench.run(store.present(chosen)) == expected

    @precondition(lambda self: self.messages)
    @rule(choice=CHOICE, hours=st.integers(2, 4))
    def time_passes_for_one(self, choice: int, hours: int) -> None:
        """Its lease, if there is one, runs out: for everybody who knows its ``vt``."""
        message = self._any(choice)
        by = hours * LEASE
        row = self.bench.rows()[message]
        self.bench.write(message, row.read_ct, row.vt - by)
        for claim in [claim for claims in self.claims for claim in claims if claim.id == message]:
            claim.vt -= by
            claim.expires -= by.total_seconds()
            claim.unsure_vts = tuple(vt - by for vt in claim.unsure_vts)
        self.messages[message].is_visible = True
        self.messages[message].before_claim = _earlier(self.messages[message].before_claim, by)

    @precondition(lambda self: self.messages)
    @rule(choice=CHOICE, visible=st.booleans())
    def somebody_else_sets_the_vt(self, choice: int, visible: bool) -> None:  # noqa: FBT001
        """As ``pgmq.set_vt`` does: nobody owns it any more."""
        message = self._any(choice)
        vt = datetime.now(UTC) + (-LEASE if visible else LEASE)
        self.bench.write(message, self.messages[message].read_ct, vt)
        self._written(message)
        self.messages[message].owner = None
        self.messages[message].is_visible = visible

    @precondition(lambda self: any(message.before_claim for message in self.messages.values()))
    @rule(choice=CHOICE)
    def a_crash_loses_a_claim(self, choice: int) -> None:
        """A claim does not wait for the disk: after a crash the message may be what it was before."""
        candidates = [id_ for id_, message in self.messages.items() if message.before_claim is not None]
        message = candidates[choice % len(candidates)]
        model = self.messages[message]
        assert model.before_claim is not None
        read_ct, vt, owner, before_that = model.before_claim
        self.bench.write(message, read_ct, vt)
        model.read_ct, model.owner, model.before_claim = read_ct, owner, before_that
        # It was visible, or it would not have been claimed.
        model.is_visible = True

    # What always holds.

    @invariant()
    def the_queue_is_as_the_model_says(self) -> None:
        rows = self.bench.rows()
        assert rows.keys() == self.messages.keys()
        for message, model in self.messages.items():
            row = rows[message]
            assert row.read_ct == model.read_ct
            assert row.is_visible == model.is_visible
            assert (row.payload, row.headers) == (model.payload, model.headers)
            if model.owner is not None:
                assert model.owner.read_ct == row.read_ct
                assert row.vt in (model.owner.vt, *model.owner.unsure_vts)

    @invariant()
    def dead_letters_are_whole(self) -> None:
        dead = {headers["x-dead-letter-id"]: (payload, headers) for payload, headers in self.bench.dead()}
        assert len(self.bench.dead()) == len(dead) == len(self.dead)
        for message, (model, reason) in self.dead.items():
            payload, headers = dead[message]
            assert payload == model.payload
            assert headers["x-dead-letter-reason"] == reason.value
            assert headers["x-dead-letter-attempts"] == model.read_ct
            assert (model.headers or {}).items() <= headers.items()

    # The model's own reckoning.

    def _choose(self, worker: int, choice: int) -> tuple[Store, list[Claim]]:
        """Of a worker that has claims, at least one, and at most one of each message, as a consumer holds it."""
        able = [number for number in range(STORES) if self.claims[number]]
        worker = able[worker % len(able)]
        latest_first = list(reversed(self.claims[worker]))[:16]
        chosen: dict[int, Claim] = {}
        for number, claim in enumerate(latest_first):
            if choice >> number & 1:
                chosen.setdefault(claim.id, claim)
        return self.bench.stores[worker], list(chosen.values()) or latest_first[:1]

    def _ours(self, claims: list[Claim]) -> set[int]:
        return {
            claim.id
            for claim in claims
            if claim.id in self.messages and self.messages[claim.id].owner is claim
        }

    def _written(self, message: int) -> None:
        """What was written durably is behind the last claim: no crash loses that any more."""
        self.messages[message].is_visible = False
        self.messages[message].before_claim = None

    def _any(self, choice: int) -> int:
        return list(self.messages)[choice % len(self.messages)]


def _earlier(before: Any, by: timedelta) -> Any:
    if before is None:
        return None
    read_ct, vt, owner, before_that = before
    return (read_ct, vt - by, owner, _earlier(before_that, by))


def _run(bench: Bench, examples: int) -> None:
    run_state_machine_as_test(
        lambda: Machine(bench),
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


@pytest.fixture
def config(queue: str) -> Config:
    return Config(queue, visibility_timeout=LEASE)


@pytest.fixture
def memory(config: Config) -> Iterator[MemoryBench]:
    bench = MemoryBench(config)
    yield bench
    bench.close()


@pytest.fixture
def pgmq(pgmq_url: str, config: Config) -> Iterator[PgMqBench]:
    bench = PgMqBench(pgmq_url, config)
    yield bench
    bench.close()


def test_the_store_in_memory(memory: MemoryBench) -> None:
    _run(memory, 300)


def test_the_store_on_pgmq(pgmq: PgMqBench) -> None:
    _run(pgmq, 100)
