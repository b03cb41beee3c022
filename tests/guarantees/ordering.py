"""The changes that break the order within message groups."""

from typing import Final

from .model import Break

_ORDERING: Final = "integration/test_ordering.py::"
_PROMISE: Final = "Order within a group"

ORDER: Final = (
    Break(
        name="groups-not-locked",
        promise=_PROMISE,
        file="pgmq/_ordered_sql.py",
        old='return f"pg_try_advisory_xact_lock({group} # hashtextextended({literal(table)}, 7))"',
        new='return f"({group} IS NOT NULL)"',
        tests=(_ORDERING + "TestRaces::test_a_group_whose_claim_is_not_committed_yet_is_left_alone",),
    ),
    Break(
        name="heads-not-looked-at-again",
        promise=_PROMISE,
        file="pgmq/_ordered_sql.py",
        old='AND ({_group("m")} IS NULL OR m.msg_id = ({head(_group("m"))}))',
        new="",
        tests=(
            _ORDERING + "TestRaces::test_a_claim_whose_snapshot_is_older_than_anothers_claim_takes_nothing",
        ),
    ),
    Break(
        name="lowest-id-first-whatever-was-started",
        promise=_PROMISE,
        file="pgmq/_ordered_sql.py",
        old="ORDER BY (h.read_ct = 0), h.msg_id LIMIT 1",
        new="ORDER BY h.msg_id LIMIT 1",
        tests=(
            _ORDERING + "TestRaces::test_a_lower_id_that_is_committed_late_waits_for_what_has_been_started",
        ),
    ),
    Break(
        name="freed-groups-wait-for-a-pass",
        promise=_PROMISE,
        file="pgmq/_store.py",
        old="            self._wake()\n        return settled",
        new="        return settled",
        tests=(_ORDERING + "test_what_follows_is_claimed_at_once",),
        hangs=True,
    ),
    Break(
        name="removals-by-hand-free-nothing",
        promise=_PROMISE,
        file="pgmq/_ordered_sql.py",
        old="IF current_setting('{SETTLES}', true) = 'on' THEN",
        new="IF true THEN",
        tests=(_ORDERING + "TestOtherTools::test_a_head_that_is_deleted_by_hand_frees_its_group",),
    ),
    Break(
        name="any-message-in-memory",
        promise=_PROMISE,
        file="memory/_store.py",
        old="and (message.group is None or self._groups.head(message.group) == message_id)",
        new="",
        tests=(_ORDERING + "test_a_delayed_message_delays_what_follows_in_its_group",),
    ),
    Break(
        name="groups-in-any-order",
        promise=_PROMISE,
        file="pgmq/_ordered_sql.py",
        old='SELECT {columns} FROM {q} AS h WHERE {_group("h")} = {group}\n',
        new='SELECT {columns} FROM {q} AS h WHERE {_group("h")} = {group} AND h.vt <= now()\n',
        tests=(
            _ORDERING + "test_a_failed_message_holds_up_its_own_group_only",
            _ORDERING + "TestKills::test_killed_processes_neither_break_the_order_nor_lose_a_message",
            _ORDERING + "test_four_workers_keep_the_order_of_every_group_whatever_fails",
        ),
        slow=True,
    ),
)
