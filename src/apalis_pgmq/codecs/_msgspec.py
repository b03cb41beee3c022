"""JSON by msgspec."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload

from apalis_pgmq.core import ConfigError, DecodeError, EncodeError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_PLACE: Final = re.compile(r" - at `(key in )?\$[^'`]*`$")
"""Where the value is that msgspec tells of, at the end of its text."""


class MsgspecCodec(Generic[T]):
    """Encodes and validates messages with msgspec: Structs, dataclasses, TypedDict, NamedTuple, unions, plain types.

    Faster than `JsonCodec`, and stricter unless told otherwise: ``"5"`` is no ``int``. Needs the extra ``msgspec``.

    Args:
        message_type: the type of the messages. A type checker cannot infer ``T`` from a union: annotate
            the variable, ``codec: MsgspecCodec[A | B] = MsgspecCodec(A | B)``.
        strict: False accepts text for numbers and the like, as other producers may write them.
        enc_hook: makes something that msgspec knows of a value that it does not.
        dec_hook: is given a type that msgspec does not know, and what to make a value of it from.

    Raises:
        ConfigError: msgspec does not support the type.
        ImportError: ``msgspec`` is not installed.
    """

    @overload
    def __init__(
        self,
        message_type: type[T],
        *,
        strict: bool = ...,
        enc_hook: Callable[[Any], Any] | None = ...,
        dec_hook: Callable[[type, Any], Any] | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        message_type: Any,
        *,
        strict: bool = ...,
        enc_hook: Callable[[Any], Any] | None = ...,
        dec_hook: Callable[[type, Any], Any] | None = ...,
    ) -> None: ...
    def __init__(
        self,
        message_type: Any,
        *,
        strict: bool = True,
        enc_hook: Callable[[Any], Any] | None = None,
        dec_hook: Callable[[type, Any], Any] | None = None,
    ) -> None:
        try:
            import msgspec  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ImportError("MsgspecCodec needs msgspec: pip install 'apalis-pgmq[msgspec]'") from error
        try:
            self._decoder = msgspec.json.Decoder(message_type, strict=strict, dec_hook=dec_hook)
        except (TypeError, NameError) as error:
            raise ConfigError(f"{message_type!r} cannot be a message type: {error}") from error
        self._encoder = msgspec.json.Encoder(enc_hook=enc_hook)
        self._refusals = (msgspec.DecodeError, RecursionError)
        is_class = isinstance(message_type, type) and (
            issubclass(message_type, msgspec.Struct)
            or dataclasses.is_dataclass(message_type)
            or (issubclass(message_type, tuple) and hasattr(message_type, "_fields"))
        )
        self._class: type | None = message_type if is_class else None

    def __repr__(self) -> str:
        return f"MsgspecCodec({self._decoder.type!r})"

    def encode(self, message: T) -> str:
        """Return the message as JSON text, which `decode` is sure to read.

        Raises:
            EncodeError: the message is not of the codec's type, or has no JSON form.
        """
        if self._class is not None and not isinstance(message, self._class):
            raise EncodeError(f"cannot encode a {type(message).__name__} as {self._class.__name__}")
        try:
            payload = self._encoder.encode(message)
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodeError(f"cannot encode {type(message).__name__}: {_kind(error)}") from None
        # The encoder looks at no annotation: without this a worker would be the first to notice.
        try:
            self._decoder.decode(payload)
        except self._refusals as error:
            raise EncodeError(f"cannot encode {type(message).__name__}: {_explain(error)}") from None
        return payload.decode()

    def decode(self, payload: str) -> T:
        """Return the message that the JSON text stands for.

        Raises:
            DecodeError: it is not of the codec's type; the text names the field at fault, and shows no values.
        """
        try:
            message: T = self._decoder.decode(payload)
        except self._refusals as error:
            raise DecodeError(f"not a valid message: {_explain(error)}") from None
        return message


def _kind(error: Exception) -> str:
    # The text of a UnicodeEncodeError holds what it is about.
    return "it has no form in UTF-8" if isinstance(error, UnicodeError) else str(error)


def _explain(error: Exception) -> str:
    """Return msgspec's text without the value that it may show: that may be secret."""
    text = str(error)
    for start in ("Invalid enum value", "Invalid value"):
        if text.startswith(start):
            place = _PLACE.search(text)
            return start if place is None else start + place[0]
    return text
