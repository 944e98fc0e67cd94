"""Data that workloads share: vectors, the scalar columns beside them, and scratch folders.

Vectors and texts are real where ``../shared/data`` lies beside the repository, otherwise seeded
synthetic ones of the same shape; ``source`` says which and belongs in every record. Beyond the
100,000 real vectors ``Expansion`` makes more.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "minilm384"
LOGIC = ROOT.parent / "shared" / "data" / "sqllogictest"
DIM = 384
LIMIT = 100_000
FOLDER_VARIABLE = "TARSDB_BENCH_DIR"
NEIGHBOURS = 64
_DRAWN = 2048
"""Vectors an expansion draws at a time."""


@dataclass(frozen=True)
class Vectors:
    """Base and query vectors, float32, rows contiguous."""

    base: np.ndarray
    queries: np.ndarray
    source: str


def vectors(rows: int) -> Vectors:
    """Return the first ``rows`` base vectors and 1,000 queries; beyond 100,000 they are drawn."""
    if rows > LIMIT:
        real = vectors(LIMIT)
        base = np.empty((rows, DIM), np.float32)
        base[:LIMIT] = real.base
        expansion = Expansion(real.base)
        for at in range(LIMIT, rows, _DRAWN):
            base[at : at + _DRAWN] = expansion.draw(_DRAWN)[: rows - at]
        return Vectors(base, real.queries, f"{real.source} ({LIMIT:,} expanded)")
    if DATA.is_dir():
        base = np.load(DATA / "base.f16.npy", mmap_mode="r")[:rows].astype(np.float32)
        queries = np.load(DATA / "query.f16.npy").astype(np.float32)
        return Vectors(base, queries, "minilm384")
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((500, DIM), dtype=np.float32)
    drawn = centres[rng.integers(0, 500, rows + 1000)]
    drawn += 0.7 * rng.standard_normal(drawn.shape, dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return Vectors(drawn[:rows], drawn[rows:], "synthetic, 500 clusters")


def main_axes(data: Vectors, dim: int) -> Vectors:
    """Return the vectors along their first ``dim`` principal axes: shorter, of many lengths."""
    base = data.base.astype(np.float64)
    _, axes = np.linalg.eigh(base.T @ base)  # the largest last
    kept = axes[:, ::-1][:, :dim].astype(np.float32)
    source = f"{data.source}, its first {dim} principal axes"
    return Vectors(data.base @ kept, data.queries @ kept, source)


class Expansion:
    """More vectors like the given ones, drawn around each in the directions of its neighbours.

    A drawn vector is a given one plus a Gaussian whose covariance is that of the differences to
    its 64 nearest neighbours (a manifold Parzen window: Vincent and Bengio, NIPS 2002), scaled to
    length 1. So it varies in the directions in which the data varies there, in about as many, and
    lies about as far from its origin as a neighbour does; ``growth`` stores how distances to
    neighbours, intrinsic dimension and hubness compare. The same seed and counts draw the same.

    Parameters
    ----------
    base : ndarray
        float32 (rows, dim), unit vectors.
    seed : int
    near : ndarray, optional
        int64 (rows, 64), the neighbours of each row, where they are known.
    """

    def __init__(self, base: np.ndarray, seed: int = 17, near: np.ndarray | None = None) -> None:
        self.near = _neighbours(base) if near is None else near
        self._base = base
        self._rng = np.random.default_rng(seed)

    def draw(self, count: int) -> np.ndarray:
        """Return the next vectors, float32 (count, dim)."""
        origins = self._rng.integers(0, len(self._base), count)
        weights = self._rng.standard_normal((count, self.near.shape[1]), dtype=np.float32)
        weights /= np.sqrt(self.near.shape[1], dtype=np.float32)
        drawn = self._base[origins] * (1 - weights.sum(axis=1, keepdims=True))
        for row, near, weight in zip(drawn, self.near[origins], weights, strict=True):
            row += weight @ self._base[near]
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return drawn


def _neighbours(base: np.ndarray) -> np.ndarray:
    """Return the 64 nearest other rows of each row."""
    from benchmarks.adapters.tarsdb_flat import TarsdbFlat  # after the thread limit

    flat, k = TarsdbFlat(base, "l2"), min(NEIGHBOURS + 1, len(base))
    parts = [flat.search(base[at : at + 1000], k) for at in range(0, len(base), 1000)]
    return np.concatenate(parts)[:, 1:]


def texts(rows: int) -> list[str]:
    """Return that many paragraphs, repeated when there are fewer."""
    file = DATA / "texts.json.gz"
    if file.is_file():
        found = json.loads(gzip.decompress(file.read_bytes()))["base"]
    else:
        words = "vector table index commit page query model text value row".split()
        rng = np.random.default_rng(11)
        picks = rng.integers(0, len(words), (5000, 12))
        found = [" ".join(words[i] for i in row) for row in picks.tolist()]
    return [found[i % len(found)] for i in range(rows)]


def scalars(rows: int) -> dict[str, Any]:
    """Return a primary key ``id`` and four scalar columns beside it.

    They are ``sel`` INT, ``label`` TEXT, ``score`` DOUBLE and ``body`` TEXT, a paragraph.
    ``sel`` is uniform in 0..999, so ``sel < 10`` keeps one row in a hundred.
    """
    rng = np.random.default_rng(3)
    return {
        "id": np.arange(rows, dtype=np.int64),
        "sel": rng.integers(0, 1000, rows).astype(np.int32),
        "label": np.array([f"label{i}" for i in rng.integers(0, 40, rows).tolist()], dtype=object),
        "score": rng.random(rows),
        "body": np.array(texts(rows), dtype=object),
    }


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    """Give a folder on a disk, removed afterwards; ``TARSDB_BENCH_DIR`` says where.

    ``/var/tmp`` is the default because ``/tmp`` often is memory, where a sync costs nothing.
    """
    parent = os.environ.get(FOLDER_VARIABLE) or ("/var/tmp" if os.path.isdir("/var/tmp") else None)
    with tempfile.TemporaryDirectory(prefix="tarsdb-bench-", dir=parent) as folder:
        yield pathlib.Path(folder)
