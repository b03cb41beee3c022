"""JSON by pydantic."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

from pydantic import PydanticUserError, TypeAdapter, ValidationError
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
            self._adapter: TypeAdapter[T] = TypeAdapter(message_type)
        except PydanticUserError as error:
            raise ConfigError(f"{message_type!r} cannot be a message type: {error.message}") from error

    def encode(self, message: T) -> str:
        """Return the message as JSON text.

        Raises:
            EncodeError: the message is not of the codec's type, or has no JSON form.
        """
        try:
            # By alias and round-trip, so that `decode` reads what this writes. Warnings are pydantic's
            # way to say that the value is of another type: here that is an error.
            payload = self._adapter.dump_json(message, by_alias=True, round_trip=True, warnings="error")
            return payload.decode()
        except (PydanticSerializationError, UnicodeError) as error:
            raise EncodeError(f"cannot encode {type(message).__name__}: {error}") from error

    def decode(self, payload: str) -> T:
        """Return the message that the JSON text stands for.

        Raises:
            DecodeError: it is not of the codec's type; the text names the first few fields at fault.
        """
        try:
            return self._adapter.validate_json(payload)
        except ValidationError as error:
            raise DecodeError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    # Without the values: they may be secret, and the message itself is kept anyway.
    details = error.errors(include_url=False, include_input=False, include_context=False)
    shown = [
        f"{'.'.join(map(str, detail['loc'])) or 'message'}: {detail['msg']}"
        for detail in details[:_MAX_SHOWN]
    ]
    if len(details) > _MAX_SHOWN:
        shown.append(f"and {len(details) - _MAX_SHOWN} more")
    return f"not a valid {error.title}: {'; '.join(shown)}"
