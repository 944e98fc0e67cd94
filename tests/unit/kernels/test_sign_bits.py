"""Sign bits: the rotation against its matrix, keys of a tile against sums of whole numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import llvmlite.binding as llvm
from numba import njit

from tarsdb.index.ivf.build import _signs, rotation_matrix
from tarsdb.kernels.cpu import sign_bits
from tarsdb.kernels.native import address

FEATURES = llvm.get_host_cpu_features()
WAYS = [
    pytest.param(way, id=name, marks=pytest.mark.skipif(absent, reason="not on this processor"))
    for way, name, absent in (
        (sign_bits.PLANES_OF_QUERY, "planes", False),
        (sign_bits.TABLES, "tables", not FEATURES.get("avx2")),
        (sign_bits.WIDE_TABLES, "wide tables", sign_bits.way_of("vnni") != sign_bits.WIDE_TABLES),
    )
]


@functools.cache
def _passing(way: int) -> Any:
    """Return keys of a tile by one of the ways, compiled."""
    literal = way
    write = sign_bits.cut if way == sign_bits.PLANES_OF_QUERY else sign_bits.tabulate

    @njit
    def run(places, lines, limit):  # type: ignore[no-untyped-def]
        tile, constants, small, room, numbers, keys = places
        write(small, lines, room)
        return sign_bits.bit_passing(
            literal, tile, constants, room, lines, numbers, limit, keys, np.int64(0)
        )

    return run


@pytest.mark.parametrize(("width", "padded"), [(1, 64), (64, 64), (70, 128), (384, 384)])
def test_rotation_is_the_product_with_its_matrix(width: int, padded: int) -> None:
    signs = _signs(padded, 3)
    matrix = rotation_matrix(signs, width)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-6)
    row = np.random.default_rng(width).standard_normal(width).astype(np.float32)
    scratch = np.empty(padded, np.float32)

    def rotated() -> np.ndarray:
        turned = np.concatenate([row, np.zeros(padded - width, np.float32)])
        sign_bits.rotate(address(turned), address(signs), padded, address(scratch))
        return turned

    np.testing.assert_allclose(rotated(), row @ matrix, atol=2e-6 * np.linalg.norm(row))
    signs[1, 5] *= -1  # a control: another rotation
    assert np.abs(rotated() - row @ matrix).max() > 1e-3


def test_a_rotation_spreads_one_element_over_all() -> None:
    for padded in (64, 384, 1024):
        matrix = rotation_matrix(_signs(padded, 1), padded)
        assert np.abs(matrix).max() < 8 / padded**0.5


@pytest.mark.parametrize("width", [64, 384, 1024])
def test_whole_numbers_of_a_query(width: int) -> None:
    turned = np.random.default_rng(width).standard_normal(width).astype(np.float32)
    out, numbers = np.empty(width, np.uint8), np.empty(4, np.float32)
    scratch = np.empty(32, np.float32)
    sign_bits.number(address(turned), width, *map(address, (out, numbers, scratch)))
    step, low, half, _ = numbers
    assert (out.min(), out.max(), low) == (0, 63, turned.min())
    np.testing.assert_allclose(low + step * out, turned, atol=0.51 * step)
    np.testing.assert_allclose(half, -0.5 * (low + step * out.astype(np.float64)).sum(), rtol=1e-4)
    turned[3] = np.nan
    sign_bits.number(address(turned), width, *map(address, (out, numbers, scratch)))
    assert out.max() <= 63


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("large", [8, 10_000])
@pytest.mark.parametrize("width", [64, 192, 384, 4096, 4160, 16_384])
def test_keys_are_those_of_the_formula(width: int, large: int, way: int) -> None:
    rng = np.random.default_rng(width)
    bits = rng.integers(0, 2, (16, width)).astype(np.uint8)
    bits[3], bits[4], bits[14:] = 1, 0, 1
    small = rng.integers(0, 64, width).astype(np.uint8)
    small[:large] = 63  # the largest sums
    constants = rng.standard_normal((3, 16)).astype(np.float32)
    numbers = rng.standard_normal(4).astype(np.float32)
    words = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    tile = np.ascontiguousarray(words.T)
    common = (bits.astype(np.int64) @ small.astype(np.int64)).astype(np.float32)
    product = (numbers[0] * common + numbers[1] * constants[2]) + numbers[2]
    want = (constants[0] + numbers[3]) + constants[1] * product
    keys, room = np.empty(16, np.float32), np.empty(4 * width, np.uint8)
    run, limit = _passing(way), np.sort(want)[7]

    def passing() -> int:
        places = tuple(map(address, (tile, constants, small, room, numbers, keys)))
        found: int = run(places, width // 32, limit)
        return found

    found = passing()
    np.testing.assert_array_equal(keys, want)
    assert found == sum(1 << lane for lane in range(16) if want[lane] <= limit)
    tile[0, 9] ^= 1  # a control: one bit of one row
    passing()
    assert np.flatnonzero(keys != want).tolist() == [9]
