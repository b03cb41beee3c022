"""What is encrypted is read by who has the key, and by nobody who changed it."""

import base64
import pickle
import sys
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from apalis_pgmq import Compression, ConfigError, DecodeError, Encryption, JsonCodec, KeyRing, LayeredCodec
from apalis_pgmq.core import CONTENT_ENCODING, ENCRYPTION_KEY

OLD, NEW = b"o" * 32, b"n" * 32
RING = KeyRing({"new": NEW, "old": OLD})


def codec(layer: Encryption, *others: Compression) -> LayeredCodec[str]:
    return LayeredCodec(JsonCodec(str), *others, layer)


def packed(layer: Encryption, *others: Compression, text: str = "hunter2") -> tuple[str, dict[str, Any]]:
    payload, headers = codec(layer, *others).pack(text)
    return payload, dict(headers)


def raw(payload: str) -> bytes:
    return base64.b64decode(payload[1:-1])


def as_payload(data: bytes) -> str:
    return f'"{base64.b64encode(data).decode()}"'


class TestRotation:
    def test_the_first_key_encrypts(self) -> None:
        assert packed(Encryption(RING))[1][ENCRYPTION_KEY] == "new"

    def test_all_keys_decrypt(self) -> None:
        old = packed(Encryption(KeyRing({"old": OLD})))
        assert codec(Encryption(RING)).unpack(*old) == "hunter2"

    def test_workers_take_the_new_key_before_producers_use_it(self) -> None:
        workers = Encryption(KeyRing({"old": OLD, "new": NEW}))
        assert codec(workers).unpack(*packed(Encryption(RING))) == "hunter2"

    def test_a_retired_key_is_named_and_so_are_those_that_are_there(self) -> None:
        with pytest.raises(
            DecodeError, match="encrypted with key 'old', and this worker has new; add the key"
        ):
            codec(Encryption(KeyRing({"new": NEW}))).unpack(*packed(Encryption(KeyRing({"old": OLD}))))


class TestTampering:
    @given(data=st.data())
    def test_a_changed_bit_is_noticed_wherever_it_is(self, data: st.DataObject) -> None:
        payload, headers = packed(Encryption(RING))
        sealed = bytearray(raw(payload))
        sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(DecodeError, match="it was changed"):
            codec(Encryption(RING)).unpack(as_payload(bytes(sealed)), headers)

    @given(length=st.integers(0, 60))
    def test_a_payload_that_is_cut_off_is_refused(self, length: int) -> None:
        payload, headers = packed(Encryption(RING))
        with pytest.raises(DecodeError):
            codec(Encryption(RING)).unpack(
                as_payload(raw(payload)[: min(length, len(raw(payload)) - 1)]), headers
            )

    def test_another_key_of_the_same_name_does_not_decrypt(self) -> None:
        with pytest.raises(DecodeError, match="another key of that name"):
            codec(Encryption(KeyRing({"new": OLD}))).unpack(*packed(Encryption(RING)))

    def test_the_name_of_the_key_is_bound(self) -> None:
        # Two names of one key, as no key ring has them: the name alone makes the difference.
        payload, headers = packed(Encryption(KeyRing({"one": NEW})))
        with pytest.raises(DecodeError, match="key 'two'"):
            codec(Encryption(KeyRing({"two": NEW}))).unpack(payload, {**headers, ENCRYPTION_KEY: "two"})

    def test_the_layers_below_are_bound(self) -> None:
        reader = codec(Encryption(RING), Compression(min_size=0))
        payload, headers = packed(Encryption(RING), Compression(min_size=0), text="x" * 500)
        assert headers[CONTENT_ENCODING] == "gzip, aes-256-gcm-hkdf"
        with pytest.raises(DecodeError, match="it was changed"):
            reader.unpack(payload, {**headers, CONTENT_ENCODING: "aes-256-gcm-hkdf"})
        payload, headers = packed(Encryption(RING))
        with pytest.raises(DecodeError, match="it was changed"):
            reader.unpack(payload, {**headers, CONTENT_ENCODING: "gzip, aes-256-gcm-hkdf"})

    def test_the_context_is_bound(self) -> None:
        message = packed(Encryption(RING, context="refunds"))
        assert codec(Encryption(RING, context="refunds")).unpack(*message) == "hunter2"
        for other in ("", "refund", "refunds "):
            with pytest.raises(DecodeError, match="for another context"):
                codec(Encryption(RING, context=other)).unpack(*message)

    @pytest.mark.parametrize("headers", [{}, {CONTENT_ENCODING: "gzip"}, {CONTENT_ENCODING: None}])
    def test_a_message_that_is_not_encrypted_is_refused(self, headers: dict[str, object]) -> None:
        reader = codec(Encryption(RING), Compression())
        with pytest.raises(
            DecodeError, match=r"not encoded with aes-256-gcm-hkdf.*accept_plain=True"
        ) as caught:
            reader.unpack('"forged"', headers)
        assert "forged" not in str(caught.value)

    def test_during_a_migration_it_may_be_taken(self) -> None:
        reader = codec(Encryption(RING, accept_plain=True))
        assert reader.unpack('"plain"', {}) == "plain"
        assert reader.unpack(*packed(Encryption(RING))) == "hunter2"

    @pytest.mark.parametrize("name", [None, 5, ["new"], {}])
    def test_a_header_without_the_keys_name_is_refused(self, name: object) -> None:
        payload, headers = packed(Encryption(RING))
        with pytest.raises(DecodeError, match="no header x-encryption-key"):
            codec(Encryption(RING)).unpack(payload, {**headers, ENCRYPTION_KEY: name})


def test_the_same_message_is_never_encrypted_to_the_same_bytes() -> None:
    sealed = {raw(packed(Encryption(RING))[0]) for _ in range(50)}
    assert len({one[:32] for one in sealed}) == 50
    assert len({one[32:] for one in sealed}) == 50


def test_the_format_is_the_documented_one() -> None:
    """So that programs in other languages can read and write it."""
    payload, headers = packed(Encryption(RING, context="emails"), Compression(min_size=0))
    salt, sealed = raw(payload)[:32], raw(payload)[32:]
    both = HKDF(SHA256(), 44, salt, b"apalis-pgmq aes-256-gcm-hkdf").derive(NEW)
    bound = b"aes-256-gcm-hkdf\nnew\nemails\n"
    assert AESGCM(both[:32]).decrypt(both[32:], sealed, bound) == b'"hunter2"'
    assert headers == {CONTENT_ENCODING: "aes-256-gcm-hkdf", ENCRYPTION_KEY: "new"}


class TestKeyRing:
    def test_nothing_shows_a_key(self) -> None:
        layer = Encryption(KeyRing({"new": b"k" * 32}))
        for shown in (layer, codec(layer), KeyRing({"new": b"k" * 32})):
            assert "kkk" not in repr(shown)
            assert "kkk" not in str(shown)
            assert "a2tr" not in repr(shown)

    def test_it_is_not_pickled(self) -> None:
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(RING)

    def test_a_text_tells_it(self) -> None:
        first, second = KeyRing.new_key(), KeyRing.new_key()
        ring = KeyRing.parse(f" 2026-11:{first},\n 2026-01: {second} ")
        assert ring.names == ("2026-11", "2026-01")
        assert ring.current == "2026-11"
        assert ring["2026-01"] == base64.b64decode(second)
        assert len(ring["2026-11"]) == 32
        assert first != second

    @pytest.mark.parametrize(
        "text",
        ["", "s3cret", "a:s3cret", "a:s3cr,b:s3cr", ",", "a:{0},a:{1}", "a:{0},b:{0}", "a b:{0}", "a:{0},"],
    )
    def test_a_text_that_is_none_is_refused_without_showing_it(self, text: str) -> None:
        keys = KeyRing.new_key(), KeyRing.new_key()
        with pytest.raises(ConfigError) as caught:
            KeyRing.parse(text.format(*keys))
        assert not any(secret in str(caught.value) for secret in ("s3cr", *keys))

    @pytest.mark.parametrize(
        "keys",
        [{}, {"a": b"short"}, {"a": "x" * 32}, {"a\n": NEW}, {"": NEW}, {5: NEW}, {"a": NEW, "b": NEW}],
    )
    def test_keys_that_cannot_work_are_refused(self, keys: Any) -> None:
        with pytest.raises(ConfigError):
            KeyRing(keys)


@pytest.mark.parametrize("context", ["two\nlines", 5, "\0"])
def test_a_context_that_is_not_one_line_is_refused(context: Any) -> None:
    with pytest.raises(ConfigError, match="context"):
        Encryption(RING, context=context)


def test_keys_must_be_a_key_ring() -> None:
    with pytest.raises(ConfigError, match="must be a KeyRing, not a dict"):
        Encryption({"a": NEW})  # type: ignore[arg-type]


def test_without_cryptography_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ImportError, match=r"apalis-pgmq\[encryption\]"):
        Encryption(RING)
