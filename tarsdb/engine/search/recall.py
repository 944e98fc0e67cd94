"""What an index finds and how long it takes, measured on rows of its own table.

Rows drawn at random are the queries; each is left out of its own answer by its row id, so k + 1
are asked for. Which rows found are right is as in ``engine.calibration``. Queries run one after
another on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.search import vector_index, vector_search
from tarsdb.engine.search.calibration import count_right, others
from tarsdb.engine.search.vector_index import Ask
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex, query_dtype
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, IndexDef, TableDef

Answer = TypeVar("Answer")
K = 10
"""Neighbours of ``tars_recall_stats``."""
_WARM = 3
"""Searches before the first that is timed: they read pages and have codes made."""
TOO_FEW = "fewer than 2 rows have a vector to search with"


@dataclass(frozen=True)
class Sample:
    """Rows of a table as queries, and what exact search answers.

    Attributes
    ----------
    flat : FlatIndex
    op : str
    k : int
        Neighbours wanted of each row, the row itself not among them.
    queries : (q, width)
    rowids : int64 (q,)
        Their own row ids.
    true : list of float32 (<= k,)
        Distances of the true neighbours: k, or all other rows.
    exact_us : float64 (q,)
        Time of each exact search, microseconds.
    """

    flat: FlatIndex
    op: str
    k: int
    queries: np.ndarray
    rowids: np.ndarray
    true: list[np.ndarray]
    exact_us: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What a sample's searches through an index gave.

    Attributes
    ----------
    effort : int or None
        Effort of the searches: list size of a graph, or lists looked at.
    recall : float or None
        Share of the true neighbours found; None where the index was not run, as is the rest.
    us : float64 (q,) or None
        Time of each search, microseconds.
    reason : str
        How the searches were answered, or why not by the index.
    """

    effort: int | None
    recall: float | None
    us: np.ndarray | None
    reason: str


def draw(
    context: Context, table: TableDef, column: ColumnDef, op: str, size: tuple[int, int]
) -> Sample | None:
    """Return a sample of at most ``size[0]`` rows with ``size[1]`` neighbours each.

    The same rows are drawn as long as the table does not change. None when fewer than two rows
    have a vector. Rows whose distances are not defined (zero vectors by ``<=>``) are not drawn.
    """
    wanted, k = size
    flat = vector_search.flat_index(context, context.view(table), column.id, column.type)
    live = np.flatnonzero(flat.live())
    if len(live) < 2:
        return None
    rng = np.random.default_rng([len(live), 1])  # not the rows a part is calibrated with
    chosen = np.sort(rng.choice(live, min(wanted, len(live)), replace=False))
    queries = flat.vectors(chosen).astype(query_dtype(column.type))
    if op == "<=>":
        kept = queries.astype(bool).any(axis=1)
        queries, chosen = queries[kept], chosen[kept]
    if not len(chosen):
        return None
    rowids = flat.rowids(chosen)

    def search(at: int) -> Found:
        return flat.search(queries[at : at + 1], k + 1, op)

    found, exact_us = _timed(context, search, len(queries))
    true = [_others(one, rowid, k) for one, rowid in zip(found, rowids.tolist(), strict=True)]
    return Sample(flat, op, k, queries, rowids, true, exact_us)


def measure(context: Context, index: IndexDef, sample: Sample, effort: int = 0) -> Measured:
    """Search for every row of a sample through an index.

    Parameters
    ----------
    context : Context
        Of the sample.
    index : IndexDef
    sample : Sample
    effort : int
        0: by the connection's settings.
    """
    placed = vector_index.place(context, index, sample.flat)
    if placed is None:
        return Measured(None, None, None, f"exact: {vector_index.unplaced(context, index)}")
    settings = context.engines.settings
    effort = effort or settings[placed.method.setting]
    target, k = vector_index.target_of(placed, settings["target_recall"]), sample.k + 1
    asks = [Ask(query[np.newaxis], k, None, effort, target) for query in sample.queries]
    used, why = vector_index.choose(placed, sample.flat, asks[0])
    if not used:
        return Measured(None, None, None, why)

    def search(at: int) -> tuple[Found, bool]:
        found = vector_index.search(placed, sample.flat, asks[at], sample.op)
        if found is not None:
            return found, True
        return sample.flat.search(asks[at].queries, sample.k + 1, sample.op), False

    answers, us = _timed(context, search, len(asks))
    exact = sum(not by_index for _, by_index in answers)
    if exact == len(asks):
        return Measured(None, None, None, f"exact: the {placed.method.noun} found too few rows")
    hits = 0
    for at, (found, _) in enumerate(answers):
        near = _others(found, int(sample.rowids[at]), sample.k)
        hits += count_right(near, sample.true[at])
    reason = f"{why}, {exact} of {len(asks)} exactly" if exact else why
    return Measured(used, hits / sum(map(len, sample.true)), us, reason)


def _others(found: Found, own: int, k: int) -> np.ndarray:
    """Return the distances of the k nearest rows but one."""
    return others(found[0][0], found[1][0], own, k)


def _timed(
    context: Context, search: Callable[[int], Answer], count: int
) -> tuple[list[Answer], np.ndarray]:
    """Return the answers of searches and the microseconds each took."""
    for at in range(min(_WARM, count)):
        search(at)
    answers, took = [], []
    for at in range(count):
        context.engines.interrupt.check()
        start = time.perf_counter_ns()
        answers.append(search(at))
        took.append((time.perf_counter_ns() - start) / 1000)
    return answers, np.array(took, dtype=np.float64)
