"""Compression of payloads: gzip always, Zstandard where it is installed."""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Any, Final, Literal

from apalis_pgmq.core import GZIP, ZSTD, ConfigError, DecodeError, EncodeError

from ._layers import Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_KIBIBYTE: Final = 1024
_LARGEST: Final = 16 * 1024 * 1024
_LEVELS: Final = {GZIP: (0, 9, 6), ZSTD: (1, 19, 3)}
"""Least, greatest and default level."""
_GZIP_WINDOW: Final = 31
"""zlib's way to say: 32 KiB, in gzip's format."""
_LARGEST_WINDOW: Final = 23
"""Binary logarithm of the bytes that Zstandard may refer back to: those of level 19. A frame that asks for more is
refused, before any memory is taken for it."""


class Compression:
    """Compresses payloads that are large enough to be worth it; reads gzip, and Zstandard where it is installed.

    Args:
        algorithm: ``"gzip"`` (of the standard library, the default) or ``"zstd"`` (extra ``zstd``; faster
            where payloads are large). Messages of both are read, so that workers can go first when a queue changes over.
        min_size: a payload of fewer bytes of JSON stays as it is; the default is 1 KiB. So does one that would
            not become smaller.
        level: 0 to 9 for gzip, 6 by default; 1 to 19 for Zstandard, 3 by default.
        max_size: the most bytes of JSON that a payload may have before it is compressed, and after it is
            decompressed; the default is 16 MiB. It bounds the memory that a hostile message can take.

    Raises:
        ConfigError: a setting that cannot work.
        ImportError: ``"zstd"`` is asked for and not installed.
    """

    is_required: Final = False

    def __init__(
        self,
        algorithm: Literal["gzip", "zstd"] = "gzip",
        *,
        min_size: int = _KIBIBYTE,
        level: int | None = None,
        max_size: int = _LARGEST,
    ) -> None:
        if algorithm not in _LEVELS:
            raise ConfigError(f"algorithm must be 'gzip' or 'zstd', not {algorithm!r}")
        least, greatest, default = _LEVELS[algorithm]
        self._algorithm = algorithm
        self._min_size = _whole("min_size", min_size, 0, sys.maxsize)
        self._max_size = _whole("max_size", max_size, 1, sys.maxsize - 1)
        self._level = default if level is None else _whole("level", level, least, greatest)
        self._zstd = _find_zstd()
        if algorithm == ZSTD and self._zstd is None:
            raise ImportError("Compression('zstd') needs Zstandard: pip install 'apalis-pgmq[zstd]'")

    def __repr__(self) -> str:
        return f"Compression({self._algorithm!r})"

    @property
    def encodings(self) -> Sequence[str]:
        """What it reads."""
        return (GZIP,) if self._zstd is None else (GZIP, ZSTD)

    def encode(self, data: bytes, _inner: tuple[str, ...]) -> Encoded | None:
        """Return the compressed payload; None if it is small, or would not become smaller.

        Raises:
            EncodeError: it is larger than ``max_size``, so that no worker would read it.
        """
        if len(data) > self._max_size:
            raise EncodeError(
                f"the message has {len(data):,} bytes as JSON, and Compression takes at most "
                f"{self._max_size:,}; send a reference to large data, or raise max_size here and on the workers"
            )
        if len(data) < self._min_size:
            return None
        if self._zstd is None or self._algorithm == GZIP:
            compressed = zlib.compress(data, self._level, wbits=_GZIP_WINDOW)
        else:
            compressed = self._zstd.compress(data, self._level)
        # As base64, which is a third longer.
        return Encoded(self._algorithm, compressed) if len(compressed) * 4 < len(data) * 3 else None

    def decode(
        self, data: bytes, encoding: str, _inner: tuple[str, ...], _headers: Mapping[str, object]
    ) -> bytes:
        """Return the payload as it was before.

        Raises:
            DecodeError: it is no such data, cut off, or larger than ``max_size``.
        """
        decompressor: Any
        if encoding == GZIP or self._zstd is None:
            decompressor, failure = zlib.decompressobj(_GZIP_WINDOW), zlib.error
        else:
            options = {self._zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW}
            decompressor, failure = self._zstd.ZstdDecompressor(options=options), self._zstd.ZstdError
        try:
            text: bytes = decompressor.decompress(data, self._max_size + 1)
        except failure as error:
            raise DecodeError(f"the payload is not {encoding}: {error}") from None
        if len(text) > self._max_size:
            raise DecodeError(
                f"the payload has more than {self._max_size:,} bytes when it is decompressed; if that is no "
                "attack, raise Compression's max_size"
            )
        if not decompressor.eof or decompressor.unused_data:
            raise DecodeError(
                f"the payload is not whole: {encoding} data that is cut off, or has more behind it"
            )
        return text


def _find_zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - optional
        else:
            from backports import zstd  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return zstd


def _whole(name: str, value: int, least: int, greatest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= greatest:
        raise ConfigError(f"{name} must be a whole number from {least:,} to {greatest:,}, not {value!r}")
    return value
