"""The nearest of many coded centroids to each coded row, on a device; equal to ``kernels/cpu/ivf``.

Products of int8 codes are whole numbers that float32 sums exactly, whatever the order, and what
follows rounds as the processor's kernel does, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tarsdb.kernels.gpu.device import Device

KEYS = 1 << 26
"""Keys computed at a time, at most: they take 256 MiB, and as much on the way."""
EXACT = 1024
"""Elements whose products, at most 127**2 each, have sums below 2**24."""


def assign(
    device: Device, rows: tuple[np.ndarray, np.ndarray], centroids: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the nearest centroid of rows and their squared distance, part by part.

    Parameters
    ----------
    device : Device
    rows, centroids : (int8 (n, padded), float32 (n, 2))
        Codes, and the squared norm and the scale of each; finite. The rows' codes stay on the
        device as long as their array lives and there is room.

    Yields
    ------
    labels : int32 (m,)
        The first of equals.
    distances : float32 (m,)
        As computed; rounding may leave them below zero.
    """
    xp, (codes, constants) = device.xp, rows
    there = device.arrays.get(codes, codes.nbytes, lambda: xp.asarray(codes))
    heads, shapes = (xp.asarray(each) for each in centroids)
    heads = heads.astype(xp.float32)
    step = max(1, KEYS // len(heads))
    for at in range(0, len(codes), step):
        part = slice(at, at + step)
        own = xp.asarray(codes[part]) if there is None else there[part]
        squares, scales = xp.asarray(constants[part]).T
        keys = (scales * xp.float32(2))[:, None] * shapes[:, 1]
        keys *= _products(xp, own, heads)
        xp.subtract(shapes[:, 0], keys, out=keys)
        labels = keys.argmin(axis=1)
        near = xp.take_along_axis(keys, labels[:, None], 1)[:, 0] + squares
        yield device.host(labels).astype(np.int32), device.host(near)


def _products(xp: Any, codes: Any, heads: Any) -> Any:
    """Return the products of int8 codes and float32 ones, rounded once, as float32."""
    wide = codes.astype(xp.float32)
    if wide.shape[1] <= EXACT:
        return xp.matmul(wide, heads.T)
    total = xp.zeros((len(wide), len(heads)), xp.int32)
    for at in range(0, wide.shape[1], EXACT):
        part = slice(at, at + EXACT)
        total += xp.matmul(wide[:, part], heads[:, part].T).astype(xp.int32)
    return total.astype(xp.float32)
