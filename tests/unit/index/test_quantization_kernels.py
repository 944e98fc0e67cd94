"""Scans of quantised rows: every level gives the bits of the NumPy definition."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tarsdb.kernels import dispatch, quantized
from tests.unit.index.levels import forced

SHAPES = [(0, 1), (1, 1), (15, 2), (16, 6), (17, 6), (700, 13)]


@pytest.fixture(params=dispatch.LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    yield from forced(request.param)


def words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**64, shape, dtype=np.uint64)


def test_the_layout_is_the_kernels_own() -> None:
    from tarsdb.kernels.cpu import quantized as compiled

    for name in ("TILE", "PLANES", "FACTORS", "NUMBERS", "BLOCK"):
        assert getattr(compiled, name) == getattr(quantized, name)


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_tiles_hold_bits_and_factors(rows: int, width: int) -> None:
    rng = np.random.default_rng(rows)
    bits, factors = words(rng, rows, width), rng.standard_normal((rows, 4)).astype(np.float32)
    tiles = quantized.tile_bits(bits, factors)
    assert tiles.shape == (-(-rows // 16), 128 * width + 256)
    got_bits, got_factors = quantized.untile_bits(tiles)
    assert np.array_equal(got_bits[:rows], bits)
    assert np.array_equal(got_factors[:rows], factors)
    assert not got_bits[rows:].any()


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_sign_bits(level: str, rows: int, width: int) -> None:
    rng = np.random.default_rng(rows + 1)
    bits, factors = words(rng, rows, width), rng.standard_normal((rows, 4)).astype(np.float32)
    tiles = quantized.tile_bits(bits, factors)
    planes, numbers = words(rng, 3, 4, width), rng.standard_normal((3, 6)).astype(np.float32)
    assert (dispatch.get("rabitq") is None) == (level == "portable")
    found = quantized.rabitq(tiles, planes, numbers)
    expected = quantized.rabitq_portable(tiles, planes, numbers)
    for got, want in zip(found, expected, strict=True):
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_sign_bits_by_definition() -> None:
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2, (40, 64), dtype=np.uint8)
    query = rng.integers(0, 16, 64)
    planes = np.stack([np.packbits(query >> j & 1, bitorder="little") for j in range(4)])
    factors = np.zeros((40, 4), np.float32)
    factors[:, 1] = 1
    numbers = np.array([[0, 1, 0, 0, 0, 0]], np.float32)
    packed = np.packbits(bits, axis=1, bitorder="little").view(np.uint64)
    tiles = quantized.tile_bits(packed, factors)
    found, _ = quantized.rabitq(tiles, planes.astype(np.uint8).view(np.uint64)[None], numbers)
    assert np.array_equal(found[0, :40], bits @ query)


@pytest.mark.parametrize(("rows", "pairs"), [(0, 1), (1, 1), (63, 2), (64, 3), (65, 48), (500, 9)])
def test_table_sums(level: str, rows: int, pairs: int) -> None:
    rng = np.random.default_rng(rows + pairs)
    codes = rng.integers(0, 256, (rows, pairs), dtype=np.uint8)
    tables = rng.integers(0, 256, (2, 2 * pairs, 16), dtype=np.uint8)
    tiles = quantized.tile_nibbles(codes)
    found = quantized.fastscan(tiles, tables)
    assert (dispatch.get("fastscan") is None) == (level == "portable")
    assert np.array_equal(found, quantized.fastscan_portable(tiles, tables))
    slow = np.zeros((2, rows), np.int64)
    for pair in range(pairs):
        slow += tables[:, 2 * pair][:, codes[:, pair] & 15]
        slow += tables[:, 2 * pair + 1][:, codes[:, pair] >> 4]
    assert np.array_equal(found[:, :rows], slow)


def test_sums_reach_all_of_16_bits(level: str) -> None:
    tiles = quantized.tile_nibbles(np.full((64, 128), 255, np.uint8))
    tables = np.full((1, 256, 16), 255, np.uint8)
    assert (quantized.fastscan(tiles, tables) == 65280).all()
