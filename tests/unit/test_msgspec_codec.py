"""msgspec's codec keeps the same promises as the one with pydantic."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from apalis_pgmq import ConfigError, DecodeError, EncodeError, MemoryBackend, MsgspecCodec

from .support import build, run_until_empty, settings


class Colour(Enum):
    RED = "red"


class Order(msgspec.Struct, frozen=True):
    number: int
    at: datetime
    price: Decimal
    colour: Colour = Colour.RED
    note: str | None = None
    raw: bytes = b""


class Urgent(Order, frozen=True):
    by: int = 1


class Closed(msgspec.Struct, forbid_unknown_fields=True):
    to: str


class WiderThanClosed(Closed):
    extra: int = 1


class A(msgspec.Struct, tag=True):
    x: int


class B(msgspec.Struct, tag=True):
    x: int


@dataclass
class Plain:
    to: str
    count: int = 0


class Pair(NamedTuple):
    a: int
    b: str


class Keyed(TypedDict):
    a: int


storable = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
orders = st.builds(
    Order,
    st.integers(-(2**63), 2**64 - 1),
    st.datetimes(timezones=st.just(UTC)),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.just(Colour.RED),
    st.none() | storable,
    st.binary(),
)


@given(order=orders)
def test_a_struct_comes_back(order: Order) -> None:
    codec = MsgspecCodec(Order)
    assert codec.decode(codec.encode(order)) == order


@pytest.mark.parametrize(
    ("message_type", "message"),
    [
        (Plain, Plain("ada", 3)),
        (Pair, Pair(1, "b")),
        (Keyed, {"a": 1}),
        (A | B, B(1)),
        (int, 5),
        (str | None, None),
        (bytes, b"\x00\xff"),
        (list[UUID], [UUID(int=1)]),
        (dict[str, timedelta], {"a": timedelta(seconds=1)}),
    ],
)
def test_other_types_come_back(message_type: Any, message: Any) -> None:
    codec: MsgspecCodec[Any] = MsgspecCodec(message_type)
    assert codec.decode(codec.encode(message)) == message


@pytest.mark.parametrize(
    ("message_type", "message"),
    [
        (Plain, Pair(1, "b")),
        (Plain, {"to": "ada"}),
        (Plain, Plain("ada", "hunter2")),  # type: ignore[arg-type]
        (Plain, Plain("\ud800hunter2")),
        (Closed, WiderThanClosed("hunter2")),
        (A | B, Plain("hunter2")),
        (int, "hunter2"),
        (float, float("nan")),
        (Any, object()),
        (Any, {1j: "hunter2"}),
    ],
)
def test_what_a_worker_could_not_read_is_not_encoded(message_type: Any, message: Any) -> None:
    codec: MsgspecCodec[Any] = MsgspecCodec(message_type)
    with pytest.raises(EncodeError, match="cannot encode") as caught:
        codec.encode(message)
    assert "hunter2" not in str(caught.value)


def test_what_contains_itself_is_not_encoded() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError):
        MsgspecCodec[Any](Any).encode(endless)


def test_a_subclass_is_read_as_what_the_queue_is_of() -> None:
    codec = MsgspecCodec(Order)
    urgent = Urgent(1, datetime(2026, 1, 1, tzinfo=UTC), Decimal(1), by=2)
    assert codec.decode(codec.encode(urgent)) == Order(1, urgent.at, urgent.price)


@pytest.mark.parametrize(
    ("message_type", "payload", "says"),
    [
        (Plain, '{"count": 1}', "missing required field `to`"),
        (Plain, '{"to": "a", "count": "hunter2"}', "Expected `int`, got `str` - at `$.count`"),
        (Plain, "null", "Expected `object`, got `null`"),
        (Plain, "hunter2", "malformed"),
        (Colour, '"hunter2"', "Invalid enum value"),
        (list[Colour], '["hunter2 - at `x"]', "Invalid enum value - at `$[0]`"),
        (Colour, '"x - at `hunter2`"', "Invalid enum value"),
        (Literal["a"], '"hunter2"', "Invalid enum value"),
        (A | B, '{"type": "hunter2"}', "Invalid value - at `$.type`"),
        (UUID, '"hunter2"', "Invalid UUID"),
        (Any, "[" * 100_000, "recursion"),
    ],
)
def test_what_is_not_of_the_type_is_refused_without_showing_it(
    message_type: Any, payload: str, says: str
) -> None:
    codec: MsgspecCodec[Any] = MsgspecCodec(message_type)
    with pytest.raises(DecodeError) as caught:
        codec.decode(payload)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_numbers_as_text_are_taken_if_asked_for() -> None:
    payload = '{"to": "a", "count": "5"}'
    assert MsgspecCodec(Plain, strict=False).decode(payload) == Plain("a", 5)
    with pytest.raises(DecodeError):
        MsgspecCodec(Plain).decode(payload)


def test_hooks_make_other_types_possible() -> None:
    def out(value: object) -> object:
        if isinstance(value, complex):
            return [value.real, value.imag]
        raise NotImplementedError

    def back(kind: type, value: Any) -> Any:
        return kind(*value)

    codec = MsgspecCodec(complex, enc_hook=out, dec_hook=back)
    assert codec.decode(codec.encode(1 + 2j)) == 1 + 2j


@pytest.mark.parametrize("message_type", [object(), "Missing", set[list[int]] | set[str]])
def test_a_type_that_cannot_work_is_refused(message_type: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be a message type"):
        MsgspecCodec(message_type)


async def test_it_is_a_backends_codec() -> None:
    backend = MemoryBackend(settings(), Plain, codec=MsgspecCodec(Plain))
    handled: list[Plain] = []
    await backend.push(Plain("ada"))
    handler: Callable[[Plain], None] = handled.append
    await run_until_empty(backend, build(backend, handler))
    assert handled == [Plain("ada")]


def test_without_msgspec_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ImportError, match=r"apalis-pgmq\[msgspec\]"):
        MsgspecCodec(Plain)
