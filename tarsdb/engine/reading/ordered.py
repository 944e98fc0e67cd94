"""Rows of a table in an order: read from an index that has them so, else sorted.

With LIMIT only the columns of the order are read of all rows that pass, and the rest of the rows
that are left. Ties are in the order of rowids, descending where the first column is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarsdb.columns import Column, concat, from_list
from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, batches, evaluate, project
from tarsdb.records import dataclass
from tarsdb.schema import IndexDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Aggregate, OrderBy, Scan
from tarsdb.storage import TableView

_GREATEST = np.iinfo(np.int64).max


def rowids_of(context: Context, view: TableView, plan: Scan, stop: int | None) -> np.ndarray | None:
    """Return the rowids of the rows that pass in order, int64 (n,), at least the first ``stop``.

    None where all columns had better be read of all rows, for :func:`whole`.

    Parameters
    ----------
    plan : Scan
        With an order.
    stop : int
        None: all.
    """
    few = max(access.SMALL_TABLE, int(view.count() * access.MAX_SELECTIVITY))
    is_few = stop is None or stop <= few
    run = index_of(context, view, plan) if is_few else None
    found = None if run is None else _from_index(view, plan, run, stop, few)
    if found is not None:
        return found
    read = [ex.ColumnRef(by.column) for by in plan.order]
    batch = batches.by_index(context, view, plan.predicate, (*read, ex.RowidRef()))
    if batch is not None:
        return _sorted(_keys(plan.order, batch), plan.order)
    return None if stop is None or not is_few else _first(context, view, plan, stop)


def extreme(context: Context, view: TableView, plan: Aggregate) -> list[Column] | None:
    """Return the answer to one min or max of a column, where an end of an index tells it."""
    (call,) = plan.calls
    operand = call.operand
    if call.function not in ("min", "max") or not isinstance(operand, ex.ColumnRef):
        return None
    if operand.column.type.is_variable:  # an index keeps the beginning of a long text
        return None
    by = OrderBy(operand.column, call.function == "max")
    scan = Scan(
        plan.table, (ex.Output(call.name, operand, call.type),), plan.predicate, order=(by,)
    )
    run = index_of(context, view, scan)
    if run is None:
        return None
    rowids = view.in_order(run.index, run.keys, 1, by.descending)
    found = project.project(context, view, rowids, None, scan.outputs)
    return found if len(rowids) else [from_list(call.type, [None])]


@dataclass(frozen=True, slots=True)
class Run:
    """A range of keys of an index, whose rows are in the order that is wanted.

    ``lacks_nulls`` says that rows whose value of the order is NULL are not in it and belong to
    the answer.
    """

    index: IndexDef
    keys: tuple[bytes, bytes]
    lacks_nulls: bool


def index_of(context: Context, view: TableView, plan: Scan) -> Run | None:
    """Return the keys of an index that stand for just the rows that pass, or None."""
    (by, *more) = plan.order
    if more or not view.is_unchanged:
        return None
    nullable = not by.column.not_null and by.column.id not in plan.table.primary_key
    terms = [] if plan.predicate is None else list(access.conjuncts(plan.predicate))
    bounds = access.bounds_of(terms, context)
    for index in plan.table.indexes:
        if index.method != "btree" or index.column_ids[-1] != by.column.id:
            continue
        *before, last = (bounds.get(each, access.Bounds()) for each in index.column_ids)
        prefix = [each.values[0] for each in before if each.values and len(each.values) == 1]
        sides = (last.low[0] is not None) + (last.high[0] is not None)
        is_all = len(prefix) == len(before) and len(terms) == len(prefix) + sides
        ends = (*prefix, last.low[0], last.high[0])
        if is_all and last.values is None and all(map(access.is_short, ends)):
            codec = view.state.cache.codec(plan.table, index)
            found = codec.between(prefix, last.low, last.high)
            if found is not None:
                return Run(index, found, nullable and not sides)
    return None


def _from_index(
    view: TableView, plan: Scan, run: Run, stop: int | None, few: int
) -> np.ndarray | None:
    """Return the rowids of the first rows in order, int64 (n,); None where a sort is better."""
    by = plan.order[0]
    if run.lacks_nulls and (by.nulls_first or stop is None):
        return None
    rowids = view.in_order(run.index, run.keys, few + 1 if stop is None else stop, by.descending)
    if len(rowids) > few or (run.lacks_nulls and len(rowids) < (stop or 0)):
        return None
    return rowids


def _first(context: Context, view: TableView, plan: Scan, stop: int) -> np.ndarray:
    """Return the rowids of the first rows in order among all that pass; int64 (n,)."""
    read = [ex.ColumnRef(by.column) for by in plan.order]
    kept: list[np.ndarray] = [np.empty(0, np.int64) for _ in range(2 * len(read) + 1)]
    for batch in batches.scanned(context, view, plan.predicate, (*read, ex.RowidRef())):
        found = _keys(plan.order, batch)
        near = _promising(found[0], found[1], stop)
        kept = [np.concatenate([a, b[near]]) for a, b in zip(kept, found, strict=True)]
        if len(kept[-1]) > stop:
            best = np.lexsort(kept[::-1])[:stop]
            kept = [part[best] for part in kept]
    return _sorted(kept, plan.order)


def _sorted(keys: list[np.ndarray], order: Sequence[OrderBy]) -> np.ndarray:
    """Return rowids in the order of what :func:`_keys` says of them."""
    ties: np.ndarray = keys[-1][np.lexsort(keys[::-1])]
    return ~ties if order[0].descending else ties


def _promising(nulls: np.ndarray, keys: np.ndarray, stop: int) -> np.ndarray | slice:
    """Return which rows can be among the first, by the first key alone."""
    if len(keys) <= 2 * stop or nulls.any():
        return slice(None)
    return np.flatnonzero(keys <= np.partition(keys, stop)[stop])


def whole(
    context: Context, view: TableView, plan: Scan, skip: int, stop: int | None
) -> list[Column]:
    """Return the outputs of a window of all rows that pass a look at the table, in order."""
    read = [output.expr for output in plan.outputs]
    read += [ex.ColumnRef(by.column) for by in plan.order]
    keys: list[list[np.ndarray]] = []
    parts: list[list[Column]] = []
    for batch in batches.scanned(context, view, plan.predicate, [*read, ex.RowidRef()]):
        keys.append(_keys(plan.order, batch))
        parts.append(project.evaluate_outputs(plan.outputs, batch))
    if not parts:
        nothing = np.empty(0, np.int64)
        return project.project(context, view, nothing, None, plan.outputs)
    found = [np.concatenate(part) for part in zip(*keys, strict=True)]
    order = np.lexsort(found[::-1])[skip:stop]
    return [concat(part[0].type, part).take(order) for part in zip(*parts, strict=True)]


def _keys(order: Sequence[OrderBy], batch: evaluate.Batch) -> list[np.ndarray]:
    """Return what rows are sorted by, ascending.

    For each column whether NULL, and the value; at last the rowid, all bits turned where the first
    column is descending.
    """
    assert batch.rowids is not None
    keys = []
    for by in order:
        column = batch.columns[by.column.id]
        values = _integers(column.values)
        if by.descending:
            values = ~values
        nulls = np.zeros(len(values), np.int8)
        if column.validity is not None:
            nulls[~column.validity] = -1 if by.nulls_first else 1
            values = np.where(column.validity, values, values.dtype.type(0))
        keys += [nulls, values]
    return [*keys, ~batch.rowids if order[0].descending else batch.rowids]


def _integers(values: np.ndarray) -> np.ndarray:
    """Return int64 in the order of numbers; NaN above all, -0.0 equal to 0.0."""
    if values.dtype.kind != "f":
        return values.astype(np.int64, copy=False)
    bits: np.ndarray = (values.astype(np.float64) + 0.0).view(np.int64)
    keys: np.ndarray = bits ^ ((bits >> 63) & _GREATEST)
    keys[np.isnan(values)] = _GREATEST
    return keys
