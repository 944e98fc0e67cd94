"""Vectors as codes of 8 or 4 bits in a space where the nearest by Euclidean distance are wanted.

Cosine distance becomes Euclidean between unit vectors, and rows without a direction lie farther
from every query than any of these; inner product becomes Euclidean by one more dimension that makes
all norms equal (Bachrach et al. 2014). The mean is taken off, and every vector has a scale of its
own, so that one long vector does not coarsen the others.
"""

from __future__ import annotations

import numpy as np

from tarsdb.index.navigation import as_numbers
from tarsdb.records import dataclass

LINE = 64
AT_ONCE = 1 << 14
FAR = 3.0
"""Norm of what stands for a zero row by ``<=>``: unit vectors are at most 2 apart, it is at least 2
from each."""
CLIP = 2.8
"""Root mean squares of a row beyond which a code of 4 bits is cut; of normal numbers, the error is
least near here."""
_SAMPLE, _AMONG, _NEAR, _SEEN, _ENOUGH = 64, 1 << 15, 10, 18, 0.99


def padded_width(width: int, bits: int = 8) -> int:
    """Return the elements of a code: whole cache lines of memory."""
    run = LINE * 8 // bits
    return -(-width // run) * run


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
    def norm(self) -> np.float32:
        """The norm that queries are brought to, unless by ``<->``.

        By ``<#>`` any would find the same rows, but one far below the rows' is lost in the codes.
        """
        return np.float32(self.largest if self.op == "<#>" else 1)

    @staticmethod
    def of(vectors: np.ndarray, op: str) -> Space:
        """Find mean and largest norm of rows; rows of uint8 are packed bits."""
        largest, is_bits = 0.0, vectors.dtype == np.uint8
        width = vectors.shape[1] * 8 if is_bits else vectors.shape[1]
        if is_bits and op == "<->":  # numbers of -1/2 and 1/2: their codes are exact
            return Space(op, np.full(width, 0.5, np.float32), largest)
        total = np.zeros(width + (op == "<#>"), dtype=np.float64)
        if op == "<#>":
            largest = max(
                float(np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64)).max())
                for part in _parts(vectors)
            )
        plain = Space(op, np.zeros(len(total), np.float32), largest)
        for part in _parts(vectors):
            total += plain._placed(part).sum(axis=0, dtype=np.float64)
        return Space(op, (total / len(vectors)).astype(np.float32), largest)

    def moved(self, rows: np.ndarray) -> np.ndarray:
        """Return rows in the space, float32 (n, d')."""
        wide = self._placed(rows)
        if self.op == "<=>":  # the same everywhere, which codes of 4 bits do not cut
            wide[~wide.any(axis=1)] = FAR / np.sqrt(wide.shape[1])
        moved: np.ndarray = wide - self.mean
        return moved

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        """Return rows before the mean is taken off."""
        wide: np.ndarray = as_numbers(rows)
        if self.op == "<=>":
            wide = _unit(wide)
        elif self.op == "<#>":
            squares = np.einsum("ij,ij->i", wide, wide, dtype=np.float64)
            rest = np.sqrt(np.maximum(self.largest**2 - squares, 0)).astype(np.float32)
            wide = np.concatenate([wide, rest[:, None]], axis=1)
        return wide

    def coded(self, vectors: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Return codes and constants of rows.

        Returns
        -------
        codes : uint8 (n, padded * bits / 8)
            As ``kernels/cpu/graph_products.py`` says.
        constants : float32 (n, 2)
            Squared norm and scale.
        """
        width = len(self.mean)
        codes = np.empty((len(vectors), padded_width(width, bits) * bits // 8), dtype=np.uint8)
        constants = np.empty((len(vectors), 2), dtype=np.float32)
        at = 0
        for part in _parts(vectors):
            numbers, scale = _quantised(self.moved(part), bits)
            window = slice(at, at + len(part))
            codes[window] = _bytes(numbers) if bits == 8 else _halves(numbers)
            # of the codes, as the inner products are: their rounding then cancels between near rows
            squares = np.einsum("ij,ij->i", numbers, numbers, dtype=np.int64)
            constants[window, 0] = squares * scale.astype(np.float64) ** 2
            constants[window, 1] = scale
            at += len(part)
        return codes, constants

    def bits_for(self, vectors: np.ndarray) -> int:
        """Return 4 where codes of 4 bits tell near rows apart, else 8; measured on a sample.

        They do when of the nearest rows of a row almost all are near by codes too, among a few more
        that are compared by full vectors afterwards.
        """
        if padded_width(len(self.mean), 4) >= 2 * padded_width(len(self.mean)):
            return 8
        rows = self.moved(vectors[:: -(-len(vectors) // _AMONG)])
        sample = rows[np.random.default_rng(len(rows)).integers(0, len(rows), _SAMPLE)]
        near = min(len(rows), 5 * _NEAR)
        apart = np.einsum("ij,ij->i", rows, rows) - 2 * (sample @ rows.T)
        nearest = np.argpartition(apart, near - 1, axis=1)[:, :near]
        right = total = 0
        for own, found, query in zip(apart, nearest, sample, strict=True):
            numbers, scale = _quantised(rows[found], 4)
            coded = numbers * scale[:, None]
            by_codes = np.argsort(((coded - query) ** 2).sum(axis=1))[:_SEEN]
            true = found[np.argsort(own[found])[:_NEAR]]
            right += len(np.intersect1d(found[by_codes], true))
            total += len(true)
        return 4 if right >= _ENOUGH * total else 8

    def query(self, vector: np.ndarray, padded: int) -> tuple[np.ndarray, np.float32]:
        """Return a query's code, int8 (padded,), and twice its scale."""
        row = np.array(vector, dtype=np.float32)
        if self.op != "<->":
            norm = np.sqrt(np.dot(row, row))
            row *= self.norm / norm if norm > 0 else np.float32(0)
        if self.op == "<#>":
            row = np.append(row, np.float32(0))
        row -= self.mean
        top = np.abs(row).max()
        scale = top / np.float32(127) if top > 0 else np.float32(1)
        code = np.zeros(padded, dtype=np.int8)
        code[: len(row)] = np.rint(row * (np.float32(1) / scale))
        return code, np.float32(2) * scale


def _parts(vectors: np.ndarray) -> list[np.ndarray]:
    return [vectors[at : at + AT_ONCE] for at in range(0, len(vectors), AT_ONCE)]


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    factors: np.ndarray = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    unit: np.ndarray = rows * factors[:, None]
    return unit


def _quantised(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 numbers, -127..127 or odd ones of -15..15, and their scales."""
    top = np.abs(rows).max(axis=1)
    if bits == 4:
        mean = np.sqrt(np.einsum("ij,ij->i", rows, rows) / np.float32(rows.shape[1]))
        top = np.minimum(top, np.float32(CLIP) * mean)
    most = np.float32(127 if bits == 8 else 15)
    scale = np.where(top > 0, top / most, np.float32(1)).astype(np.float32)
    scaled = rows * (np.float32(1) / scale)[:, None]
    if bits == 8:
        return np.clip(np.rint(scaled), -127, 127).astype(np.int8), scale
    steps = np.clip(np.rint((scaled + most) * np.float32(0.5)), 0, 15)
    return (2 * steps - 15).astype(np.int8), scale


def _bytes(numbers: np.ndarray) -> np.ndarray:
    padded = np.full((len(numbers), padded_width(numbers.shape[1])), 128, dtype=np.uint8)
    padded[:, : numbers.shape[1]] = numbers.view(np.uint8) ^ 128
    return padded


def _halves(numbers: np.ndarray) -> np.ndarray:
    steps = np.zeros((len(numbers), padded_width(numbers.shape[1], 4)), dtype=np.uint8)
    steps[:, : numbers.shape[1]] = (numbers + 15) >> 1
    runs = steps.reshape(len(numbers), -1, 2, LINE)
    packed: np.ndarray = runs[:, :, 0] | runs[:, :, 1] << 4
    return packed.reshape(len(numbers), -1)
