"""New values of rows that exist: computed from the assignments, checked, written, returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tarsdb.columns import Column, concat, empty
from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.engine.reading.compare import Constant
from tarsdb.engine.result import Result
from tarsdb.engine.writing import derive
from tarsdb.schema import TableDef
from tarsdb.sql.plan import Delete, Insert, Update


class Changes(NamedTuple):
    """New values of some rows: what was read or changed of them, as it is to be, by column id."""

    rowids: np.ndarray
    columns: derive.Columns
    changed: set[int]


def changes(
    context: Context, plan: Update, rowids: np.ndarray, given: list[Column | Constant] | None
) -> Changes:
    """Return the new values of rows, computed from the assignments where none are given.

    Parameters
    ----------
    rowids : ndarray
        int64 (rows,), each once.
    given : list, optional
        New values of the plan's columns.

    Returns
    -------
    Changes
        With RETURNING of all columns.
    """
    context.engines.interrupt.check()
    table, count = plan.table, len(rowids)
    read = _columns_read(context, plan, given is None)
    columns = dict(zip(read, context.view(table).rows(rowids, read), strict=True))
    if given is None:
        batch = evaluate.Batch(count, dict(columns), context, rowids)
        given = [evaluate.value(node, batch) for node in plan.assignments]
    for column, answer in zip(plan.columns, given, strict=True):
        columns[column.id] = derive.cast_column(answer, column, count)
    changed = {column.id for column in plan.columns}
    changed |= derive.generate(context, table, columns, count, changed)
    derive.check(context, table, columns, count, changed)
    return Changes(rowids, columns, changed)


def write(context: Context, table: TableDef, found: Sequence[Changes]) -> None:
    """Give rows their new values."""
    if not found:
        return
    rowids, columns, changed = found[0]
    values = {c: columns[c] for c in changed}
    if len(found) > 1:
        rowids = np.concatenate([each.rowids for each in found])
        values = {c: concat(v.type, [e.columns[c] for e in found]) for c, v in values.items()}
    context.require_writes().update_columns(table, context.view(table), rowids, values)


def _columns_read(context: Context, plan: Update, evaluates: bool) -> list[int]:
    """Return the ids of the columns an UPDATE needs of the rows as they are."""
    if returns(plan):
        return [column.id for column in plan.table.columns]
    changed = {column.id for column in plan.columns}
    read = derive.inputs(context, plan.table, changed)
    if evaluates:
        read |= evaluate.columns_of(*plan.assignments).keys()
    return sorted(read)


def returning(
    context: Context,
    plan: Insert | Update | Delete,
    columns: derive.Columns,
    rows: int,
    rowids: np.ndarray | None = None,
) -> Result:
    """Return what RETURNING asks of rows, given as all their columns."""
    if plan.returning_sql is not None:
        return derive.relational_over(context, plan.returning_sql, _row(plan), columns, rows)
    assert plan.returning is not None
    batch = evaluate.Batch(rows, columns, context, rowids)
    answers = [
        evaluate.materialise(evaluate.value(o.expr, batch), rows, o.type) for o in plan.returning
    ]
    names = [output.name for output in plan.returning]
    return Result(names, [answer.type for answer in answers], columns=answers)


def _row(plan: Insert | Update | Delete) -> TableDef:
    """Return the columns RETURNING can read, as a table's."""
    if isinstance(plan, Insert) or not plan.others:
        return plan.table
    return replace(plan.table, columns=(*plan.table.columns, *plan.others))


def other_columns(plan: Update | Delete, part: Any, first: int) -> derive.Columns:
    """Return what RETURNING reads of other tables, from the rows of the plan's ``source``.

    Parameters
    ----------
    part : pyarrow.Table
    first : int
        The first of these columns.
    """
    from tarsdb.engine.arrow import sql_type_of
    from tarsdb.engine.arrow_input import from_arrow

    found = {}
    for column, values in zip(plan.others, part.columns[first:], strict=True):
        is_known = plan.returning is not None or column.type.is_vector
        sql_type = column.type if is_known else sql_type_of(values.type)
        found[column.id] = from_arrow(values, sql_type, column.name)
    return found


def returns(plan: Insert | Update | Delete) -> bool:
    """Return whether a statement has a RETURNING."""
    return plan.returning is not None or plan.returning_sql is not None


def answer(
    context: Context, plan: Insert | Update | Delete, parts: list[Result], written: int
) -> Result:
    """Return what a statement answers; a RETURNING that no row came to still has its columns."""
    if not returns(plan):
        return Result(changed=written)
    if not parts:
        nothing = {column.id: empty(column.type) for column in _row(plan).columns}
        parts = [returning(context, plan, nothing, 0, np.empty(0, np.int64))]
    rows = [row for part in parts for row in part.rows()]
    return Result(parts[0].names, parts[0].types, rows=rows, changed=written)
