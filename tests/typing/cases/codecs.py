"""A codec's type is that of its messages, through every layer."""

from dataclasses import dataclass
from typing import reveal_type

from apalis_pgmq import (
    Compression,
    Encryption,
    JsonCodec,
    KeyRing,
    LayeredCodec,
    MemoryBackend,
    MsgspecCodec,
    PgMqBackend,
)


@dataclass
class Email:
    to: str


@dataclass
class Order:
    number: int


async def layers(keys: KeyRing) -> None:
    codec = LayeredCodec(JsonCodec(Email), Compression("zstd"), Encryption(keys))
    reveal_type(codec)  # R: LayeredCodec[Email]
    reveal_type(codec.unpack("", {}))  # R: Email
    codec.pack(Order(1))  # E: arg-type
    emails = PgMqBackend("postgres://localhost", "emails", Email, codec=codec)
    reveal_type(emails)  # R: PgMqBackend[Email]
    await emails.push(Order(1))  # E: arg-type
    Compression("br")  # E: arg-type
    LayeredCodec(JsonCodec(Email), JsonCodec(Email))  # E: arg-type
    LayeredCodec(codec, Compression())  # E: arg-type


async def values() -> None:
    codec = MsgspecCodec(Email)
    reveal_type(codec)  # R: MsgspecCodec[Email]
    backend = MemoryBackend("emails", Email, codec=codec)
    reveal_type(backend)  # R: MemoryBackend[Email]
    union: MsgspecCodec[Email | Order] = MsgspecCodec(Email | Order)
    union.encode(Order(1))
    union.encode("ada")  # E: arg-type
