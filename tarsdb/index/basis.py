"""The basis in which the vectors of a column are coded: as they are, or turned.

Where a sample's principal axes hold most of its vectors, codes are of the turned vectors: the head
of a code bounds a distance well enough to leave most rows out, and the rest of it is not read. The
first axes are turned among themselves at random, so that elements are alike and one scale fits all.

Turning costs 2 dim**2 operations a row, some hundred times a search. So vectors are first coded as
they are, and turned when as many searches have come as make up for it. All blocks of an index are
coded in one basis, later ones too: a query is turned once. When the rows have become many times
those that the basis was chosen from, it is chosen anew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from tarsdb.index.quantization.principal import SAMPLE, PrincipalAxes, principal_axes

MIN_TURNED = 16_384
"""Rows below are searched sooner than a query is turned."""
SEARCHES = 4
"""Searches per element of a vector after which turning pays."""
GROWN = 4
"""Times as many rows as a basis was chosen from, for another choice."""
_MAX_DISTORTION = 0.01
_MAX_WIDTH = 2048  # the work grows with the square
_ASKED = 64  # rows of the sample that stand for queries
# What a search costs, in bytes read in order. A row's constants; a row that is looked at singly;
# what turning a query must save of all that.
_CONSTANTS, _SINGLY, _WORTHWHILE = 28, 2500, 0.85
_ROUGH = 0.115  # share of a vector that four bits an element lose


class Basis:
    """How vectors are coded, and how many searches came since.

    Parameters
    ----------
    axes : PrincipalAxes or None
        None: vectors are coded as they are.
    head : int
        Elements whose codes every search reads; 0: all.
    rows : int
        Rows of the index when it was chosen; 0: nothing was chosen yet.
    """

    def __init__(self, axes: PrincipalAxes | None = None, head: int = 0, rows: int = 0) -> None:
        self.axes, self.head, self.rows = axes, head, rows
        self._searches = 0
        self._choosing = threading.Lock()

    @property
    def distortion(self) -> float:
        """What turning may change of an inner product, as a share of both norms' product."""
        return 0.0 if self.axes is None else self.axes.distortion

    def turned(self, x: np.ndarray) -> np.ndarray:
        """Return float32 (n, dim) vectors in this basis."""
        return x if self.axes is None else self.axes.rotate(x)

    def count(self, searches: int) -> None:
        """Count searches; threads may lose some."""
        self._searches += searches

    def next(self, blocks: Sequence[np.ndarray]) -> Basis | None:
        """Return a better basis for float32 (n, dim) blocks when it is time, else None.

        Only one thread is given it; it must code the blocks.
        """
        rows, width = sum(map(len, blocks)), blocks[0].shape[1] if blocks else 0
        if self._searches <= SEARCHES * width or rows <= GROWN * self.rows:
            return None
        if not rows >= MIN_TURNED or width > _MAX_WIDTH:
            return None
        if not self._choosing.acquire(blocking=False):
            return None
        try:
            found = _chosen(blocks, rows)
            self._searches, self.rows = 0, rows
            return found
        finally:
            self._choosing.release()


def _chosen(blocks: Sequence[np.ndarray], rows: int) -> Basis | None:
    """Return the basis that makes searches cheapest, None where it is the given one."""
    each = -(-SAMPLE // len(blocks))
    drawn = np.concatenate([b[:: max(1, len(b) // each)][:each] for b in blocks])
    axes = principal_axes(drawn)
    if axes is None or axes.distortion > _MAX_DISTORTION:
        return None
    width = drawn.shape[1]
    padded = -(-width // 64) * 64
    shares = passing_shares(axes, drawn, range(64, padded, 64))
    costs = {head: head / 2 + _CONSTANTS + _SINGLY * share for head, share in shares.items()}
    plain = padded / 2 + _CONSTANTS
    head = min(costs, key=costs.__getitem__, default=0)
    if not costs or costs[head] > _WORTHWHILE * plain:
        return None
    return Basis(axes.spread(head), head, rows)


def passing_shares(axes: PrincipalAxes, rows: np.ndarray, heads: Sequence[int]) -> dict[int, float]:
    """Return the share of float32 (n, dim) rows that pass the bound of each head.

    Some of the rows stand for queries; what passes is compared with their nearest neighbour.
    """
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows[norms[:, 0] > 0] / norms[norms > 0][:, np.newaxis]
    turned = axes.rotate(unit.astype(np.float32))
    asked = turned[:: max(1, len(turned) // _ASKED)][:_ASKED]
    nearest = np.partition(asked @ turned.T, -2, axis=1)[:, -2:-1] if len(turned) > 1 else np.ones(
        (len(asked), 1))  # fmt: skip
    shares = {}
    for head in heads:
        of_head, of_tail = (
            np.outer(
                np.linalg.norm(asked[:, part], axis=1), np.linalg.norm(turned[:, part], axis=1)
            )
            for part in (slice(head), slice(head, None))
        )
        most = asked[:, :head] @ turned[:, :head].T + of_tail + _ROUGH * of_head
        shares[head] = float((most >= nearest).mean())
    return shares
