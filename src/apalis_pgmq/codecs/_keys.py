"""The keys of encryption."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

_BYTES: Final = 32
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class KeyRing:
    """Named keys of 256 bits: the first one encrypts, all decrypt. Immutable; shows names only.

    Args:
        keys: the keys by their names, newest first. A name goes into the headers of each message; it has 1 to
            64 letters, digits, ``.``, ``_`` and ``-``, and is never given to another key.

    Raises:
        ConfigError: no key, a key that is not 32 bytes, one key under two names, or a name that is none.
    """

    __slots__ = ("_current", "_keys")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys: dict[str, bytes] = {}
        for name, key in keys.items():
            if not isinstance(name, str) or not _ID.fullmatch(name):
                raise ConfigError(
                    f"a key's name has 1 to 64 letters, digits, '.', '_' and '-'; number {len(self._keys) + 1} has not"
                )
            if not isinstance(key, bytes) or len(key) != _BYTES:
                raise ConfigError(f"key {name!r} must be {_BYTES} bytes; KeyRing.new_key() makes one")
            if key in self._keys.values():
                raise ConfigError(f"key {name!r} has another name as well")
            self._keys[name] = key
        if not self._keys:
            raise ConfigError("a key ring needs at least one key")
        self._current = next(iter(self._keys))

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Return the key ring that a text tells, as for an environment variable: ``name:key,name:key``.

        Args:
            text: names and base64 keys, newest first; blanks and line ends around them do not count.

        Raises:
            ConfigError: it is none. The error shows nothing of the keys.
        """
        keys: dict[str, bytes] = {}
        for number, part in enumerate(text.split(","), 1):
            name, colon, key = part.partition(":")
            name = name.strip()
            if not colon or not _ID.fullmatch(name):
                raise ConfigError(f"key number {number} is not of the form 'name:key'")
            if name in keys:
                raise ConfigError(f"there are two keys named {name!r}")
            try:
                keys[name] = base64.b64decode(key.strip(), validate=True)
            except (binascii.Error, ValueError):
                raise ConfigError(f"key {name!r} is not base64") from None
        return cls(keys)

    @staticmethod
    def new_key() -> str:
        """Return a new random key as base64, for `parse`."""
        return base64.b64encode(secrets.token_bytes(_BYTES)).decode()

    @property
    def current(self) -> str:
        """The name of the key that encrypts."""
        return self._current

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all keys, the current one first."""
        return tuple(self._keys)

    def __getitem__(self, name: str) -> bytes:
        return self._keys[name]

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __repr__(self) -> str:
        return f"<KeyRing {', '.join(self._keys)}>"

    def __reduce__(self) -> str:
        raise TypeError("a key ring is not pickled: its keys would be stored with it")
