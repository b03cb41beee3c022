"""What breaks that messages are read by their headers, and that what is encrypted stays secret and whole."""

from typing import Final

from .model import Break

_PROMISE: Final = "Compressed and encrypted messages"
_CODECS: Final = "integration/test_codecs.py::"
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
        old="if all(headers is first for _, headers in rows):",
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
