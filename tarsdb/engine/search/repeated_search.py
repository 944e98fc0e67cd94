"""A search that is asked again in the same state of the file: what its plan settled once.

Table, exact index, the rows a filter keeps, parts of the approximate index and how they are
searched follow from the plan and the state of the file; so does where the columns of the answer
lie. A plan that runs a second time in one state keeps them, and from then on a search is one
compiled call: nearest rows and the values of their columns. Where rows lie scattered, in the delta
and in segments that overlap, the columns are copied first, once the state is asked often. Whatever
is out of the ordinary (other parameters, distances that are not finite, rows that codes cannot tell
apart) goes the way of every search, which has the checks and the errors.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.engine.reading.cells import Cells, kernels
from tarsdb.engine.result import Result
from tarsdb.engine.search import vector_search
from tarsdb.engine.search.vector_search import Shape
from tarsdb.index.base import OFTEN
from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address, scratch
from tarsdb.metrics import METRICS
from tarsdb.sql import expressions as ex
from tarsdb.storage import Revisit
from tarsdb.types import Kind

if TYPE_CHECKING:
    from tarsdb.engine.context import Context, Parameters
    from tarsdb.index.base import OneCall
    from tarsdb.sql.plan import Knn

MOST_ROWS = 64
"""Rows of an answer up to which its columns are read in this way."""
COPIED_ROWS = 4096
"""Rows that are copied in the time that the usual way takes longer than the compiled one."""
PLAIN, COPIED = "plain", "copied"
_FLOAT32 = np.dtype(np.float32)


class RepeatedSearch:
    """What one plan keeps for its next search; one thread uses it at a time.

    Nothing in it keeps an index in memory: ``prepared`` belongs to whoever made it.
    """

    def __init__(
        self, context: Context, plan: Knn, prepared: OneCall, counter: str, cells: Cells
    ) -> None:
        found, node, k = kernels(), plan.distance.right, prepared.k
        assert found is not None
        assert isinstance(node, ex.Parameter)
        self._kernel, gather = found
        self._shape, self._counter, self.cells = Shape.of(plan), counter, cells
        self._query, self._dim = node.key, (plan.column.type.dim,)
        self._filter = vector_search.filtered_by(context, plan)
        self._prepared = weakref.ref(prepared)
        self._settings = context.engines.settings
        self._version = self._settings.version
        self._asked = 0
        self._pages = Revisit(context.snapshot.env, context.snapshot.txn.file_state())
        ids, distances = np.empty(k, np.int64), np.empty(k, np.float32)
        entry, searched, self._memory = prepared.call
        runs, count, columns, sizes, to = cells.words
        words = np.array([
            entry, searched, address(ids), address(distances), k, dispatch.entry(gather), runs,
            count, columns, sizes, to,
        ], np.int64)  # fmt: skip
        self._words, self._held = address(words), (words, ids, distances)
        self._distances = distances

    def stands(self, context: Context, plan: Knn) -> bool:
        """Return whether it serves searches like this one, if not this query or these rows."""
        prepared = self._prepared()
        return (
            prepared is not None
            and self.cells.held() is not None
            and prepared.level == dispatch.level()
            and self._settings.version == self._version
            and self._filter == vector_search.filtered_by(context, plan)
        )

    def answer(self, parameters: Parameters) -> Result | None:
        """Return the answer of a statement; None where it is to be found in the usual way."""
        prepared, held = self._prepared(), self.cells.held()
        if (
            prepared is None
            or held is None
            or prepared.level != dispatch.level()
            or self._settings.version != self._version
        ):
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
            or not self._pages.enter()
        ):
            return None
        try:
            found = self._kernel(self._words, address(query), scratch.of(self._memory))
        finally:
            self._pages.leave()
        if not found:
            return None
        METRICS.add(self._counter)
        self._asked += 1
        if self._asked == OFTEN:
            prepared.asked_often()
        shape, values = self._shape, iter(self.cells.values)
        stored = [
            (shape.made_of_distance(n, self._distances) if c is None else next(values)).tolist()
            for n, c in enumerate(shape.plain or ())
        ]
        return Result.short(shape.names, shape.types, shape.shown(stored), stored)


def keep(context: Context, plan: Knn) -> None:
    """Take note of a search; what the next one can use is kept when it is the second here."""
    state, memo = context.snapshot.txn.file_state(), plan.memo
    if memo.get("state") != state:
        memo.update(state=state, usual=0, refused=set())
        memo.pop("repeated", None)
        return
    memo["usual"] += 1
    if not _is_simple(context, plan) or kernels() is None:
        return
    view = context.view(plan.table)
    known: RepeatedSearch | None = memo.get("repeated")
    if known is not None and not known.stands(context, plan):
        known = None
    ways = _ways(context, plan, known)
    if not ways:
        return
    flat = vector_search.flat_index(context, view, plan.column.id, plan.column.type)
    found = vector_search.prepared(context, plan, view, flat)
    if found is None or not 0 < found[0].k <= MOST_ROWS:
        return
    columns, k = Shape.of(plan).stored, found[0].k
    for way in ways:
        if way is COPIED:
            cells, memo["usual"] = Cells.copied(context.snapshot.env.caches, view, columns, k), 0
        else:
            cells = Cells.of(view, columns, k)
        if cells is not None:
            memo["repeated"] = RepeatedSearch(context, plan, *found, cells)
            return
        memo["refused"].add(way)  # so it stays in this state


def _ways(context: Context, plan: Knn, known: RepeatedSearch | None) -> list[str]:
    """Return the ways to have cells that are worth a try now, the better one first.

    A copy is made when as many searches went the usual way as cost what it does.
    """
    view = context.view(plan.table)
    if known is not None and (known.cells.is_copied or not view.scalars().count):
        return []
    ways = [] if known is not None else [PLAIN]
    is_often = plan.memo["usual"] >= OFTEN + view.count() // COPIED_ROWS
    if is_often or Cells.are_copied(context.snapshot.env.caches, view, Shape.of(plan).stored):
        ways.insert(0, COPIED)
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
