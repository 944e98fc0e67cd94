"""UPDATE and DELETE of the one row a unique key names, in as little Python as it takes.

Finds the row in the index, without choosing one, and writes it without columns. New values come
from ``row_values`` where they are plain and no CHECK, generated column or RETURNING asks for more,
else from ``changes``. Statements without such a key go through ``mutate``. Both give the same rows
and the same errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.engine.reading import access, evaluate
from tarsdb.engine.reading.key_lookup import KeyLookup
from tarsdb.engine.result import Result
from tarsdb.engine.writing import derive, row_values
from tarsdb.engine.writing.changes import answer, changes, returning, returns
from tarsdb.schema import TableDef
from tarsdb.sql.plan import Delete, Update
from tarsdb.storage import TableView


class _Way:
    """How a plan finds its row, and the values it gets; worked out once a plan."""

    def __init__(self, context: Context, plan: Update | Delete) -> None:
        assert plan.key is not None
        self.lookup = KeyLookup(plan.table, plan.key.index, plan.key.key)
        self.rest = plan.key.rest
        self.read = list(evaluate.columns_of(self.rest))
        self.assignments: row_values.Assignments | None = None
        if isinstance(plan, Update) and not returns(plan):
            pairs = zip(plan.columns, plan.assignments, strict=True)
            assignments = row_values.Assignments(pairs)
            ids = {column.id for column in plan.columns}
            if assignments.is_plain and not derive.inputs(context, plan.table, ids):
                self.assignments = assignments


def _way(context: Context, plan: Update | Delete) -> _Way | None:
    known: _Way | None = plan.memo.get("row_change")
    if known is None and plan.key is not None:
        known = plan.memo["row_change"] = _Way(context, plan)
    return known


def update(context: Context, plan: Update) -> Result | None:
    """Update the row; None where it is to be looked for in the usual way."""
    way, table = _way(context, plan), plan.table
    rowid = None if way is None else _rowid(context, way, context.view(table))
    if way is None or rowid is None:
        return None
    if rowid < 0:
        return answer(context, plan, [], 0)
    values = _plain_values(context, way, table, rowid)
    found = None
    if values is None:
        found = changes(context, plan, np.array([rowid], dtype=np.int64), None)
        values = {column_id: found.columns[column_id].to_list()[0] for column_id in found.changed}
    context.require_writes().update_row(table, context.view(table), rowid, values)
    if found is None or not returns(plan):
        return Result(changed=1)
    return answer(context, plan, [returning(context, plan, found.columns, 1, found.rowids)], 1)


def delete(context: Context, plan: Delete) -> Result | None:
    """Delete the row; None where it is to be looked for in the usual way."""
    way, table, view = _way(context, plan), plan.table, context.view(plan.table)
    rowid = None if way is None else _rowid(context, way, view)
    if rowid is None:
        return None
    if rowid < 0:
        return answer(context, plan, [], 0)
    answers = []
    if returns(plan):
        ids, rowids = [column.id for column in table.columns], np.array([rowid], dtype=np.int64)
        columns = dict(zip(ids, view.rows(rowids, ids), strict=True))
        answers.append(returning(context, plan, columns, 1, rowids))
    context.require_writes().delete_row(table, view, rowid)
    return answer(context, plan, answers, 1)


def _rowid(context: Context, way: _Way, view: TableView) -> int | None:
    """Return the rowid of the row that WHERE keeps; -1 for none.

    None where the key is to be compared with every row.
    """
    context.engines.interrupt.check()
    try:
        rowid = way.lookup.rowid(context, view)
    except access.NoKey:
        return None
    if rowid < 0 or way.rest is None:
        return rowid
    rowids = np.array([rowid], dtype=np.int64)
    columns = dict(zip(way.read, view.rows(rowids, way.read), strict=True))
    mask = evaluate.select(way.rest, evaluate.Batch(1, columns, context, rowids))
    return rowid if mask is None or mask[0] else -1


def _plain_values(
    context: Context, way: _Way, table: TableDef, rowid: int
) -> dict[int, Any] | None:
    """Return new storage values by column id; None where they are computed as columns."""
    assignments = way.assignments
    if assignments is None:
        return None
    old: row_values.Row = {}
    if assignments.columns:
        row = context.view(table).row(rowid, assignments.columns)
        assert row is not None  # an index names live rows
        old = dict(zip(assignments.columns, row, strict=True))
    try:
        values = assignments.values(context, old, {})
    except row_values.NotPlain:
        return None
    row_values.require(table, values)
    return values
