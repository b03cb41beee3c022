"""The changes that make a worker go down, or wrong, in an outage."""

from typing import Final

from .model import Break

_FAULTS: Final = "integration/test_faults.py::"
_RECOVERY: Final = "integration/test_recovery.py::"
_IN_TIME: Final = _FAULTS + "TestSilence::test_leases_do_not_run_out_while_a_silent_socket_is_found_out"


def _not_passing(error: str, name: str, test: str) -> Break:
    return Break(
        name=name,
        promise="It stays up",
        file="pgmq/_errors.py",
        old=f"asyncpg.{error},",
        new="",
        tests=(test,),
    )


STAYS_UP: Final = (
    _not_passing(
        "PostgresConnectionError",
        "terminations-are-final",
        _RECOVERY + "test_terminated_connections_are_replaced_and_nothing_is_lost",
    ),
    Break(
        name="outage-logged-again-and-again",
        promise="It stays up",
        file="delivery/_outage.py",
        old="if not self._cut_off:\n            self._since",
        new="if True:\n            self._since",
        tests=(
            _RECOVERY + "test_a_restarting_server_is_waited_for_and_logged_once",
            _FAULTS + "test_an_outage_costs_two_log_lines_and_next_to_no_memory_and_handlers_go_on",
        ),
    ),
    _not_passing(
        "OperatorInterventionError",
        "crashes-are-final",
        _RECOVERY + "test_a_crashing_server_loses_no_message",
    ),
    Break(
        name="absent-server-not-waited-for",
        promise="It stays up",
        file="delivery/_consumer.py",
        old='self._outage.begins("opening", error)',
        new="raise",
        tests=(_RECOVERY + "test_a_worker_waits_for_a_server_that_is_not_up_yet",),
    ),
    Break(
        name="statements-without-a-limit",
        promise="It stays up",
        file="pgmq/_connect.py",
        old="asyncio.timeout(min(statement_seconds(), longest))",
        new="asyncio.timeout(None)",
        tests=(
            _FAULTS + "TestSilence::test_acks_are_stored_late_over_new_connections",
            _FAULTS + "TestSilence::test_leases_are_extended_over_new_connections",
        ),
    ),
    Break(
        name="extensions-take-as-long-as-others",
        promise="It stays up",
        file="pgmq/_store.py",
        old="longest=longest",
        new='longest=float("inf")',
        tests=(_IN_TIME,),
    ),
    _not_passing(
        "PostgresConnectionError", "lost-claims-are-final", _FAULTS + "TestLostAnswers::test_of_a_claim"
    ),
    Break(
        name="lost-ack-not-doubted",
        promise="It stays up",
        file="delivery/_settler.py",
        old="unsure = True",
        new="unsure = False",
        tests=(_FAULTS + "TestLostAnswers::test_of_an_ack",),
    ),
    Break(
        name="lost-ack-taken-for-done",
        promise="It stays up",
        file="delivery/_settler.py",
        old=" if claim.id not in present",
        new="",
        tests=(_FAULTS + "TestLostAnswers::test_of_an_ack_whose_message_another_has_by_now",),
    ),
    Break(
        name="lost-extension-not-reckoned-with",
        promise="It stays up",
        file="pgmq/_store.py",
        old="for vt in claim.unsure_vts:",
        new="for vt in ():",
        tests=(_FAULTS + "TestLostAnswers::test_of_an_extension",),
    ),
    Break(
        name="first-host-only",
        promise="It stays up",
        file="pgmq/_connect.py",
        old="self._url = url",
        new='self._url = url.partition(",")[0] + urlsplit(url).path',
        tests=(_FAULTS + "test_fail_over_to_the_next_host_of_the_url",),
    ),
    _not_passing(
        "InsufficientResourcesError",
        "too-many-connections-are-final",
        _FAULTS + "test_too_many_connections_are_waited_for",
    ),
    _not_passing(
        "ReadOnlySQLTransactionError",
        "read-only-is-final",
        _FAULTS + "test_a_database_that_is_read_only_for_a_while_is_waited_for",
    ),
    Break(
        name="poolers-not-recognised",
        promise="It stays up",
        file="pgmq/_connect.py",
        old='return tag != "SELECT 1"',
        new="return False",
        tests=(_RECOVERY + "test_it_works_through_pgbouncer_in_transaction_mode",),
    ),
    Break(
        name="pauses-do-not-grow",
        promise="It stays up",
        file="delivery/_outage.py",
        old="min(self._next * 2, self._longest)",
        new="self._next",
        tests=("unit/test_outage.py::test_delays_double_up_to_a_bound_and_are_shortened_by_half_at_most",),
    ),
    Break(
        name="pauses-not-randomised",
        promise="It stays up",
        file="delivery/_outage.py",
        old="random.uniform(0.5, 1.0)",
        new="1.0",
        tests=("unit/test_outage.py::test_delays_are_spread",),
    ),
    Break(
        name="own-message-not-taken-up-again",
        promise="It stays up",
        file="delivery/_consumer.py",
        old="if claim.read_ct == held.read_ct + 1:",
        new="if False:",
        tests=("unit/test_leases.py::test_a_worker_that_claims_its_own_message_again_goes_on_with_it",),
    ),
    Break(
        name="another-owner-not-noticed",
        promise="It stays up",
        file="delivery/_consumer.py",
        old="if claim.read_ct == held.read_ct + 1:",
        new="if True:",
        tests=("unit/test_leases.py::test_a_worker_does_not_go_on_with_what_another_had_meanwhile",),
    ),
)
