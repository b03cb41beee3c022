"""The changes that tear a handler's effects and the removal of its message apart."""

from typing import Final

from .model import Break

_TRANSACTIONS: Final = "integration/test_transactions.py::"

EXACTLY_ONCE: Final = (
    Break(
        name="removal-not-in-the-transaction",
        promise="Exactly-once effects, on request",
        file="pgmq/_transaction.py",
        old="missing = await self._translated(self._remove(connection, claims))",
        new="missing = []",
        tests=(_TRANSACTIONS + "test_effects_and_removal_are_committed_together",),
    ),
    Break(
        name="removal-not-fenced",
        promise="Exactly-once effects, on request",
        file="pgmq/_sql.py",
        old=" AND m.vt = ($4::timestamptz[])[f.vt_number]",
        new="",
        tests=(_TRANSACTIONS + "test_a_lost_lease_rolls_back",),
    ),
    Break(
        name="lost-commit-not-looked-up",
        promise="Exactly-once effects, on request",
        file="pgmq/_transaction.py",
        old="return not ids_of(rows)",
        new="return False",
        tests=(_TRANSACTIONS + "test_a_commit_whose_answer_is_lost_is_found_to_have_taken_place",),
    ),
    Break(
        name="lock-without-a-bound",
        promise="Exactly-once effects, on request",
        file="pgmq/_sql.py",
        old="set_config('idle_in_transaction_session_timeout', $5::text, true)",
        new="$5::text",
        tests=(
            _TRANSACTIONS
            + "test_a_connection_that_goes_silent_before_the_commit_does_not_keep_the_message_locked",
        ),
    ),
    Break(
        name="no-keepalives",
        promise="Exactly-once effects, on request",
        file="pgmq/_transaction.py",
        old="connection.execute(_KEEPALIVES)",
        new='connection.execute("")',
        tests=(_TRANSACTIONS + "test_the_server_looks_after_the_client_of_a_transaction",),
    ),
    Break(
        name="silent-statement-not-looked-after",
        promise="Exactly-once effects, on request",
        file="pgmq/_transaction.py",
        old="if not pooled:",
        new="if False:",
        tests=(_TRANSACTIONS + "test_a_handler_does_not_wait_for_ever_on_a_connection_that_went_silent",),
    ),
    Break(
        name="removal-not-in-the-transaction-in-chaos",
        promise="Exactly-once effects, on request",
        file="pgmq/_transaction.py",
        old="missing = await self._translated(self._remove(connection, claims))",
        new="missing = []",
        tests=("chaos/test_chaos.py::test_the_effects_of_transactional_handlers_happen_exactly_once",),
        slow=True,
    ),
)
