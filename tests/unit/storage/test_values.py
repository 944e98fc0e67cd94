"""The value header: every byte of it, of the key and of the payload is protected."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tarsdb.errors import CorruptionError, Error, FormatVersionError
from tarsdb.storage.values import HEADER_SIZE, ValueType, pack, unpack


@given(
    st.binary(max_size=60),
    st.lists(st.binary(max_size=3000), max_size=12),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_round_trip(key: bytes, parts: list[bytes], rows: int, commit: int) -> None:
    stored = pack(ValueType.BLOCK, key, parts, rows, commit)
    payload, found_rows, found_commit = unpack(ValueType.BLOCK, key, stored)
    assert bytes(payload) == b"".join(parts)
    assert (found_rows, found_commit) == (rows, commit)


def test_layout_is_the_documented_one() -> None:
    stored = pack(ValueType.DELTA, b"key", b"payload", 3, 9)
    head = struct.pack("<4sHHQQQ", b"TARS", 1, ValueType.DELTA, 7, 3, 9)
    digest = xxhash.xxh3_64_intdigest(b"key" + head + bytes(8) + b"payload")
    assert stored == head + struct.pack("<QQ", digest, 0) + b"payload"
    assert HEADER_SIZE == 48


def test_small_and_streamed_checksums_agree() -> None:
    """Above 16 KB the checksum is streamed over the parts; below it is taken in one call."""
    big = [b"a" * 9000, b"b" * 9000]
    assert pack(1, b"k", big)[32:40] == pack(1, b"k", b"".join(big))[32:40]
    unpack(1, b"k", pack(1, b"k", big))


@pytest.mark.parametrize("size", [0, 5, 20000])
def test_any_flipped_bit_is_found(size: int) -> None:
    stored = pack(ValueType.BLOCK, b"key", bytes(size), 1, 2)
    step = max(len(stored) * 8 // 700, 1)
    for bit in [*range(48 * 8), *range(48 * 8, len(stored) * 8, step)]:
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Error) as raised:
            unpack(ValueType.BLOCK, b"key", damaged, "table t, rows 1-2")
        assert isinstance(raised.value, (CorruptionError, FormatVersionError))
        assert "table t, rows 1-2" in str(raised.value)


def test_a_value_under_another_key_is_damage() -> None:
    stored = pack(ValueType.BLOCK, b"key", b"x")
    with pytest.raises(CorruptionError):
        unpack(ValueType.BLOCK, b"kex", stored)
    with pytest.raises(CorruptionError):
        unpack(ValueType.DELTA, b"key", stored)
    with pytest.raises(CorruptionError):
        unpack(ValueType.BLOCK, b"key", stored[:40])


def test_without_check_only_the_header_is_looked_at() -> None:
    stored = bytearray(pack(ValueType.BLOCK, b"key", b"payload"))
    stored[-1] ^= 1
    assert bytes(unpack(ValueType.BLOCK, b"key", stored, check=False)[0]) != b"payload"
    stored[8] ^= 1
    with pytest.raises(CorruptionError):
        unpack(ValueType.BLOCK, b"key", stored, check=False)
