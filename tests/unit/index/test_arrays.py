"""Packed arrays: what goes in comes out, and bytes that are no arrays are refused."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.errors import CorruptionError
from tarsdb.index import arrays

EXAMPLE = {
    "empty": np.empty((0, 3), np.float32),
    "scalar": np.array(7, np.int64),
    "codes": np.arange(60, dtype=np.uint8).reshape(5, 12),
    "wide": np.arange(9, dtype="<f8"),
    "flags": np.array([True, False]),
}


def packed() -> bytes:
    return b"".join(bytes(piece) for piece in arrays.pack(EXAMPLE))


def test_arrays_come_back() -> None:
    found = arrays.unpack(packed())
    assert found.keys() == EXAMPLE.keys()
    for name, array in EXAMPLE.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert (found[name] == array).all()


def test_views_are_aligned() -> None:
    data = np.zeros(len(packed()) + 64, np.uint8)
    start = -data.__array_interface__["data"][0] % 64
    whole = data[start : start + len(packed())]
    whole[:] = np.frombuffer(packed(), np.uint8)
    for array in arrays.unpack(whole.data).values():
        assert array.__array_interface__["data"][0] % 64 == 0


@pytest.mark.parametrize("cut", [0, 7, 15, 40, -63, -200])
def test_what_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(CorruptionError):
        arrays.unpack(packed()[:cut])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"TARRAYS1", b"TARRAYS2"),
        (b'"|u1"', b'"|O8"'),
        (b"[5,12]", b"[5,-1]"),
        (b"[5,12]", b"[9,99]"),
        (b"[5,12]", b"[5,.2]"),
    ],
)
def test_headers_that_lie_are_refused(old: bytes, new: bytes) -> None:
    assert packed().count(old) == 1
    with pytest.raises(CorruptionError):
        arrays.unpack(packed().replace(old, new))


def test_flipped_bytes_never_escape() -> None:
    whole = packed()
    rng = np.random.default_rng(1)
    for _ in range(2000):
        damaged = bytearray(whole)
        damaged[int(rng.integers(0, 260))] = int(rng.integers(0, 256))
        try:
            found = arrays.unpack(damaged)
        except CorruptionError:
            continue
        assert all(array.nbytes <= len(whole) for array in found.values())
