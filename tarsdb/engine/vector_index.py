"""Approximate indexes at work: placing their parts in a snapshot, searching all of them.

An index is a list of immutable parts (graphs or inverted lists), each over the versions of a
range of commits. For a
snapshot a part is *placed*: every node gets the position of its vector in the exact index, or none
when its version is no longer live. A search takes candidates from each part, adds the rows no part
covers (the fresh ones), and lets the exact index compare these few by their full vectors. Every
part is derived data: one that is damaged, or whose kernels are not compiled yet, is answered for by
exact search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.index_methods import METHODS, Filtered, Method, Part
from tarsdb.errors import CorruptionError
from tarsdb.index import arrays
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex
from tarsdb.metrics import METRICS
from tarsdb.schema import IndexDef, TableDef
from tarsdb.storage import IndexPart, read_arrays, read_parts

if TYPE_CHECKING:
    from tarsdb.engine.context import Context

OPERATORS = {"l2": "<->", "ip": "<#>", "cosine": "<=>"}
"""Metric of an index -> the operator it answers."""
KEPT_BYTES = 1 << 30
"""Parts a process keeps in memory for the next search, whatever snapshot they belong to."""
MOST_EFFORT = 1 << 20


def index_for(table: TableDef, column_id: int, op: str) -> IndexDef | None:
    """Return the index of a column that answers an operator, or None."""
    for index in table.indexes:
        is_fitting = index.method in METHODS and index.column_ids == (column_id,)
        if is_fitting and operator(index) == op:
            return index
    return None


def operator(index: IndexDef) -> str:
    """Return the operator an index answers."""
    return OPERATORS[index.options["metric"]]


# --- placing ---


@dataclass
class PlacedPart:
    """A part in a snapshot."""

    method: Method
    part: Part
    positions: np.ndarray  # int64 (nodes,), -1 where the version is not live
    live: np.ndarray | None  # uint8 (nodes,), None where all are
    calibration: np.ndarray

    def effort_for(self, recall: float) -> int:
        """Return the effort that missed half as much on the sample as is allowed.

        Rows of the data are easier to find than queries are. 0 when no effort is enough, as for
        inner products of vectors whose norms differ by orders of magnitude.
        """
        for effort, reached in self.calibration.tolist():
            if 1 - reached <= (1 - recall) / 2:
                return int(effort)
        steps = self.calibration
        if not len(steps):
            return self.method.default_effort
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

    @property
    def method(self) -> Method:
        """How the parts are searched."""
        return METHODS[self.index.method]


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
            read, calibration = _read(context, part, METHODS[index.method])
        except CorruptionError:
            METRICS.add("index.damaged_parts")
            return None
        if flat.width != read.dim:
            return None
        positions = flat.positions(read.rowids)
        at = np.maximum(positions, 0)
        valid = positions >= 0
        if flat.rows:
            valid &= live[at] & (created[at] > part.after) & (created[at] <= part.upto)
        fresh[at[valid]] = False
        mask = None if valid.all() else valid.astype(np.uint8)
        placed = np.where(valid, positions, -1)
        parts.append(PlacedPart(METHODS[index.method], read, placed, mask, calibration))
    nodes = sum(int((part.positions >= 0).sum()) for part in parts)
    return Placed(index, parts, np.flatnonzero(fresh), stored, nodes)


def _read(context: Context, part: IndexPart, method: Method) -> tuple[Part, np.ndarray]:
    """Return a part, kept in memory by content."""
    caches = context.snapshot.env.caches
    kept: dict[str, tuple[Part, np.ndarray]] = caches.setdefault("index parts", {})
    found = kept.get(part.digest)
    if found is None:
        named = arrays.unpack(read_arrays(context.snapshot.txn, part))
        calibration = _sound_calibration(named.pop("calibration", np.empty((0, 2))))
        found = method.read(named), calibration
        _make_room(kept, found[0].nbytes)
        kept[part.digest] = found
    return found


def _make_room(kept: dict[str, tuple[Part, np.ndarray]], nbytes: int) -> None:
    """Forget the parts read longest ago until another one fits; what is in use lives on."""
    while kept and nbytes + sum(part.nbytes for part, _ in kept.values()) > KEPT_BYTES:
        kept.pop(next(iter(kept)), None)


def _sound_calibration(steps: np.ndarray) -> np.ndarray:
    if steps.ndim != 2 or steps.shape[1] != 2 or steps.dtype != np.float64:
        raise CorruptionError(f"the calibration of an index is {steps.dtype} {steps.shape}")
    if not ((steps[:, 0] >= 1) & (steps[:, 0] <= MOST_EFFORT) & (steps[:, 1] >= 0)).all():
        raise CorruptionError("the calibration of an index names efforts out of range")
    return steps


# --- searching ---


@dataclass(frozen=True)
class Ask:
    """One search: queries (q, dim) float32, rows wanted, rows allowed (None: all)."""

    queries: np.ndarray
    k: int
    positions: np.ndarray | None
    effort: int
    """0: by target recall."""
    target_recall: float


def choose(placed: Placed, ask: Ask, rows: int) -> tuple[int, str]:
    """Return the effort to search with, 0 for exact search, and the reason in words."""
    method, parts = placed.method, [each.part for each in placed.parts]
    if not parts or not all(part.is_ready() for part in parts):
        return 0, f"exact: the {method.noun}'s kernels are not compiled yet"
    efforts = [ask.effort or part.effort_for(ask.target_recall) for part in placed.parts]
    if not all(efforts):
        reason = f"the {method.noun} does not reach a recall of {ask.target_recall} on this data"
        return 0, f"exact: {reason}"
    effort = max(efforts) if ask.effort else method.effort_for(max(efforts), ask.k)
    effort = max(effort, method.least_effort(ask.k))
    if ask.k * 4 >= rows:
        return 0, "exact: most rows are wanted"
    if ask.positions is None:
        return effort, f"{method.noun}, {method.effort} {effort}"
    filtered = Filtered(len(ask.positions), rows)
    if filtered.allowed <= 4 * ask.k or method.prefers_exact(parts, effort, filtered):
        return 0, f"exact over the {filtered.allowed} matching rows"
    effort = method.filtered_effort(effort, filtered)
    how = f"{method.noun} with the filter inside, {method.effort} {effort}"
    return effort, f"{how}, {filtered.allowed} matching rows"


def search(placed: Placed, flat: FlatIndex, ask: Ask, op: str) -> Found | None:
    """Return the k nearest rows of each query, or None where exact search must answer."""
    effort, _ = choose(placed, ask, flat.rows)
    if not effort:
        return None
    masks: list[np.ndarray | None] = [part.live for part in placed.parts]
    fresh = placed.fresh
    reachable = placed.live + len(fresh)
    if ask.positions is not None:
        allowed = np.zeros(flat.rows + 1, dtype=np.uint8)  # position -1 reads the last: not live
        allowed[ask.positions] = 1
        masks = [allowed[part.positions] for part in placed.parts]
        fresh = fresh[allowed[fresh] != 0]
        reachable = len(ask.positions)
    reach = placed.method.reach(effort, None if ask.positions is None else reachable)
    wanted = min(ask.k, reachable)
    found = []
    for query in ask.queries:
        positions = _near(placed, query, (ask.k, effort, reach), masks, fresh)
        if positions is None or len(positions) < wanted:
            METRICS.add("index.exact_instead")
            return None
        found.append(flat.search(query[np.newaxis], wanted, op, positions=positions))
    METRICS.add(placed.method.counter, len(ask.queries))
    if len(found) == 1:
        return found[0]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([d for _, d in found])


def _near(
    placed: Placed,
    query: np.ndarray,
    how: tuple[int, int, int],
    masks: list[np.ndarray | None],
    fresh: np.ndarray,
) -> np.ndarray | None:
    """Return positions of candidates and fresh rows; None where exact search is cheaper."""
    k, effort, reach = how
    method = placed.method
    found = []
    for part, mask in zip(placed.parts, masks, strict=True):
        wanted = method.candidates(part.part, k, effort)
        nodes = part.part.search(query, wanted, effort, mask, reach)
        if nodes is None:
            return None
        found.append(part.positions[nodes])
    return np.concatenate([*found, fresh])
