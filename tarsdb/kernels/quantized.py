"""Scans of quantised rows: their definition in NumPy, their layouts, and calls of compiled ones.

Sign bits lie in tiles of 16 rows, 4-bit codes in tiles of 64; rows past the last are zero. The
compiled scans of ``kernels/cpu/quantized.py`` give the same bits. Knows no quantiser.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U64 = npt.NDArray[np.uint64]

TILE, FACTORS, PLANES, NUMBERS = 16, 4, 4, 6
"""Rows of a tile of sign bits; factors of a row; planes and numbers of a query."""
BLOCK = 64
"""Rows of a tile of 4-bit codes."""


def tile_bits(bits: U64, factors: F32) -> U8:
    """Lay sign bits and factors out in tiles.

    Parameters
    ----------
    bits : uint64 (n, words)
    factors : float32 (n, 4)
        Base, slope, error, number of set bits of each row.

    Returns
    -------
    uint8 (ceil(n / 16), 128 * words + 256)
        Per tile uint64 (words, 16), then float32 (4, 16).
    """
    count, words = -(-len(bits) // TILE), bits.shape[1]
    whole, constants = np.zeros((count * TILE, words), np.uint64), _padded(factors, count * TILE)
    whole[: len(bits)] = bits
    parts = [
        np.ascontiguousarray(array.reshape(count, TILE, size).transpose(0, 2, 1)).view(np.uint8)
        for array, size in ((whole, words), (constants, FACTORS))
    ]
    shapes = (8 * TILE * words, 4 * TILE * FACTORS)
    return np.concatenate(
        [part.reshape(count, size) for part, size in zip(parts, shapes, strict=True)], axis=1
    )


def untile_bits(tiles: U8) -> tuple[U64, F32]:
    """Return bits, uint64 (n, words), and factors, float32 (n, 4), of tiles, padding included."""
    count, words = len(tiles), (tiles.shape[1] - 4 * FACTORS * TILE) // (8 * TILE)
    bits = np.ascontiguousarray(tiles[:, : 8 * TILE * words]).view(np.uint64)
    factors = np.ascontiguousarray(tiles[:, 8 * TILE * words :]).view(np.float32)
    return (
        bits.reshape(count, words, TILE).transpose(0, 2, 1).reshape(count * TILE, words),
        factors.reshape(count, FACTORS, TILE).transpose(0, 2, 1).reshape(count * TILE, FACTORS),
    )


def rabitq(tiles: U8, planes: U64, numbers: F32) -> tuple[F32, F32]:
    """Return estimated distances and lower bounds of all rows to some queries.

    Parameters
    ----------
    tiles : uint8 (t, 128 * words + 256), C-contiguous
        From :func:`tile_bits`.
    planes : uint64 (q, 4, words)
        Bit j of the queries' unsigned elements.
    numbers : float32 (q, 6)
        Per query offset, factors of the common and of the set bits, a constant, and the factors of
        a row's error and slope in its bound.

    Returns
    -------
    estimates, lows : float32 (q, 16 * t)
        ``base + offset + slope * (a * common + b * ones + c)``, and that less
        ``d * error + e * |slope|``, each step rounded to float32; of padding undefined.
    """
    shape = (len(planes), TILE * len(tiles))
    kernel = dispatch.get("rabitq")
    if kernel is None:
        dispatch.prepare("rabitq")
        return rabitq_portable(tiles, planes, numbers)
    tiles, planes = np.ascontiguousarray(tiles), np.ascontiguousarray(planes)
    numbers = np.ascontiguousarray(numbers)
    estimates, lows = np.empty(shape, np.float32), np.empty(shape, np.float32)
    kernel(address(tiles), len(tiles), planes.shape[2], address(planes), address(numbers),
           len(planes), address(estimates), address(lows))  # fmt: skip
    return estimates, lows


def rabitq_portable(tiles: U8, planes: U64, numbers: F32) -> tuple[F32, F32]:
    """Do the same in NumPy: the definition."""
    bits, factors = untile_bits(tiles)
    base, slope, error, ones = factors.T
    shape = (len(planes), len(bits))
    estimates, lows = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for q, (offset, of_common, of_ones, always, of_error, of_slope) in enumerate(numbers):
        common = np.zeros(len(bits), np.int64)
        for j, plane in enumerate(planes[q]):
            common += np.bitwise_count(bits & plane).sum(axis=1, dtype=np.int64) << j
        product = of_common * common.astype(np.float32) + of_ones * ones + always
        estimates[q] = (base + offset) + slope * product
        lows[q] = estimates[q] - (of_error * error + of_slope * np.abs(slope))
    return estimates, lows


def tile_nibbles(codes: U8) -> U8:
    """Lay 4-bit codes out in tiles.

    Parameters
    ----------
    codes : uint8 (n, pairs)
        Two codes a byte, the even sub-vector's in the low bits.

    Returns
    -------
    uint8 (ceil(n / 64), pairs, 64)
    """
    count = -(-len(codes) // BLOCK)
    whole = np.zeros((count * BLOCK, codes.shape[1]), np.uint8)
    whole[: len(codes)] = codes
    return np.ascontiguousarray(whole.reshape(count, BLOCK, codes.shape[1]).transpose(0, 2, 1))


def fastscan(tiles: U8, tables: U8) -> U16:
    """Return the sums of table entries of all rows for some queries.

    Parameters
    ----------
    tiles : uint8 (t, pairs, 64), C-contiguous
        From :func:`tile_nibbles`.
    tables : uint8 (q, 2 * pairs, 16)

    Returns
    -------
    uint16 (q, 64 * t)
        Modulo 65,536.
    """
    kernel = dispatch.get("fastscan")
    if kernel is None:
        dispatch.prepare("fastscan")
        return fastscan_portable(tiles, tables)
    tiles, tables = np.ascontiguousarray(tiles), np.ascontiguousarray(tables)
    out = np.empty((len(tables), BLOCK * len(tiles)), np.uint16)
    kernel(address(tiles), len(tiles), tiles.shape[1], address(tables), len(tables), address(out))
    return out


def fastscan_portable(tiles: U8, tables: U8) -> U16:
    """Do the same in NumPy: the definition."""
    out = np.zeros((len(tables), len(tiles), BLOCK), np.uint16)
    for q, table in enumerate(tables):
        for pair in range(tiles.shape[1]):
            codes = tiles[:, pair]
            out[q] += table[2 * pair][codes & 15]
            out[q] += table[2 * pair + 1][codes >> 4]
    return out.reshape(len(tables), BLOCK * len(tiles))


def _padded(factors: F32, rows: int) -> F32:
    whole = np.zeros((rows, FACTORS), np.float32)
    whole[: len(factors)] = factors
    return whole
