"""INSERT of a few plain rows in as little Python as it takes.

Serves ``VALUES`` into a table whose missing columns have constant defaults, without generated
columns, CHECK, triggers, ON CONFLICT or RETURNING; everything else goes through ``mutate``, column
by column. Both give the same rows and the same errors.
"""

from __future__ import annotations

from typing import Any

from tarsdb.engine.context import Context
from tarsdb.engine.result import Result
from tarsdb.engine.writing.identity import first_number
from tarsdb.errors import IntegrityError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Insert
from tarsdb.types import to_storage

MAX_ROWS = 16


class _Shape:
    """Where each column of the table gets its value: a place in VALUES, or a constant."""

    def __init__(self, plan: Insert) -> None:
        table = plan.table
        given = {column.id: place for place, column in enumerate(plan.columns)}
        constants = {c.id: to_storage(e.value, c.type, c.name) for c, e in _literals(plan)}
        self.sources = [
            (column, given.get(column.id), constants.get(column.id), _is_required(table, column))
            for column in table.columns
        ]


def _literals(plan: Insert) -> list[tuple[ColumnDef, ex.Literal]]:
    return [(column, node) for column, node in plan.defaults if isinstance(node, ex.Literal)]


def _is_required(table: TableDef, column: ColumnDef) -> bool:
    return column.not_null or column.id in table.primary_key


def serves(plan: Insert) -> bool:
    """Return True for the plans this module runs; worked out once a plan."""
    known = plan.memo.get("row_insert")
    if known is None:
        table = plan.table
        known = (
            0 < len(plan.rows) <= MAX_ROWS
            and plan.query is None
            and plan.on_conflict is None
            and plan.returning is None
            and plan.returning_sql is None
            and not table.checks
            and not table.triggers
            and len(_literals(plan)) == len(plan.defaults)
            and all(column.generated is None for column in table.columns)
        )
        plan.memo["row_insert"] = known
    return bool(known)


def insert(context: Context, plan: Insert) -> Result:
    """Insert the rows of VALUES."""
    shape: _Shape | None = plan.memo.get("row_shape")
    if shape is None:
        shape = plan.memo["row_shape"] = _Shape(plan)
    rows = [_row(context, plan, shape, number) for number in range(len(plan.rows))]
    context.require_writes().insert(plan.table, context.view(plan.table), rows)
    answer = Result(changed=len(rows))
    numbered = plan.table.identity
    if numbered is not None:
        answer.last_id = rows[-1][plan.table.ordinals[numbered.id]]
    return answer


def _row(context: Context, plan: Insert, shape: _Shape, number: int) -> tuple[Any, ...]:
    values = [
        context.parameter(node.key) if isinstance(node, ex.Parameter) else context.constant(node)
        for node in plan.rows[number]
    ]
    row = []
    for column, place, constant, required in shape.sources:
        item = constant
        if place is not None:
            item = to_storage(values[place], column.type, column.name)
        if item is None and required:
            item = _number(context, plan.table, column, number)
        row.append(item)
    return tuple(row)


def _number(context: Context, table: TableDef, column: ColumnDef, row: int) -> int:
    """Return what a required column without a value gets."""
    if not column.identity:
        raise IntegrityError(
            f"NOT NULL constraint failed: {table.name}.{column.name} (row {row + 1})"
        )
    return first_number(context, table, column, 1)
