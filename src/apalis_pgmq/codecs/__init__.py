"""Codecs: how messages become JSON and come back."""

from ._compression import Compression
from ._encryption import Encryption
from ._json import JsonCodec
from ._keys import KeyRing
from ._layers import Encoded, Layer, LayeredCodec
from ._msgspec import MsgspecCodec

__all__ = [
    "Compression",
    "Encoded",
    "Encryption",
    "JsonCodec",
    "KeyRing",
    "Layer",
    "LayeredCodec",
    "MsgspecCodec",
]
