"""Vector distances and selection in NumPy: the definition, and the portable path.

Distances of every function here are final float32 values, so that all paths order rows alike:
by distance, then by row id; NaN (cosine of a zero vector) after everything, in both directions.
Knows no blocks, threads or instruction sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Rows = Any  # ndarray of one of the dtypes of ``distances``; NumPy's stubs do not follow them

L2, IP, COSINE, L1, HAMMING, JACCARD = range(6)
"""Metric codes of all kernels."""

CHUNK_BYTES = 1 << 19
"""Rows worked on at a time, in bytes of the working type: temporaries stay in the L2 cache."""


def distances(metric: int, rows: Rows, query: Rows) -> F32:
    """Return the distance of every row to one query.

    Parameters
    ----------
    metric : int
        One of the codes above.
    rows : (n, width) float32, float16, int8; uint8 packed bits for HAMMING and JACCARD
    query : (width,) or (n, width)
        float32 for float rows, otherwise of the rows' dtype. With n rows: pairwise.

    Returns
    -------
    float32 (n,)
        L2: root of the sum of squared differences. IP: minus the inner product. COSINE: one
        minus the cosine, in 0..2, NaN for a zero vector. L1: sum of absolute differences.
        HAMMING: differing bits. JACCARD: one minus common over set bits, 1 without common bits.
    """
    out = np.empty(len(rows), dtype=np.float32)
    compute = _METRICS[metric]
    working = _working_type(rows.dtype)
    step = rows_of_chunk(rows)
    fixed = query.astype(working, copy=False)
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), step):
            stop = start + step
            part = rows[start:stop].astype(working, copy=False)
            other = fixed if query.ndim == 1 else fixed[start:stop]
            out[start:stop] = compute(part, other)
    return out


def distance_matrix(metric: int, rows: Rows, queries: Rows) -> F32:
    """Return the distances of n rows to q queries, float32 (q, n); see :func:`distances`."""
    if metric not in (IP, COSINE):
        out = np.empty((len(queries), len(rows)), dtype=np.float32)
        for number, query in enumerate(queries):
            out[number] = distances(metric, rows, query)
        return out
    working = _working_type(rows.dtype)
    left, right = queries.astype(working, copy=False), rows.astype(working, copy=False)
    with np.errstate(all="ignore"):
        dots = left @ right.T
        if metric == IP:
            return np.asarray(0.0 - dots, dtype=np.float32)
        norms = np.multiply.outer(_squares(left), _squares(right))
        return _cosine_of(dots, norms)


def rows_of_chunk(rows: Rows) -> int:
    """Return how many of these rows are worked on at a time."""
    row_bytes = int(rows.shape[1]) * _working_type(rows.dtype).itemsize
    return max(1, CHUNK_BYTES // max(1, row_bytes))


def _working_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type sums are made in: float64 holds every sum over int8 exactly."""
    if dtype == np.int8:
        return np.dtype(np.float64)
    return dtype if dtype == np.uint8 else np.dtype(np.float32)


def _l2(rows: Rows, query: Rows) -> Rows:
    difference = rows - query
    return np.sqrt(np.einsum("ij,ij->i", difference, difference))


def _ip(rows: Rows, query: Rows) -> Rows:
    dots = rows @ query if query.ndim == 1 else np.einsum("ij,ij->i", rows, query)
    return 0.0 - dots  # never -0.0, which would sort before 0.0


def _cosine(rows: Rows, query: Rows) -> Rows:
    dots = rows @ query if query.ndim == 1 else np.einsum("ij,ij->i", rows, query)
    return _cosine_of(dots, _squares(rows) * _squares(np.atleast_2d(query)))


def _cosine_of(dots: Rows, norms: Rows) -> F32:
    cosine = dots / np.sqrt(norms)
    return np.asarray(np.clip(1.0 - cosine, 0.0, 2.0), dtype=np.float32)


def _squares(rows: Rows) -> npt.NDArray[np.float64]:
    return np.asarray(np.einsum("ij,ij->i", rows, rows), dtype=np.float64)


def _l1(rows: Rows, query: Rows) -> Rows:
    difference = rows - query
    return np.abs(difference, out=difference).sum(axis=1)


def _hamming(rows: Rows, query: Rows) -> Rows:
    return np.bitwise_count(rows ^ query).sum(axis=1, dtype=np.int64)


def _jaccard(rows: Rows, query: Rows) -> Rows:
    common = np.bitwise_count(rows & query).sum(axis=1, dtype=np.int64)
    either = np.bitwise_count(rows | query).sum(axis=1, dtype=np.int64)
    return np.where(common == 0, 1.0, 1.0 - common / np.maximum(either, 1))


_METRICS: dict[int, Callable[[Rows, Rows], Rows]] = {
    L2: _l2, IP: _ip, COSINE: _cosine, L1: _l1, HAMMING: _hamming, JACCARD: _jaccard,
}  # fmt: skip


def smallest(values: F32, rowids: I64, k: int, descending: bool = False) -> I64:
    """Return the order of the first k rows by (distance, row id), NaN last.

    Parameters
    ----------
    values : float32 (n,)
    rowids : int64 (n,)
    k : int
        May exceed n.
    descending : bool
        Largest distance first; ties still by ascending row id.

    Returns
    -------
    int64 (min(k, n),)
        Indices into ``values``.
    """
    keys = -values if descending else values
    if k < len(keys):
        bound = np.partition(keys, k - 1)[k - 1] if k else np.float32(-np.inf)
        # NaN as bound: fewer than k rows have a distance, all rows stay candidates
        chosen = np.arange(len(keys)) if np.isnan(bound) else np.flatnonzero(keys <= bound)
        order = np.lexsort((rowids[chosen], keys[chosen]))[:k]
        return chosen[order]
    return np.lexsort((rowids, keys))
