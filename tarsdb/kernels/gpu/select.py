"""The smallest keys of many columns, kept while the columns come in tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Merge = Callable[[Any, int, Any, Any], tuple[Any, Any]]
"""``merge(found, first, keys, places) -> (keys, places)``: the m smallest of each row so far.

``found`` is float32 (q, n), keys of the places from ``first`` on; ``keys`` float32 (q, m) and
``places`` int64 (q, m) are the smallest before, (inf, -1) where there are fewer. Order is any, and
of equal keys at the limit any may stay. NaN is not allowed.
"""


def merging(xp: Any) -> Merge:
    """Return the fastest way of a device that works there: the CUDA kernel, or ``partition``."""
    try:
        from tarsdb.kernels.gpu.topk import TopK

        kernel = TopK()
        kernel(xp.zeros((1, 1), xp.float32), 0, *nothing(xp, 1, 1))
    except Exception:  # Numba's CUDA target is absent, or cannot compile for this device
        return partition(xp)
    return kernel


def partition(xp: Any) -> Merge:
    """Return the merge by an array namespace alone."""

    def merge(found: Any, first: int, keys: Any, places: Any) -> tuple[Any, Any]:
        count, wanted = found.shape[1], keys.shape[1]
        numbers = xp.arange(first, first + count, dtype=xp.int64)
        both = xp.concatenate([keys, found], axis=1)
        names = xp.concatenate([places, xp.broadcast_to(numbers, found.shape)], axis=1)
        chosen = xp.argpartition(both, wanted - 1, axis=1)[:, :wanted]
        return xp.take_along_axis(both, chosen, 1), xp.take_along_axis(names, chosen, 1)

    return merge


def nothing(xp: Any, rows: int, wanted: int) -> tuple[Any, Any]:
    """Return the keys and places to begin with."""
    shape = (rows, wanted)
    return xp.full(shape, xp.inf, dtype=xp.float32), xp.full(shape, -1, dtype=xp.int64)
