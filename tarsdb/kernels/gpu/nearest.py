"""Keys of rows by matrix products on a device, and the smallest of each query.

A key is ``offset[row] - factor[row] * <query, row>``; what it bounds is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.select import nothing
from tarsdb.records import dataclass

TILE_QUERIES, TILE_ROWS = 1024, 1 << 16
"""Queries and rows of one product, at most: its keys take 256 MiB."""
_EXTRA = 5  # bytes a row beside its elements


@dataclass(frozen=True)
class DeviceRows:
    """Rows on a device, arrays of its namespace.

    Attributes
    ----------
    data : float32 (n, width)
    squares : float32 (n,)
        Squared norms.
    zero : bool (n,)
        Whether all elements are.
    largest : float
        The largest squared norm; not finite where float32 cannot hold it.
    """

    data: Any
    squares: Any
    zero: Any
    largest: float


def bytes_of(rows: int, width: int) -> int:
    """Return the bytes that rows take on a device."""
    return rows * (4 * width + _EXTRA)


def upload(device: Device, rows: np.ndarray) -> DeviceRows:
    """Bring float32 (n, width) rows to a device, n > 0."""
    parts = (rows[at : at + TILE_ROWS] for at in range(0, len(rows), TILE_ROWS))
    return gathered(device, rows.shape, parts)


def gathered(device: Device, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> DeviceRows:
    """Bring float32 (n, width) rows to a device, n > 0, that are made part by part."""
    xp, at = device.xp, 0
    data = xp.empty(shape, xp.float32)
    squares, zero = xp.empty(shape[0], xp.float32), xp.empty(shape[0], bool)
    for rows in parts:
        part = slice(at, at + len(rows))
        data[part] = xp.asarray(np.ascontiguousarray(rows))
        with np.errstate(over="ignore"):
            squares[part] = xp.square(data[part]).sum(axis=1)
        zero[part] = (data[part] == 0).all(axis=1)
        at += len(rows)
    return DeviceRows(data, squares, zero, float(squares.max()))


def smallest(
    device: Device,
    blocks: Sequence[tuple[Any, Any, Any]],
    queries: np.ndarray,
    wanted: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest keys of each query.

    Parameters
    ----------
    device : Device
    blocks : sequence of (float32 (n, width), float32 (n,), float32 (n,) or None)
        Rows, their offsets and their factors (None: 1), on the device. An offset of infinity leaves
        a row out.
    queries : float32 (q, width)
    wanted : int
        A power of two, up to 1024.

    Returns
    -------
    keys : float32 (q, wanted)
        In any order; infinite where there are fewer rows.
    places : int64 (q, wanted)
        Rows counted over all blocks.
    """
    found = [
        _of_tile(device, blocks, queries[at : at + TILE_QUERIES], wanted)
        for at in range(0, len(queries), TILE_QUERIES)
    ]
    return np.concatenate([keys for keys, _ in found]), np.concatenate([p for _, p in found])


def _of_tile(
    device: Device, blocks: Sequence[tuple[Any, Any, Any]], queries: np.ndarray, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    xp, first = device.xp, 0
    asked = xp.asarray(queries)
    keys, places = nothing(xp, len(queries), wanted)
    for data, offsets, factors in blocks:
        for at in range(0, len(data), TILE_ROWS):
            part = slice(at, at + TILE_ROWS)
            products = xp.matmul(asked, data[part].T)
            if factors is not None:
                products *= factors[part]
            xp.subtract(offsets[part], products, out=products)
            keys, places = device.merge(products, first + at, keys, places)
        first += len(data)
    return device.host(keys), device.host(places)
