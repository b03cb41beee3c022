"""The changes that store a message twice which has a key."""

from typing import Final

from .model import Break

_DEDUP: Final = "integration/test_dedup.py::"
_PROMISE: Final = "Once by key, on request"

ONCE_BY_KEY: Final = (
    Break(
        name="stored-though-taken",
        promise=_PROMISE,
        file="pgmq/_keyed_sql.py",
        old="SELECT * FROM fresh AS f WHERE (f.msg_id IN (SELECT t.msg_id FROM taken AS t)) IS TRUE",
        new="SELECT * FROM fresh AS f",
        tests=(
            _DEDUP + "test_sixteen_concurrent_senders_store_each_key_once",
            _DEDUP + "test_processes_store_each_key_once",
            _DEDUP + "TestTransactions::test_another_sender_waits_for_its_end",
        ),
    ),
    Break(
        name="windows-never-end",
        promise=_PROMISE,
        file="pgmq/_keyed_sql.py",
        old='is_free = "d.expires_at <= statement_timestamp()"',
        new='is_free = "false"',
        tests=(_DEDUP + "TestEitherBackend::test_until_its_window_is_over",),
    ),
    Break(
        name="keys-in-the-order-of-the-messages",
        promise=_PROMISE,
        file="pgmq/_keyed_sql.py",
        old='FROM fresh ORDER BY key COLLATE "C"',
        new="FROM fresh ORDER BY position",
        tests=(_DEDUP + "test_senders_of_the_same_keys_in_other_orders_do_not_block_each_other",),
    ),
    Break(
        name="expired-keys-stay",
        promise=_PROMISE,
        file="pgmq/_keys.py",
        old="for _ in range(_TIDIES):",
        new="for _ in range(0):",
        tests=(_DEDUP + "TestTidying::test_expired_keys_are_deleted_and_no_others",),
    ),
    Break(
        name="keys-dropped-on-the-way",
        promise=_PROMISE,
        file="pgmq/_inserts.py",
        old="    if keys is None:\n        encode",
        new="    if True:\n        encode",
        tests=(
            "integration/test_outbox.py::TestKeys::test_a_rollback_frees_them_and_a_commit_keeps_them[Django]",
        ),
    ),
    Break(
        name="one-key-holds-up-all",
        promise=_PROMISE,
        file="pgmq/_pool.py",
        old="settings=_IMPATIENT, hold=hold",
        new="hold=hold",
        tests=(_DEDUP + "TestWaiting::test_the_others_go_on",),
    ),
    Break(
        name="who-follows-not-counted",
        promise=_PROMISE,
        file="pgmq/_keyed.py",
        old="                self._count(parcel)\n",
        new="",
        tests=(_DEDUP + "TestWaiting::test_pushes_beyond_the_bound_stand_in_line",),
    ),
    Break(
        name="memory-takes-no-keys",
        promise=_PROMISE,
        file="memory/_store.py",
        old="if key in self._keys:",
        new="if False:",
        tests=(_DEDUP + "TestEitherBackend::test_a_key_is_stored_once",),
    ),
)
