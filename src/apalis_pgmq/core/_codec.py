"""How messages become payloads, and the headers that say how a payload is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

from ._errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

T = TypeVar("T")

CONTENT_ENCODING: Final = "x-content-encoding"
"""The header that names what was done to a payload, in the order in which it was done, as HTTP's does: ``"gzip"``,
or ``"gzip, aes-256-gcm-hkdf"``. Such a payload is a JSON string, the base64 text of the bytes that came of it.
A payload without the header is plain JSON."""
ENCRYPTION_KEY: Final = "x-encryption-key"
"""The header that names the key with which a payload is encrypted."""
CLAIM_CHECK: Final = "x-claim-check"
"""The header that names a payload which is kept beside the queue; the message itself is null then."""
CONTENT_HEADERS: Final = frozenset({CONTENT_ENCODING, ENCRYPTION_KEY, CLAIM_CHECK})
"""All headers that tell how a payload is read. Whoever sends through a backend does not set them."""

GZIP: Final = "gzip"
ZSTD: Final = "zstd"
AES_256_GCM_HKDF: Final = "aes-256-gcm-hkdf"

_LAYERS: Final = {GZIP: "Compression()", ZSTD: "Compression('zstd')", AES_256_GCM_HKDF: "Encryption(keys)"}


class Codec(Protocol[T]):
    """Translates between messages and JSON text, the payload of a PGMQ message."""

    def encode(self, message: T) -> str:
        """Return the message as JSON text.

        Raises:
            EncodeError: the message is of another type, or has no JSON form.
        """
        ...

    def decode(self, payload: str) -> T:
        """Return the message that the JSON text stands for.

        Raises:
            DecodeError: the payload is not a message of this type; the text says why, for a person.
        """
        ...


class HeaderCodec(Protocol[T]):
    """Translates between messages and JSON text that may need headers to be read."""

    def pack(self, message: T) -> tuple[str, Mapping[str, object]]:
        """Return the message as JSON text, and the `CONTENT_HEADERS` that belong to it, if any.

        Raises:
            EncodeError: the message is of another type, or cannot be encoded.
        """
        ...

    def unpack(self, payload: str, headers: Mapping[str, object]) -> T:
        """Return the message that the JSON text stands for.

        Args:
            payload: JSON text.
            headers: those of the message; none of the `CONTENT_HEADERS` among them: it is plain.

        Raises:
            DecodeError: the payload is not a message of this type, or not encoded in a way that is taken here;
                the text says why, for a person.
        """
        ...


AnyCodec: TypeAlias = Codec[T] | HeaderCodec[T]
"""What a backend takes as codec."""


def encodings_of(headers: Mapping[str, object]) -> tuple[str, ...]:
    """Return what was done to a payload, in the order in which it was done; nothing if it is plain.

    Raises:
        DecodeError: the header is there and no text.
    """
    value = headers.get(CONTENT_ENCODING)
    if value is None:
        return ()
    if not isinstance(value, str):
        raise DecodeError(
            f"the header {CONTENT_ENCODING} must be a text such as 'gzip', not a {type(value).__name__}"
        )
    return tuple(name.strip() for name in value.split(","))


def unknown_encoding(encodings: Collection[str], readable: Collection[str]) -> DecodeError:
    """Return the error of a worker that cannot read a payload for want of a layer.

    Args:
        encodings: what was done to the payload, in that order.
        readable: what the worker's codec can undo.
    """
    unknown = [name for name in encodings if name not in readable]
    layers = ", ".join(_LAYERS.get(name, f"<the layer for {name!r:.40}>") for name in encodings)
    reads = f"reads {', '.join(readable)} and plain JSON" if readable else "reads plain JSON only"
    return DecodeError(
        f"the payload is encoded as {', '.join(encodings)!r:.200}, and this worker's codec {reads}, not "
        f"{', '.join(unknown)!r:.100}; give its backend codec=LayeredCodec(JsonCodec(<message type>), {layers:.200}) "
        "and redrive the message"
    )
