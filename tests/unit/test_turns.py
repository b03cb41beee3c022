"""Whose turn it is when a message is announced to many idle workers."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apalis_pgmq.pgmq import _turns
from apalis_pgmq.pgmq._turns import DRAINED, HERE, LOOK, Turn, visible_in

STEP = 0.05
COMPANY = 100.0
XID = st.integers(0, 2**64 - 1)


class Timer:
    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call = call
        self.is_over = False

    def cancel(self) -> None:
        self.is_over = True


class Clock:
    """An event loop's clock, that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        assert delay > 0
        timer = Timer(self.now + delay, call)
        self.timers.append(timer)
        return timer

    def go(self, seconds: float) -> None:
        self.now += seconds
        for timer in self.timers:
            if not timer.is_over and timer.due <= self.now + 1e-9:
                timer.is_over = True
                timer.call()

    @property
    def is_quiet(self) -> bool:
        return all(timer.is_over for timer in self.timers)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_turns.asyncio, "get_running_loop", lambda: clock)
    monkeypatch.setattr(_turns, "monotonic", lambda: clock.now)
    return clock


class One:
    """A worker that waits for its turn."""

    def __init__(self, rank: int | None = None, load: float = 0.0) -> None:
        self.woken = 0
        self.load = load
        self.turn = Turn(self._wake, lambda: self.load, company_lasts=COMPANY)
        self.turn.rank = rank
        self.turn.claimed(STEP / 2)

    def _wake(self) -> None:
        self.woken += 1


def steps_until_woken(one: One, clock: Clock) -> float:
    steps = 0.0
    while not one.woken:
        assert steps < 100
        clock.go(STEP / 2)
        steps += 0.5
    return steps


@pytest.mark.parametrize("rank", [None, 0])
@pytest.mark.parametrize("load", [0.0, 1.0])
def test_whoever_is_alone_answers_at_once(clock: Clock, rank: int | None, load: float) -> None:
    one = One(rank, load)
    one.turn.announced("7")
    assert one.woken == 1
    one.turn.announced("8")
    assert one.woken == 2
    assert clock.is_quiet


@pytest.mark.parametrize("rank", [1, 2, 5, 20])
def test_each_rank_waits_one_step_longer(clock: Clock, rank: int) -> None:
    one = One(rank)
    one.turn.announced("7")
    assert steps_until_woken(one, clock) == rank
    assert one.woken == 1


@pytest.mark.parametrize("rank", [21, 63])
def test_the_last_come_together(clock: Clock, rank: int) -> None:
    one = One(rank)
    one.turn.announced("7")
    assert steps_until_woken(one, clock) == 20


def test_who_has_no_rank_among_others_comes_last(clock: Clock) -> None:
    one = One(None)
    one.turn.told(HERE)
    one.turn.announced("7")
    assert steps_until_woken(one, clock) == 20


def test_further_announcements_do_not_put_the_turn_off(clock: Clock) -> None:
    one = One(2)
    one.turn.announced("7")
    clock.go(STEP)
    one.turn.announced("8")
    clock.go(STEP)
    assert one.woken == 1
    clock.go(10)
    assert one.woken == 1


@pytest.mark.parametrize(("claim", "step"), [(0.0001, 0.01), (0.01, 0.03), (3.0, 0.05)])
def test_a_step_is_three_claims_within_bounds(clock: Clock, claim: float, step: float) -> None:
    one = One(1)
    one.turn.claimed(claim)
    one.turn.announced("7")
    clock.go(step * 0.99)
    assert not one.woken
    clock.go(step * 0.02)
    assert one.woken == 1


def test_the_proof_that_all_was_taken_cancels(clock: Clock) -> None:
    one = One(1)
    for number in ("7", "9", "12"):
        one.turn.announced(number)
    one.turn.told(f"{DRAINED}- 9:15:10,11")
    assert not one.woken  # 9 is below xmax and not running: visible
    assert clock.is_quiet
    clock.go(10)
    assert not one.woken


@pytest.mark.parametrize(
    "snapshot", ["9:9:", "9:12:", "8:15:9", "8:15:9,10", "7:20:12", "13:12", "", "nonsense", "9:15:10,"]
)
def test_no_proof_cancels_nothing(clock: Clock, snapshot: str) -> None:
    one = One(1)
    for number in ("7", "9", "12"):
        one.turn.announced(number)
    one.turn.told(f"{DRAINED}- {snapshot}")
    clock.go(STEP)
    assert one.woken == 1


@pytest.mark.parametrize("text", ["", "9:15:", "drained", "hers", "DRAINED - 100:100:", "drained 100:100:"])
def test_other_talk_cancels_nothing(clock: Clock, text: str) -> None:
    one = One(1)
    one.turn.announced("7")
    one.turn.told(text)
    clock.go(STEP)
    assert one.woken == 1


@pytest.mark.parametrize("payload", ["", "x", "-7", "7.0", " 7", "9" * 5000])
@pytest.mark.parametrize("number_comes", ["before", "after", "never"])
def test_an_announcement_without_a_number_is_never_cancelled(
    clock: Clock, payload: str, number_comes: str
) -> None:
    one = One(1)
    if number_comes == "before":
        one.turn.announced("7")
    one.turn.announced(payload)
    if number_comes == "after":
        one.turn.announced("7")
    one.turn.told(f"{DRAINED}- 100:100:")
    clock.go(STEP)
    assert one.woken == 1


def test_more_announcements_than_are_kept_are_never_cancelled(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_turns, "_MOST_PENDING", 3)
    one = One(1)
    for number in range(4):
        one.turn.announced(str(number))
    one.turn.told(f"{DRAINED}- 100:100:")
    clock.go(STEP)
    assert one.woken == 1


def test_each_round_of_announcements_is_proven_anew(clock: Clock) -> None:
    one = One(1)
    one.turn.announced("")
    clock.go(STEP)
    assert one.woken == 1
    one.turn.announced("200")
    one.turn.told(f"{DRAINED}- 300:300:")
    clock.go(10)
    assert one.woken == 1
    one.turn.announced("400")
    one.turn.told(f"{DRAINED}- 300:300:")
    clock.go(STEP)
    assert one.woken == 2
    one.turn.announced("250")
    one.turn.told(f"{DRAINED}- 300:300:")
    clock.go(10)
    assert one.woken == 2


def test_the_busy_let_the_idle_go_first(clock: Clock) -> None:
    busy, half, idle = One(0, load=1.0), One(0, load=0.5), One(1)
    busy.turn.told(HERE)
    half.turn.told(HERE)
    for one in (busy, half, idle):
        one.turn.announced("7")
    assert steps_until_woken(idle, clock) == 1
    assert (half.woken, busy.woken) == (0, 0)
    assert steps_until_woken(half, clock) == 5 - 1
    assert steps_until_woken(busy, clock) == 10 - 5


def test_nobody_waits_longer_than_the_last(clock: Clock) -> None:
    one = One(15, load=1.0)
    one.turn.announced("7")
    assert steps_until_woken(one, clock) == 20


def test_who_has_its_hands_full_has_the_next_one_look(clock: Clock) -> None:
    one = One(1)
    one.turn.told(f"{LOOK}7")
    clock.go(STEP)
    assert one.woken == 1
    one.turn.told(f"{LOOK}9")
    one.turn.told(f"{DRAINED}- 10:10:")
    clock.go(10)
    assert one.woken == 1


@pytest.mark.parametrize("rank", [1, 3])
def test_each_looks_a_little_after_a_message_is_due_of_which_it_was_told(clock: Clock, rank: int) -> None:
    one = One(rank)
    one.turn.told(f"{DRAINED}7.5 10:10:")
    clock.go(7.5 + rank * STEP)
    assert not one.woken
    clock.go(STEP)
    assert one.woken == 1
    assert clock.is_quiet


@pytest.mark.parametrize("newer", ["-", "20.25"])
def test_what_is_told_later_counts(clock: Clock, newer: str) -> None:
    one = One(1)
    one.turn.told(f"{DRAINED}7.5 10:10:")
    clock.go(7.5)
    one.turn.told(f"{DRAINED}{newer} 11:11:")
    clock.go(10)
    assert not one.woken
    clock.go(30)
    assert one.woken == (newer != "-")


@pytest.mark.parametrize("due", ["", "nan", "inf", "-1", "1e3", "12345", "x"])
def test_what_is_no_time_is_not_waited_for(clock: Clock, due: str) -> None:
    one = One(1)
    one.turn.told(f"{DRAINED}{due} 10:10:")
    assert clock.is_quiet


def test_close_wakes_nobody(clock: Clock) -> None:
    one = One(1)
    one.turn.announced("7")
    one.turn.told(f"{DRAINED}1 5:5:")
    one.turn.close()
    assert clock.is_quiet
    clock.go(10)
    assert not one.woken


def test_now_wakes_at_once_and_only_once(clock: Clock) -> None:
    one = One(5)
    one.turn.announced("7")
    one.turn.now()
    assert one.woken == 1
    clock.go(10)
    assert one.woken == 1


def test_a_sign_of_others_counts_for_a_while(clock: Clock) -> None:
    one = One(0)
    assert not one.turn.has_company
    one.turn.told(HERE)
    assert one.turn.has_company
    clock.go(COMPANY - 1)
    assert one.turn.has_company
    clock.go(2)
    assert not one.turn.has_company


def test_all_but_the_first_know_that_they_are_not_alone(clock: Clock) -> None:
    assert One(1).turn.has_company
    assert not One(0).turn.has_company
    assert not One(None).turn.has_company


@given(st.data())
def test_a_snapshot_shows_what_had_committed(data: st.DataObject) -> None:
    xmin = data.draw(XID)
    xmax = data.draw(st.integers(xmin, xmin + 50))
    between = st.integers(xmin, max(xmin, xmax - 1))
    running: set[int] = data.draw(st.sets(between, max_size=10)) if xmax > xmin else set()
    number = data.draw(between | st.sampled_from([xmin - 1, xmin, xmax - 1, xmax]) | XID)
    is_visible = visible_in(f"{xmin}:{xmax}:{','.join(map(str, sorted(running)))}")
    # As the manual says: all below xmin is over, all from xmax on has not begun, and of those between
    # the listed ones are under way.
    expected = number < xmin or (xmin <= number < xmax and number not in running)
    assert is_visible(number) == expected


def _is_snapshot(text: str) -> bool:
    return re.fullmatch(r"\d+:\d+:(\d+(,\d+)*)?", text) is not None


@given(st.text() | st.text("0123456789:,", max_size=12) | st.from_regex(r"\d+:\d+:", fullmatch=False))
def test_what_is_no_snapshot_is_refused(text: str) -> None:
    if _is_snapshot(text):
        visible_in(text)
        return
    with pytest.raises(ValueError, match="not a snapshot"):
        visible_in(text)


@pytest.mark.parametrize(
    "text", ["", "1", "1:2", ":1:", "1::", "1:2:3,", "1:2:,3", "1:2:3\n", "a:b:", "-1:2:"]
)
def test_a_torn_snapshot_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="not a snapshot"):
        visible_in(text)
