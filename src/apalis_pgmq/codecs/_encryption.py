"""Encryption of payloads."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from apalis_pgmq.core import AES_256_GCM_HKDF, ENCRYPTION_KEY, ConfigError, DecodeError

from ._keys import KeyRing
from ._layers import Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SALT: Final = 32
_KEY: Final = 32
_NONCE: Final = 12
_TAG: Final = 16
_PURPOSE: Final = b"apalis-pgmq aes-256-gcm-hkdf"


class Encryption:
    """Encrypts payloads so that who reads the table, a dump or a replica learns nothing of them but their length.

    AES-256-GCM, with a key of its own for each message, which HKDF-SHA256 derives from a key of the ring and 32
    random bytes; so the number of messages that a key is good for need not be watched. What was
    changed, or put together from two messages, is not decrypted; the name of the key, the layers below and
    ``context`` are authenticated with it. Other headers are not, nor is a message's place, time or number: whoever
    can write to the table can delete messages, delay them and send an old one again.

    Needs the extra ``encryption``.

    Args:
        keys: the keys; the first one encrypts, all decrypt.
        context: what the messages are for, such as the queue's name or a tenant's: a message that was encrypted for
            another context is not decrypted. Use one where several queues share keys.
        accept_plain: whether messages that are not encrypted are taken as well. Only for as long as a migration
            lasts: whoever can write to the table can send anything then.

    Raises:
        ConfigError: the context has a line end or is no text.
        ImportError: ``cryptography`` is not installed.
    """

    def __init__(self, keys: KeyRing, *, context: str = "", accept_plain: bool = False) -> None:
        if not isinstance(keys, KeyRing):
            raise ConfigError(f"keys must be a KeyRing, not a {type(keys).__name__}")
        if not isinstance(context, str) or not context.isprintable():
            raise ConfigError(f"context must be a text of one line, not {context!r}")
        try:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - optional
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - optional
            from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415 - optional
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415 - optional
        except ImportError as error:
            raise ImportError(
                "Encryption needs cryptography: pip install 'apalis-pgmq[encryption]'"
            ) from error
        self._keys = keys
        self._context = context
        self._accept_plain = accept_plain
        self._aes_gcm, self._hkdf, self._sha256, self._invalid_tag = AESGCM, HKDF, SHA256, InvalidTag

    def __repr__(self) -> str:
        return f"Encryption({self._keys!r})"

    @property
    def encodings(self) -> Sequence[str]:
        """What it reads."""
        return (AES_256_GCM_HKDF,)

    @property
    def is_required(self) -> bool:
        """Whether messages that are not encrypted are refused."""
        return not self._accept_plain

    def encode(self, data: bytes, inner: tuple[str, ...]) -> Encoded:
        """Return the payload encrypted: salt, ciphertext and tag."""
        name = self._keys.current
        salt = secrets.token_bytes(_SALT)
        key, nonce = self._derive(name, salt)
        sealed = self._aes_gcm(key).encrypt(nonce, data, self._bound(name, inner))
        return Encoded(AES_256_GCM_HKDF, salt + sealed, {ENCRYPTION_KEY: name})

    def decode(
        self, data: bytes, _encoding: str, inner: tuple[str, ...], headers: Mapping[str, object]
    ) -> bytes:
        """Return the payload as it was before.

        Raises:
            DecodeError: its key is not in the ring, or it is not what was encrypted with it.
        """
        name = headers.get(ENCRYPTION_KEY)
        if not isinstance(name, str):
            raise DecodeError(
                f"the message is encrypted, but has no header {ENCRYPTION_KEY} with the key's name"
            )
        if name not in self._keys:
            raise DecodeError(
                f"the message is encrypted with key {name!r:.80}, and this worker has {', '.join(self._keys.names)}; "
                "add the key to its KeyRing and redrive the message"
            )
        if len(data) < _SALT + _TAG:
            raise DecodeError("the payload is too short to be an encrypted message")
        key, nonce = self._derive(name, data[:_SALT])
        try:
            return self._aes_gcm(key).decrypt(nonce, data[_SALT:], self._bound(name, inner))
        except self._invalid_tag:
            raise DecodeError(
                f"the message cannot be decrypted with key {name!r}: it was changed, or encrypted with another key "
                "of that name or for another context"
            ) from None

    def _derive(self, name: str, salt: bytes) -> tuple[bytes, bytes]:
        both = self._hkdf(self._sha256(), _KEY + _NONCE, salt, _PURPOSE).derive(self._keys[name])
        return both[:_KEY], both[_KEY:]

    def _bound(self, name: str, inner: tuple[str, ...]) -> bytes:
        # None of the parts can contain a line end, so that no two messages have the same text for different parts.
        return "\n".join((AES_256_GCM_HKDF, name, self._context, ", ".join(inner))).encode()
