"""What breaks that messages are read by their headers, that what is encrypted stays whole, and large payloads theirs."""

from typing import Final

from .model import Break

_PROMISE: Final = "Compressed and encrypted messages"
_CODECS: Final = "integration/test_codecs.py::"
_BESIDE: Final = "Large payloads beside the queue"
_CLAIM_CHECK: Final = "integration/test_claim_check.py::"
_ENCRYPTION: Final = "unit/test_encryption.py::TestTampering::"

LAYERS: Final = (
    Break(
        name="encodings-not-looked-at",
        promise=_PROMISE,
        file="delivery/_encoding.py",
        old="raise unknown_encoding(encodings, ())",
        new="pass",
        tests=(_CODECS + "test_an_unknown_encoding_is_dead_lettered_and_read_after_a_redrive",),
    ),
    Break(
        name="headers-of-the-first-message-for-all",
        promise=_PROMISE,
        file="pgmq/_sink.py",
        old="if all(headers is first for _, headers in part):",
        new="if True:",
        tests=(_CODECS + "test_push_many_gives_each_message_its_headers_and_keeps_the_order[2500]",),
    ),
    Break(
        name="encryption-not-insisted-on",
        promise=_PROMISE,
        file="codecs/_encryption.py",
        old="return not self._accept_plain",
        new="return False",
        tests=(
            _CODECS + "test_what_was_tampered_with_or_forged_is_dead_lettered",
            _ENCRYPTION + "test_a_message_that_is_not_encrypted_is_refused",
        ),
    ),
    Break(
        name="layers-below-not-authenticated",
        promise=_PROMISE,
        file="codecs/_encryption.py",
        old='", ".join(inner)',
        new='""',
        tests=(_ENCRYPTION + "test_the_layers_below_are_bound",),
    ),
    Break(
        name="context-not-authenticated",
        promise=_PROMISE,
        file="codecs/_encryption.py",
        old="name, self._context, ",
        new='name, "", ',
        tests=(_ENCRYPTION + "test_the_context_is_bound",),
    ),
    Break(
        name="key-name-not-authenticated",
        promise=_PROMISE,
        file="codecs/_encryption.py",
        old="name, self._context, ",
        new='"", self._context, ',
        tests=(_ENCRYPTION + "test_the_name_of_the_key_is_bound",),
    ),
    Break(
        name="decompressed-without-a-bound",
        promise=_PROMISE,
        file="codecs/_compression.py",
        old="decompressor.decompress(data, self._max_size + 1)",
        new="decompressor.decompress(data)",
        tests=("unit/test_compression.py::test_a_bomb_is_refused_before_it_takes_memory",),
    ),
)

CLAIM_CHECKS: Final = (
    Break(
        name="bodies-left-behind",
        promise=_BESIDE,
        file="pgmq/_bodies.py",
        old="WHERE id = ANY (",
        new="WHERE false AND id = ANY (",
        tests=(
            _CLAIM_CHECK + "test_only_large_payloads_are_kept_beside_the_queue_and_go_with_their_messages",
            _CLAIM_CHECK + "TestAfterwards::test_purging_dead_letters_removes_their_payloads_only",
        ),
    ),
    Break(
        name="bodies-dropped-by-whoever-removes",
        promise=_BESIDE,
        file="pgmq/_bodies.py",
        old="WHERE id = ANY (",
        new="WHERE true OR id = ANY (",
        tests=(
            _CLAIM_CHECK + "TestOneTransaction::test_who_lost_the_lease_removes_neither",
            _CLAIM_CHECK + "TestAfterwards::test_purging_dead_letters_removes_their_payloads_only",
        ),
    ),
    Break(
        name="headers-of-a-body-passed-on",
        promise=_BESIDE,
        file="core/_codec.py",
        old="ENCRYPTION_KEY, CLAIM_CHECK})",
        new="ENCRYPTION_KEY})",
        tests=(
            _CLAIM_CHECK + "TestWithoutTheBody::test_a_message_that_is_passed_on_gets_a_payload_of_its_own",
        ),
    ),
    Break(
        name="missing-bodies-taken-for-null",
        promise=_BESIDE,
        file="delivery/_encoding.py",
        old='if payload == "null" and',
        new="if False and",
        tests=(
            _CLAIM_CHECK + "TestWithoutTheBody::"
            "test_a_worker_without_the_setting_dead_letters_and_a_redrive_mends_it",
        ),
    ),
    Break(
        name="sweep-forgets-dead-letters",
        promise=_BESIDE,
        file="pgmq/_body_table.py",
        old='for suffix in ("", DEAD_LETTERS)',
        new='for suffix in ("",)',
        tests=(
            _CLAIM_CHECK + "TestSweep::test_it_takes_what_others_left_behind_and_nothing_else",
            _CLAIM_CHECK + "TestSweep::test_beside_workers_it_takes_nothing_of_theirs",
        ),
    ),
    Break(
        name="sweep-does-not-look-again",
        promise=_BESIDE,
        file="pgmq/_body_table.py",
        old="if await _existing(connection, candidates) == holders:",
        new="if True:",
        tests=(_CLAIM_CHECK + "TestSweep::test_a_dead_letter_queue_that_is_made_meanwhile_is_seen",),
    ),
)
