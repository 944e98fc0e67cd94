"""A search that is asked again in the same state of the file: what its plan settled once.

Table, exact index, parts of the approximate one and how they are searched follow from the plan and
the state of the file; so does where the columns of the answer lie. A plan that runs a second time
in one state keeps them, and from then on a search is one compiled call, and the columns another.
Whatever is out of the ordinary (other parameters, own writes, distances that are not finite) goes
the way of every search, which has the checks and the errors.
"""

from __future__ import annotations

import math
import weakref
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.engine import vector_index, vector_search
from tarsdb.engine.cells import Cells
from tarsdb.engine.result import Result
from tarsdb.engine.vector_search import Shape
from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address
from tarsdb.metrics import METRICS
from tarsdb.sql import expressions as ex
from tarsdb.types import Kind

if TYPE_CHECKING:
    from tarsdb.engine.context import Context
    from tarsdb.engine.index_methods import Prepared
    from tarsdb.engine.vector_index import Scope
    from tarsdb.sql.plan import Knn
    from tarsdb.storage import GroupState

MOST_ROWS = 64
"""Rows of an answer up to which its columns are read in this way."""


class RepeatedSearch:
    """What one plan keeps for its next search; one thread uses it at a time.

    Nothing in it keeps a state of the table or a part of an index in memory.
    """

    def __init__(
        self, plan: Knn, state: tuple[int, int], scope: Scope, group: GroupState, cells: Cells
    ) -> None:
        node = plan.distance.right
        assert isinstance(node, ex.Parameter)
        self._key, self._shape, self._dim = node.key, Shape.of(plan), (plan.column.type.dim,)
        self._state = state
        self._scope, self._group = weakref.ref(scope), weakref.ref(group)
        self._cells = cells
        self._counter = scope.placed.method.counter
        self._k = scope.wanted
        self._ids, self._values = np.empty(self._k, np.int64), np.empty(self._k, np.float32)
        self._to = address(self._ids), address(self._values)

    def answer(self, context: Context) -> Result | None:
        """Return the answer of a statement; None where it is to be found in the usual way."""
        scope = self._scope()
        if (
            scope is None
            or self._group() is None
            or context.writes is not None
            or context.snapshot.txn.file_state() != self._state
        ):
            return None
        query, prepared = context.parameter(self._key), scope.prepared
        if (
            type(query) is not np.ndarray
            or query.dtype != np.float32
            or query.shape != self._dim
            or not query.flags.c_contiguous
            or prepared is None
            or prepared.level != dispatch.level()
            or not prepared.fill(query, self._to)
        ):
            return None
        distances = self._values.tolist()
        if not math.isfinite(distances[0]):
            return None
        columns = self._cells.read(self._to[0], self._k)
        if columns is None:
            return None
        METRICS.add(self._counter)
        shape = self._shape
        found = iter(columns)
        stored = [distances if node is None else next(found) for node in shape.nodes]
        return Result.short(shape.names, shape.types, shape.shown(stored), stored)


def answer(context: Context, plan: Knn) -> Result | None:
    """Return the answer of a plan that ran in this state before; None where it did not."""
    known: RepeatedSearch | None = plan.memo.get("repeated")
    return None if known is None else known.answer(context)


def keep(context: Context, plan: Knn) -> None:
    """Take note of a search; what the next one can use is kept when it is the second here."""
    state = context.snapshot.txn.file_state()
    if plan.memo.get("state") != state:
        plan.memo["state"] = state
        return
    if not _is_simple(context, plan):
        return
    view = context.view(plan.table)
    flat = vector_search.flat_index(context, view, plan.column.id, plan.column.type)
    scope = vector_search.scope_of(context, plan, view, flat)
    if scope is None or not 0 < scope.wanted <= MOST_ROWS or _prepared(scope, plan) is None:
        return
    group, shape = view.scalars(), Shape.of(plan)
    cells = Cells.of(context.snapshot.txn, group, shape.stored, scope.wanted)
    if cells is not None:
        plan.memo["repeated"] = RepeatedSearch(plan, state, scope, group, cells)


def _prepared(scope: Scope, plan: Knn) -> Prepared | None:
    return vector_index.prepared(scope, plan.distance.op)


def _is_simple(context: Context, plan: Knn) -> bool:
    """Return whether a search is of the kind that is kept."""
    shape = Shape.of(plan)
    return (
        isinstance(plan.distance.right, ex.Parameter)
        and not plan.distance.function
        and not plan.filters
        and plan.column.type.kind is Kind.VECTOR
        and plan.within is None
        and not shape.is_filtered
        and shape.index is not None
        and bool(shape.stored)
        and shape.window is not None
        and shape.window[0] == 0
        and context.writes is None
        and not context.engines.settings["result_cache"]
    )
