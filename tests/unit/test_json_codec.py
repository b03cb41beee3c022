"""Messages become JSON and come back, or are refused in words that keep their secrets."""

import json
import math
import threading
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from apalis_pgmq import ApalisError, CodecError, ConfigError, DecodeError, EncodeError, JsonCodec

SECRET = "hunter2"


class Colour(StrEnum):
    RED = "red"


@dataclass
class Address:
    street: str
    lines: list[str] = field(default_factory=list)


@dataclass
class Reading:
    value: float


@dataclass(frozen=True)
class Order:
    number: int
    at: datetime
    price: Decimal
    address: Address
    colour: Colour = Colour.RED
    note: str | None = None


class Item(BaseModel):
    sku: str
    count: int = 1


class Basket(BaseModel):
    owner_id: UUID = Field(alias="ownerId")
    items: list[Item]
    opened: datetime
    total: Decimal
    raw: bytes = b""


class Movement(TypedDict):
    x: int
    y: int


class Point(NamedTuple):
    x: float
    label: str


class Created(BaseModel):
    kind: Literal["created"] = "created"
    name: str


class Deleted(BaseModel):
    kind: Literal["deleted"] = "deleted"
    name: str


Change = Annotated[Created | Deleted, Field(discriminator="kind")]

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    ("message_type", "message"),
    [
        (Order, Order(7, AT, Decimal("19.90"), Address("High St", ["a", "b"]), note="é\n\0")),
        (
            Basket,
            Basket(ownerId=UUID(int=5), items=[Item(sku="a")], opened=AT, total=Decimal("0.1"), raw=b"\0abc"),
        ),
        (Movement, {"x": 1, "y": 2}),
        (Point, Point(1.5, "here")),
        (Created | Deleted, Deleted(name="x")),
        (Change, Created(name="x")),
        (Order | Address, Address("High St")),
        (str, "text"),
        (str, ""),
        (int, 2**70),
        (bool, False),
        (float, 0.1),
        (None, None),
        (bytes, b"abc"),
        (date, date(2026, 1, 2)),
        (timedelta, timedelta(hours=1, microseconds=5)),
        (list[Address], [Address("a")]),
        (dict[str, int], {"a": 1}),
        (tuple[int, str], (1, "a")),
        (Any, {"a": [1, None, "x"]}),
    ],
    ids=lambda value: getattr(value, "__name__", "") or str(value)[:30],
)
def test_a_message_comes_back_as_it_was(message_type: Any, message: object) -> None:
    codec: JsonCodec[Any] = JsonCodec(message_type)

    decoded = codec.decode(codec.encode(message))

    assert decoded == message
    assert type(decoded) is type(message)


def test_the_payload_is_plain_json_for_other_languages() -> None:
    payload = JsonCodec(Order).encode(Order(7, AT, Decimal("19.90"), Address("High St")))

    assert json.loads(payload) == {
        "number": 7,
        "at": "2026-01-02T03:04:05.678901Z",
        "price": "19.90",
        "address": {"street": "High St", "lines": []},
        "colour": "red",
        "note": None,
    }


def test_fields_are_written_by_their_alias() -> None:
    basket = Basket(ownerId=UUID(int=5), items=[], opened=AT, total=Decimal(1))

    assert "ownerId" in json.loads(JsonCodec(Basket).encode(basket))


def test_payloads_of_other_producers_are_read_leniently() -> None:
    payload = '{"number": "7", "at": 0, "price": 1, "address": {"street": "x"}, "unknown": true}'

    assert JsonCodec(Order).decode(payload) == Order(
        7, datetime(1970, 1, 1, tzinfo=UTC), Decimal(1), Address("x")
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_any_json_value_comes_back(value: object) -> None:
    codec: JsonCodec[Any] = JsonCodec(Any)

    assert codec.decode(codec.encode(value)) == value


@given(
    st.builds(
        Order,
        number=st.integers(),
        at=st.datetimes(timezones=st.just(UTC)),
        price=st.decimals(allow_nan=False, allow_infinity=False),
        address=st.builds(Address, street=st.text(), lines=st.lists(st.text(), max_size=3)),
        note=st.none() | st.text(),
    )
)
def test_any_dataclass_comes_back(order: Order) -> None:
    codec = JsonCodec(Order)

    assert codec.decode(codec.encode(order)) == order


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_decoding_anything_is_a_message_or_a_decode_error(payload: str) -> None:
    try:
        decoded = JsonCodec(Address).decode(payload)
    except DecodeError:
        return
    assert isinstance(decoded, Address)


@pytest.mark.parametrize(
    ("message_type", "message"),
    [
        (Address, {"street": "x"}),
        (Address, Item(sku="x")),
        (Address, Address(5)),  # type: ignore[arg-type]
        (Address, "x"),
        (Address, None),
        (Item, Address("x")),
        (Item, None),
        (int, "5"),
        (int, None),
        (Change, Address("x")),
        (Created | Deleted, Address("x")),
        (list[int], ["a"]),
    ],
    ids=repr,
)
def test_a_message_of_another_type_is_refused(message_type: Any, message: object) -> None:
    with pytest.raises(EncodeError, match=type(message).__name__):
        JsonCodec(message_type).encode(message)


@pytest.mark.parametrize(
    ("message_type", "message"),
    [
        (Any, threading.Lock()),
        (bytes, b"\xff"),
        (str, "\ud800"),
        (Address, Address("\udfff")),
    ],
    ids=["lock", "bytes that are not UTF-8", "lone surrogate", "in a field"],
)
def test_a_message_without_a_json_form_is_refused(message_type: Any, message: object) -> None:
    with pytest.raises(EncodeError, match="cannot encode"):
        JsonCodec(message_type).encode(message)


def test_a_message_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(EncodeError):
        JsonCodec(list[Any]).encode(endless)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_refused(number: float) -> None:
    with pytest.raises(EncodeError):
        JsonCodec(float).encode(number)
    with pytest.raises(EncodeError):
        JsonCodec(Reading).encode(Reading(number))


def test_the_model_may_choose_another_form_for_them() -> None:
    class Reading(BaseModel, ser_json_inf_nan="strings"):
        value: float

    codec = JsonCodec(Reading)

    assert math.isnan(codec.decode(codec.encode(Reading(value=math.nan))).value)


@pytest.mark.parametrize("payload", ["", "{", "nul", '{"street": "x"', "\ud800", '"\\ud800"', "[" * 100_000])
def test_text_that_is_not_json_is_refused(payload: str) -> None:
    with pytest.raises(DecodeError, match="Address"):
        JsonCodec(Address).decode(payload)


@pytest.mark.parametrize(
    ("message_type", "payload", "named"),
    [
        (Address, {"street": [SECRET]}, ["Address", "street"]),
        (Address, {"strasse": SECRET}, ["street: Field required"]),
        (Address, SECRET, ["Address"]),
        (Address, [SECRET], ["Address"]),
        (Order, {"number": SECRET, "address": {"street": 1}}, ["number", "at", "price", "address.street"]),
        (Basket, {"ownerId": SECRET, "items": [{"sku": "a", "count": SECRET}]}, ["ownerId", "items.0.count"]),
        (Movement, {"x": SECRET}, ["x", "y"]),
        (Point, [SECRET, "a"], ["0"]),
        (list[int], [1, SECRET], ["1"]),
        (Change, {"kind": "created", "name": [SECRET]}, ["created.name"]),
        (Change, {"kind": SECRET, "name": "x"}, ["kind"]),
        (Change, {"kind": [SECRET], "name": "x"}, ["kind"]),
        (int, SECRET, ["int"]),
        (datetime, SECRET, ["datetime"]),
        (Colour, SECRET, ["Colour"]),
    ],
)
def test_a_refusal_names_the_fields_and_never_the_values(
    message_type: Any, payload: object, named: list[str]
) -> None:
    with pytest.raises(DecodeError) as caught:
        JsonCodec(message_type).decode(json.dumps(payload))

    text = str(caught.value)
    assert all(name in text for name in named), text
    assert SECRET not in text


def test_a_refusal_names_only_the_first_few_fields() -> None:
    with pytest.raises(DecodeError, match="and 95 more") as caught:
        JsonCodec(list[int]).decode(json.dumps(["x"] * 100))

    assert len(str(caught.value)) < 600


def test_a_validator_of_the_user_refuses_in_its_own_words() -> None:
    class Person(BaseModel):
        age: int

        @field_validator("age")
        @classmethod
        def not_negative(cls, age: int) -> int:
            if age < 0:
                raise ValueError("nobody is that young")
            return age

    with pytest.raises(DecodeError, match=r"age: .*nobody is that young"):
        JsonCodec(Person).decode('{"age": -1}')


@pytest.mark.parametrize("message_type", [threading.Event, list[threading.Event]])
def test_a_type_without_a_schema_is_refused(message_type: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be a message type"):
        JsonCodec(message_type)


@dataclass
class Unfinished:
    part: "DefinedNowhere"  # type: ignore[name-defined]  # noqa: F821


def test_a_type_with_a_field_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="Unfinished"):
        JsonCodec(Unfinished)


def test_the_errors_are_codec_errors_of_this_library() -> None:
    for error in (EncodeError, DecodeError):
        assert issubclass(error, CodecError)
        assert issubclass(error, ApalisError)
