"""Compression pays, is bounded, and says what is wrong with what it cannot read."""

import gzip
import sys
import tracemalloc
import zlib
from typing import Any

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from apalis_pgmq import Compression, ConfigError, DecodeError, EncodeError

both = pytest.mark.parametrize("algorithm", ["gzip", "zstd"])


def compressed(algorithm: str, data: bytes) -> bytes:
    return gzip.compress(data) if algorithm == "gzip" else zstd.compress(data)


@both
def test_a_small_payload_stays_as_it_is(algorithm: Any) -> None:
    layer = Compression(algorithm, min_size=1000)
    assert layer.encode(b"a" * 999, ()) is None
    assert layer.encode(b"a" * 1000, ()) is not None
    assert Compression(algorithm).encode(b"a" * 1023, ()) is None
    assert Compression(algorithm).encode(b"a" * 1024, ()) is not None


@both
@given(data=st.binary(max_size=300))
def test_a_payload_never_becomes_larger_than_it_was(algorithm: Any, data: bytes) -> None:
    encoded = Compression(algorithm, min_size=0).encode(data, ())
    assert encoded is None or -(-len(encoded.data) // 3) * 4 <= len(data) + 3


@both
def test_either_is_read_whichever_is_written(algorithm: Any) -> None:
    for other in ("gzip", "zstd"):
        assert Compression(algorithm).decode(compressed(other, b"x" * 50), other, (), {}) == b"x" * 50


@both
def test_a_bomb_is_refused_before_it_takes_memory(algorithm: Any) -> None:
    bomb = compressed(algorithm, b"\0" * 50_000_000)
    layer = Compression(algorithm, max_size=1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="more than 1,000,000 bytes"):
            layer.decode(bomb, algorithm, (), {})
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_needs_a_large_window_is_refused() -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(b"x") + compressor.flush()
    with pytest.raises(DecodeError, match="too much memory"):
        Compression().decode(frame, "zstd", (), {})


@both
def test_the_bound_is_that_of_both_ways(algorithm: Any) -> None:
    layer = Compression(algorithm, max_size=2000, min_size=0)
    encoded = layer.encode(b"a" * 2000, ())
    assert encoded is not None
    assert layer.decode(encoded.data, algorithm, (), {}) == b"a" * 2000
    with pytest.raises(EncodeError, match="2,001 bytes as JSON, and Compression takes at most 2,000"):
        layer.encode(b"a" * 2001, ())
    with pytest.raises(DecodeError, match="more than 2,000 bytes"):
        layer.decode(compressed(algorithm, b"a" * 2001), algorithm, (), {})


@both
def test_even_what_the_strongest_level_makes_is_read(algorithm: Any) -> None:
    layer = Compression(algorithm, level=9 if algorithm == "gzip" else 19, max_size=20_000_000)
    data = bytes(range(256)) * 70_000
    encoded = layer.encode(data, ())
    assert encoded is not None
    assert layer.decode(encoded.data, algorithm, (), {}) == data


@both
def test_data_that_is_cut_off_or_goes_on_is_refused(algorithm: Any) -> None:
    whole = compressed(algorithm, b"secret" * 100)
    for damaged in (whole[:-1], whole[:5], b"", whole + b"x", whole + whole):
        with pytest.raises(DecodeError, match="not whole") as caught:
            Compression().decode(damaged, algorithm, (), {})
        assert "secret" not in str(caught.value)


@both
@given(data=st.binary())
def test_anything_else_is_refused(algorithm: Any, data: bytes) -> None:
    with pytest.raises(DecodeError):
        Compression().decode(data, algorithm, (), {})


def test_deflate_without_gzips_frame_is_refused() -> None:
    with pytest.raises(DecodeError, match="the payload is not gzip"):
        Compression().decode(zlib.compress(b"x"), "gzip", (), {})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"algorithm": "br"}, "'gzip' or 'zstd', not 'br'"),
        ({"min_size": -1}, "min_size"),
        ({"min_size": True}, "min_size"),
        ({"max_size": 0}, "max_size"),
        ({"level": 10}, "level must be a whole number from 0 to 9"),
        ({"algorithm": "zstd", "level": 20}, "from 1 to 19"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Compression(**settings)


def test_without_zstandard_gzip_works_and_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    monkeypatch.delattr("backports.zstd", raising=False)
    monkeypatch.setitem(sys.modules, "compression", None)
    assert Compression().encodings == ("gzip",)
    assert Compression().encode(b"a" * 2000, ()) is not None
    with pytest.raises(ImportError, match=r"apalis-pgmq\[zstd\]"):
        Compression("zstd")
