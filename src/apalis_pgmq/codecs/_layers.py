"""Layers between JSON text and what is stored of it."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from apalis_pgmq.core import (
    CONTENT_ENCODING,
    Codec,
    ConfigError,
    DecodeError,
    EncodeError,
    encodings_of,
    unknown_encoding,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a layer made of a payload.

    Attributes:
        encoding: the name of what was done, one of the layer's `Layer.encodings`.
        data: the bytes that came of it.
        headers: what the layer needs to undo it, beside the bytes; anybody who can write to the queue can change
            them.
    """

    encoding: str
    data: bytes
    headers: Mapping[str, object] = field(default_factory=dict)


class Layer(Protocol):
    """A change of a payload's bytes that can be undone, such as compression."""

    @property
    def encodings(self) -> Sequence[str]:
        """The names of what it can undo: lower-case letters, digits, ``.``, ``_`` and ``-``."""
        ...

    @property
    def is_required(self) -> bool:
        """Whether a message that lacks the layer must not be taken."""
        ...

    def encode(self, data: bytes, inner: tuple[str, ...], /) -> Encoded | None:
        """Return the changed payload; None to leave this one as it is.

        Args:
            data: the payload.
            inner: what other layers did to it before.

        Raises:
            EncodeError: the payload cannot be encoded.
        """
        ...

    def decode(
        self, data: bytes, encoding: str, inner: tuple[str, ...], headers: Mapping[str, object], /
    ) -> bytes:
        """Return the payload as it was before `encode`.

        Args:
            data: the changed payload.
            encoding: what was done to it.
            inner: what other layers are said to have done to it before.
            headers: all headers of the message.

        Raises:
            DecodeError: that is not possible; the text says why, and shows nothing of the payload.
        """
        ...


class LayeredCodec(Generic[T]):
    """Encodes messages with another codec, and what comes of it with layers: compressed, encrypted.

    ::

        LayeredCodec(JsonCodec(EmailMessage), Compression(), Encryption(keys))

    The payload is a JSON string then, the base64 text of the bytes, and the header ``x-content-encoding``
    names the layers. A message to which no layer applied is plain JSON without that header. Messages are read
    by their headers, whatever the order of the layers here, so that a queue may hold messages of all kinds;
    a layer that is required (encryption is by default) refuses those that lack it.

    Args:
        codec: makes JSON text of messages.
        layers: are applied in this order. Compress before you encrypt.

    Raises:
        ConfigError: two layers have an encoding in common, or one has a name that cannot be told in a header.
    """

    def __init__(self, codec: Codec[T], *layers: Layer) -> None:
        self._codec = codec
        self._layers = layers
        self._by_encoding: dict[str, Layer] = {}
        for layer in layers:
            for encoding in layer.encodings:
                if not _NAME.fullmatch(encoding):
                    raise ConfigError(f"{encoding!r} is no name for an encoding; an example is 'gzip'")
                if encoding in self._by_encoding:
                    raise ConfigError(f"two layers have the encoding {encoding!r}; one message has it once")
                self._by_encoding[encoding] = layer

    def __repr__(self) -> str:
        return f"LayeredCodec({', '.join(map(repr, (self._codec, *self._layers)))})"

    def pack(self, message: T) -> tuple[str, Mapping[str, object]]:
        """Return the message as JSON text, and the headers by which it is read.

        Raises:
            EncodeError: the message is not of the codec's type, or a layer cannot take it.
        """
        text = self._codec.encode(message)
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise EncodeError("the payload has surrogates, which have no form in UTF-8") from error
        inner: tuple[str, ...] = ()
        headers: dict[str, object] = {}
        for layer in self._layers:
            if (encoded := layer.encode(data, inner)) is not None:
                data = encoded.data
                inner = (*inner, encoded.encoding)
                headers.update(encoded.headers)
        if not inner:
            return text, {}
        headers[CONTENT_ENCODING] = ", ".join(inner)
        return f'"{base64.b64encode(data).decode()}"', headers

    def unpack(self, payload: str, headers: Mapping[str, object]) -> T:
        """Return the message that was packed.

        Args:
            payload: JSON text.
            headers: the message's headers.

        Raises:
            DecodeError: it is not of the codec's type, has an encoding that no layer undoes, lacks a layer that
                is required, or was tampered with.
        """
        encodings = encodings_of(headers)
        if any(name not in self._by_encoding for name in encodings):
            raise unknown_encoding(encodings, tuple(self._by_encoding))
        undone_by = [self._by_encoding[name] for name in encodings]
        if any(undone_by.count(layer) > 1 for layer in undone_by):
            raise DecodeError(
                f"the payload is said to be encoded twice by the same layer: {encodings!r:.200}"
            )
        for layer in self._layers:
            if layer.is_required and layer not in undone_by:
                raise DecodeError(
                    f"the message is not encoded with {' or '.join(layer.encodings)}, and {layer!r} takes no "
                    "others; accept_plain=True takes them too, for as long as a migration lasts"
                )
        if not encodings:
            return self._codec.decode(payload)
        data = _bytes_of(payload)
        for position in reversed(range(len(encodings))):
            data = undone_by[position].decode(data, encodings[position], encodings[:position], headers)
        try:
            return self._codec.decode(data.decode())
        except UnicodeDecodeError:
            raise DecodeError(f"what {', '.join(encodings)} encodes is not UTF-8") from None


def _bytes_of(payload: str) -> bytes:
    if len(payload) > 1 and payload[0] == payload[-1] == '"':
        try:
            return base64.b64decode(payload[1:-1], validate=True)
        except (binascii.Error, ValueError):
            pass
    raise DecodeError(
        f"the header {CONTENT_ENCODING} is there, but the payload is not base64 text in a JSON string"
    )
