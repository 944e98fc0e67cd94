"""Approximate indexes at work: placing their parts in a snapshot, searching all of them.

An index is a list of immutable parts, each over the versions of a range of commits. For a snapshot
a part is *placed*: every node gets the position of its vector in the exact index, or none
when its version is no longer live. A search takes candidates from each part, adds the rows no part
covers (the fresh ones), and lets the exact index compare these few by their full vectors. Every
part is derived data: one that is damaged, or whose kernels are not compiled yet, is answered for by
exact search.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.search.calibration import Calibration
from tarsdb.engine.search.index_choice import AUTO
from tarsdb.engine.search.index_methods import METHODS, Method, Part, Prepared
from tarsdb.engine.search.placing import Cover, Placement
from tarsdb.errors import CorruptionError
from tarsdb.index import arrays
from tarsdb.index.base import Found, Look
from tarsdb.index.flat import FlatIndex
from tarsdb.index.navigation import NAVIGATIONS, Navigation, as_numbers
from tarsdb.index.own_metric import Distance
from tarsdb.index.threads import in_threads
from tarsdb.kernels import dispatch
from tarsdb.kernels.gpu.device import Device
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import IndexDef, TableDef
from tarsdb.storage import (
    CheckStop,
    IndexPart,
    known_parts,
    never,
    part_places,
    part_runs,
    read_parts,
)

if TYPE_CHECKING:
    from tarsdb.engine.context import Context

OPERATORS = {
    "l2": "<->", "ip": "<#>", "cosine": "<=>", "l1": "<+>", "hamming": "<~>", "jaccard": "<%>",
}  # fmt: skip
"""Metric of an index -> the operator it answers."""
KEPT_BYTES = 1 << 30
"""Parts a process keeps in memory for the next search, whatever snapshot they belong to."""
SCARCE = 1e-9
"""A share of rows that stands for none."""
MANY = 3
"""A part that gave more than one in so many of the answers is searched with the whole effort."""
QUERIES_AT_ONCE = 32
"""Queries of a batch a thread takes at a time, at most."""


def index_for(table: TableDef, column_id: int, op: str) -> IndexDef | None:
    """Return the index of a column that answers an operator, or None."""
    for index in table.indexes:
        is_fitting = index.method != "btree" and index.column_ids == (column_id,)
        if is_fitting and answers(index) == op:
            return index
    return None


def answers(index: IndexDef) -> str:
    """Return what an index answers: an operator, or the sandboxed metric it compares by."""
    return index.function or operator(index)


def operator(index: IndexDef) -> str:
    """Return the operator the parts of an index are made for."""
    return OPERATORS[index.options["metric"]]


def method_of(index: IndexDef, stored: Sequence[IndexPart]) -> Method | None:
    """Return how the parts of an index are searched; None for exact search.

    Where the method is chosen (``USING auto``), all parts of an index are made by the same one.
    """
    names = {part.method or index.method for part in stored}
    return METHODS.get(names.pop()) if len(names) == 1 else None


def target_of(placed: Placed, wanted: float) -> float:
    """Return the recall to search with: what is wanted, or more where the index promises more."""
    if placed.index.method != AUTO:
        return wanted
    least = float(placed.index.options.get("target_recall", 0))
    return max(wanted, least)


def unplaced(context: Context, index: IndexDef) -> str:
    """Return why an index answers no search, in words."""
    stored = known_parts(context.snapshot.txn, index.id)
    if stored and stored[0].reason and not stored[0].digest:
        return f"index {index.name} ({index.method}): {stored[0].reason}"
    return f"index {index.name} has no usable parts (REINDEX builds them)"


# --- placing ---

_Kept = tuple[Part, Calibration, tuple[int, ...]]
"""A part, its calibration, and where in memory lies what is not copied."""


@dataclass
class PlacedPart:
    """A part in a snapshot."""

    part: Part
    positions: np.ndarray  # int64 (nodes,), of those that are live
    live: np.ndarray | None  # uint8 (nodes,), None where all are
    calibration: Calibration
    eighths: int = 8
    """Of the nodes that are live, rounded up."""

    def effort_for(self, recall: float, k: float) -> int:
        """Return the effort for a recall, 0 where none is enough.

        It was measured with all nodes. Without the dead ones, neighbours lie where nobody looked.
        """
        missed = (1 - recall) * (self.eighths / 8) ** 2
        return self.calibration.effort_for(1 - missed if self.eighths < 8 else recall, k)


@dataclass
class Placed:
    """All parts of an index in a snapshot, and the rows none of them covers."""

    index: IndexDef
    method: Method
    parts: list[PlacedPart]
    fresh: np.ndarray  # int64 positions
    stored: tuple[IndexPart, ...]
    live: int
    """Live nodes of all parts."""
    placement: Placement
    scopes: dict[tuple[int, int, float], Scope] = field(default_factory=dict)
    _filter: tuple[np.ndarray, list[np.ndarray | None], np.ndarray] | None = None

    def filtered(
        self, positions: np.ndarray, rows: int
    ) -> tuple[list[np.ndarray | None], np.ndarray]:
        """Return which nodes of each part a filter leaves, and the fresh rows it leaves.

        What was asked last is kept, by the identity of ``positions``.
        """
        known = self._filter
        if known is not None and known[0] is positions:
            return known[1], known[2]
        allowed = np.zeros(rows, dtype=np.uint8)
        allowed[positions] = 1
        masks: list[np.ndarray | None] = [
            allowed[part.positions] if part.live is None else allowed[part.positions] & part.live
            for part in self.parts
        ]
        fresh = self.fresh[allowed[self.fresh] != 0]
        self._filter = positions, masks, fresh
        return masks, fresh


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
    read, method = [], method_of(index, stored)
    if method is None:
        return None
    for part in stored:
        try:
            read.append(_read(context, part, method))
        except CorruptionError:
            METRICS.add("index.damaged_parts")
            return None
        if flat.elements != read[-1][0].dim:
            return None
    if before is None:
        covers = [
            Cover(found.rowids, part.after, part.upto)
            for (found, _), part in zip(read, stored, strict=True)
        ]
    else:
        covers = before.covers
    placement = Placement(covers, flat.blocks, before)
    parts, nodes = [], 0
    for (found, calibration), positions, live in zip(
        read, placement.positions, placement.live, strict=True
    ):
        count = int(np.count_nonzero(live))
        dead = None if count == len(live) else live
        eighths = -(-8 * count // max(len(live), 1))
        parts.append(PlacedPart(found, positions, dead, calibration, eighths))
        nodes += count
    return Placed(index, method, parts, placement.fresh, stored, nodes, placement)


def _read(context: Context, part: IndexPart, method: Method) -> tuple[Part, Calibration]:
    """Return a part and its calibration, kept in memory by content.

    What it leaves in the map is used only under snapshots that show the part at the same place.
    """
    txn, caches = context.snapshot.txn, context.snapshot.env.caches
    kept: dict[str, _Kept] = caches.setdefault("index parts", {})
    places = part_places(txn, part) if method.left else ()
    found = kept.get(part.digest)
    if found is None or found[2] != places:
        named, left = arrays.unpack_runs(part_runs(txn, part), method.left)
        steps = named.pop("calibration", np.empty((0, 1 + len(method.calibrated))))
        found = method.read(named, left), Calibration(steps, method), places
        _make_room(kept, found[0].nbytes)
        kept[part.digest] = found
    return found[:2]


def _make_room(kept: dict[str, _Kept], nbytes: int) -> None:
    """Forget the parts read longest ago until another one fits; what is in use lives on."""
    while kept and nbytes + sum(part.nbytes for part, *_ in kept.values()) > KEPT_BYTES:
        kept.pop(next(iter(kept)), None)


# --- searching ---


@dataclass(slots=True)
class Ask:
    """One search: queries (q, width) for the exact index, rows wanted, rows allowed (None: all)."""

    queries: np.ndarray
    k: int
    positions: np.ndarray | None
    effort: int
    """0: by target recall."""
    target_recall: float
    threads: int = 1
    """Threads to use at most, for a batch."""
    distance: Distance | None = None
    """Compares the candidates in place of the index's own metric."""
    device: Device | None = None
    """May find the candidates of a batch."""
    check_stop: CheckStop = never
    """Asked between parts of a batch."""


def choose(placed: Placed, flat: FlatIndex, ask: Ask) -> tuple[int, str]:
    """Return the effort to search with, 0 for exact search, and the reason in words."""
    method, parts, rows = placed.method, [each.part for each in placed.parts], flat.rows
    if not parts or not all(part.is_ready() for part in parts):
        return 0, f"exact: the {method.noun}'s kernels are not compiled yet"
    if ask.k * 4 >= rows:
        return 0, "exact: most rows are wanted"
    effort = _effort(placed, ask, rows)
    if not effort:
        reached = f"cannot reach a recall of {ask.target_recall} on this data"
        return 0, f"exact: the {method.noun} {reached}"
    effort = method.settled(effort, ask.k, parts)
    effort_text = f"{method.effort} {effort}"
    navigation = _navigation(placed)
    if navigation.is_loose:
        effort_text += f", candidates by {navigation.op}"
    if ask.positions is None:
        return effort, f"{method.noun}, {effort_text}"
    allowed = len(ask.positions)
    share = allowed, rows
    is_exact = allowed <= 4 * ask.k or method.prefers_exact(effort, share, parts, is_coded=False)
    if not is_exact and method.prefers_exact(effort, share, parts, is_coded=True):
        is_exact = flat.is_coded(ask.positions)
    if is_exact:
        return 0, f"exact over the {allowed} matching rows, cheaper than the {method.noun}"
    how = f"{method.noun} with the filter inside, {effort_text}"
    return effort, f"{how}, {allowed} matching rows"


def _effort(placed: Placed, ask: Ask, rows: int) -> int:
    """Return the effort asked for, or for the recall; 0 where a part cannot reach it."""
    share = 1.0 if ask.positions is None else len(ask.positions) / max(rows, 1)
    return effort_among(placed, ask, share)


def effort_among(placed: Placed, ask: Ask, share: float) -> int:
    """Return the effort where a share of the rows may be found; 0 where a part cannot reach it.

    The rows a filter keeps lie as far from the query as more neighbours would without it.
    """

    def needed(k: float) -> int:
        recall = ask.target_recall
        efforts = [part.effort_for(recall, k) for part in placed.parts]
        return max(efforts) if all(efforts) else 0

    if share == 1:
        return ask.effort or needed(ask.k)
    sparse = needed(ask.k / max(share, SCARCE))
    if not ask.effort:
        return sparse
    return max(ask.effort, round(ask.effort * sparse / max(needed(ask.k), 1)))


def search(placed: Placed, flat: FlatIndex, ask: Ask, op: str) -> Found | None:
    """Return the k nearest rows of each query, or None where exact search must answer.

    With ``ask.distance`` the order is exact by that function *over the candidates*: all that the
    effort makes known of each part (the whole list of a graph's search), near by the index's own
    metric, and all fresh rows. A row that is near by the function but far by the index's metric is
    not among them.
    """
    scope = known_scope(placed, flat, ask)
    if scope is None:
        return None
    found = _answer(scope, ask, op)
    if found is None:
        METRICS.add("index.exact_instead")
        return None
    METRICS.add(placed.method.counter, len(ask.queries))
    return found


@dataclass(slots=True, weakref_slot=True)
class Scope:
    """Where the queries of one ask look, the same for all of them."""

    placed: Placed
    flat: FlatIndex
    looks: list[Look[Part]]
    fresh: np.ndarray  # int64 positions
    wanted: int
    distance: Distance | None
    prepared: Prepared | None = None


def known_scope(placed: Placed, flat: FlatIndex, ask: Ask) -> Scope | None:
    """Return where to look, kept for searches without a filter; None for exact search."""
    if ask.positions is not None or ask.distance is not None:
        return _scope(placed, flat, ask)
    key = ask.k, ask.effort, ask.target_recall
    known = placed.scopes.get(key)
    if known is not None and placed.parts[0].part.is_ready():  # all are of one method
        return known
    made = _scope(placed, flat, ask)
    if made is not None:
        placed.scopes[key] = made
    return made


def _scope(placed: Placed, flat: FlatIndex, ask: Ask) -> Scope | None:
    effort, _ = choose(placed, flat, ask)
    if not effort:
        return None
    method = placed.method
    masks: list[np.ndarray | None] = [part.live for part in placed.parts]
    fresh = placed.fresh
    reachable, allowed = placed.live + len(fresh), None
    if ask.positions is not None:
        masks, fresh = placed.filtered(ask.positions, flat.rows)
        reachable = allowed = len(ask.positions)
    first, largest = effort, max(len(each.part) for each in placed.parts)
    if ask.positions is None and ask.distance is None and not _navigation(placed).is_loose:
        first = method.first_effort(effort, ask.k)
    reach, compared = method.reach(effort, allowed), _compared(placed, ask, effort, flat.rows)
    looks = [
        Look(
            each.part, each.positions, mask, taken,
            effort if len(each.part) == largest else first, effort, reach,
        )
        for each, mask, taken in zip(placed.parts, masks, compared, strict=True)
    ]  # fmt: skip
    return Scope(placed, flat, looks, fresh, min(ask.k, reachable), ask.distance)


def _compared(placed: Placed, ask: Ask, effort: int, rows: int) -> list[int]:
    """Return how many nodes of each part are compared by their full vectors."""
    method, parts = placed.method, [each.part for each in placed.parts]
    if ask.distance is not None:
        return [method.pool(part, ask.k, effort) for part in parts]
    if not _navigation(placed).is_loose:
        return [method.candidates(part, ask.k, effort) for part in parts]
    share = 1 if ask.positions is None else len(ask.positions) / rows
    return [method.loosely(part, ask.k, effort, share) for part in parts]


def _navigation(placed: Placed) -> Navigation:
    return NAVIGATIONS[operator(placed.index)]


def _answer(scope: Scope, ask: Ask, op: str) -> Found | None:
    """Return the answers of all queries; None as soon as one of them cannot be answered."""
    together = prepared(scope, op)
    if together is None:
        return one_by_one(scope, ask, op)
    return together.search(ask.queries, ask.threads, ask.check_stop)


def prepared(scope: Scope, op: str) -> Prepared | None:
    """Return the search as one call, made at the first query; None where there is none."""
    known = scope.prepared
    if known is not None and known.level == dispatch.level():
        return known
    if scope.distance is None and scope.wanted:
        method = scope.placed.method
        known = method.prepare(scope.looks, scope.fresh, scope.flat, op, scope.wanted)
        scope.prepared = known
    return known


def one_by_one(scope: Scope, ask: Ask, op: str) -> Found | None:
    """Answer part by part: for methods and distances that have no call for all of it."""
    queries, failed = ask.queries, threading.Event()
    step = min(QUERIES_AT_ONCE, -(-len(queries) // ask.threads))
    by_device = _by_device(scope, ask)

    def some(start: int) -> list[Found]:
        found = []
        for number, query in enumerate(queries[start : start + step], start):
            ask.check_stop()
            named = [None if each is None else each[number] for each in by_device]
            one = None if failed.is_set() else _one(scope, query, op, named)
            if one is None:
                failed.set()
                return []
            found.append(one)
        return found

    parts = in_threads(some, range(0, len(queries), max(step, 1)), ask.threads)
    found = [one for part in parts for one in part]
    if failed.is_set():
        return None
    return _joined(found)


def _joined(found: list[Found]) -> Found:
    if len(found) == 1:
        return found[0]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([d for _, d in found])


def _by_device(scope: Scope, ask: Ask) -> list[list[np.ndarray | None] | None]:
    """Return candidates of each part for each query that a device found, None where none did."""
    is_own = scope.distance is None and not _navigation(scope.placed).is_loose
    if ask.device is None or ask.positions is not None or not is_own:
        return [None] * len(scope.looks)
    numbers = as_numbers(ask.queries)
    return [scope.placed.method.candidates_on(ask.device, look, numbers) for look in scope.looks]


def _one(
    scope: Scope, query: np.ndarray, op: str, named: Sequence[np.ndarray | None] = ()
) -> Found | None:
    """Answer one query; ``named`` are candidates of parts that are known already."""
    found: list[np.ndarray] = []
    asked = as_numbers(query)
    for at, look in enumerate(scope.looks):
        near = named[at] if named else None
        if near is None:
            near = _near(look, asked, look.short)
        if near is None:
            return None
        found.append(near)
    positions = _together(found, scope.fresh)
    if len(positions) < scope.wanted:
        return None
    if scope.distance is not None:
        ids, values = scope.flat.search_by(scope.distance, query, scope.wanted, positions)
        return ids[np.newaxis], values[np.newaxis]
    answer = scope.flat.among(query[np.newaxis], positions[np.newaxis], scope.wanted, op)
    again = _important(scope, found, answer[0][0])
    for at in again:
        near = _near(scope.looks[at], asked, scope.looks[at].whole)
        found[at] = found[at] if near is None else near
    if not again:
        return answer
    positions = np.union1d(positions, _together(found, scope.fresh))
    return scope.flat.among(query[np.newaxis], positions[np.newaxis], scope.wanted, op)


def _near(look: Look[Part], query: np.ndarray, effort: int) -> np.ndarray | None:
    """Return positions of a part's candidates; None where exact search is cheaper."""
    return look.part.search(query, look.taken, effort, look.allowed, look.reach, look.positions)


def _together(found: list[np.ndarray], fresh: np.ndarray) -> np.ndarray:
    """Return positions of candidates and fresh rows."""
    return found[0] if len(found) == 1 and not len(fresh) else np.concatenate([*found, fresh])


def _important(scope: Scope, found: list[np.ndarray], answer: np.ndarray) -> list[int]:
    """Return the parts that gave many of the nearest rows; a short list may have missed others.

    A part with few rows seldom holds more than some of the nearest, and a short list finds these.
    """
    short = [at for at, look in enumerate(scope.looks) if look.short < look.whole]
    if not short:
        return short
    rows = set(answer.tolist())
    return [
        at for at in short
        if len(rows.intersection(scope.flat.rowids(found[at]).tolist())) * MANY > len(rows)
    ]  # fmt: skip
