"""Exact answers that searches are held against, by NumPy alone, in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BLOCK_ROWS = 16_384


def nearest(base: np.ndarray, queries: np.ndarray, k: int, metric: str = "l2") -> np.ndarray:
    """Return the ``k`` nearest rows of each query, nearest first.

    Parameters
    ----------
    base : ndarray
        float32 (rows, dim).
    queries : ndarray
        float32 (q, dim).
    k : int
        At most as many as there are rows are returned.
    metric : str
        ``l2``, or ``ip``: the largest inner products.

    Returns
    -------
    ndarray
        int64 (q, min(k, rows)), row numbers.
    """
    asked = queries.astype(np.float64)
    keys, rows = np.empty((len(asked), 0)), np.empty((len(asked), 0), np.int64)
    for at in range(0, len(base), BLOCK_ROWS):
        block = base[at : at + BLOCK_ROWS].astype(np.float64)
        near = -2 * (asked @ block.T)
        if metric == "l2":
            near += np.einsum("ij,ij->i", block, block)
        kept = _least(near, k)
        keys = np.concatenate([keys, np.take_along_axis(near, kept, 1)], axis=1)
        rows = np.concatenate([rows, kept + at], axis=1)
        kept = _least(keys, k)
        keys, rows = (np.take_along_axis(each, kept, 1) for each in (keys, rows))
    return rows


def _least(keys: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the ``k`` least keys of each row, in order."""
    if k < keys.shape[1]:
        some = np.argpartition(keys, k - 1, axis=1)[:, :k]
    else:
        some = np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
    order = np.argsort(np.take_along_axis(keys, some, 1), axis=1)
    return np.take_along_axis(some, order, 1)


def recall(found: Iterable[Iterable[int]], right: np.ndarray) -> float:
    """Return the share of the true neighbours, int (q, k), that was found."""
    pairs = zip(found, right.tolist(), strict=True)
    return sum(len(set(map(int, a)) & set(b)) for a, b in pairs) / right.size
