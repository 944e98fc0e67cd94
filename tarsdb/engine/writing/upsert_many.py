"""ON CONFLICT for many rows at once, where their order makes no difference.

That is where one unique index of one column decides, its keys are all different, and what is done
with a row leaves its key. The other statements go row by row, in `upsert`; both give the same.
"""

from __future__ import annotations

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.engine.writing import derive
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Insert, OnConflict
from tarsdb.types import Kind

LEAST_ROWS = 8
"""Rows from which they are worth making columns of."""
_KEYS = frozenset({Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.TEXT})


def apply(context: Context, plan: Insert, given: derive.Columns, rows: int) -> np.ndarray | None:
    """Insert the new rows and change the others as ON CONFLICT says.

    Returns
    -------
    ndarray or None
        bool (rows,): which rows were inserted or updated. None where the rows go one by one.
    """
    rule, table = plan.on_conflict, plan.table
    assert rule is not None
    index = _deciding_index(plan, rule)
    if index is None or rows < LEAST_ROWS:
        return None
    keys = given[index.column_ids[0]]
    if keys.validity is not None or len(set(keys.to_list())) < rows:
        return None
    rowids = context.view(table).find_each(index, keys)
    stored = rowids < 0
    fresh, there = np.flatnonzero(stored), np.flatnonzero(~stored)
    if rule.assignments is not None and len(there):
        chosen = _update(context, table, rule, rowids[there], _taken(given, there))
        stored[there[chosen]] = True
    if len(fresh):
        columns = _taken(given, fresh)
        ordered = [columns[column.id] for column in table.columns]
        context.require_writes().insert_columns(table, context.view(table), ordered)
    return stored


def _deciding_index(plan: Insert, rule: OnConflict) -> IndexDef | None:
    table = plan.table
    unique = [index for index in table.indexes if index.unique]
    if len(unique) != 1 or len(unique[0].column_ids) != 1 or rule.relational is not None:
        return None
    if plan.returning is not None or plan.returning_sql is not None or table.triggers:
        return None
    key = table.column_by_id(unique[0].column_ids[0])
    if key.type.kind not in _KEYS or key.generated is not None:
        return None
    if table.identity is not None and table.identity.id != key.id:
        return None
    if not all(_keeps(key, column, node) for column, node in rule.assignments or ()):
        return None
    return unique[0]


def _keeps(key: ColumnDef, column: ColumnDef, node: ex.Expr) -> bool:
    return column.id != key.id or (isinstance(node, ex.Excluded) and node.column.id == key.id)


def _taken(columns: derive.Columns, rows: np.ndarray) -> derive.Columns:
    return {column_id: column.take(rows) for column_id, column in columns.items()}


def _update(
    context: Context, table: TableDef, rule: OnConflict, rowids: np.ndarray, new: derive.Columns
) -> np.ndarray:
    """Update rows; return the positions of those WHERE lets through."""
    context.engines.interrupt.check()
    ids = [column.id for column in table.columns]
    old: dict[int, Column] = dict(zip(ids, context.view(table).rows(rowids, ids), strict=True))
    chosen = np.arange(len(rowids))
    mask = evaluate.select(rule.where, evaluate.Batch(len(rowids), old, context, None, new))
    if mask is not None:
        chosen = np.flatnonzero(mask)
        rowids, old, new = rowids[chosen], _taken(old, chosen), _taken(new, chosen)
    if not len(chosen):
        return chosen
    count = len(chosen)
    batch = evaluate.Batch(count, dict(old), context, None, new)
    answers = {c.id: evaluate.value(node, batch) for c, node in rule.assignments or ()}
    for column_id, answer in answers.items():
        old[column_id] = derive.cast_column(answer, table.column_by_id(column_id), count)
    changed = set(answers) | derive.generate(context, table, old, count, set(answers))
    derive.check(context, table, old, count, changed)
    values = {column_id: old[column_id] for column_id in changed}
    context.require_writes().update_columns(table, context.view(table), rowids, values)
    return chosen
