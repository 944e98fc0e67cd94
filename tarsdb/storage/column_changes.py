"""Updates and deletes of many rows inside a write set: columns in, a run of rows out.

Rows the transaction changed before go one by one, as do few; both ways give the same. UNIQUE holds
as of the end of the statement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.columns import Column
from tarsdb.schema import ColumnDef
from tarsdb.storage import gather, row_changes, staging
from tarsdb.storage.index_keys import null_rows
from tarsdb.storage.own_rows import OwnBlock, OwnRows
from tarsdb.storage.own_runs import OwnRun, RunKeys
from tarsdb.storage.unique import IndexPlan, index_plans, require_moved_unique

if TYPE_CHECKING:
    from tarsdb.storage.view import TableView

MANY_ROWS = 256
"""Rows from which a statement's rows are kept as columns: fewer make no segment, and gathering
them from many segments costs more than reading each."""


def update(
    own: OwnRows,
    view: TableView,
    rowids: np.ndarray,
    changed: Mapping[int, Column],
    segment_rows: int,
) -> None:
    """Give columns of live rows new values, by column id in the order of ``rowids``.

    Raises
    ------
    IntegrityError
    """
    mine = own.covers_many(rowids)
    whole = mine.any() and _moves_unique_keys(view, changed)
    if whole or len(rowids) - int(mine.sum()) < MANY_ROWS:
        row_changes.update(own, view, rowids.tolist(), _lists(changed))
        return
    if mine.any():
        chosen = {c: column.take(mine) for c, column in changed.items()}
        row_changes.update(own, view, rowids[mine].tolist(), _lists(chosen))
        rowids, changed = rowids[~mine], {c: v.take(~mine) for c, v in changed.items()}
    if bool((rowids[1:] < rowids[:-1]).any()):
        order = np.argsort(rowids, kind="stable")
        rowids, changed = rowids[order], {c: v.take(order) for c, v in changed.items()}
    run = _updated(own, view, rowids, changed)
    assert run.block is not None
    values = list((run.block.columns or {}).values())
    parts = (
        staging.cut_rows(values, staging.SegmentLimits(segment_rows)) if values else [(0, len(run))]
    )
    for start, stop in parts:
        own.add_run(run if len(parts) == 1 else run.part(start, stop))


def _lists(changed: Mapping[int, Column]) -> dict[int, list[object]]:
    return {column_id: column.to_list() for column_id, column in changed.items()}


def _moves_unique_keys(view: TableView, changed: Mapping[int, Column]) -> bool:
    return any(
        index.unique and not changed.keys().isdisjoint(index.column_ids)
        for index in view.table.indexes
    )


def _updated(
    own: OwnRows, view: TableView, rowids: np.ndarray, changed: Mapping[int, Column]
) -> OwnRun:
    """Return the run of committed rows, ascending, that get new values."""
    table, group = view.table, view.scalars()
    places = group.locate(view.txn, rowids)
    if (places[0] < 0).any():
        raise row_changes.not_live(view)
    kept = [c for c in table.scalar_columns if c.id not in changed]
    read = gather.at_places(view.txn, group, places, kept)
    values = dict(zip([c.id for c in kept], read, strict=True))
    values |= {c.id: changed[c.id].owned() for c in table.scalar_columns if c.id in changed}
    found = {}
    for plan in index_plans(view, table):
        if not changed.keys().isdisjoint(plan.index.column_ids):
            found[plan.index.id] = _moved_keys(own, view, plan, places, values)
    ended = {0: group.created(view.txn, *places)}
    others: dict[int, np.ndarray] = {}
    for column in table.vector_columns:
        if column.id in changed:
            ended[column.id], others[column.id], values[column.id] = _vectors(
                view, column, rowids, changed[column.id]
            )
    block = OwnBlock(0, len(rowids), values, {}, owned=True)
    return OwnRun(rowids, ended, block, others, found)


def _moved_keys(
    own: OwnRows,
    view: TableView,
    plan: IndexPlan,
    places: tuple[np.ndarray, np.ndarray],
    values: Mapping[int, Column],
) -> RunKeys:
    columns = [view.table.column_by_id(column_id) for column_id in plan.index.column_ids]
    old = plan.codec.encode_columns(gather.at_places(view.txn, view.scalars(), places, columns))
    parts = [values[column.id] for column in columns]
    moved = RunKeys(old, plan.codec.encode_columns(parts), null_rows(parts))
    if plan.index.unique:
        require_moved_unique(view, own, plan, parts, moved)
    return moved


def _vectors(
    view: TableView, column: ColumnDef, rowids: np.ndarray, given: Column
) -> tuple[np.ndarray, np.ndarray, Column]:
    """Return versions that end, rows whose vector is another or none now, and their vectors.

    A vector that is given again as it was is not written again.
    """
    group = view.vector_group(column)
    places = group.locate(view.txn, rowids)
    there = places[0] >= 0
    valid = np.ones(len(rowids), bool) if given.validity is None else given.validity
    before = gather.at_places(view.txn, group, places, [column])[0]
    same = there & valid & _equal_rows(before.values, given.values)
    changed = ~same & (there | valid)
    made = np.where(changed & there, group.created(view.txn, *places), 0)
    return made, changed, Column(column.type, given.values, None, changed & valid).owned()


def _equal_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return which rows of two matrices of one type hold the same bytes."""
    pair = [np.ascontiguousarray(each).view(np.uint8) for each in (left, right)]
    equal: np.ndarray = (pair[0] == pair[1]).all(axis=1)
    return equal


def delete(own: OwnRows, view: TableView, rowids: np.ndarray) -> int:
    """Delete rows; return how many were live."""
    wanted = np.unique(np.asarray(rowids, dtype=np.int64))
    mine = own.covers_many(wanted)
    if len(wanted) - int(mine.sum()) < MANY_ROWS:
        return row_changes.delete(own, view, wanted)
    gone = row_changes.delete(own, view, wanted[mine]) if mine.any() else 0
    run = _deleted(view, wanted[~mine])
    own.add_run(run)
    own.change_live(-len(run))
    return gone + len(run)


def _deleted(view: TableView, rowids: np.ndarray) -> OwnRun:
    """Return the run of committed rows, ascending, that end as far as they are live."""
    table, group = view.table, view.scalars()
    sources, positions = group.locate(view.txn, rowids)
    live = sources >= 0
    if not live.all():
        rowids, sources, positions = rowids[live], sources[live], positions[live]
    ended = {0: group.created(view.txn, sources, positions)}
    for column in table.vector_columns:
        vectors = view.vector_group(column)
        ended[column.id] = vectors.created(view.txn, *vectors.locate(view.txn, rowids))
    found = {}
    for plan in index_plans(view, table):
        columns = [table.column_by_id(column_id) for column_id in plan.index.column_ids]
        parts = gather.at_places(view.txn, group, (sources, positions), columns)
        found[plan.index.id] = RunKeys(plan.codec.encode_columns(parts), [])
    return OwnRun(rowids, ended, None, {}, found)
