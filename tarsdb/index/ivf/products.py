"""Product codes of rows in lists: what they lack to their centroids, turned, in parts of 4 bits.

Axes and parts as in the parametric solution of Ge, He, Ke and Sun, "Optimized Product
Quantization", CVPR 2013: principal axes, dealt out so that each part has as much of the variance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tarsdb.index.ivf.kmeans import Rows, tiled
from tarsdb.index.quantization import kmeans
from tarsdb.kernels.ivf import CENTROIDS, TILE, IvfKernels
from tarsdb.kernels.native import address
from tarsdb.records import dataclass

ELEMENTS = 6
"""Elements of a part, about; four bits then tell as much of them as signs do of a third less."""
SAMPLE = 16_384
"""Rows that training looks at; more change next to nothing."""
_MOST_TURNED = 2048  # elements whose axes are looked for; that takes the third power of them
_LINE = 16  # parts come in multiples: two lines of a tile


def parts_of(width: int) -> tuple[int, int]:
    """Return how many parts a row of some elements has, and the elements of one."""
    parts = -(-width // (ELEMENTS * _LINE)) * _LINE
    return parts, -(-width // parts)


@dataclass(frozen=True)
class Products:
    """What product codes are made and read by.

    A row r lacks to its centroid is about sum over parts of the centroids it is coded as, along
    axes whose coded numbers stand for them wherever rows or queries are turned: that these are not
    quite orthonormal is made up for by the factor of each row.

    Attributes
    ----------
    axes : uint8 (parts * width / 16, padded / 4, 16, 4)
        Codes + 128 of float32 (d',) axes, 16 side by side.
    scales : float32 (parts * width / 16, 2, 16)
        Squared norms and scales of the axes.
    centroids : float32 (parts, width, 16)
        Element by element.
    """

    axes: np.ndarray
    scales: np.ndarray
    centroids: np.ndarray

    @staticmethod
    def train(
        rows: np.ndarray, seed: int, kernels: IvfKernels, check: Callable[[], None]
    ) -> Products:
        """Return those fitted to float32 (n, d') of what rows lack to their centroids.

        ``check`` is called now and then; it raises to stop.
        """
        dim = rows.shape[1]
        parts, width = parts_of(dim)
        coded = Rows.empty(parts * width, dim)
        coded.put(kernels, 0, _dealt(_axes(rows), parts, width))
        axes, scales = tiled(coded, np.array([0, parts * width]))
        made = Products(axes, scales, np.zeros((parts, width, CENTROIDS), np.float32))
        turned = made.turned(rows).reshape(len(rows), parts, width)
        rng = np.random.default_rng(seed)
        for part in range(parts):
            check()
            own = np.ascontiguousarray(turned[:, part])
            made.centroids[part] = kmeans.train(own, CENTROIDS, rng).T
        return made

    @property
    def parts(self) -> int:
        """Parts of a code."""
        return len(self.centroids)

    def turned(self, rows: np.ndarray) -> np.ndarray:
        """Return inner products with the axes, float32 (n, parts * width), of (n, d') rows."""
        count = len(self.axes) * TILE
        codes = self.axes.transpose(0, 2, 1, 3).reshape(count, -1)[:, : rows.shape[1]]
        axes = (codes.astype(np.float32) - 128) * self.scales[:, 1].reshape(-1, 1)
        found: np.ndarray = rows @ axes.T
        return found

    def names(self, turned: np.ndarray, kernels: IvfKernels) -> np.ndarray:
        """Return the nearest centroid of each part, uint8 (n, parts), of turned rows."""
        parts, width, _ = self.centroids.shape
        given, out = np.ascontiguousarray(turned), np.empty((len(turned), parts), np.uint8)
        halves = np.einsum("pwc,pwc->pc", self.centroids, self.centroids) / 2
        kernels.name(
            address(given), len(given), parts, width, address(self.centroids), address(halves),
            address(out),
        )  # fmt: skip
        return out

    def named(self, names: np.ndarray) -> np.ndarray:
        """Return the centroids of names, float32 (n, parts * width)."""
        found = self.centroids.transpose(0, 2, 1)[np.arange(self.parts), names]
        return np.asarray(found.reshape(len(names), -1), np.float32)


def _axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (axes one a row, variance along each), of most variance first."""
    dim = rows.shape[1]
    if dim > _MOST_TURNED:
        variances = rows.var(axis=0, dtype=np.float64)
        order = np.argsort(-variances, kind="stable")
        return np.eye(dim, dtype=np.float32)[order], variances[order]
    wide = rows.astype(np.float64)
    variances, axes = np.linalg.eigh(wide.T @ wide / len(wide))
    axes = axes.T[::-1]
    largest = axes[np.arange(dim), np.abs(axes).argmax(axis=1)]
    return (axes * np.sign(largest)[:, np.newaxis]).astype(np.float32), variances[::-1]


def _dealt(found: tuple[np.ndarray, np.ndarray], parts: int, width: int) -> np.ndarray:
    """Return axes in the order of parts, (parts * width, d'), zeros where there are too few.

    Each goes to the part with the smallest product of variances that has room.
    """
    axes, variances = found
    out = np.zeros((parts, width, axes.shape[1]), np.float32)
    least = max(float(variances.max()), 1e-30) * 1e-6
    sizes = np.log(np.maximum(variances, least) / least)
    taken, held = np.zeros(parts, np.int64), np.zeros(parts)
    for axis, size in zip(axes, sizes.tolist(), strict=True):
        part = int(np.where(taken < width, held, np.inf).argmin())
        out[part, taken[part]] = axis
        taken[part] += 1
        held[part] += size
    return out.reshape(parts * width, -1)


def packed(names: np.ndarray) -> np.ndarray:
    """Return names (n, parts) as uint32 (n, parts / 8), the first part lowest."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    wide = names.reshape(len(names), -1, 8).astype(np.uint32) << shifts
    return np.asarray(np.bitwise_or.reduce(wide, axis=2), np.uint32)
