"""The judge finds what it is there to find."""

import pytest

from .judge import Delivery, Fault, Removal, Times, Verdict, deliveries, judge

TIMES = Times(visibility_timeout=3, ack=1, slack=1)


def of(
    *observed: Delivery, removals: tuple[Removal, ...] = (Removal(1, 1, 99),), faults: tuple[Fault, ...] = ()
) -> Verdict:
    return judge(promised=[1], deliveries=observed, removals=removals, faults=faults, times=TIMES)


def test_one_delivery_and_one_removal_is_all_there_should_be() -> None:
    assert of(Delivery(1, 1, "a", 10, 11, ended=True)).violations == []


def test_a_message_that_nobody_handled_is_lost() -> None:
    assert "not handled" in of().violations[0]


def test_a_message_that_nobody_finished_is_lost() -> None:
    assert "not handled" in of(Delivery(1, 1, "a", 10, 11, ended=False)).violations[0]


@pytest.mark.parametrize("times", [0, 2])
def test_a_message_is_removed_once(times: int) -> None:
    found = of(Delivery(1, 1, "a", 10, 11, ended=True), removals=(Removal(1, 1, 99),) * times)
    assert f"removed {times} times" in found.violations[0]


def test_one_who_lost_the_lease_must_not_remove() -> None:
    kill = Fault("silence", "a", 9, 30)
    late = Delivery(1, 1, "a", 10, 20, ended=True)
    owner = Delivery(1, 2, "b", 15, 25, ended=True)
    assert of(late, owner, removals=(Removal(1, 2, 25.1),), faults=(kill,)).violations == []
    # The row says that b owned it, and b was not done yet.
    assert (
        "before its owner" in of(late, owner, removals=(Removal(1, 2, 20.1),), faults=(kill,)).violations[0]
    )


def test_a_worker_may_claim_again_what_it_holds_itself() -> None:
    only = Delivery(1, 1, "a", 10, 20, ended=True)
    assert of(only, removals=(Removal(1, 2, 25),)).violations == []
    assert "before its owner" in of(only, removals=(Removal(1, 2, 15),)).violations[0]


@pytest.mark.parametrize(
    "second", [Delivery(1, 2, "b", 10.5, 12, ended=True), Delivery(1, 2, "b", 20, 21, ended=True)]
)
def test_a_second_delivery_needs_a_reason(second: Delivery) -> None:
    first = Delivery(1, 1, "a", 10, 11, ended=True)
    removals = (Removal(1, 2, 99),)
    assert "without a reason" in of(first, second, removals=removals).violations[0]
    for reason in (Fault("kill", "a", 11, 11), Fault("silence", "a", 8, 12), Fault("crash", None, 9, 9.5)):
        expected = reason.start <= second.start
        assert (of(first, second, removals=removals, faults=(reason,)).violations == []) is expected
    for no_reason in (
        Fault("kill", "b", 11, 11),  # another's
        Fault("silence", "a", 1, 6),  # over before the message can have been claimed
        Fault("crash", None, 12.5, 13),  # when the ack must have been stored
        Fault("crash", None, 30, 31),  # later than either
    ):
        assert of(first, second, removals=removals, faults=(no_reason,)).violations


def test_after_a_crash_two_may_run_until_the_next_extension_only() -> None:
    crash = (Fault("crash", None, 10.5, 11),)
    removals = (Removal(1, 1, 99),)
    second = Delivery(1, 1, "b", 12, 30, ended=True)
    short = of(Delivery(1, 1, "a", 10, 13, ended=False), second, removals=removals, faults=crash)
    assert (short.violations, short.overlaps) == ([], 1)
    long = of(Delivery(1, 1, "a", 10, 20, ended=False), second, removals=removals, faults=crash)
    assert "went on" in long.violations[0]


def test_nobody_goes_on_beside_the_next_owner_once_it_is_found_out() -> None:
    removals = (Removal(1, 2, 99),)
    second = Delivery(1, 2, "b", 14, 30, ended=True)
    for reason in (Fault("silence", "a", 10.5, 16), Fault("kill", "a", 13.9, 16)):
        short = of(Delivery(1, 1, "a", 10, 16.9, ended=False), second, removals=removals, faults=(reason,))
        assert (short.violations, short.overlaps) == ([], 1)
        long = of(Delivery(1, 1, "a", 10, 17.1, ended=False), second, removals=removals, faults=(reason,))
        assert "went on" in long.violations[0]


def test_two_owners_at_once_without_a_reason_are_a_violation() -> None:
    first, second = (
        Delivery(1, attempt, owner, 10, 11, ended=True) for attempt, owner in ((1, "a"), (2, "b"))
    )
    assert "without a reason" in of(first, second, removals=(Removal(1, 2, 99),)).violations[0]
    # Nor is one who is killed only later.
    killed = Delivery(1, 1, "a", 10, 20, ended=False)
    found = of(killed, second, removals=(Removal(1, 2, 99),), faults=(Fault("kill", "a", 20, 20),))
    assert "without a reason" in found.violations[0]


def test_a_ledger_is_read() -> None:
    lines = ["start 1 1 10.0", "start 2 1 10.5", "end 1 1 11.0", "start 3 2 12.0", "cancelled 3 2 13.0"]
    assert sorted(deliveries(lines, "a", 20.0), key=lambda one: one.message) == [
        Delivery(1, 1, "a", 10, 11, ended=True),
        Delivery(2, 1, "a", 10.5, 20, ended=False),
        Delivery(3, 2, "a", 12, 13, ended=False),
    ]
