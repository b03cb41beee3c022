"""Codecs: how messages become JSON and come back."""

from ._json import JsonCodec

__all__ = ["JsonCodec"]
