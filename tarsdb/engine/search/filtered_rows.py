"""The rows that the condition of a search keeps, as positions in the exact index.

They are kept with the plan as long as the table and the condition's constants stay the same. A plan
that is not run again keeps neither a state of the table nor an index in memory.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.reading import batches, evaluate
from tarsdb.engine.search import filter_arguments
from tarsdb.index.flat import FlatIndex
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Knn
from tarsdb.storage import TableView

KEPT_POSITIONS = 1 << 23
"""Rows that a process keeps of conditions that keep more than few rows, in all."""
FEW_POSITIONS = 1 << 16
SCANS = 10
"""Looks at all rows that take as long as reading columns of a condition for good, about."""
_PLAIN = frozenset({int, float, str, bytes, bool, type(None)})


def positions(context: Context, plan: Knn, view: TableView, index: FlatIndex) -> np.ndarray | None:
    """Return the positions a filtered search may look at; kept while nothing changes.

    None means all.
    """
    constants = _constants(context, plan)
    known = _kept(plan, view, index, constants)
    if known is not None:
        return known
    found = _find(context, plan, view, index)
    if constants is not None and found is not None and len(found) <= KEPT_POSITIONS:
        plan.memo["positions"] = (_of(view, index), constants, found)
        if len(found) > FEW_POSITIONS:
            _forget_others(context, plan)
    return found


def _forget_others(context: Context, plan: Knn) -> None:
    """Forget what other plans keep, the oldest first, where all of it is too much."""
    plans: OrderedDict[int, weakref.ref[Knn]]
    plans = context.snapshot.env.caches.setdefault("plans with positions", OrderedDict())
    plans.pop(id(plan), None)
    plans[id(plan)] = weakref.ref(plan)
    kept = 0
    for number, reference in reversed(list(plans.items())):
        other = reference()
        found = None if other is None else other.memo.get("positions")
        kept += 0 if found is None else len(found[2])
        if other is None or kept > KEPT_POSITIONS:
            plans.pop(number, None)
            if other is not None:
                other.memo.pop("positions", None)


def _of(view: TableView, index: FlatIndex) -> tuple[weakref.ref[Any], weakref.ref[Any]]:
    """Return what tells one state of a table and its vectors from another."""
    return weakref.ref(view.state), weakref.ref(index)


def _kept(
    plan: Knn, view: TableView, index: FlatIndex, constants: tuple[Any, ...] | None
) -> np.ndarray | None:
    kept = None if constants is None else plan.memo.get("positions")
    if kept is not None and kept[0] == _of(view, index) and kept[1] == constants:
        known: np.ndarray = kept[2]
        return known
    return None


def kept_positions(
    context: Context, plan: Knn, view: TableView, index: FlatIndex
) -> np.ndarray | None:
    """Return what :func:`positions` found before, where nothing changed; else None."""
    return _kept(plan, view, index, _constants(context, plan))


def filtered_by(context: Context, plan: Knn) -> list[tuple[int | str, type, Any]]:
    """Return key, type and value of the parameters that what is kept of a filter depends on."""
    constants = _constants(context, plan)
    if constants is None:
        return []
    return [(key, *each) for key, each in zip(parameters_of(plan) or (), constants, strict=True)]


def _constants(context: Context, plan: Knn) -> tuple[Any, ...] | None:
    """Return what a predicate's answer depends on besides the rows, or None for more than that."""
    if context.writes is not None or plan.needs_filter_sql is not None or plan.predicate is None:
        return None
    parameters = parameters_of(plan)
    if parameters is None:
        return None
    values = [context.parameter(key) for key in parameters]
    if any(type(value) not in _PLAIN for value in values):
        return None
    return tuple((type(value), value) for value in values)


def parameters_of(plan: Knn) -> tuple[int | str, ...] | None:
    """Return the parameters a plan's predicate reads; None where there is none or it has calls."""
    if "filter parameters" not in plan.memo:
        predicate = plan.predicate
        plan.memo["filter parameters"] = predicate and evaluate.parameters_of(predicate)
    found: tuple[int | str, ...] | None = plan.memo["filter parameters"]
    return found


def _find(context: Context, plan: Knn, view: TableView, index: FlatIndex) -> np.ndarray | None:
    rowids = None
    if plan.predicate is not None:
        rowids = _by_index(context, view, plan.predicate)
        found = _by_columns(context, plan, view, index) if rowids is None else None
        if found is not None:
            return found
        rowids = _by_scan(context, view, plan.predicate) if rowids is None else rowids
    if plan.needs_filter_sql is not None:
        from tarsdb.engine.executor import relational_result

        passed = relational_result(context, plan.needs_filter_sql).numpy()
        chosen = np.unique(next(iter(passed.values())).astype(np.int64))
        rowids = chosen if rowids is None else np.intersect1d(rowids, chosen)
    if rowids is None:
        return None
    places = index.positions(rowids)
    return places[places >= 0]


def _by_columns(
    context: Context, plan: Knn, view: TableView, index: FlatIndex
) -> np.ndarray | None:
    """Return what a condition keeps by columns that were read whole, where these are kept.

    They are read where it has been evaluated, with other constants, so often that this pays.
    """
    if _constants(context, plan) is None or filter_arguments.columns_of(plan, "predicate") is None:
        return None
    columns = filter_arguments.kept(context, plan, view, index, "predicate")
    if columns is None:
        current = _of(view, index)
        state, scans = plan.memo.get("scans", (current, 0))
        scans = scans + 1 if state == current else 1
        plan.memo["scans"] = current, scans
        if scans <= SCANS:
            return None
        columns = filter_arguments.of(context, plan, view, index, "predicate")
    mask = None if columns is None else evaluate.select(plan.predicate, columns.batch(context))
    return None if mask is None or columns is None else columns.where(mask)


def filtered_rowids(
    context: Context, view: TableView, predicate: ex.Expr | None
) -> np.ndarray | None:
    """Return the row ids a predicate keeps; None means all rows."""
    if predicate is None:
        return None
    found = _by_index(context, view, predicate)
    return _by_scan(context, view, predicate) if found is None else found


def _by_index(context: Context, view: TableView, predicate: ex.Expr) -> np.ndarray | None:
    found = batches.by_index(context, view, predicate, (ex.RowidRef(),))
    return None if found is None else found.rowids


def _by_scan(context: Context, view: TableView, predicate: ex.Expr) -> np.ndarray:
    parts = batches.scanned(context, view, predicate, (ex.RowidRef(),))
    kept = [batch.rowids for batch in parts if batch.rowids is not None]
    return np.concatenate(kept) if kept else np.empty(0, np.int64)
