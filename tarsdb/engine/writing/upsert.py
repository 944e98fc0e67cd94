"""INSERT ... ON CONFLICT: rows go in one after the other, as SQLite and PostgreSQL define it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.engine.reading.compare import Constant
from tarsdb.engine.writing import derive, triggers
from tarsdb.schema import IndexDef, TableDef
from tarsdb.sql.plan import Insert, OnConflict
from tarsdb.storage import TableView

Row = tuple[Any, ...]


def apply(context: Context, plan: Insert, columns: derive.Columns) -> list[Row]:
    """Insert each row, or do what ON CONFLICT says; returns the rows inserted or updated."""
    table, rule = plan.table, plan.on_conflict
    assert rule is not None
    stored: list[Row] = []
    inserted: list[Row] = []
    for row in derive.as_rows(table, columns):
        view = context.view(table)
        rowid = existing(table, rule.index, view, row)
        if rowid is None:
            context.require_writes().insert(table, view, [row])
            stored.append(row)
            inserted.append(row)
        elif rule.assignments is not None or rule.relational is not None:
            updated = update(context, table, rule, (rowid, row))
            if updated is not None:
                stored.append(updated)
    triggers.after_insert(context, table, derive.as_columns(table, inserted), len(inserted))
    return stored


def existing(table: TableDef, index: IndexDef | None, view: TableView, row: Row) -> int | None:
    """Return the row id an index already holds for the row's key."""
    candidates = [index] if index is not None else [i for i in table.indexes if i.unique]
    for candidate in candidates:
        key = tuple(row[table.ordinals[column_id]] for column_id in candidate.column_ids)
        if None not in key:
            found = view.find_one(candidate, key)
            if found >= 0:
                return found
    return None


def update(
    context: Context, table: TableDef, rule: OnConflict, conflict: tuple[int, Row]
) -> Row | None:
    """Change the row of a rowid as a rule says, with the row that met it; return it as it is then.

    None where WHERE rejects it.
    """
    rowid, row = conflict
    view = context.view(table)
    ids = [column.id for column in table.columns]
    old = dict(zip(ids, view.rows(np.array([rowid]), ids), strict=True))
    excluded = derive.as_columns(table, [row])
    answers = _assignments(context, table, rule, old, excluded)
    if answers is None:
        return None
    for column_id, answer in answers.items():
        old[column_id] = derive.cast_column(answer, table.column_by_id(column_id), 1)
    changed = set(answers) | derive.generate(context, table, old, 1, set(answers))
    derive.check(context, table, old, 1, changed)
    values = {column_id: old[column_id].to_list() for column_id in changed}
    context.require_writes().update(table, view, [rowid], values)
    return derive.as_rows(table, old)[0]


def _assignments(
    context: Context, table: TableDef, rule: OnConflict, old: derive.Columns, new: derive.Columns
) -> dict[int, Column | Constant] | None:
    """Return the new values by column id, or None where WHERE rejects the row."""
    if rule.relational is not None:
        return _relational(context, table, rule, old, new)
    batch = evaluate.Batch(1, old, context, None, new)
    mask = evaluate.select(rule.where, batch)
    if mask is not None and not mask[0]:
        return None
    assert rule.assignments is not None
    return {column.id: evaluate.value(node, batch) for column, node in rule.assignments}


def _relational(
    context: Context, table: TableDef, rule: OnConflict, old: derive.Columns, new: derive.Columns
) -> dict[int, Column | Constant] | None:
    from tarsdb.engine.executor import relational_result
    from tarsdb.engine.reading import scans

    assert rule.relational is not None
    relations = {
        "__old": scans.batch_scan(table, old, 1),
        "__new": scans.batch_scan(table, new, 1),
    }
    answer = relational_result(context, rule.relational, relations).rows()
    if not answer:
        return None
    values = answer[0][1:]  # the first column is __no
    return {
        column.id: _cell(column.type, value, column.name)
        for column, value in zip(rule.columns, values, strict=True)
    }


def _cell(sql_type: Any, value: Any, name: str) -> Column:
    from tarsdb.types import to_storage

    return from_list(sql_type, [to_storage(value, sql_type, name)])
