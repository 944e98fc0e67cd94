"""Triggers: sandboxed functions that look at the rows of an INSERT, and may reject one.

The function gets the columns its arguments are named after, as they are stored, a batch at a time.
What it returns for a row decides: TEXT that is not NULL rejects it with that message, INT that is
not 0 with that number. Before constraints are checked it may also return BOOLEAN: a row that is
not true is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tarsdb.columns import Column
from tarsdb.engine.context import Context
from tarsdb.engine.result import Result
from tarsdb.engine.writing.derive import Columns
from tarsdb.errors import CatalogError, IntegrityError
from tarsdb.schema import FunctionDef, TableDef, TriggerDef
from tarsdb.sql.plan import CreateTrigger, Drop
from tarsdb.types import Kind

MAX_MESSAGE = 500
"""Characters of a function's message that an error shows."""
_VERDICTS = {"BEFORE": (Kind.TEXT, Kind.INT, Kind.BOOLEAN), "AFTER": (Kind.TEXT, Kind.INT)}


def create_trigger(context: Context, plan: CreateTrigger) -> Result:
    """Run CREATE TRIGGER; the rows that are there already are not looked at."""
    table, function = context.catalog.table(plan.table), context.catalog.function(plan.function)
    if _find(context, plan.name) is not None:
        if plan.if_not_exists:
            return Result()
        raise CatalogError(f"trigger {plan.name!r} exists already")
    if table is None:
        raise CatalogError(f"table {plan.table!r} does not exist")
    if function is None:
        raise CatalogError(
            f"function {plan.function!r} does not exist", hint="CREATE FUNCTION it first"
        )
    trigger = TriggerDef(plan.name, function.name, plan.timing)
    _check(table, function, trigger)
    writes = context.require_writes()
    writes.put_object("function", function.name, function)  # a commit that drops it conflicts
    changed = replace(table, triggers=(*table.triggers, trigger))
    writes.put_object("table", table.name, changed)
    context.refresh()
    return Result()


def drop_trigger(context: Context, plan: Drop) -> Result:
    """Run DROP TRIGGER."""
    table = _find(context, plan.name)
    if table is None:
        if plan.if_exists:
            return Result()
        raise CatalogError(f"trigger {plan.name!r} does not exist")
    kept = tuple(t for t in table.triggers if t.name.lower() != plan.name.lower())
    context.require_writes().put_object("table", table.name, replace(table, triggers=kept))
    context.refresh()
    return Result()


def _find(context: Context, name: str) -> TableDef | None:
    for table in context.catalog.tables():
        if any(trigger.name.lower() == name.lower() for trigger in table.triggers):
            return table
    return None


def _check(table: TableDef, function: FunctionDef, trigger: TriggerDef) -> None:
    name = trigger.name
    if function.kind != "scalar" or function.returns.kind not in _VERDICTS[trigger.timing]:
        last = ", or BOOLEAN (false leaves it out)" if trigger.timing == "BEFORE" else ""
        raise CatalogError(
            f"trigger {name}: function {function.name} returns {function.result}, expected TEXT (a "
            f"message rejects the row) or INT (not 0 rejects it){last}"
        )
    for argument, sql_type in function.arguments:
        column = table.column(argument)
        if column is None or column.type != sql_type:
            found = f"column {column.name} is {column.type}" if column else "there is none"
            raise CatalogError(
                f"trigger {name}: function {function.name} takes {argument} {sql_type}, "
                f"in table {table.name} {found}",
                hint="its arguments are named after columns, and of their types",
            )


def columns_of(context: Context, table: TableDef) -> set[int]:
    """Return the ids of the columns that the triggers of a table read."""
    found = set()
    for trigger in table.triggers:
        function = context.catalog.function(trigger.function)
        for argument, _ in function.arguments if function is not None else ():
            column = table.column(argument)
            if column is not None:
                found.add(column.id)
    return found


def before_insert(
    context: Context, table: TableDef, columns: Columns, rows: int
) -> tuple[Columns, int]:
    """Ask the BEFORE triggers of a table about rows; return those that none leaves out.

    Raises
    ------
    IntegrityError, UdfError
        As :func:`after_insert`.
    """
    for trigger, function in _of(context, table, "BEFORE") if rows else ():
        verdict = _verdict(context, table, function, (columns, rows))
        if verdict.type.kind is not Kind.BOOLEAN:
            _refuse_rejected(table, trigger, verdict)
            continue
        keep = _is_set(verdict)
        if not keep.all():
            columns = {number: column.take(keep) for number, column in columns.items()}
            rows = int(keep.sum())
            if rows == 0:
                break
    return columns, rows


def after_insert(context: Context, table: TableDef, columns: Columns, rows: int) -> None:
    """Ask the AFTER triggers of a table about rows that were inserted.

    Raises
    ------
    IntegrityError
        One rejects a row: names the trigger, the row and what the function says.
    UdfError
        A function failed.
    """
    for trigger, function in _of(context, table, "AFTER") if rows else ():
        _refuse_rejected(table, trigger, _verdict(context, table, function, (columns, rows)))


def _of(context: Context, table: TableDef, timing: str) -> Iterator[tuple[TriggerDef, FunctionDef]]:
    for trigger in table.triggers:
        if trigger.timing == timing:
            function = context.catalog.function(trigger.function)
            if function is None:
                raise CatalogError(f"trigger {trigger.name}: function {trigger.function} is gone")
            yield trigger, function


def _verdict(
    context: Context, table: TableDef, function: FunctionDef, batch: tuple[Columns, int]
) -> Column:
    columns, rows = batch
    given = []
    for argument, _ in function.arguments:
        column = table.column(argument)
        assert column is not None  # the definitions hold on to each other
        given.append(columns[column.id])
    return context.call_function(function, given, rows)


def _refuse_rejected(table: TableDef, trigger: TriggerDef, verdict: Column) -> None:
    rejected = np.flatnonzero(_is_set(verdict))
    if len(rejected):
        row = int(rejected[0])
        raise IntegrityError(
            f"trigger {trigger.name} rejected a row: {str(verdict.get(row))[:MAX_MESSAGE]} "
            f"(table {table.name}, row {row + 1})"
        )


def _is_set(verdict: Column) -> np.ndarray:
    """Return where a verdict is a text, or a number or BOOLEAN other than 0."""
    valid = np.ones(len(verdict), bool) if verdict.validity is None else verdict.validity
    return valid if verdict.offsets is not None else valid & (verdict.values != 0)
