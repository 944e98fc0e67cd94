"""How much effort a search of a part takes for a recall, measured on rows of the part itself.

Rows drawn at random are the queries; each is left out of its own answer. A row found is right when
it is no farther than the last of the true neighbours, so that any of several equally near rows
will do. Knows no method and no snapshot.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.engine.index_methods import Method, Part, Rows, Wanted
from tarsdb.errors import CorruptionError
from tarsdb.index.flat import FlatIndex

SAMPLE, K = 64, 10
ENOUGH = 0.9995
"""A recall after which no more effort is tried."""
MOST_EFFORT = 1 << 20
ROUNDING = 1e-5
"""Share by which two ways to compute a distance in float32 may differ."""


def measured(part: Part, method: Method, rows: Rows, check: Callable[[], None]) -> np.ndarray:
    """Return the recall@10 of efforts; float64 (steps, 2) of effort, recall.

    Parameters
    ----------
    part : Part
        Of these rows.
    method : Method
    rows : Rows
    check : callable
        Called now and then; raises to stop.
    """
    count = len(rows.rowids)
    flat = FlatIndex([VectorBlock(rows.rowids, rows.vectors)], rows.type)
    sample = np.sort(np.random.default_rng(count).choice(count, min(SAMPLE, count), replace=False))
    queries, own = rows.vectors[sample].astype(np.float32), rows.rowids[sample].tolist()
    wanted = Wanted(min(K + 1, count), count, count)
    true = [
        others(ids, distances, rowid, K)
        for ids, distances, rowid in zip(*flat.search(queries, wanted.k, rows.op), own, strict=True)
    ]
    at = flat.positions(part.rowids)
    steps: list[tuple[int, float]] = []
    for effort in method.ladder(part):
        check()
        hits = 0
        settled = method.settled(effort, wanted, [part])
        for query, near, rowid in zip(queries, true, own, strict=True):
            nodes = part.search(query, method.candidates(part, wanted.k, settled), settled)
            assert nodes is not None
            ids, distances = flat.search(query[np.newaxis], wanted.k, rows.op, positions=at[nodes])
            hits += count_right(others(ids[0], distances[0], rowid, K), near)
        total = sum(map(len, true))
        steps.append((effort, hits / total if total else 1.0))
        if steps[-1][1] >= ENOUGH:
            break
    return np.array(steps, dtype=np.float64)


def others(rowids: np.ndarray, distances: np.ndarray, own: int, k: int) -> np.ndarray:
    """Return the distances of the k nearest of some rows but one; row id -1 stands for no row."""
    kept: np.ndarray = distances[(rowids != own) & (rowids >= 0)][:k]
    return kept


def count_right(found: np.ndarray, true: np.ndarray) -> int:
    """Return how many distances are no larger than the last of the true ones.

    Aumueller, Bernhardsson & Faithfull 2020, "ANN-Benchmarks", section 2.1.
    """
    if not len(true):
        return 0
    most = true[-1] + ROUNDING * abs(true[-1])
    return int((found <= most).sum())


def effort_for(steps: np.ndarray, recall: float, default: int) -> int:
    """Return the effort that missed half as much on the sample as is allowed.

    Rows of the data are easier to find than queries are. 0 when no effort is enough, as for inner
    products of vectors whose norms differ by orders of magnitude.
    """
    for effort, reached in steps.tolist():
        if 1 - reached <= (1 - recall) / 2:
            return int(effort)
    if not len(steps):
        return default
    return int(2 * steps[-1, 0]) if steps[-1, 1] >= recall else 0


def sound(steps: np.ndarray) -> np.ndarray:
    """Return a calibration from outside, checked; none at all has no steps.

    Raises
    ------
    CorruptionError
    """
    if steps.ndim != 2 or steps.shape[1] != 2 or steps.dtype != np.float64:
        raise CorruptionError(f"the calibration of an index is {steps.dtype} {steps.shape}")
    if not ((steps[:, 0] >= 1) & (steps[:, 0] <= MOST_EFFORT) & (steps[:, 1] >= 0)).all():
        raise CorruptionError("the calibration of an index names efforts out of range")
    return steps
