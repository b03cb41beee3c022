"""Layers compose with each other and with any codec, and a worker reads each message by its headers."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apalis_pgmq import (
    Compression,
    ConfigError,
    DecodeError,
    EncodeError,
    Encryption,
    JsonCodec,
    KeyRing,
    LayeredCodec,
    MemoryBackend,
    MsgspecCodec,
)
from apalis_pgmq.codecs import Encoded, Layer
from apalis_pgmq.core import CONTENT_ENCODING, ENCRYPTION_KEY
from apalis_pgmq.delivery import encoder

from .support import Email, build, emails, eventually, run_until_empty, running, settings

KEYS = KeyRing({"b": b"b" * 32, "a": b"a" * 32})


@dataclass
class Note:
    title: str
    tags: list[str] = field(default_factory=list)


class Reversal:
    """A layer of somebody's own."""

    encodings = ("reversed",)
    is_required = False

    def encode(self, data: bytes, _inner: tuple[str, ...]) -> Encoded:
        return Encoded("reversed", data[::-1], {"x-reversed": True})

    def decode(self, data: bytes, _encoding: str, _inner: tuple[str, ...], headers: Any) -> bytes:
        assert headers["x-reversed"] is True
        return data[::-1]


STACKS: list[tuple[Layer, ...]] = [
    (),
    (Compression(min_size=0),),
    (Compression("zstd", min_size=0),),
    (Encryption(KEYS),),
    (Compression(min_size=0), Encryption(KEYS)),
    (Encryption(KEYS), Compression(min_size=0)),
    (Compression("zstd", min_size=0), Encryption(KEYS), Reversal()),
    (Reversal(), Compression(), Encryption(KEYS)),
]
text = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
notes = st.builds(Note, text | st.text("ab", min_size=500), st.lists(text))


@pytest.mark.parametrize("value_codec", [JsonCodec(Note), MsgspecCodec(Note)], ids=["pydantic", "msgspec"])
@pytest.mark.parametrize("layers", STACKS, ids=repr)
@given(note=notes)
def test_what_was_packed_is_unpacked(value_codec: Any, layers: tuple[Layer, ...], note: Note) -> None:
    codec = LayeredCodec(value_codec, *layers)
    payload, headers = codec.pack(note)
    json.loads(payload)
    # As it is stored and comes back.
    assert codec.unpack(payload, json.loads(json.dumps(headers))) == note


@given(note=notes, payload=st.text() | st.binary().map(lambda data: f'"{base64.b64encode(data).decode()}"'))
@pytest.mark.parametrize("encoding", ["gzip", "zstd", "aes-256-gcm-hkdf", "gzip, aes-256-gcm-hkdf"])
def test_whatever_a_payload_is_it_is_read_or_refused_in_words(
    note: Note, payload: str, encoding: str
) -> None:
    codec = LayeredCodec(JsonCodec(Note), Compression(), Encryption(KEYS, accept_plain=True))
    with pytest.raises(DecodeError):
        codec.unpack(payload, {CONTENT_ENCODING: encoding, ENCRYPTION_KEY: "a"})


def test_a_layered_payload_is_a_json_string_and_the_header_names_the_layers_in_order() -> None:
    codec = LayeredCodec(JsonCodec(Note), Compression(), Encryption(KEYS))
    payload, headers = codec.pack(Note("x" * 2000))
    assert base64.b64decode(json.loads(payload))
    assert headers == {CONTENT_ENCODING: "gzip, aes-256-gcm-hkdf", ENCRYPTION_KEY: "b"}


def test_what_no_layer_changed_is_plain() -> None:
    codec = LayeredCodec(JsonCodec(Note), Compression())
    assert codec.pack(Note("x")) == (JsonCodec(Note).encode(Note("x")), {})


def test_the_order_of_the_header_counts_not_that_of_the_layers() -> None:
    old = LayeredCodec(JsonCodec(Note), Reversal(), Encryption(KEYS))
    new = LayeredCodec(JsonCodec(Note), Encryption(KEYS), Reversal())
    assert new.unpack(*old.pack(Note("x"))) == Note("x")


@pytest.mark.parametrize("value", [None, "absent"])
def test_without_the_header_a_payload_is_plain(value: str | None) -> None:
    headers = {} if value == "absent" else {CONTENT_ENCODING: value}
    codec = LayeredCodec(JsonCodec(Note), Compression())
    assert codec.unpack('{"title": "x"}', headers) == Note("x")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("br", "'br'.*this worker's codec reads gzip, zstd.*and plain JSON, not 'br'"),
        ("gzip, br", "'gzip, br'.*not 'br'.*Compression\\(\\), <the layer for 'br'>"),
        ("gzip, gzip", "twice"),
        ("gzip, zstd", "twice"),
        ("", "not ''"),
        (5, "must be a text such as 'gzip', not a int"),
        (["gzip"], "not a list"),
        ("gzip", "not base64 text in a JSON string"),
        ("x" * 5000, "codec=LayeredCodec"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(value: object, says: str) -> None:
    codec = LayeredCodec(JsonCodec(Note), Compression())
    with pytest.raises(DecodeError, match=says) as caught:
        codec.unpack('{"title": "hunter2"}', {CONTENT_ENCODING: value})
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_two_layers_of_one_encoding_are_refused() -> None:
    with pytest.raises(ConfigError, match="'gzip'"):
        LayeredCodec(JsonCodec(Note), Compression(), Compression())


@pytest.mark.parametrize("name", ["", "a, b", "Gzip", "a\nb", "x" * 41])
def test_a_name_that_a_header_cannot_tell_is_refused(name: str) -> None:
    class Odd(Reversal):
        encodings = (name,)

    with pytest.raises(ConfigError, match="no name for an encoding"):
        LayeredCodec(JsonCodec(Note), Odd())


def test_a_lone_surrogate_is_refused_where_bytes_are_needed() -> None:
    class Raw:
        def encode(self, message: str) -> str:
            return f'"{message}"'

        def decode(self, payload: str) -> str:
            return payload

    with pytest.raises(EncodeError, match="surrogates"):
        LayeredCodec(Raw(), Compression()).pack("\ud800")


class TestHeadersOfTheCaller:
    config = settings()

    def test_are_kept_beside_those_of_the_layers(self) -> None:
        encode = encoder(LayeredCodec(JsonCodec(Note), Encryption(KEYS)), self.config, {"k": 1})
        assert json.loads(encode(Note("x"))[1] or "") == {
            "k": 1,
            CONTENT_ENCODING: "aes-256-gcm-hkdf",
            ENCRYPTION_KEY: "b",
        }

    @pytest.mark.parametrize("codec", [JsonCodec(Note), LayeredCodec(JsonCodec(Note), Compression())])
    def test_of_a_message_that_is_passed_on_do_not_say_how_the_new_one_is_read(self, codec: Any) -> None:
        headers = {"k": 1, CONTENT_ENCODING: "zstd", ENCRYPTION_KEY: "old"}
        assert encoder(codec, self.config, headers)(Note("x"))[1] == '{"k": 1}'

    def test_max_payload_is_the_size_of_what_is_stored(self) -> None:
        small = settings(max_payload=200)
        large = Note("x" * 1000)
        encoder(LayeredCodec(JsonCodec(Note), Compression(min_size=0)), small, None)(large)
        with pytest.raises(EncodeError, match="at most 200"):
            encoder(LayeredCodec(JsonCodec(Note), Encryption(KEYS)), small, None)(large)


class TestInMemory:
    async def test_messages_of_all_kinds_in_one_queue_are_handled(self) -> None:
        config = settings()
        plain = MemoryBackend(config, Email)
        layered = MemoryBackend(
            config,
            Email,
            codec=LayeredCodec(
                JsonCodec(Email), Compression(min_size=0), Encryption(KEYS, accept_plain=True)
            ),
        )
        layered._queue = plain._queue
        sent = [*emails(3), Email("x" * 5000)]
        await plain.push_many(sent, headers={"k": 1})
        await plain.push_many(sent)
        await layered.push_many(sent, headers={"k": 1})
        await layered.push_many(sent)
        handled: list[Email] = []
        await run_until_empty(layered, build(layered, handled.append, concurrency=1))
        assert handled == sent * 4

    async def test_a_worker_of_plain_json_dead_letters_what_it_cannot_read(self) -> None:
        config = settings()
        plain = MemoryBackend(config, Email)
        layered = MemoryBackend(config, Email, codec=LayeredCodec(JsonCodec(Email), Encryption(KEYS)))
        layered._queue = plain._queue
        await layered.push(Email("secret"), headers={"k": 1})
        await plain.push(Email("open"))
        handled: list[Email] = []

        async def handler(message: Email) -> None:
            handled.append(message)

        await run_until_empty(plain, build(plain, handler))
        assert handled == [Email("open")]
        [letter] = await plain.dead_letters()
        assert letter.reason == "undecodable"
        assert "'aes-256-gcm-hkdf'" in (letter.error or "")
        assert "Encryption(keys)" in (letter.error or "")
        # Put back, it has what a worker with the layer needs.
        await plain.redrive()
        worker = build(layered, handler)
        async with running(worker):
            await eventually(lambda: not layered.messages)
        assert handled == [Email("open"), Email("secret")]
