"""Inverted lists on a device: keys of the rows in tiles that queries look at, and the smallest.

Tiles are as ``kernels/cpu/ivf.py`` has them, brought as they are. Inner products of codes are whole
numbers, and keys are rounded step by step as the processor's, so they are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np

from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.select import nothing
from tarsdb.kernels.ivf import TILE
from tarsdb.records import dataclass

Dots = Callable[[Any, Any, Any], Any]
"""``dots(words, queries, looked) -> int32 (q, t, 16)``: inner products of codes.

``words`` int32 (tiles, padded / 4, 16), ``queries`` int8 (q, padded), ``looked`` int32 (q, t):
tiles by number, of which negative ones get any number.
"""
KEYS = 1 << 25
"""Keys computed at a time, at most: with what they are made of they take some 600 MiB."""
MOST = 1024
"""Rows named for a query, at most."""
_AT_ONCE = 1 << 22  # numbers that the namespace makes of codes at a time


@dataclass(frozen=True)
class DeviceTiles:
    """Coded rows on a device.

    Attributes
    ----------
    words : int32 (tiles, padded / 4, 16)
        Four codes + 128 each.
    squares, scales : float32 (tiles, 16)
        Infinite and 0 where there is no row.
    """

    words: Any
    squares: Any
    scales: Any


def bring(
    device: Device, shape: tuple[int, ...], runs: Iterable[np.ndarray], constants: np.ndarray
) -> DeviceTiles:
    """Bring tiles to a device.

    Parameters
    ----------
    device : Device
    shape : tuple of int
        Of codes, (tiles, padded / 4, 16, 4).
    runs : iterable of uint8 arrays
        The bytes of the codes, one after another.
    constants : float32 (tiles, 2, 16)
    """
    xp, at = device.xp, 0
    codes = xp.empty(int(np.prod(shape)), xp.uint8)
    for run in runs:
        codes[at : at + len(run)] = xp.asarray(np.ascontiguousarray(run))
        at += len(run)
    there = xp.asarray(constants)
    words = codes.view(xp.int32).reshape(shape[:3])
    return DeviceTiles(words, xp.ascontiguousarray(there[:, 0]), xp.ascontiguousarray(there[:, 1]))


def smallest(
    device: Device, tiles: DeviceTiles, queries: tuple[np.ndarray, np.ndarray],
    looked: np.ndarray, wanted: int, dead: Any = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the smallest keys of each query among the rows of tiles.

    Parameters
    ----------
    device : Device
        The caller works on it.
    tiles : DeviceTiles
    queries : (int8 (q, padded), float32 (q,))
        Codes, and twice their scales.
    looked : int32 (q, t)
        Tiles of each query, -1 where it has fewer.
    wanted : int
        Up to :data:`MOST`.
    dead : bool (tiles, 16) of the device, optional
        Rows to leave out.

    Returns
    -------
    keys : float32 (q, w)
        ``square - (2 t s) dot``, in any order; infinite where there are fewer rows. w is the next
        power of two.
    slots : int64 (q, w)
        16 times the place in ``looked`` and the row in the tile.
    """
    xp, multiply = device.xp, dots_on(device.xp)
    power = 1 << (wanted - 1).bit_length()
    step = max(1, KEYS // max(1, TILE * looked.shape[1]))
    found = []
    for at in range(0, len(looked), step):
        part = slice(at, at + step)
        codes, factors, own = (xp.asarray(a[part]) for a in (*queries, looked))
        keys = xp.where(own[:, :, None] >= 0, tiles.squares[own], xp.float32(np.inf))
        if dead is not None:
            keys = xp.where(dead[own], xp.float32(np.inf), keys)
        products = factors[:, None, None] * tiles.scales[own]
        products *= multiply(tiles.words, codes, own).astype(xp.float32)
        keys -= products
        best = device.merge(
            xp.ascontiguousarray(keys.reshape(len(own), -1)), 0, *nothing(xp, len(own), power)
        )
        found.append([device.host(each) for each in best])
    keys, slots = (np.concatenate(each) for each in zip(*found, strict=True))
    return keys, slots


def array_dots(xp: Any) -> Dots:
    """Return the definition, by an array namespace alone."""

    def dots(words: Any, queries: Any, looked: Any) -> Any:
        out = xp.empty((*looked.shape, TILE), xp.int32)
        wide = queries.astype(xp.int32).reshape(len(queries), 1, -1, 4)
        step = max(1, _AT_ONCE // max(1, TILE * wide.shape[2] * looked.shape[1]))
        for at in range(0, len(queries), step):
            part = slice(at, at + step)
            own = words[looked[part]]
            total = xp.zeros((len(own), looked.shape[1], TILE), xp.int32)
            for byte in range(4):
                codes = ((own >> xp.int32(8 * byte)) & xp.int32(255)) - xp.int32(128)
                codes *= wide[part, :, :, byte, None]
                total += codes.sum(axis=2, dtype=xp.int32)
            out[part] = total
        return out

    return dots


@cache
def dots_on(xp: Any) -> Dots:
    """Return the fastest way that works on a device: the CUDA kernel, or the definition."""
    try:
        from tarsdb.kernels.gpu.cuda_lists import CudaDots

        found = CudaDots(xp)
        zeros = xp.zeros((1, 1, TILE), xp.int32), xp.zeros((1, 4), xp.int8)
        found(*zeros, xp.zeros((1, 1), xp.int32))
    except Exception:  # Numba's CUDA target is absent, or cannot compile for this device
        return array_dots(xp)
    return found
