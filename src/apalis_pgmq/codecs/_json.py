"""JSON by pydantic."""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypeVar, overload

from pydantic import BaseModel, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from apalis_pgmq.core import ConfigError, DecodeError, EncodeError

T = TypeVar("T")

_MAX_SHOWN = 5


class JsonCodec(Generic[T]):
    """Encodes and validates messages with a pydantic ``TypeAdapter``.

    Takes dataclasses, pydantic models, TypedDict, NamedTuple, unions and plain types. Validation is
    pydantic's ordinary one, which accepts what other producers write (``"5"`` for an ``int``, say).

    Args:
        message_type: the type of the messages. A type checker cannot infer ``T`` from a union: annotate
            the variable, ``codec: JsonCodec[A | B] = JsonCodec(A | B)``.

    Raises:
        ConfigError: pydantic has no schema for the type.
    """

    @overload
    def __init__(self, message_type: type[T]) -> None: ...
    @overload
    def __init__(self, message_type: Any) -> None: ...
    def __init__(self, message_type: Any) -> None:
        try:
            adapter: TypeAdapter[T] = TypeAdapter(message_type)
            adapter.rebuild(raise_errors=True)
        except (PydanticUserError, NameError) as error:
            raise ConfigError(f"{message_type!r} cannot be a message type: {error}") from error
        # What the adapter's methods call; they are looked up once, not for each message.
        self._validate = adapter.validator.validate_json
        self._dump = adapter.serializer.to_json
        self._class = message_type if _has_fields(message_type) else None

    def encode(self, message: T) -> str:
        """Return the message as JSON text, which `decode` is sure to read.

        Raises:
            EncodeError: the message is not of the codec's type, or has no JSON form (NaN has none).
        """
        if self._class is not None and not isinstance(message, self._class):
            raise EncodeError(f"cannot encode a {type(message).__name__} as {self._class.__name__}")
        try:
            # By alias and round-trip, so that `decode` reads what this writes. Warnings are pydantic's
            # way to say that a value is of another type than its field: here that is an error.
            payload = self._dump(message, by_alias=True, round_trip=True, warnings="error").decode()
        except (PydanticSerializationError, UnicodeError) as error:
            # Pydantic's text may show values, which may be secret.
            text = str(error)
            reason = "a value is not of its field's type" if "input_value" in text else text
            raise EncodeError(f"cannot encode {type(message).__name__}: {reason}") from None
        # The serializer takes anything for a type without fields of its own, and writes NaN as null.
        if self._class is None or "null" in payload:
            try:
                self._validate(payload)
            except ValidationError as error:
                raise EncodeError(f"cannot encode {type(message).__name__}: {_explain(error)}") from None
        return payload

    def decode(self, payload: str) -> T:
        """Return the message that the JSON text stands for.

        Raises:
            DecodeError: it is not of the codec's type; the text names the first few fields at fault, and
                never shows values.
        """
        try:
            return self._validate(payload)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise DecodeError(_explain(error)) from None


def _has_fields(message_type: Any) -> bool:
    """Whether a value of this type is an instance of a class with fields, and of no other."""
    if not isinstance(message_type, type):
        return False
    is_named_tuple = issubclass(message_type, tuple) and hasattr(message_type, "_fields")
    return dataclasses.is_dataclass(message_type) or issubclass(message_type, BaseModel) or is_named_tuple


def _explain(error: ValidationError) -> str:
    # Without the values: they may be secret, and the message itself is kept anyway.
    details = error.errors(include_url=False, include_input=False)
    shown = []
    for detail in details[:_MAX_SHOWN]:
        text = detail["msg"]
        if detail["type"] == "union_tag_invalid":
            context = detail["ctx"]
            text = f"{context['discriminator']} is none of {context['expected_tags']}"
        shown.append(f"{'.'.join(map(str, detail['loc'])) or 'message'}: {text}")
    if len(details) > _MAX_SHOWN:
        shown.append(f"and {len(details) - _MAX_SHOWN} more")
    return f"not a valid {error.title}: {'; '.join(shown)}"
