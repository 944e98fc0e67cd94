"""Product codes: tables of a query against its inner products, sums against whole numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

import llvmlite.binding as llvm
from numba import njit

from tarsdb.index.ivf.products import packed
from tarsdb.index.quantization import kmeans
from tarsdb.kernels import ivf as kernels
from tarsdb.kernels.cpu import product_codes, sign_bits
from tarsdb.kernels.native import address

FEATURES = llvm.get_host_cpu_features()
WAYS = [
    pytest.param(way, id=name, marks=pytest.mark.skipif(absent, reason="not on this processor"))
    for way, name, absent in (
        (sign_bits.SINGLE_BYTES, "single bytes", False),
        (sign_bits.TABLES, "tables", not FEATURES.get("avx2")),
        (sign_bits.WIDE_TABLES, "wide tables", sign_bits.way_of("vnni") != sign_bits.WIDE_TABLES),
    )
]
SHAPES = [(16, 1), (64, 6), (80, 5)]


@functools.cache
def _passing(way: int) -> Any:
    literal = way

    @njit
    def run(tile, constants, tables, lines, numbers, limit, keys):  # type: ignore[no-untyped-def]
        return sign_bits.bit_passing(
            literal, tile, constants, tables, lines, numbers, limit, keys, np.int64(0)
        )

    return run


def laid(tables: np.ndarray) -> np.ndarray:
    """Return bytes (parts, 16) as kernels read them, (parts / 8, 2, 4, 16)."""
    return np.ascontiguousarray(tables.reshape(-1, 4, 2, 16).swapaxes(1, 2))


def tabulated(
    query: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (inner products, bytes as laid, numbers) of a turned query."""
    parts, width, _ = centroids.shape
    products = np.einsum("pw,pwc->pc", query.reshape(parts, width), centroids)
    tables, numbers = np.full((parts // 8, 2, 4, 16), 7, np.uint8), np.empty(4, np.float32)
    room = np.empty((parts + 1, 16), np.float32)
    product_codes.tabulate_products(
        address(query), address(centroids), parts, width, *map(address, (room, numbers, tables))
    )
    return products, tables, numbers


@pytest.mark.parametrize(("parts", "width"), SHAPES)
def test_tables_of_a_query(parts: int, width: int) -> None:
    rng = np.random.default_rng(parts)
    centroids = rng.standard_normal((parts, width, 16)).astype(np.float32)
    query = rng.standard_normal(parts * width).astype(np.float32)
    products, tables, numbers = tabulated(query, centroids)
    lows = products.min(axis=1, keepdims=True)
    step = (products - lows).max() / 255
    np.testing.assert_allclose(numbers[:3], [step, 0, lows.sum()], rtol=1e-4, atol=1e-5)
    entries = laid(np.rint((products - lows) / step).astype(np.uint8))
    assert tables.max() == 255
    assert np.abs(tables.astype(int) - entries).max() <= 1  # rounding at a half
    assert (tables != entries).mean() < 0.01
    assert (tables != laid(np.roll(entries, 1, axis=0).reshape(parts, 16))).any()  # a control


def test_queries_without_direction_or_number() -> None:
    centroids = np.random.default_rng(1).standard_normal((16, 2, 16)).astype(np.float32)
    _, tables, numbers = tabulated(np.zeros(32, np.float32), centroids)
    assert not tables.any()
    assert numbers[0] == 0
    broken = np.ones(32, np.float32)
    broken[3] = np.nan
    tabulated(broken, centroids)  # it ends


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parts", [16, 64, 112, 1040, 2736])
def test_keys_are_those_of_the_formula(parts: int, way: int) -> None:
    rng = np.random.default_rng(parts)
    names = rng.integers(0, 16, (16, parts)).astype(np.uint8)
    tables = rng.integers(0, 256, (parts, 16)).astype(np.uint8)
    tables[: parts // 2] = 255  # the largest sums
    tables[-1] = 10 * np.arange(16)
    constants = rng.standard_normal((3, 16)).astype(np.float32)
    numbers = rng.standard_normal(4).astype(np.float32)
    tile = np.ascontiguousarray(packed(names).T)
    sums = tables[np.arange(parts), names].sum(axis=1, dtype=np.int64).astype(np.float32)
    product = (numbers[0] * sums + numbers[1] * constants[2]) + numbers[2]
    want = (constants[0] + numbers[3]) + constants[1] * product
    keys, order, limit = np.empty(16, np.float32), laid(tables), np.sort(want)[7]

    def passing() -> int:
        tile_at, constants_at, tables_at = map(address, (tile, constants, order))
        found: int = _passing(way)(
            tile_at, constants_at, tables_at, parts // 8, address(numbers), limit, address(keys)
        )
        return found

    found = passing()
    np.testing.assert_array_equal(keys, want)
    assert found == sum(1 << lane for lane in range(16) if want[lane] <= limit)
    tile[-1, 9] ^= 1 << 31  # a control: one name of one row
    passing()
    assert np.flatnonzero(keys != want).tolist() == [9]
    order[...] = 0
    passing()
    assert (keys != want).any()


@pytest.mark.parametrize(("parts", "width"), SHAPES)
def test_rows_are_named_after_the_nearest_centroids(parts: int, width: int) -> None:
    rng = np.random.default_rng(parts)
    centroids = rng.standard_normal((parts, width, 16)).astype(np.float32)
    rows = rng.standard_normal((50, parts * width)).astype(np.float32)
    halves = np.einsum("pwc,pwc->pc", centroids, centroids) / 2
    out = np.empty((50, parts), np.uint8)
    found = kernels.wait()
    assert found is not None

    def named() -> np.ndarray:
        found.name(address(rows), 50, parts, width, *map(address, (centroids, halves, out)))
        return out

    split = rows.reshape(50, parts, width)
    want = np.stack([kmeans.assign(np.ascontiguousarray(split[:, p]), centroids[p].T)
                     for p in range(parts)], axis=1)  # fmt: skip
    assert (named() == want).mean() > 0.999  # sums in another order, at a tie
    centroids[:, :, 5:] = centroids[:, :, 4:5]  # twins: the first of them
    halves[:] = np.einsum("pwc,pwc->pc", centroids, centroids) / 2
    assert named().max() == 4
    rows[:] = np.nan
    assert named().max() <= 15
