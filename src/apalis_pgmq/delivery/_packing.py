"""How a message becomes what is stored: its payload and its headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Generic, TypeVar

from apalis_pgmq.core import EncodeError, checked_payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from apalis_pgmq.core import Codec, Config

T = TypeVar("T")


class Packer(Generic[T]):
    """Makes payload and headers of messages: the one way to do it, for whatever sends.

    Made for each call that sends, since the headers that the user gives are the same for all messages of a call.

    Args:
        codec: how messages become JSON.
        config: the queue's settings, which bound the payload.
        headers: what to keep beside each message, or None.

    Raises:
        EncodeError: the headers have no JSON form.
    """

    __slots__ = ("_codec", "_config", "_headers")

    def __init__(self, codec: Codec[T], config: Config, headers: Mapping[str, object] | None) -> None:
        self._codec = codec
        self._config = config
        self._headers = _encode_headers(headers)

    def pack(self, message: T) -> tuple[str, str | None]:
        """Return a message's payload and headers, as JSON text; None for no headers.

        Raises:
            EncodeError: the message is of another type, has no JSON form, or is too large.
        """
        return checked_payload(self._codec.encode(message), self._config), self._headers


def _encode_headers(headers: Mapping[str, object] | None) -> str | None:
    if headers is None:
        return None
    try:
        return json.dumps(dict(headers), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EncodeError(f"the headers have no JSON form: {error}") from error
