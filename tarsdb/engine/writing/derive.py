"""Values a table derives itself: defaults, generated columns, and the constraints they meet.

Works on batches of columns by column id, for one row and for a million alike. Models and
sandboxed functions run here, before any lock is taken.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.engine.context import Context
from tarsdb.engine.reading import evaluate
from tarsdb.engine.reading.compare import Constant
from tarsdb.engine.result import Result
from tarsdb.engine.udf.functions import cast
from tarsdb.engine.writing.identity import number_rows
from tarsdb.errors import DataError, DimensionMismatchError, IntegrityError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import bind_expression
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Relational
from tarsdb.types import Kind, to_storage

Columns = dict[int, Column]
_INTEGERS = frozenset({Kind.SMALLINT, Kind.INT, Kind.BIGINT})
_PLAIN = {int, type(None)}


def bound(context: Context, table: TableDef, text: str) -> ex.Expr | Relational:
    """Bind an expression of a table definition; kept while the catalog stays the same."""
    if context.catalog is not context.snapshot.catalog:
        return bind_expression(text, table, context.catalog)
    kept = context.snapshot.env.caches.setdefault("expressions", {})
    key = (table.id, table.version, context.snapshot.catalog_version, text)
    expression = kept.get(key)
    if expression is None:
        expression = kept[key] = bind_expression(text, table, context.catalog)
    return expression  # type: ignore[no-any-return]


def evaluate_bound(
    context: Context, expression: ex.Expr | Relational, table: TableDef, columns: Columns, rows: int
) -> Column | Constant:
    """Evaluate a bound expression over rows being written."""
    if not isinstance(expression, Relational):
        return evaluate.value(expression, evaluate.Batch(rows, columns, context))
    from tarsdb.engine.arrow import sql_type_of
    from tarsdb.engine.arrow_input import from_arrow

    answer = relational_over(context, expression, table, columns, rows).arrow()
    values = answer.sort_by("__no").column("value")
    return from_arrow(values, sql_type_of(values.type), "expression")


def relational_over(
    context: Context, plan: Relational, table: TableDef, columns: Columns, rows: int
) -> Result:
    """Run a relational plan whose relation ``__batch`` is the rows being written."""
    from tarsdb.engine.executor import relational_result
    from tarsdb.engine.reading import scans

    batch = scans.batch_scan(table, columns, rows)
    names = [relation.name for relation in plan.relations if relation.batch]
    return relational_result(context, plan, dict.fromkeys(names, batch))


def sources(expression: ex.Expr | Relational) -> set[int]:
    """Return the ids of the columns an expression of a table definition reads."""
    if isinstance(expression, Relational):
        return {column.id for relation in expression.relations for column in relation.columns}
    return set(evaluate.columns_of(expression))


def generate(
    context: Context, table: TableDef, columns: Columns, rows: int, changed: set[int] | None = None
) -> set[int]:
    """Fill the generated columns; with ``changed``, only those whose sources changed.

    Returns
    -------
    set of int
        Ids of the columns that were computed.
    """
    computed: set[int] = set()
    for column in table.columns:
        if column.generated is None:
            continue
        expression = bound(context, table, column.generated)
        if changed is not None and not sources(expression) & (changed | computed):
            continue
        answer = evaluate_bound(context, expression, table, columns, rows)
        columns[column.id] = cast_column(answer, column, rows)
        computed.add(column.id)
    return computed


def inputs(context: Context, table: TableDef, changed: set[int]) -> set[int]:
    """Return the ids of the columns that a change of some columns needs to know.

    These are what generated columns and CHECKs that depend on them read, directly or through
    a generated column.
    """
    found: set[int] = set()
    reached = set(changed)
    for column in table.columns:
        if column.generated is not None:
            read = sources(bound(context, table, column.generated))
            if read & reached:
                found |= read
                reached.add(column.id)
    for _, text in table.checks:
        read = sources(bound(context, table, text))
        if read & reached:
            found |= read
    return found


def cast_column(answer: Column | Constant, column: ColumnDef, rows: int) -> Column:
    """Return an evaluated answer as a column of the table's column type."""
    if isinstance(answer, Constant):
        return from_list(column.type, [to_storage(answer.value, column.type, column.name)] * rows)
    if answer.type == column.type:
        return answer
    if answer.type.is_vector and column.type.is_vector:
        if answer.type.dim != column.type.dim:
            raise DimensionMismatchError(
                f"column {column.name} is {column.type}, the value has {answer.type.dim} dimensions"
            )
        values = answer.values.astype(column.type.dtype)
        return Column(column.type, values, None, answer.validity)
    return cast(answer, column.type, column.name)


def fill_defaults(
    context: Context,
    table: TableDef,
    columns: Columns,
    rows: int,
    defaults: tuple[tuple[ColumnDef, ex.Expr | Relational], ...],
) -> None:
    """Give omitted columns their number, their default or NULL."""
    number_rows(context, table, columns, rows)
    for column, expression in defaults:
        answer = evaluate_bound(context, expression, table, {}, rows)
        columns[column.id] = cast_column(answer, column, rows)
    for column in table.columns:
        if column.id not in columns and column.generated is None:
            columns[column.id] = from_list(column.type, [None] * rows)


def check(
    context: Context, table: TableDef, columns: Columns, rows: int, changed: set[int] | None = None
) -> None:
    """Enforce NOT NULL, PRIMARY KEY's NOT NULL and CHECK on rows about to be written.

    With ``changed``, only what reads one of these columns: the rest held before.

    Raises
    ------
    IntegrityError
        Names the constraint and the first offending row.
    """
    for column in table.columns:
        if changed is not None and column.id not in changed:
            continue
        required = column.not_null or column.id in table.primary_key
        validity = columns[column.id].validity
        if required and validity is not None and not validity.all():
            row = int(np.argmin(validity))
            raise IntegrityError(
                f"NOT NULL constraint failed: {table.name}.{column.name} (row {row + 1})"
            )
    for name, text in table.checks:
        if changed is None or sources(bound(context, table, text)) & changed:
            _check_one(context, table, columns, rows, (name, text))


def _check_one(
    context: Context, table: TableDef, columns: Columns, rows: int, constraint: tuple[str, str]
) -> None:
    name, text = constraint
    answer = evaluate_bound(context, bound(context, table, text), table, columns, rows)
    if isinstance(answer, Constant):
        failed = np.full(rows, answer.value is not None and not answer.value)
    else:
        failed = np.asarray(answer.values) == 0
        if answer.validity is not None:
            failed &= answer.validity  # NULL passes a CHECK
    if failed.any():
        row = int(np.argmax(failed))
        raise IntegrityError(
            f"CHECK constraint {name} failed: {text} (table {table.name}, row {row + 1})"
        )


def as_rows(table: TableDef, columns: Columns) -> list[tuple[Any, ...]]:
    """Return columns as rows of storage values in the table's column order."""
    return list(zip(*(columns[column.id].to_list() for column in table.columns), strict=True))


def as_columns(table: TableDef, rows: list[tuple[Any, ...]]) -> Columns:
    """Return rows of storage values in column order as columns."""
    if not rows:
        return {column.id: from_list(column.type, []) for column in table.columns}
    pairs = zip(table.columns, zip(*rows, strict=True), strict=True)
    return {column.id: from_list(column.type, items) for column, items in pairs}


def convert(items: list[Any], column: ColumnDef) -> Column:
    """Return Python values as a column, fast where they are already arrays.

    Raises
    ------
    DataError
        Names the column and the value that does not fit.
    """
    if column.type.is_vector and items and isinstance(items[0], np.ndarray):
        stacked = _stack(items, column)
        if stacked is not None:
            return stacked
    if column.type.kind in _INTEGERS and set(map(type, items)) <= _PLAIN:
        with contextlib.suppress(OverflowError):  # to_storage names the value
            return from_list(column.type, items)
    return from_list(column.type, [to_storage(item, column.type, column.name) for item in items])


def _stack(items: list[Any], column: ColumnDef) -> Column | None:
    """Convert vectors of numbers and of the right shape in one go, or give up (None)."""
    if column.type.kind.value not in ("VECTOR", "HALFVEC"):
        return None
    shape = (column.type.dim,)
    if not all(type(v) is np.ndarray and v.shape == shape and v.dtype.kind in "fiu" for v in items):
        return None
    values = np.stack(items).astype(column.type.dtype, copy=False)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise DataError(
            f"column {column.name}: the vector of row {row + 1} holds NaN or infinity",
            hint="store NULL for a missing vector",
        )
    return Column(column.type, values)
