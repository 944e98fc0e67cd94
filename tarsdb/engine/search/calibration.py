"""How much effort a search of a part takes for a recall, measured on rows of the part itself.

Rows drawn at random are the queries; each is searched for as if it were not there, which is as hard
as for a query that is no row. A row found is right when
it is no farther than the last of the true neighbours, so that any of several equally near rows
will do. Knows no method and no snapshot.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.engine.search.index_methods import Method, Part, Rows
from tarsdb.errors import CorruptionError
from tarsdb.index.flat import FlatIndex, query_dtype
from tarsdb.index.navigation import NAVIGATIONS, as_numbers

FEWEST, SAMPLE, ROWS_A_QUERY = 64, 256, 32
"""Queries of small and of large parts; of others one for so many rows."""
ENOUGH = 0.9995
"""A recall after which no more effort is tried."""
BESIDE = 8
"""True neighbours known beyond those asked for, which may be as near as the last of these."""
MOST_EFFORT = 1 << 20
ROUNDING = 1e-5
"""Share by which two ways to compute a distance in float32 may differ."""


def measured(part: Part, method: Method, rows: Rows, check: Callable[[], None]) -> np.ndarray:
    """Return what efforts find; float64 (steps, 1 + m): effort, recall for each ``calibrated`` k.

    The recall is that of the harder half of the queries: what is asked may all be of their kind.

    Parameters
    ----------
    part : Part
        Of these rows.
    method : Method
    rows : Rows
    check : callable
        Called now and then; raises to stop.
    """
    count, ks = len(rows.rowids), method.calibrated
    flat = FlatIndex([VectorBlock(rows.rowids, rows.vectors)], rows.type)
    wanted = min(max(FEWEST, count // ROWS_A_QUERY), SAMPLE, count)
    sample = np.sort(np.random.default_rng(count).choice(count, wanted, replace=False))
    queries, own = rows.vectors[sample].astype(query_dtype(rows.type)), rows.rowids[sample].tolist()
    near = flat.search(queries, min(ks[-1] + 1 + BESIDE, count), rows.op)
    true = [Truth(*each, ks, count) for each in zip(*near, own, strict=True)]
    totals = np.array([[len(each.distances[:k]) for k in ks] for each in true])
    is_loose = NAVIGATIONS[rows.op].is_loose
    compared = method.loosely if is_loose else method.candidates
    at = flat.positions(part.rowids)
    order = np.argsort(part.rowids)
    places = order[np.searchsorted(part.rowids, own, sorter=order)].tolist()
    steps: list[tuple[float, ...]] = []
    for effort in method.ladder(part, is_loose):
        check()
        settled = method.settled(effort, ks[0], [part])
        taken = [compared(part, k, settled) for k in ks]
        hits = np.zeros((len(true), len(ks)))
        for number, (node, query, truth) in enumerate(zip(places, queries, true, strict=True)):
            nodes = part.search_others(node, as_numbers(query), taken[-1], settled)
            for column, k in enumerate(ks):
                found = nodes[: taken[column]]
                right = truth.count(column, part.rowids[found])
                if right is None:
                    ids, distances = flat.search(
                        query[np.newaxis], min(k + 1, count), rows.op, positions=at[found]
                    )
                    right = truth.compare(column, ids[0], distances[0])
                hits[number, column] = right
        recalls = harder_half(hits, totals)
        steps.append((effort, *recalls.tolist()))
        if (recalls >= ENOUGH).all():
            break
    return np.array(steps, dtype=np.float64)


def harder_half(hits: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return the recall of the half of the queries that missed most, (m,), of counts (q, m)."""
    count = -(-len(hits) // 2)
    missed = np.sort(totals - hits, axis=0)[-count:].sum(axis=0)
    wanted = totals.mean(axis=0) * count
    return np.asarray(1 - missed / np.maximum(wanted, 1), np.float64).clip(0)


class Truth:
    """The true neighbours of a row, which is none of its own.

    Parameters
    ----------
    rowids, distances : (m,)
        The nearest rows, of all.
    own : int
    ks : tuple of int
        Numbers of neighbours asked for.
    count : int
        How many rows there are.
    """

    def __init__(
        self, rowids: np.ndarray, distances: np.ndarray, own: int, ks: tuple[int, ...], count: int
    ) -> None:
        self._own, self._ks = own, ks
        nearest = others(rowids, distances, own, ks[-1])
        self.distances: np.ndarray = nearest[np.isfinite(nearest)]  # no cosine of a zero vector
        self._right: list[frozenset[int] | None] = []
        for k in ks:
            most = _farthest(self.distances[:k])
            is_whole = len(rowids) == count or bool(distances[-1] > most)
            right = frozenset(rowids[distances <= most].tolist()) - {own, -1}
            self._right.append(right if is_whole else None)

    def count(self, column: int, rowids: np.ndarray) -> int | None:
        """Return how many of some rows are right, up to k; None if more may be than are known."""
        right = self._right[column]
        if right is None:
            return None
        return min(self._ks[column], len(right.intersection(rowids.tolist())))

    def compare(self, column: int, rowids: np.ndarray, distances: np.ndarray) -> int:
        """Return the same by the distances of the nearest k + 1 of these rows."""
        k = self._ks[column]
        return count_right(others(rowids, distances, self._own, k), self.distances[:k])


def others(rowids: np.ndarray, distances: np.ndarray, own: int, k: int) -> np.ndarray:
    """Return the distances of the k nearest of some rows but one; row id -1 stands for no row."""
    kept: np.ndarray = distances[(rowids != own) & (rowids >= 0)][:k]
    return kept


def _farthest(true: np.ndarray) -> float:
    """Return the distance up to which a row is right; NaN without true ones: none is."""
    return float(true[-1] + ROUNDING * abs(true[-1])) if len(true) else math.nan


def count_right(found: np.ndarray, true: np.ndarray) -> int:
    """Return how many distances are no larger than the last of the true ones.

    Aumueller, Bernhardsson & Faithfull 2020, "ANN-Benchmarks", section 2.1.
    """
    return int((found <= _farthest(true)).sum())


class Calibration:
    """What was measured of a part, read from a file.

    Parameters
    ----------
    steps : float64 (steps, 1 + m)
        From :func:`measured`; without any the method's default effort is taken.
    method : Method

    Raises
    ------
    CorruptionError
        They are not sound.
    """

    def __init__(self, steps: np.ndarray, method: Method) -> None:
        wanted = 1 + len(method.calibrated)
        if steps.ndim != 2 or steps.shape[1] != wanted or steps.dtype != np.float64:
            raise CorruptionError(
                f"the calibration of an index is {steps.dtype} {steps.shape}, "
                f"expected {wanted} columns of float64"
            )
        efforts, recalls = steps[:, 0], steps[:, 1:]
        if not ((efforts >= 1) & (efforts <= MOST_EFFORT)).all() or not (recalls >= 0).all():
            raise CorruptionError("the calibration of an index names efforts out of range")
        self._steps, self._method = steps, method
        self._known: dict[float, list[int]] = {}

    def effort_for(self, recall: float, k: float) -> int:
        """Return the effort for a recall of k neighbours; 0 when no effort is enough.

        Between and beyond the numbers of neighbours measured it grows as a power of k.
        """
        if not len(self._steps):
            return self._method.default_effort
        efforts = self._known.get(recall)
        if efforts is None:
            columns = range(len(self._ks))
            efforts = [_enough(self._steps, column, recall) for column in columns]
            self._known[recall] = efforts
        if k <= self._ks[0] or len(efforts) == 1:
            return efforts[0]
        upper = min(bisect.bisect_left(self._ks, k), len(efforts) - 1)
        (less, more), (low, high) = self._ks[upper - 1 : upper + 1], efforts[upper - 1 : upper + 1]
        if not low or (not high and k >= more):
            return 0
        if not high:
            return MOST_EFFORT
        power = math.log(high / low, more / less)
        return min(math.ceil(low * math.pow(k / less, power)), MOST_EFFORT)

    @property
    def _ks(self) -> tuple[int, ...]:
        return self._method.calibrated


def _enough(steps: np.ndarray, column: int, recall: float) -> int:
    """Return the least effort that reaches a recall on the sample, or 0.

    0 as for inner products of vectors whose norms differ by orders of magnitude. Where all queries
    together reach it at the last effort, twice that may do for the harder half.
    """
    for effort, *recalls in steps.tolist():
        if recalls[column] >= recall:
            return int(effort)
    return int(2 * steps[-1, 0]) if steps[-1, 1 + column] >= 1 - 2 * (1 - recall) else 0
