"""What becomes of messages in flight when their type changes: the table of docs/codecs.md, one test for each cell."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, with_config

from apalis_pgmq import Codec, DecodeError, EncodeError, JsonCodec, MsgspecCodec


def a_dataclass(**fields: Any) -> type:
    return _class(dataclass(kw_only=True), (object,), fields)


def a_model(**fields: Any) -> type:
    return _class(lambda made: made, (BaseModel,), fields)


def a_struct(**fields: Any) -> type:
    return _class(lambda made: made, (msgspec.Struct,), fields, kw_only=True)


def _class(
    decorate: Callable[[type], type], bases: tuple[type, ...], fields: dict[str, Any], **keywords: Any
) -> type:
    """Make a class of fields that are a type, or a type and a default."""
    annotations = {name: kind[0] if isinstance(kind, tuple) else kind for name, kind in fields.items()}
    defaults = {name: kind[1] for name, kind in fields.items() if isinstance(kind, tuple)}
    made = type(bases[0])(
        "Order", bases, {"__annotations__": annotations, "__module__": __name__, **defaults}, **keywords
    )
    return decorate(made)


@dataclass(frozen=True)
class Family:
    """How a kind of type is made, and its codec."""

    make: Callable[..., type]
    codec: Callable[[Any], Codec[Any]]


FAMILIES = {
    "model": Family(a_model, JsonCodec),
    "dataclass": Family(a_dataclass, JsonCodec),
    "struct": Family(a_struct, MsgspecCodec),
    "dataclass with msgspec": Family(a_dataclass, MsgspecCodec),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


class Status(StrEnum):
    OPEN = "open"


class MoreStatus(StrEnum):
    OPEN = "open"
    PAID = "paid"


OLD = {"number": int}


@dataclass(frozen=True)
class Change:
    """A change of the type ``before`` to ``after``, and what becomes of messages of either kind of program.

    ``old_at_new`` is what a new worker makes of an old message; ``new_at_old`` the other way round; None: it is
    dead-lettered as undecodable.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    old: dict[str, Any]
    new: dict[str, Any]
    old_at_new: dict[str, Any] | None
    new_at_old: dict[str, Any] | None


CHANGES = {
    "added with a default": Change(
        OLD, {"number": int, "note": (str, "none")}, {"number": 1}, {"number": 1, "note": "n"},
        old_at_new={"number": 1, "note": "none"}, new_at_old={"number": 1},
    ),
    "added without a default": Change(
        OLD, {"number": int, "note": str}, {"number": 1}, {"number": 1, "note": "n"},
        old_at_new=None, new_at_old={"number": 1},
    ),
    "removed": Change(
        {"number": int, "note": str}, OLD, {"number": 1, "note": "n"}, {"number": 1},
        old_at_new={"number": 1}, new_at_old=None,
    ),
    "removed, had a default": Change(
        {"number": int, "note": (str, "none")}, OLD, {"number": 1, "note": "n"}, {"number": 1},
        old_at_new={"number": 1}, new_at_old={"number": 1, "note": "none"},
    ),
    "renamed": Change(
        OLD, {"no": int}, {"number": 1}, {"no": 1}, old_at_new=None, new_at_old=None,
    ),
    "renamed, with a default": Change(
        OLD, {"no": (int, 0)}, {"number": 1}, {"no": 1},
        old_at_new={"no": 0}, new_at_old=None,  # silently another value
    ),
    "widened, old value": Change(
        {"number": int}, {"number": int | None}, {"number": 1}, {"number": 1},
        old_at_new={"number": 1}, new_at_old={"number": 1},
    ),
    "widened, new value": Change(
        {"number": int}, {"number": int | None}, {"number": 1}, {"number": None},
        old_at_new={"number": 1}, new_at_old=None,
    ),
    "int to float": Change(
        {"number": int}, {"number": float}, {"number": 1}, {"number": 1.5},
        old_at_new={"number": 1.0}, new_at_old=None,
    ),
    "int to str": Change(
        {"number": int}, {"number": str}, {"number": 1}, {"number": "x"}, old_at_new=None, new_at_old=None,
    ),
    "narrowed": Change(
        {"number": int | None}, {"number": int}, {"number": None}, {"number": 1},
        old_at_new=None, new_at_old={"number": 1},
    ),
    "member added": Change(
        {"status": Status}, {"status": MoreStatus}, {"status": Status.OPEN}, {"status": MoreStatus.PAID},
        old_at_new={"status": "open"}, new_at_old=None,
    ),
}  # fmt: skip


@every_family
@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_a_new_worker_makes_of_an_old_message(family: Family, change: Change) -> None:
    _expect(family, change.before, change.old, change.after, change.old_at_new)


@every_family
@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_what_an_old_worker_makes_of_a_new_message(family: Family, change: Change) -> None:
    _expect(family, change.after, change.new, change.before, change.new_at_old)


def _expect(
    family: Family,
    sent_as: dict[str, Any],
    values: dict[str, Any],
    read_as: dict[str, Any],
    result: dict[str, Any] | None,
) -> None:
    sender, reader = family.make(**sent_as), family.make(**read_as)
    payload = family.codec(sender).encode(sender(**values))
    if result is None:
        with pytest.raises(DecodeError):
            family.codec(reader).decode(payload)
    else:
        message = family.codec(reader).decode(payload)
        assert {name: getattr(message, name) for name in read_as} == result


def test_a_whole_float_is_an_int_to_pydantic_only() -> None:
    assert JsonCodec(a_dataclass(number=int)).decode('{"number": 2.0}').number == 2
    with pytest.raises(DecodeError, match="got `float`"):
        MsgspecCodec(a_dataclass(number=int)).decode('{"number": 2.0}')


class TestTypesThatRefuseWhatTheyDoNotKnow:
    """Then a field that is added concerns old workers, and one that is removed concerns new ones."""

    def test_model(self) -> None:
        class Closed(BaseModel):
            model_config = ConfigDict(extra="forbid")
            number: int

        with pytest.raises(DecodeError, match="note: Extra inputs"):
            JsonCodec(Closed).decode('{"number": 1, "note": "n"}')

    def test_struct(self) -> None:
        class Closed(msgspec.Struct, forbid_unknown_fields=True):
            number: int

        with pytest.raises(DecodeError, match="unknown field `note`"):
            MsgspecCodec(Closed).decode('{"number": 1, "note": "n"}')


class TestRenaming:
    """Without losing a message: the name in the payload stays, or both are read for a while."""

    def test_a_model_keeps_the_name_in_the_payload(self) -> None:
        class Order(BaseModel):
            no: int = Field(alias="number")

        codec = JsonCodec(Order)
        assert codec.encode(Order(number=1)) == '{"number":1}'
        assert codec.decode('{"number": 1}').no == 1

    def test_a_dataclass_keeps_the_name_in_the_payload(self) -> None:
        @dataclass
        class Order:
            no: Annotated[int, Field(alias="number")]

        codec = JsonCodec(Order)
        assert codec.encode(Order(1)) == '{"number":1}'
        assert codec.decode('{"number": 1}') == Order(1)

    def test_a_struct_keeps_the_name_in_the_payload(self) -> None:
        class Order(msgspec.Struct):
            no: int = msgspec.field(name="number")

        codec = MsgspecCodec(Order)
        assert codec.encode(Order(1)) == '{"number":1}'
        assert codec.decode('{"number": 1}') == Order(1)

    @pytest.mark.parametrize("payload", ['{"number": 1}', '{"no": 1}'])
    def test_a_model_reads_both_names(self, payload: str) -> None:
        class Order(BaseModel):
            no: int = Field(validation_alias=AliasChoices("no", "number"))

        assert JsonCodec(Order).decode(payload).no == 1
        assert JsonCodec(Order).encode(Order(no=1)) == '{"no":1}'

    @pytest.mark.parametrize("payload", ['{"number": 1}', '{"no": 1}'])
    def test_a_dataclass_reads_both_names(self, payload: str) -> None:
        @dataclass
        class Order:
            no: Annotated[int, Field(validation_alias=AliasChoices("no", "number"))]

        assert JsonCodec(Order).decode(payload) == Order(1)
        assert JsonCodec(Order).encode(Order(1)) == '{"no":1}'


class TestVersions:
    """Two types side by side, told apart by a tag."""

    def test_models(self) -> None:
        class V1(BaseModel):
            v: Literal[1] = 1
            name: str

        class V2(BaseModel):
            v: Literal[2] = 2
            first: str
            last: str

        codec: JsonCodec[V1 | V2] = JsonCodec(Annotated[V1 | V2, Field(discriminator="v")])
        assert codec.decode(codec.encode(V1(name="Ada Lovelace"))) == V1(name="Ada Lovelace")
        assert codec.decode(codec.encode(V2(first="Ada", last="Lovelace"))) == V2(
            first="Ada", last="Lovelace"
        )
        with pytest.raises(DecodeError):
            JsonCodec(V1).decode(codec.encode(V2(first="Ada", last="Lovelace")))

    def test_structs(self) -> None:
        class V1(msgspec.Struct, tag=1, tag_field="v"):
            name: str

        class V2(msgspec.Struct, tag=2, tag_field="v"):
            first: str

        codec: MsgspecCodec[V1 | V2] = MsgspecCodec(V1 | V2)
        assert codec.decode(codec.encode(V1("Ada"))) == V1("Ada")
        assert codec.decode(codec.encode(V2("Ada"))) == V2("Ada")
        with pytest.raises(DecodeError):
            MsgspecCodec(V1).decode(codec.encode(V2("Ada")))


class TestBytes:
    """Binary data goes as base64 text."""

    DATA = bytes(range(256))

    def test_a_model(self) -> None:
        class File(BaseModel):
            model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
            data: bytes

        codec = JsonCodec(File)
        assert codec.decode(codec.encode(File(data=self.DATA))).data == self.DATA

    def test_a_dataclass(self) -> None:
        @with_config(ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))
        @dataclass
        class File:
            data: bytes

        codec = JsonCodec(File)
        assert codec.decode(codec.encode(File(self.DATA))) == File(self.DATA)
        # The ordinary alphabet, which SQL's encode() and msgspec write, is read as well.
        ordinary = json.dumps({"data": base64.b64encode(self.DATA).decode()})
        assert codec.decode(ordinary) == File(self.DATA)

    def test_without_the_setting_it_is_refused_before_it_is_sent(self) -> None:
        @dataclass
        class File:
            data: bytes

        with pytest.raises(EncodeError):
            JsonCodec(File).encode(File(self.DATA))

    def test_a_struct_and_a_dataclass_with_msgspec(self) -> None:
        class File(msgspec.Struct):
            data: bytes

        @dataclass
        class Other:
            data: bytes

        assert MsgspecCodec(File).decode(MsgspecCodec(File).encode(File(self.DATA))) == File(self.DATA)
        assert MsgspecCodec(Other).decode(MsgspecCodec(Other).encode(Other(self.DATA))) == Other(self.DATA)
