"""Exact search on a device: it names candidates, the processor's float kernel answers.

A device computes a key of each row that, scaled, is no more than the distance the float kernel
would find. The candidates are the rows of the m smallest keys, m > k, and t is the largest of
these: no other row has a distance below what t stands for. Where the k-th distance among the
candidates is strictly below, they hold the k nearest, ties included, and the answer is that of
``flat``'s float32 kernel to the last bit. Else, or where numbers are too large or small for the
bounds, that kernel searches all rows.

With u = 2**-24 and w elements, a float32 sum of products in any order, with or without fused
operations, differs by at most w u / (1 - w u) times the sum of magnitudes, and |<q, x>| <= |q| |x|.
The distance squared of the float kernel and |x|**2 - 2 <q, x> of the device differ, but for |q|**2,
by at most (2 (w + 3) + w + w + 8) u times |q|**2 + |x|**2: twice over for the differences of the
former, (q - x)**2 <= 2 (q**2 + x**2), once for the product, once for the norm. For the inner
product of q / |q| it is (2 w + 8) u |x|, for the cosine (3.5 w + 16) u. ``_kappa`` = 1.01 (4 w +
32) u covers all three and its own rounding. Sums that underflow, to zero at worst, are covered by
absolute terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.index.base import Found
from tarsdb.kernels import reference
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.nearest import DeviceRows, bytes_of, smallest, upload
from tarsdb.kernels.native import Scan
from tarsdb.metrics import METRICS

METRICS_KNOWN = (reference.L2, reference.IP, reference.COSINE)
MIN_QUERIES, MIN_PAIRS = 16, 1 << 22
"""Queries of a batch, and queries times rows, from which a device is asked: not measured yet."""
MAX_K, SLACK = 512, 32
"""More neighbours are searched by the processor; candidates beyond k, at least."""
MAX_WIDTH = 65_536
_HUGE = 1e36  # squared distances beyond are left to the float kernel
_SMALL = 1e-20  # squared norms below have cosines that the bounds do not hold
_UNIT, _LEAST = 2.0**-24, 2.0**-126


def is_worth(queries: np.ndarray, rows: int, k: int, metric: int) -> bool:
    """Return whether a device is to be asked for the k nearest of so many rows."""
    fitting = k <= MAX_K and metric in METRICS_KNOWN and queries.shape[1] <= MAX_WIDTH
    return fitting and len(queries) >= MIN_QUERIES and len(queries) * rows >= MIN_PAIRS


def search(
    device: Device, blocks: Sequence[VectorBlock], scan: Scan, queries: np.ndarray, k: int
) -> tuple[Found, np.ndarray] | None:
    """Return the k nearest rows of each query.

    Parameters
    ----------
    device : Device
    blocks : sequence of VectorBlock
        Of float32 data; they stay on the device as long as their arrays live and there is room.
    scan : Scan
        Over the same blocks, without positions, ascending.
    queries : float32 (q, width), C-contiguous
    k : int
        At most :data:`MAX_K`.

    Returns
    -------
    found : (int64 (q, k), float32 (q, k)) or None
        What ``scan.nearest`` would return; None where the rows do not fit the device's budget, are
        too large for float32, or are fewer than k.
    certified : bool (q,)
        Where it does; the others must be searched by the scan.

    Raises
    ------
    DeviceError
        The device failed.
    """
    with device.working():
        rows = _resident(device, blocks)
        if rows is None:
            return None
        norms = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
        usable = (norms + np.sqrt(max(each.largest for each in rows))) ** 2 < _HUGE
        if scan.metric == reference.COSINE:
            usable &= norms**2 >= _SMALL
        if not usable.any():
            return None
        terms = [
            (each.data, *_terms(device.xp, scan.metric, each, block.live))
            for each, block in zip(rows, blocks, strict=True)
        ]
        asked = _scaled(scan.metric, np.where(usable[:, None], queries, 0), norms)
        wanted = 1 << (k + SLACK - 1).bit_length()
        keys, places = smallest(device, terms, asked, wanted)
    counts = (keys < np.inf).sum(axis=1)
    if counts.max() < k:
        return None
    places[keys == np.inf] = np.iinfo(np.int64).max
    places.sort(axis=1)
    found = scan.among(queries, places, counts.tolist(), k)
    limits = _limits(scan.metric, keys.max(axis=1), norms, queries.shape[1])
    certified = usable & (counts >= k) & (found[1][:, -1] < limits)
    METRICS.add("index.device_certified", int(certified.sum()))
    METRICS.add("index.device_fallbacks", int((~certified).sum()))
    return found, certified


def _resident(device: Device, blocks: Sequence[VectorBlock]) -> list[DeviceRows] | None:
    """Return the blocks on the device, brought there where they are not."""
    sizes = [bytes_of(*block.data.shape) for block in blocks]
    if sum(sizes) > device.arrays.budget:
        return None
    rows = []
    for block, size in zip(blocks, sizes, strict=True):
        found = device.arrays.get(block.data, size, partial(upload, device, block.data))
        if found is None or not found.largest < _HUGE:
            return None
        rows.append(found)
    return rows


def _kappa(width: int) -> float:
    return 1.01 * (4 * width + 32) * _UNIT


def _terms(xp: Any, metric: int, rows: DeviceRows, live: np.ndarray | None) -> tuple[Any, Any]:
    """Return the offsets of rows and, for the cosine, their factors: the lower bounds' own."""
    kappa, factors = _kappa(rows.data.shape[1]), None
    if metric == reference.L2:
        offsets = rows.squares * xp.float32(1 - kappa)
    elif metric == reference.IP:
        offsets = xp.sqrt(rows.squares + xp.float32(2.0**-100)) * xp.float32(-kappa)
    else:
        safe = rows.squares >= _SMALL
        factors = xp.where(safe, 1 / xp.sqrt(xp.where(safe, rows.squares, 1)), 0)
        factors = factors.astype(xp.float32)
        offsets = xp.where(safe, 0, xp.where(rows.zero, xp.inf, -xp.inf)).astype(xp.float32)
    if live is not None:
        offsets = xp.where(xp.asarray(live), offsets, xp.float32(np.inf))
    return offsets, factors


def _scaled(metric: int, queries: np.ndarray, norms: np.ndarray) -> np.ndarray:
    if metric == reference.L2:
        return queries * np.float32(2)
    scaled = queries / np.where(norms > 0, norms, 1)[:, None]
    return np.ascontiguousarray(scaled, np.float32)


def _limits(metric: int, keys: np.ndarray, norms: np.ndarray, width: int) -> np.ndarray:
    """Return the distances that rows of larger keys do not fall below; float64 (q,)."""
    kappa, least, keys = _kappa(width), 8 * (width + 8) * _LEAST, keys.astype(np.float64)
    if metric == reference.L2:
        squares = keys + norms**2 * (1 - kappa) - least
        limits: np.ndarray = np.sqrt(np.maximum(squares, 0)) * (1 - 4 * _UNIT)
    elif metric == reference.IP:
        safe = np.where(norms > 0, norms, 1)
        limits = np.where(norms > 0, keys * safe, 0) - least * (1 + safe)
    else:
        limits = 1 + keys - kappa - least
    return limits
