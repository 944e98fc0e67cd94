"""Approximate indexes at work: placing their parts in a snapshot, searching all of them.

An index is a list of immutable parts (graphs), each over the versions of a range of commits. For a
snapshot a part is *placed*: every node gets the address of its vector, or none when its version is
no longer live. Rows no part covers are fresh and searched exactly; both answers are merged. Every
part is derived data: one that is damaged, or whose kernels are not compiled yet, is answered for by
exact search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.errors import CorruptionError
from tarsdb.index import arrays
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import reference
from tarsdb.metrics import METRICS
from tarsdb.schema import IndexDef, TableDef
from tarsdb.storage import IndexPart, read_arrays, read_parts

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.index.hnsw import Graph

OPERATORS = {"l2": "<->", "ip": "<#>", "cosine": "<=>"}
"""Metric of an index -> the operator it answers."""
EXACT_WORK = 9.0
"""Exact search of m of n rows costs what a graph search of list size ef does at m*m = 9*ef*n."""
MOST_EF = 4096
_KEPT_GRAPHS = 32
_MARGIN = 0.005
_DEFAULT_EF = 64


def index_for(table: TableDef, column_id: int, op: str) -> IndexDef | None:
    """Return the index of a column that answers an operator, or None."""
    for index in table.indexes:
        is_fitting = index.method == "hnsw" and index.column_ids == (column_id,)
        if is_fitting and OPERATORS[index.options["metric"]] == op:
            return index
    return None


# --- placing ---


@dataclass
class PlacedPart:
    """A graph in a snapshot."""

    graph: Graph
    positions: np.ndarray  # int64 (nodes,), -1 where the version is not live
    addresses: np.ndarray  # int64 (nodes,), 0 there
    calibration: np.ndarray

    def ef_for(self, recall: float) -> int:
        """Return the list size that reached a recall on the sample, with a margin."""
        for ef, reached in self.calibration.tolist():
            if reached >= min(recall + _MARGIN, 1.0):
                return int(ef)
        return int(self.calibration[-1, 0] * 2) if len(self.calibration) else _DEFAULT_EF


@dataclass
class Placed:
    """All parts of an index in a snapshot, and the rows none of them covers."""

    index: IndexDef
    parts: list[PlacedPart]
    fresh: np.ndarray  # int64 positions
    stored: tuple[IndexPart, ...]

    @property
    def live(self) -> int:
        """Live nodes of all parts."""
        return sum(int((part.positions >= 0).sum()) for part in self.parts)


def place(context: Context, index: IndexDef, flat: FlatIndex) -> Placed | None:
    """Return an index placed in the statement's snapshot; None where exact search must do.

    Kept in memory while the vectors and the parts stay the same.
    """
    stored = read_parts(context.snapshot.txn, index.id)
    if not stored:
        return None
    kept: dict[int, tuple[FlatIndex, Any, Placed | None]] = context.snapshot.env.caches.setdefault(
        "placed", {}
    )
    known = kept.get(index.id)
    if known is not None and known[0] is flat and known[1] == stored:
        return known[2]
    placed = _place(context, index, flat, stored)
    kept[index.id] = (flat, stored, placed)
    return placed


def _place(
    context: Context, index: IndexDef, flat: FlatIndex, stored: tuple[IndexPart, ...]
) -> Placed | None:
    live, created = flat.live(), flat.created()
    fresh = live.copy()
    parts = []
    for part in stored:
        try:
            graph, calibration = _graph(context, part)
        except CorruptionError:
            METRICS.add("index.damaged_parts")
            return None
        if flat.width != graph.dim:
            return None
        positions = flat.positions(graph.rowids)
        at = np.maximum(positions, 0)
        valid = positions >= 0
        if flat.rows:
            valid &= live[at] & (created[at] > part.after) & (created[at] <= part.upto)
        fresh[at[valid]] = False
        positions = np.where(valid, positions, -1)
        addresses = np.where(valid, flat.addresses(at), 0) if flat.rows else np.zeros_like(at)
        parts.append(PlacedPart(graph, positions, addresses, calibration))
    return Placed(index, parts, np.flatnonzero(fresh), stored)


def _graph(context: Context, part: IndexPart) -> tuple[Graph, np.ndarray]:
    """Return a part's graph, kept in memory by content."""
    from tarsdb.index.hnsw import Graph

    kept: dict[str, tuple[Graph, np.ndarray]] = context.snapshot.env.caches.setdefault("graphs", {})
    found = kept.get(part.digest)
    if found is None:
        named = arrays.unpack(read_arrays(context.snapshot.txn, part))
        calibration = named.pop("calibration", np.empty((0, 2)))
        if calibration.ndim != 2 or calibration.shape[1] != 2:
            raise CorruptionError(f"the calibration of a graph has shape {calibration.shape}")
        found = Graph.from_arrays(named), calibration
        while len(kept) >= _KEPT_GRAPHS:
            kept.pop(next(iter(kept)), None)
        kept[part.digest] = found
    return found


# --- searching ---


@dataclass(frozen=True)
class Ask:
    """One search: queries (q, dim) float32, rows wanted, rows allowed (None: all)."""

    queries: np.ndarray
    k: int
    positions: np.ndarray | None
    ef: int
    """0: by target recall."""
    target_recall: float
    threads: int = 1


def choose(placed: Placed, ask: Ask, rows: int) -> tuple[int, str]:
    """Return the list size to search with, 0 for exact search, and the reason in words."""
    if not placed.parts or not all(part.graph.ready() for part in placed.parts):
        return 0, "exact: the graph's kernels are not compiled yet"
    ef = ask.ef or max(part.ef_for(ask.target_recall) for part in placed.parts)
    ef = max(ef, ask.k)
    if ask.k * 4 >= rows:
        return 0, "exact: most rows are wanted"
    if ask.positions is None:
        return ef, f"graph, ef {ef}"
    allowed = len(ask.positions)
    if allowed * allowed <= EXACT_WORK * ef * rows or allowed <= 4 * ask.k:
        return 0, f"exact over the {allowed} matching rows"
    wider = min(int(ef * rows / max(allowed, 1)), MOST_EF)
    return wider, f"graph with the filter inside, ef {wider}, {allowed} matching rows"


def search(placed: Placed, flat: FlatIndex, ask: Ask, op: str) -> Found | None:
    """Return the k nearest rows of each query, or None where exact search must answer."""
    ef, _ = choose(placed, ask, flat.rows)
    if not ef:
        return None
    allowed = None
    fresh = placed.fresh
    reachable = placed.live + len(fresh)
    if ask.positions is not None:
        allowed = np.zeros(flat.rows, dtype=np.uint8)
        allowed[ask.positions] = 1
        fresh = fresh[allowed[fresh] != 0]
        reachable = len(ask.positions)
    found = [_search_part(part, ask, op, ef, allowed) for part in placed.parts]
    if len(fresh):
        found.append(flat.search(ask.queries, ask.k, op, positions=fresh, threads=ask.threads))
    rowids, distances = _merged(found, ask.k)
    if rowids.shape[1] < min(ask.k, reachable) or (rowids < 0).any():
        METRICS.add("index.short_answers")
        return None
    METRICS.add("index.graph_searches", len(ask.queries))
    return rowids, distances


def _search_part(part: PlacedPart, ask: Ask, op: str, ef: int, allowed: np.ndarray | None) -> Found:
    mask = None
    if allowed is not None:
        mask = np.where(part.positions >= 0, allowed[part.positions], 0).astype(np.uint8)
    nodes, distances = part.graph.search(
        ask.queries, ask.k, op, ef=ef, addresses=part.addresses, allowed=mask, threads=ask.threads
    )
    rowids = np.where(nodes >= 0, part.graph.rowids[nodes], -1)
    return rowids, distances


def _merged(found: list[Found], k: int) -> Found:
    if len(found) == 1:
        return found[0]
    rowids = np.concatenate([ids for ids, _ in found], axis=1)
    distances = np.concatenate([values for _, values in found], axis=1)
    distances = np.where(rowids >= 0, distances, np.nan)  # last
    order = np.stack(
        [reference.smallest(v, r, k, False) for r, v in zip(rowids, distances, strict=True)]
    )
    return np.take_along_axis(rowids, order, 1), np.take_along_axis(distances, order, 1)
