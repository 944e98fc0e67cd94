"""Lloyd's algorithm on small sub-spaces, in BLAS. Knows no codes."""

from __future__ import annotations

import numpy as np

from tarsdb.index.quantization.base import F32, U8

ROUNDS = 16
_CHUNK = 16384


def assign(x: F32, centroids: F32) -> U8:
    """Return the nearest of up to 256 centroids, uint8 (n,), for float32 (n, d); ties: the first.

    By ``|c|^2 - 2 <x, c>``, which orders as the squared distance does.
    """
    half = np.einsum("ij,ij->i", centroids, centroids) / 2
    out = np.empty(len(x), np.uint8)
    for at in range(0, len(x), _CHUNK):
        part = x[at : at + _CHUNK]
        out[at : at + len(part)] = np.argmin(half - part @ centroids.T, axis=1)
    return out


def train(x: F32, count: int, rng: np.random.Generator, start: F32 | None = None) -> F32:
    """Return ``count`` centroids, float32 (count, d), of float32 (n, d).

    Up to ``count`` rows are their own centroids. More start from distinct random rows or from
    ``start``; a centroid without rows takes half of the largest cluster, as in faiss.
    """
    if len(x) <= count:
        return _themselves(x, count)
    rounds = ROUNDS if start is None else 4
    if start is None:
        start = x[rng.permutation(len(x))[:count]]
    centroids: F32 = np.array(start, np.float32)
    for _ in range(rounds):
        names = assign(x, centroids)
        sizes = np.bincount(names, minlength=count)
        sums = np.stack(
            [np.bincount(names, column, minlength=count) for column in x.T.astype(np.float64)],
            axis=1,
        )
        means = sums / np.maximum(sizes, 1)[:, None]
        _split(means, sizes, np.flatnonzero(sizes == 0), rng)
        fresh = means.astype(np.float32)
        if np.array_equal(fresh, centroids):
            break
        centroids = fresh
    return centroids


def _themselves(x: F32, count: int) -> F32:
    """Return the rows, repeated; one of rows that are equal but for rounding, as of a rotation."""
    most = 1e-10 * np.square(x).sum(axis=1)
    first = [int((np.square(x - row).sum(axis=1) <= most).argmax()) for row in x]
    return np.array(np.resize(x[first], (count, x.shape[1])), np.float32)


def _split(
    centroids: np.ndarray, sizes: np.ndarray, empty: np.ndarray, rng: np.random.Generator
) -> None:
    """Move each empty centroid beside the one with most rows, to either side of it."""
    shares = sizes.astype(np.float64)
    for name in empty:
        full = int(np.argmax(shares))
        nudge = rng.choice([-1.0, 1.0], centroids.shape[1]) / 1024
        centroids[name] = centroids[full] * (1 + nudge)
        centroids[full] *= 1 - nudge
        shares[name] = shares[full] = shares[full] / 2
