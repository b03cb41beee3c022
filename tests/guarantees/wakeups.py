"""The changes that make a worker find messages late, or ask for them needlessly."""

from typing import Final

from .model import Break

_WAKEUP: Final = "integration/test_wakeup.py::"
_CLAIMS: Final = "integration/test_claims.py::"
_LISTENER: Final = "integration/test_listener.py::"
_TURNS: Final = "unit/test_turns.py::"

IDLE_IS_QUIET: Final = (
    Break(
        name="announcements-not-heard",
        promise="Idle is quiet, and quick",
        file="pgmq/_listener.py",
        old="for hear in self._heard.get(channel, ()):",
        new="for hear in ():",
        tests=(_WAKEUP + "test_a_raw_insert_wakes", _WAKEUP + "test_a_push_of_another_process_wakes"),
    ),
    Break(
        name="due-messages-not-waited-for",
        promise="Idle is quiet, and quick",
        file="pgmq/_outlook.py",
        old="rest if due is None else min(rest, max(due, 0.0) + _AFTER_DUE)",
        new="rest",
        tests=(_WAKEUP + "test_delayed_messages_are_handled_when_they_are_due",),
    ),
    Break(
        name="due-messages-known-to-one-worker-only",
        promise="Idle is quiet, and quick",
        file="pgmq/_turns.py",
        old="self._expect(due)",
        new="pass",
        tests=(
            _WAKEUP + "test_a_delay_of_which_only_a_killed_worker_knew_is_kept",
            _TURNS + "test_what_is_told_later_counts",
        ),
    ),
    Break(
        name="handing-back-not-announced",
        promise="Idle is quiet, and quick",
        file="pgmq/_sql.py",
        old="SELECT array_agg(msg_id) FROM back, told",
        new="SELECT array_agg(msg_id) FROM back",
        tests=(_WAKEUP + "test_what_another_worker_hands_back_when_it_stops_wakes",),
    ),
    Break(
        name="lost-trigger-not-noticed",
        promise="Idle is quiet, and quick",
        file="pgmq/_listener.py",
        old="one.is_announced = one.table in announced",
        new="one.is_announced = True",
        tests=(_WAKEUP + "test_a_queue_that_loses_its_trigger_is_polled_from_then_on",),
    ),
    Break(
        name="no-look-back",
        promise="Idle is quiet, and quick",
        file="pgmq/_claims.py",
        old="self._late = late",
        new="pass",
        tests=(_CLAIMS + "test_what_turns_visible_late_is_found_under_load",),
    ),
    Break(
        name="never-from-the-beginning-again",
        promise="Idle is quiet, and quick",
        file="pgmq/_claims.py",
        old="if self._is_cheap or now >= self.due else",
        new="if self._is_cheap or not self.due else",
        tests=(
            _CLAIMS + "TestManyDeadEntries::test_what_is_very_late_is_found_as_well",
            _CLAIMS + "TestManyDeadEntries::test_so_it_is_by_an_idle_worker",
        ),
    ),
    Break(
        name="everybody-answers",
        promise="Idle is quiet, and quick",
        file="pgmq/_turns.py",
        old="return self._step * min(turn, _LAST_TURN)",
        new="return 0.0",
        tests=(_LISTENER + "TestCost::test_of_ten_idle_workers_few_claim",),
    ),
    Break(
        name="turns-cancelled-without-proof",
        promise="Idle is quiet, and quick",
        file="pgmq/_turns.py",
        old="if all(map(visible_in(snapshot), self._pending)):",
        new="if True:",
        tests=(_TURNS + "test_no_proof_cancels_nothing",),
    ),
)
