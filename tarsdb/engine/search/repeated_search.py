"""A search that is asked again in the same state of the file: what its plan settled once.

Table, exact index, the rows a filter keeps, parts of the approximate index and how they are
searched follow from the plan and the state of the file; so does where the columns of the answer
lie. A plan that runs a second time in one state keeps them. From then on a search is one compiled
call, nearest rows and the values of their columns, where these are numbers; else the values are
looked up row by row. Where rows lie scattered, in the delta and in segments that overlap, the
columns are copied first, once the state is asked often. Whatever is out of the ordinary (other
parameters, distances that are not finite, rows that codes cannot tell apart) goes the way of every
search, which has the checks and the errors.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.reading.cells import Cells, kernels
from tarsdb.engine.result import Result
from tarsdb.engine.search import filtered_rows, vector_search
from tarsdb.engine.search.vector_search import Shape
from tarsdb.index.base import OFTEN
from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address, scratch
from tarsdb.metrics import METRICS
from tarsdb.sql import expressions as ex
from tarsdb.storage import Revisit, Snapshot
from tarsdb.types import Kind

if TYPE_CHECKING:
    from tarsdb.engine.context import Context, Parameters
    from tarsdb.index.base import OneCall
    from tarsdb.sql.plan import Knn

MOST_ROWS = 64
"""Rows of an answer up to which its columns are read in this way."""
COPIED_ROWS = 2048
"""Rows that are copied in the time that looking values up takes longer than the compiled call."""
PLAIN, COPIED = "plain", "copied"
_FLOAT32 = np.dtype(np.float32)
_Counted = tuple["OneCall", str, list[int]]


class RepeatedSearch:
    """What one plan keeps for its next search; one thread uses it at a time.

    Nothing in it keeps an index in memory: ``prepared`` belongs to whoever made it.

    Parameters
    ----------
    context : Context
    plan : Knn
    found : (OneCall, str, list of int)
        The search, and what counts it: a counter's name, and a count of its index.
    most : int
        Searches in this state after which another way is to be found; 0: none is.
    """

    is_compiled = False
    """Whether values come by the compiled call, too."""

    def __init__(self, context: Context, plan: Knn, found: _Counted, most: int = 0) -> None:
        node, (prepared, self._counter, self._tally) = plan.distance.right, found
        assert isinstance(node, ex.Parameter)
        self._table, self._shape = plan.table, Shape.of(plan)
        self._memo, self._most = plan.memo, most
        self._query, self._dim = node.key, (plan.column.type.dim,)
        self._filter = filtered_rows.filtered_by(context, plan)
        self._prepared = weakref.ref(prepared)
        self._settings = context.engines.settings
        self._version = self._settings.version
        self._env, self._state = context.snapshot.env, context.snapshot.txn.file_state()

    def stands(self, context: Context, plan: Knn) -> bool:
        """Return whether it serves searches like this one, if not this query or these rows."""
        return self._usable() is not None and self._filter == filtered_rows.filtered_by(
            context, plan
        )

    def answer(self, parameters: Parameters) -> Result | None:
        """Return the answer of a statement; None where it is to be found in the usual way."""
        prepared = self._usable()
        if prepared is None:
            return None
        try:
            query: Any = parameters[self._query]  # type: ignore[index] # a mismatch is reported by the usual way
            for key, kind, value in self._filter:
                given: Any = parameters[key]  # type: ignore[index]
                if type(given) is not kind or given != value:
                    return None
        except (KeyError, IndexError, TypeError):
            return None
        if (
            type(query) is not np.ndarray
            or query.dtype != _FLOAT32
            or query.shape != self._dim
            or not query.flags.c_contiguous
        ):
            return None
        stored = self._find(prepared, query)
        if stored is None:
            return None
        METRICS.add(self._counter)
        self._tally[0] += 1
        shape = self._shape
        return Result.short(shape.names, shape.types, shape.shown(stored), stored)

    def _usable(self) -> OneCall | None:
        """Return the search, as long as what it was settled for is the same."""
        prepared = self._prepared()
        if (
            prepared is None
            or prepared.level != dispatch.level()
            or self._settings.version != self._version
        ):
            return None
        return prepared

    def _find(self, prepared: OneCall, query: np.ndarray) -> list[list[Any]] | None:
        """Return storage values for a query, a list for each output."""
        self._memo["asked"] += 1
        if self._memo["asked"] == self._most:
            return None
        with Snapshot(self._env) as snapshot:
            if snapshot.txn.file_state() != self._state:
                return None
            found = prepared.search(query[np.newaxis])
            if found is None or not math.isfinite(found[1][0, 0]):
                return None
            view = snapshot.table(self._table)
            values = view.few_values(found[0][0].tolist(), self._shape.stored)
        return None if values is None else self._outputs(found[1][0], values)

    def _outputs(self, distances: np.ndarray, columns: Iterable[list[Any]]) -> list[list[Any]]:
        """Return the values of all outputs, of distances and stored columns."""
        shape, stored = self._shape, iter(columns)
        return [
            shape.made_of_distance(number, distances).tolist() if column is None else next(stored)
            for number, column in enumerate(shape.plain or ())
        ]


class CompiledSearch(RepeatedSearch):
    """One whose values come by the same compiled call.

    Parameters
    ----------
    context, plan, found
        As `RepeatedSearch` has them.
    cells : Cells
        Where the values lie.
    """

    is_compiled = True

    def __init__(self, context: Context, plan: Knn, found: _Counted, cells: Cells) -> None:
        super().__init__(context, plan, found)
        compiled, prepared = kernels(), found[0]
        assert compiled is not None
        self._kernel, gather = compiled
        self.cells, self._asked, k = cells, 0, prepared.k
        self._pages = Revisit(self._env, self._state)
        ids, distances = np.empty(k, np.int64), np.empty(k, np.float32)
        entry, searched, self._memory = prepared.call
        runs, count, columns, sizes, to = cells.words
        words = np.array([
            entry, searched, address(ids), address(distances), k, dispatch.entry(gather), runs,
            count, columns, sizes, to,
        ], np.int64)  # fmt: skip
        self._words, self._held = address(words), (words, ids, distances)
        self._distances = distances

    def _usable(self) -> OneCall | None:
        return None if self.cells.held() is None else super()._usable()

    def _find(self, prepared: OneCall, query: np.ndarray) -> list[list[Any]] | None:
        held = self.cells.held()
        if held is None or not self._pages.enter():
            return None
        try:
            found = self._kernel(self._words, address(query), scratch.of(self._memory))
        finally:
            self._pages.leave()
        if not found:
            return None
        self._asked += 1
        if self._asked == OFTEN:
            prepared.asked_often()
        return self._outputs(self._distances, [each.tolist() for each in self.cells.values])


def keep(context: Context, plan: Knn) -> None:
    """Take note of a search; what the next one can use is kept when it is the second here."""
    state, memo = context.snapshot.txn.file_state(), plan.memo
    if memo.get("state") != state:
        memo.update(state=state, asked=0, refused=set())
        memo.pop("repeated", None)
        return
    memo["asked"] += 1
    if not _is_simple(context, plan) or kernels() is None:
        return
    view = context.view(plan.table)
    known: RepeatedSearch | None = memo.get("repeated")
    if known is not None and not known.stands(context, plan):
        known = None
    often = OFTEN + view.count() // COPIED_ROWS
    ways = _ways(context, plan, known, memo["asked"] >= often)
    if known is not None and not ways:
        return
    flat = vector_search.flat_index(context, view, plan.column.id, plan.column.type)
    found = vector_search.prepared(context, plan, view, flat)
    if found is None or not 0 < found[0].k <= MOST_ROWS:
        return
    columns, k = Shape.of(plan).stored, found[0].k
    for way in ways:
        if way is COPIED:
            cells, memo["asked"] = Cells.copied(context.snapshot.env.caches, view, columns, k), 0
        else:
            cells = Cells.of(view, columns, k)
        if cells is not None:
            memo["repeated"] = CompiledSearch(context, plan, found, cells)
            return
        memo["refused"].add(way)  # so it stays in this state
    if known is None or not known.is_compiled:
        most = 0 if COPIED in memo["refused"] else often
        memo["repeated"] = RepeatedSearch(context, plan, found, most)


def _ways(context: Context, plan: Knn, known: RepeatedSearch | None, is_often: bool) -> list[str]:
    """Return the ways to have cells that are worth a try now, the better one first.

    A copy is made when as many searches went a slower way as cost what it does.
    """
    view, ways = context.view(plan.table), []
    if isinstance(known, CompiledSearch) and (known.cells.is_copied or not view.scalars().count):
        return []
    if is_often or Cells.are_copied(context.snapshot.env.caches, view, Shape.of(plan).stored):
        ways.append(COPIED)
    if known is None:
        ways.append(PLAIN)
    return [way for way in ways if way not in plan.memo["refused"]]


def _is_simple(context: Context, plan: Knn) -> bool:
    """Return whether a search is of the kind that is kept."""
    shape = Shape.of(plan)
    return (
        isinstance(plan.distance.right, ex.Parameter)
        and not plan.distance.function
        and not plan.filters
        and plan.column.type.kind is Kind.VECTOR
        and plan.within is None
        and not plan.descending
        and bool(shape.stored)
        and shape.window is not None
        and shape.window[0] == 0
        and context.writes is None
        and not context.engines.settings["result_cache"]
    )
