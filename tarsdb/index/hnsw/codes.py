"""Vectors as int8 codes in a space where the nearest by Euclidean distance are the ones wanted.

Cosine distance becomes Euclidean between unit vectors; inner product becomes Euclidean by one more
dimension that makes all norms equal (Bachrach et al. 2014). The mean is taken off, and every
vector has a scale of its own, so that one long vector does not coarsen the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LINE = 64
AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Space:
    """How vectors of one index are coded.

    Attributes
    ----------
    op : str
        ``<->``, ``<#>`` or ``<=>``.
    mean : float32 (d',)
        d' is the dimension, for ``<#>`` one more.
    largest : float
        Largest norm of a row; only ``<#>`` uses it.
    """

    op: str
    mean: np.ndarray
    largest: float

    @property
    def padded(self) -> int:
        """Bytes of a code."""
        return -(-len(self.mean) // LINE) * LINE

    @staticmethod
    def of(vectors: np.ndarray, op: str) -> Space:
        """Find mean and largest norm of rows."""
        largest = 0.0
        total = np.zeros(vectors.shape[1] + (op == "<#>"), dtype=np.float64)
        if op == "<#>":
            largest = max(
                float(np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64)).max())
                for part in _parts(vectors)
            )
        plain = Space(op, np.zeros(len(total), np.float32), largest)
        for part in _parts(vectors):
            total += plain.moved(part).sum(axis=0, dtype=np.float64)
        return Space(op, (total / len(vectors)).astype(np.float32), largest)

    def moved(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in the space, float32 (n, d')."""
        wide = rows.astype(np.float32)
        if self.op == "<=>":
            wide = _unit(wide)
        elif self.op == "<#>":
            squares = np.einsum("ij,ij->i", wide, wide, dtype=np.float64)
            rest = np.sqrt(np.maximum(self.largest**2 - squares, 0)).astype(np.float32)
            wide = np.concatenate([wide, rest[:, None]], axis=1)
        moved: np.ndarray = wide - self.mean
        return moved

    def coded(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return codes + 128, uint8 (n, padded), and squared norm and scale, float32 (n, 2)."""
        codes = np.full((len(vectors), self.padded), 128, dtype=np.uint8)
        constants = np.empty((len(vectors), 2), dtype=np.float32)
        at = 0
        for part in _parts(vectors):
            rows = self.moved(part)
            window = slice(at, at + len(part))
            numbers, scale = _quantised(rows)
            codes[window, : rows.shape[1]] = numbers.view(np.uint8) ^ 128
            # of the codes, as the inner products are: their rounding then cancels between near rows
            squares = np.einsum("ij,ij->i", numbers, numbers, dtype=np.int64)
            constants[window, 0] = squares * scale.astype(np.float64) ** 2
            constants[window, 1] = scale
            at += len(part)
        return codes, constants

    def query(self, vector: np.ndarray) -> tuple[np.ndarray, np.float32]:
        """Return a query's code, int8 (padded,), and twice its scale."""
        row = np.array(vector, dtype=np.float32)
        if self.op == "<=>":
            norm = np.sqrt(np.dot(row, row))
            row *= np.float32(1) / norm if norm > 0 else np.float32(0)
        elif self.op == "<#>":
            row = np.append(row, np.float32(0))
        row -= self.mean
        top = np.abs(row).max()
        scale = top / np.float32(127) if top > 0 else np.float32(1)
        code = np.zeros(self.padded, dtype=np.int8)
        code[: len(row)] = np.rint(row * (np.float32(1) / scale))
        return code, np.float32(2) * scale


def _parts(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[at : at + AT_ONCE] for at in range(0, len(vectors), AT_ONCE)]


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    factors: np.ndarray = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    unit: np.ndarray = rows * factors[:, None]
    return unit


def _quantised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top = np.abs(rows).max(axis=1)
    scale = np.where(top > 0, top / np.float32(127), np.float32(1)).astype(np.float32)
    numbers = np.rint(rows * (np.float32(1) / scale)[:, None])
    return np.clip(numbers, -127, 127).astype(np.int8), scale
