"""Approximate indexes at work: placing their parts in a snapshot, searching all of them.

An index is a list of immutable parts (graphs), each over the versions of a range of commits. For a
snapshot a part is *placed*: every node gets the position of its vector in the exact index, or none
when its version is no longer live. A search takes candidates from each part, adds the rows no part
covers (the fresh ones), and lets the exact index compare these few by their full vectors. Every
part is derived data: one that is damaged, or whose kernels are not compiled yet, is answered for by
exact search.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.placing import Cover, Placement
from tarsdb.errors import CorruptionError
from tarsdb.index import arrays
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex
from tarsdb.index.own_metric import Distance
from tarsdb.index.threads import in_threads
from tarsdb.metrics import METRICS
from tarsdb.schema import IndexDef, TableDef
from tarsdb.storage import IndexPart, read_arrays, read_parts

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.index.hnsw import Graph

OPERATORS = {"l2": "<->", "ip": "<#>", "cosine": "<=>"}
"""Metric of an index -> the operator it answers."""
EXTRA = 8
"""Candidates compared by their full vectors beyond k, at least: codes seldom err by more."""
EXACT_WORK = 9.0
"""Exact search of m of n rows costs what a graph search of list size ef does at m*m = 9*ef*n."""
REACH = 8
"""A filtered search may keep one node in sight for so many rows that match: expanding one costs as
much as comparing these."""
KEPT_BYTES = 1 << 30
"""Graphs a process keeps in memory for the next search, whatever snapshot they belong to."""
FIRST_EF = 16
"""List size all parts but the largest are searched with at first."""
MANY = 3
"""A part that gave more than one in so many of the answers is searched with the whole list."""
QUERIES_AT_ONCE = 32
"""Queries of a batch a thread takes at a time, at most."""
MOST_EF = 1 << 20
_DEFAULT_EF = 64


def index_for(table: TableDef, column_id: int, op: str) -> IndexDef | None:
    """Return the index of a column that answers an operator, or None."""
    for index in table.indexes:
        is_fitting = index.method == "hnsw" and index.column_ids == (column_id,)
        if is_fitting and operator(index) == op:
            return index
    return None


def operator(index: IndexDef) -> str:
    """Return the operator an index answers."""
    return OPERATORS[index.options["metric"]]


# --- placing ---


@dataclass
class PlacedPart:
    """A graph in a snapshot."""

    graph: Graph
    positions: np.ndarray  # int64 (nodes,), of those that are live
    live: np.ndarray | None  # uint8 (nodes,), None where all are
    calibration: np.ndarray

    def ef_for(self, recall: float) -> int:
        """Return the list size that missed half as much on the sample as is allowed.

        Rows of the data are easier to find than queries are. 0 when no list size is enough, as for
        inner products of vectors whose norms differ by orders of magnitude.
        """
        for ef, reached in self.calibration.tolist():
            if 1 - reached <= (1 - recall) / 2:
                return int(ef)
        steps = self.calibration
        if not len(steps):
            return _DEFAULT_EF
        return int(2 * steps[-1, 0]) if steps[-1, 1] >= recall else 0


@dataclass
class Placed:
    """All parts of an index in a snapshot, and the rows none of them covers."""

    index: IndexDef
    parts: list[PlacedPart]
    fresh: np.ndarray  # int64 positions
    stored: tuple[IndexPart, ...]
    live: int
    """Live nodes of all parts."""
    placement: Placement


def place(context: Context, index: IndexDef, flat: FlatIndex) -> Placed | None:
    """Return an index placed in the statement's snapshot; None where exact search must do.

    Kept in memory while the vectors and the parts stay the same.
    """
    try:
        stored = read_parts(context.snapshot.txn, index.id)
    except CorruptionError:
        METRICS.add("index.damaged_parts")
        return None
    if not stored:
        return None
    kept: dict[int, tuple[FlatIndex, Any, Placed | None]] = context.snapshot.env.caches.setdefault(
        "placed", {}
    )
    known = kept.get(index.id)
    if known is not None and known[0] is flat and known[1] == stored:
        return known[2]
    before = known[2].placement if known and known[2] and known[1] == stored else None
    placed = _place(context, index, flat, stored, before)
    kept[index.id] = (flat, stored, placed)
    return placed


def _place(
    context: Context,
    index: IndexDef,
    flat: FlatIndex,
    stored: tuple[IndexPart, ...],
    before: Placement | None,
) -> Placed | None:
    read = []
    for part in stored:
        try:
            read.append(_graph(context, part))
        except CorruptionError:
            METRICS.add("index.damaged_parts")
            return None
        if flat.width != read[-1][0].dim:
            return None
    if before is None:
        covers = [
            Cover(graph.rowids, part.after, part.upto)
            for (graph, _), part in zip(read, stored, strict=True)
        ]
    else:
        covers = before.covers
    placement = Placement(covers, flat.blocks, before)
    parts = []
    for (graph, calibration), positions, live in zip(
        read, placement.positions, placement.live, strict=True
    ):
        parts.append(PlacedPart(graph, positions, None if live.all() else live, calibration))
    nodes = sum(int(live.sum()) for live in placement.live)
    return Placed(index, parts, placement.fresh, stored, nodes, placement)


def _graph(context: Context, part: IndexPart) -> tuple[Graph, np.ndarray]:
    """Return a part's graph, kept in memory by content."""
    from tarsdb.index.hnsw import Graph

    kept: dict[str, tuple[Graph, np.ndarray]] = context.snapshot.env.caches.setdefault("graphs", {})
    found = kept.get(part.digest)
    if found is None:
        named = arrays.unpack(read_arrays(context.snapshot.txn, part))
        calibration = _sound_calibration(named.pop("calibration", np.empty((0, 2))))
        found = Graph.from_arrays(named), calibration
        _make_room(kept, found[0].nbytes)
        kept[part.digest] = found
    return found


def _make_room(kept: dict[str, tuple[Graph, np.ndarray]], nbytes: int) -> None:
    """Forget the graphs read longest ago until another one fits; what is in use lives on."""
    while kept and nbytes + sum(graph.nbytes for graph, _ in kept.values()) > KEPT_BYTES:
        kept.pop(next(iter(kept)), None)


def _sound_calibration(steps: np.ndarray) -> np.ndarray:
    if steps.ndim != 2 or steps.shape[1] != 2 or steps.dtype != np.float64:
        raise CorruptionError(f"the calibration of a graph is {steps.dtype} {steps.shape}")
    if not ((steps[:, 0] >= 1) & (steps[:, 0] <= MOST_EF) & (steps[:, 1] >= 0)).all():
        raise CorruptionError("the calibration of a graph names list sizes out of range")
    return steps


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
    """Threads to use at most, for a batch."""
    distance: Distance | None = None
    """Compares the candidates in place of the index's own metric."""


def choose(placed: Placed, ask: Ask, rows: int) -> tuple[int, str]:
    """Return the list size to search with, 0 for exact search, and the reason in words."""
    if not placed.parts or not all(part.graph.is_ready() for part in placed.parts):
        return 0, "exact: the graph's kernels are not compiled yet"
    if ask.k * 4 >= rows:
        return 0, "exact: most rows are wanted"
    sizes = [ask.ef or part.ef_for(ask.target_recall) for part in placed.parts]
    if not all(sizes):
        return 0, f"exact: the graph does not reach a recall of {ask.target_recall} on this data"
    ef = max(*sizes, ask.k)
    if ask.positions is None:
        return ef, f"graph, ef {ef}"
    allowed = len(ask.positions)
    if allowed * allowed <= EXACT_WORK * ef * rows or allowed <= 4 * ask.k:
        return 0, f"exact over the {allowed} matching rows"
    return ef, f"graph with the filter inside, ef {ef}, {allowed} matching rows"


def search(placed: Placed, flat: FlatIndex, ask: Ask, op: str) -> Found | None:
    """Return the k nearest rows of each query, or None where exact search must answer.

    With ``ask.distance`` the order is exact by that function *over the candidates*: the whole lists
    (``ef`` rows of each part) that are near by the index's own metric, and all fresh rows. A row
    that is near by the function but far by the index's metric is not among them.
    """
    ef, _ = choose(placed, ask, flat.rows)
    if not ef:
        return None
    masks: list[np.ndarray | None] = [part.live for part in placed.parts]
    fresh = placed.fresh
    reachable = placed.live + len(fresh)
    if ask.positions is not None:
        allowed = np.zeros(flat.rows + 1, dtype=np.uint8)  # position -1 reads the last: not live
        allowed[ask.positions] = 1
        masks = [
            allowed[part.positions] if part.live is None else allowed[part.positions] & part.live
            for part in placed.parts
        ]
        fresh = fresh[allowed[fresh] != 0]
        reachable = len(ask.positions)
    # dead nodes are few, else their part would have been built anew; matching rows may be far away
    reach = 4 * ef if ask.positions is None else max(4 * ef, reachable // REACH)
    sizes = [ef] * len(placed.parts)
    if ask.positions is None and ask.distance is None:
        largest = max(len(part.graph) for part in placed.parts)
        short = min(ef, max(FIRST_EF, ask.k))
        sizes = [ef if len(part.graph) == largest else short for part in placed.parts]
    scope = _Scope(placed, flat, masks, fresh, min(ask.k, reachable), sizes, ask.distance)
    compared = candidates(ask.k, ef) if ask.distance is None else max(ef, ask.k)
    found = _batch(scope, ask, (compared, ef, reach), op)
    if found is None:
        METRICS.add("index.exact_instead")
        return None
    METRICS.add("index.graph_searches", len(ask.queries))
    if len(found) == 1:
        return found[0]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([d for _, d in found])


@dataclass(slots=True)
class _Scope:
    """Where the queries of one ask look, the same for all of them."""

    placed: Placed
    flat: FlatIndex
    masks: list[np.ndarray | None]  # uint8 (nodes,) of each part, None where all may be returned
    fresh: np.ndarray  # int64 positions
    wanted: int
    sizes: list[int]  # of the lists each part is searched with at first
    distance: Distance | None


def _batch(scope: _Scope, ask: Ask, how: tuple[int, int, int], op: str) -> list[Found] | None:
    """Return the answer of each query; None as soon as one of them cannot be answered."""
    queries = ask.queries
    if len(queries) == 1:
        only = _one(scope, queries[0], how, op)
        return None if only is None else [only]
    step = min(QUERIES_AT_ONCE, -(-len(queries) // ask.threads))
    failed = threading.Event()

    def part(start: int) -> list[Found]:
        found = []
        for query in queries[start : start + step]:
            one = None if failed.is_set() else _one(scope, query, how, op)
            if one is None:
                failed.set()
                return []
            found.append(one)
        return found

    parts = in_threads(part, range(0, len(queries), max(step, 1)), ask.threads)
    return None if failed.is_set() else [one for part in parts for one in part]


def _one(scope: _Scope, query: np.ndarray, how: tuple[int, int, int], op: str) -> Found | None:
    wanted, ef, reach = how
    found: list[np.ndarray] = []
    short = []  # parts searched with a short list, and what rows it gave
    for part, mask, size in zip(scope.placed.parts, scope.masks, scope.sizes, strict=True):
        if size == ef:
            near = part.graph.search(query, wanted, ef, mask, reach, part.positions)
        else:
            near = part.graph.search(query, min(wanted, size), size, mask, reach)
        if near is None:
            return None
        if size < ef:
            short.append((len(found), part.graph.rowids[near]))
            near = part.positions[near]
        found.append(near)
    positions = _together(found, scope.fresh)
    if len(positions) < scope.wanted:
        return None
    if scope.distance is not None:
        ids, values = scope.flat.search_by(scope.distance, query, scope.wanted, positions)
        return ids[np.newaxis], values[np.newaxis]
    answer = scope.flat.search(query[np.newaxis], scope.wanted, op, positions=positions)
    again = _important(short, answer[0][0]) if short else []
    for at in again:
        part = scope.placed.parts[at]
        near = part.graph.search(query, wanted, ef, scope.masks[at], reach, part.positions)
        found[at] = found[at] if near is None else near
    if not again:
        return answer
    positions = _together(found, scope.fresh)
    return scope.flat.search(query[np.newaxis], scope.wanted, op, positions=positions)


def _together(found: list[np.ndarray], fresh: np.ndarray) -> np.ndarray:
    """Return positions of candidates and fresh rows."""
    return found[0] if len(found) == 1 and not len(fresh) else np.concatenate([*found, fresh])


def _important(short: list[tuple[int, np.ndarray]], answer: np.ndarray) -> list[int]:
    """Return the parts that gave many of the nearest rows; a short list may have missed others.

    A part with few rows seldom holds more than some of the nearest, and a short list finds these.
    """
    ids = set(answer.tolist())
    return [at for at, rowids in short if len(ids.intersection(rowids.tolist())) * MANY > len(ids)]


def candidates(k: int, ef: int) -> int:
    """Return how many candidates are compared by their full vectors."""
    return min(max(ef, k), max(k + k // 2, k + EXTRA))
