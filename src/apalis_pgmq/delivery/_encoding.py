"""What is stored of a message, and how it is read again: the one place where codec and headers meet."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

from apalis_pgmq.core import (
    CLAIM_CHECK,
    CONTENT_ENCODING,
    CONTENT_HEADERS,
    DecodeError,
    EncodeError,
    checked_payload,
    encodings_of,
    headers_of,
    unknown_encoding,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from apalis_pgmq.core import AnyCodec, Config

T = TypeVar("T")


def encoder(
    codec: AnyCodec[T], config: Config, headers: Mapping[str, object] | None
) -> Callable[[T], tuple[str, str | None]]:
    """Return what makes payload and headers, both JSON text, of messages that are sent with the same headers.

    Headers of the caller that tell how a payload is read are left out: they belong to a message that somebody
    passes on, and say nothing of the new one.

    Raises:
        EncodeError: the headers have no JSON form. What is returned raises it for a message that has none, or
            is larger than ``max_payload``.
    """
    if headers is not None and not CONTENT_HEADERS.isdisjoint(headers):
        headers = {name: value for name, value in headers.items() if name not in CONTENT_HEADERS}
    text = _encode_headers(headers)
    if hasattr(codec, "pack"):
        pack = codec.pack

        def packed(message: T) -> tuple[str, str | None]:
            payload, added = pack(message)
            if not added:
                return checked_payload(payload, config), text
            return checked_payload(payload, config), json.dumps({**(headers or {}), **added})

        return packed
    encode = codec.encode

    def encoded(message: T) -> tuple[str, str | None]:
        return checked_payload(encode(message), config), text

    return encoded


def decoders(codec: AnyCodec[T]) -> tuple[Callable[[str], T], Callable[[str, str], T]]:
    """Return what reads a payload that has no headers, and what reads one by its headers, as JSON text.

    Both raise `DecodeError`.
    """
    if hasattr(codec, "unpack"):
        unpack = codec.unpack

        def unpack_by(payload: str, text: str) -> T:
            _require_body(payload, text)
            message: T = unpack(payload, headers_of(text))
            return message

        return lambda payload: unpack(payload, {}), unpack_by
    decode = codec.decode

    def decode_by(payload: str, text: str) -> T:
        _require_body(payload, text)
        # The name has one form only as JSON text, so this finds it wherever it is.
        if CONTENT_ENCODING in text and (encodings := encodings_of(headers_of(text))):
            raise unknown_encoding(encodings, ())
        return decode(payload)

    return decode, decode_by


def _require_body(payload: str, text: str) -> None:
    """Refuse a message whose payload lies beside the queue and was not brought along."""
    if payload == "null" and CLAIM_CHECK in text and headers_of(text).get(CLAIM_CHECK) is not None:
        raise DecodeError(
            f"the message has its payload beside the queue (header {CLAIM_CHECK}), and it did not come along: either "
            "the worker's Config has no claim_check_over, which it needs to look there (then set it and redrive the "
            "message), or it was deleted from there"
        )


def _encode_headers(headers: Mapping[str, object] | None) -> str | None:
    """Return headers as JSON text, or None for none.

    Raises:
        EncodeError: they have no JSON form.
    """
    if headers is None:
        return None
    try:
        return json.dumps(dict(headers), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EncodeError(f"the headers have no JSON form: {error}") from error
