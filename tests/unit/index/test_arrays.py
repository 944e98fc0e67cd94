"""Packed arrays: what goes in comes out, and bytes that are no arrays are refused."""

from __future__ import annotations

import ctypes
import itertools

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


@pytest.mark.parametrize("size", [1, 7, 64, 100, 10_000])
def test_arrays_of_several_runs_are_those_of_one(size: int) -> None:
    whole = memoryview(packed())
    runs = [whole[at : at + size] for at in range(0, len(whole), size)]
    found, left = arrays.unpack_runs(runs, ["codes"])
    assert found.keys() == EXAMPLE.keys() - {"codes"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, EXAMPLE[name])
        assert array.dtype == EXAMPLE[name].dtype
    codes = left["codes"]
    assert (codes.dtype, codes.shape, codes.nbytes) == (np.uint8, (5, 12), 60)
    cuts = np.array([0, 12, 12, 40, 60])
    places, copies = codes.places(cuts)
    for at, start, stop in zip(places.tolist(), cuts[:-1], cuts[1:], strict=True):
        assert ctypes.string_at(at, stop - start) == EXAMPLE["codes"].tobytes()[start:stop]
    first = packed().find(EXAMPLE["codes"].tobytes())
    parts = [(first + a, first + b - 1) for a, b in itertools.pairwise(cuts) if a < b]
    assert len(copies) == sum(a // size != b // size for a, b in parts)
    with pytest.raises(CorruptionError):
        arrays.unpack_runs([whole[:100], whole[100:-63]], [])
