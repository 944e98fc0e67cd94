"""INSERT of a few plain rows in as little Python as it takes.

Serves ``VALUES`` into a table whose missing columns have constant defaults, without generated
columns, CHECK, triggers or RETURNING. ON CONFLICT may update with what ``row_values`` serves.
Everything else goes through ``mutate``, column by column. Both give the same rows and the same
errors.
"""

from __future__ import annotations

from typing import Any

from tarsdb.engine.context import Context
from tarsdb.engine.result import Result
from tarsdb.engine.writing import upsert
from tarsdb.engine.writing.identity import first_number
from tarsdb.engine.writing.row_values import (
    Assignments,
    NotPlain,
    is_required,
    missing,
    require,
    stored,
)
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Insert
from tarsdb.types import to_storage

MAX_ROWS = 16
Row = tuple[Any, ...]
"""Storage values in the table's column order."""


class _Shape:
    """Where each column of the table gets its value: a place in VALUES, or a constant."""

    def __init__(self, plan: Insert) -> None:
        table = plan.table
        given = {column.id: place for place, column in enumerate(plan.columns)}
        constants = {c.id: to_storage(e.value, c.type, c.name) for c, e in _literals(plan)}
        self.sources = [
            (column, given.get(column.id), constants.get(column.id), is_required(table, column))
            for column in table.columns
        ]
        self.ids = [column.id for column in table.columns]
        self.updates = _updates(plan)
        numbered = [] if table.identity is None else [table.identity.id]
        self.read = sorted({*numbered, *(self.updates.columns if self.updates else ())})


def _literals(plan: Insert) -> list[tuple[ColumnDef, ex.Literal]]:
    return [(column, node) for column, node in plan.defaults if isinstance(node, ex.Literal)]


def _updates(plan: Insert) -> Assignments | None:
    rule = plan.on_conflict
    if rule is None or rule.assignments is None:
        return None
    return Assignments(rule.assignments)


def serves(plan: Insert) -> bool:
    """Return True for the plans this module runs; worked out once a plan."""
    known = plan.memo.get("row_insert")
    if known is None:
        table = plan.table
        known = (
            0 < len(plan.rows) <= MAX_ROWS
            and plan.query is None
            and _is_plain(plan)
            and plan.returning is None
            and plan.returning_sql is None
            and not table.checks
            and not table.triggers
            and len(_literals(plan)) == len(plan.defaults)
            and all(column.generated is None for column in table.columns)
        )
        plan.memo["row_insert"] = known
    return bool(known)


def _is_plain(plan: Insert) -> bool:
    """Return whether this module does what ON CONFLICT says."""
    rule = plan.on_conflict
    if rule is None:
        return True
    updates = _updates(plan)
    plain = updates is None or updates.is_plain
    return plain and rule.relational is None and rule.where is None


def insert(context: Context, plan: Insert) -> Result:
    """Insert the rows of VALUES."""
    shape: _Shape | None = plan.memo.get("row_shape")
    if shape is None:
        shape = plan.memo["row_shape"] = _Shape(plan)
    table = plan.table
    rows = [_row(context, plan, shape, number) for number in range(len(plan.rows))]
    if plan.on_conflict is None:
        context.require_writes().insert(table, context.view(table), rows)
        answer = Result(changed=len(rows))
        if table.identity is not None:
            answer.last_id = rows[-1][table.ordinals[table.identity.id]]
        return answer
    each = [_store(context, plan, shape, row) for row in rows]
    done = [found for found in each if found is not None]
    answer = Result(changed=len(done))
    if table.identity is not None and done:
        answer.last_id = done[-1][table.identity.id]
    return answer


def _store(context: Context, plan: Insert, shape: _Shape, row: Row) -> dict[int, Any] | None:
    """Insert a row, or do what ON CONFLICT says.

    Returns what is known of the row as it then is, its number at least; None where nothing is done.
    """
    table, view, rule = plan.table, context.view(plan.table), plan.on_conflict
    assert rule is not None
    writes, new = context.require_writes(), dict(zip(shape.ids, row, strict=True))
    rowid = upsert.existing(table, rule.index, view, row)
    if rowid is None:
        writes.insert(table, view, [row])
        return new
    if shape.updates is None:
        return None
    old = dict(zip(shape.read, view.row(rowid, shape.read) or (), strict=True))
    try:
        values = shape.updates.values(context, old, new)
    except NotPlain:
        updated = upsert.update(context, table, rule, (rowid, row))
        return None if updated is None else dict(zip(shape.ids, updated, strict=True))
    require(table, values)
    writes.update_row(table, view, rowid, values)
    return old | values


def _row(context: Context, plan: Insert, shape: _Shape, number: int) -> Row:
    values = [
        context.parameter(node.key) if isinstance(node, ex.Parameter) else context.constant(node)
        for node in plan.rows[number]
    ]
    row = []
    for column, place, constant, required in shape.sources:
        item = constant
        if place is not None:
            item = stored(values[place], column)
        if item is None and required:
            item = _number(context, plan.table, column, number)
        row.append(item)
    return tuple(row)


def _number(context: Context, table: TableDef, column: ColumnDef, row: int) -> int:
    """Return what a required column without a value gets."""
    if not column.identity:
        raise missing(table, column, row + 1)
    return first_number(context, table, column, 1)
