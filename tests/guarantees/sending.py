"""The changes that have messages sent otherwise than their sender asked for."""

from typing import Final

from .model import Break

_PROMISE: Final = "Sent with your transaction, or at once"
_OUTBOX: Final = "integration/test_outbox.py::"
_SINK: Final = "integration/test_sink.py::"

SENDING: Final = (
    Break(
        name="sent-outside-the-transaction",
        promise=_PROMISE,
        file="pgmq/_backend.py",
        old="if connection is not None:\n            return await sink",
        new="if False:\n            return await sink",
        tests=(
            _OUTBOX + "test_a_rollback_sends_nothing[asyncpg]",
            _OUTBOX + "test_savepoints_are_honoured[asyncpg]",
        ),
    ),
    Break(
        name="sent-below-sqlalchemy",
        promise=_PROMISE,
        file="pgmq/callers/_find.py",
        old="rows: Rows = connection.exec_driver_sql(sql, parameters).fetchall()",
        new="cursor = connection.connection.cursor()\n"
        "    cursor.execute(sql, parameters)\n"
        "    rows: Rows = cursor.fetchall()",
        tests=(_OUTBOX + "test_a_commit_sends_and_wakes_a_worker[Connection, psycopg2]",),
    ),
    Break(
        name="errors-of-others-not-translated",
        promise=_PROMISE,
        file="pgmq/_on_callers.py",
        old="found = driver_error(error)",
        new="found = None",
        tests=(_OUTBOX + "test_what_the_server_refuses_is_undone_by_a_savepoint[Django]",),
    ),
    Break(
        name="moments-counted-from-the-clients-now",
        promise=_PROMISE,
        file="pgmq/_inserts.py",
        old="(_NO_DELAY, due) if isinstance(due, datetime)",
        new="(due - datetime.now(due.tzinfo), None) if isinstance(due, datetime)",
        tests=(_SINK + "TestSchedule::test_a_long_transaction_makes_it_no_earlier",),
    ),
    Break(
        name="pushes-without-a-bound",
        promise=_PROMISE,
        file="pgmq/_sink.py",
        old="if self._line or self._is_full():",
        new="if False:",
        tests=(_SINK + "TestBackPressure::test_pushes_wait_in_line_before_they_are_encoded",),
    ),
    Break(
        name="line-jumped",
        promise=_PROMISE,
        file="pgmq/_sink.py",
        old="self._line.append(place)",
        new="self._line.appendleft(place)",
        tests=(_SINK + "TestBackPressure::test_pushes_wait_in_line_before_they_are_encoded",),
    ),
    Break(
        name="refusals-not-isolated",
        promise=_PROMISE,
        file="pgmq/_sink.py",
        old="if len(parcels) == 1 or not self._concerns_one(error):",
        new="if error:",
        tests=(
            _SINK + "TestErrors::test_what_a_rule_of_the_program_refuses_is_isolated",
            _SINK + "TestErrors::test_several_bad_ones_are_each_told",
        ),
    ),
    Break(
        name="closed-connections-used",
        promise=_PROMISE,
        file="pgmq/callers/_own.py",
        old="if not connection.closed and not _says_something(connection):",
        new="if not connection.closed:",
        tests=(
            "integration/test_producer.py::TestConnections::test_one_that_the_server_has_closed_is_replaced",
        ),
    ),
    Break(
        name="connections-inherited",
        promise=_PROMISE,
        file="pgmq/callers/_own.py",
        old="if self._process != os.getpid():\n            # The",
        new="if False:\n            # The",
        tests=("integration/test_producer.py::TestConnections::test_a_forked_process_opens_its_own",),
    ),
)
