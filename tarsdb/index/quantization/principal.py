"""Principal axes: a rotation after which the first elements hold most of a vector. Knows no codes.

The axes are the eigenvectors of the second moment of a sample, about zero and not about the mean:
inner products and norms are meant. Rotated vectors q' and x' have nearly the inner products of q
and x; ``PrincipalAxes.distortion`` bounds the difference, for proofs. With B the matrix as stored
and e the rounding of a rotation,

    <q', x'> - <q, x> = <q, (B B^T - 1) x> + <q B, e_x> + <e_q, x B> + <e_q, e_x>.

A sum of n products in any order differs by at most g = n u / (1 - n u) times the sum of
magnitudes, u = 2**-24; rotations sum over parts of at most ``_PART`` elements, and then over these.
By Cauchy and Schwarz |e_x| <= g |B|_F |x|. That B is orthogonal is computed, not assumed.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from tarsdb.index.quantization.base import F32
from tarsdb.index.quantization.rotation import random_rotation
from tarsdb.records import dataclass

F64 = npt.NDArray[np.float64]

SAMPLE = 8192
"""Rows that say enough of the axes."""
_PART, _ROWS = 192, 4096  # elements of a sum, for its rounding; rows at once, for the cache
_UNIT = 2.0**-24
_STREAM = 0x6178  # apart from what callers draw from the plain seed


@dataclass(frozen=True)
class PrincipalAxes:
    """A rotation, the axis of most energy first.

    Attributes
    ----------
    matrix : float32 (dim, dim)
        One axis a column; ``x @ matrix`` rotates. C-contiguous.
    energies : float64 (dim,)
        Share of the squared norm along each axis in the mean over the sample's rows, descending;
        about, of axes that were spread.
    """

    matrix: F32
    energies: F64

    def tail(self, head: int) -> float:
        """Return the share of the squared norm that is not along the first ``head`` axes."""
        return float(self.energies[head:].sum())

    def spread(self, head: int, seed: int = 0) -> PrincipalAxes:
        """Return the same with the first ``head`` axes turned among themselves, at random.

        The elements along them are then alike, as codes of one scale for all want it.
        """
        turn = random_rotation(head, head, seed).astype(np.float64)
        matrix = self.matrix.copy()
        matrix[:, :head] = matrix[:, :head].astype(np.float64) @ turn
        energies = self.energies.copy()
        energies[:head] = energies[:head].mean()
        return PrincipalAxes(matrix, energies)

    def rotate(self, x: F32) -> F32:
        """Return float32 (n, dim) rows, rotated; float32 (n, dim), C-contiguous."""
        out = np.empty(x.shape, np.float32)
        dim = len(self.matrix)
        room = np.empty((min(len(x), _ROWS), dim), np.float32)
        for at in range(0, len(x), _ROWS):
            rows, target = x[at : at + _ROWS], out[at : at + _ROWS]
            np.matmul(rows[:, :_PART], self.matrix[:_PART], out=target)
            for start in range(_PART, dim, _PART):
                part = slice(start, start + _PART)
                target += np.matmul(rows[:, part], self.matrix[part], out=room[: len(rows)])
        return out

    @cached_property
    def distortion(self) -> float:
        """Most by which rotating changes inner products, as a share of both norms' product.

        For any vectors, apart from sums that underflow or overflow.
        """
        wide = self.matrix.astype(np.float64)
        dim = len(wide)
        skew = float(np.linalg.norm(wide @ wide.T - np.eye(dim))) + dim * dim * 2.0**-50
        terms = (min(dim, _PART) + -(-dim // _PART)) * _UNIT
        lost = terms / (1 - terms) * float(np.linalg.norm(wide)) * (1 + 1e-9)
        size = 1 + skew  # |B|**2 <= 1 + |B B^T - 1|, and so |B| is below this too
        return skew + 2 * size * lost + lost * lost


def principal_axes(rows: F32, seed: int = 0) -> PrincipalAxes | None:
    """Return the principal axes of up to ``SAMPLE`` of float32 (n, dim) rows.

    Every row counts alike, whatever its norm. None where a row drawn is not finite, or too large
    for its square, or all are zero.
    """
    drawn = rows
    if len(rows) > SAMPLE:
        rng = np.random.default_rng([seed, _STREAM])
        drawn = rows[np.sort(rng.choice(len(rows), SAMPLE, replace=False))]
    norms = np.sqrt(np.einsum("ij,ij->i", drawn, drawn, dtype=np.float64))
    usable = norms > 0
    if not np.isfinite(norms).all() or not usable.any():
        return None
    unit = (drawn[usable] / norms[usable, None]).astype(np.float32)
    moment = (unit.T @ unit).astype(np.float64) / len(unit)
    energies, axes = np.linalg.eigh(moment)
    shares: F64 = np.maximum(energies[::-1], 0)
    matrix = np.ascontiguousarray(axes[:, ::-1], np.float32)
    return PrincipalAxes(matrix, shares / shares.sum())
