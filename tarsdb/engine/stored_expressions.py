"""DEFAULT, CHECK and generated columns are bound, and refused where need be, when they are made."""

from __future__ import annotations

from tarsdb.columns import Column, empty
from tarsdb.engine import references
from tarsdb.engine.context import Context
from tarsdb.engine.writing import derive
from tarsdb.errors import BindError, CatalogError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import bind_expression, check_stored
from tarsdb.sql import expressions as ex
from tarsdb.sql.plan import Relational
from tarsdb.types import TEXT, Kind, SqlType

_TRUTHS = frozenset(
    {Kind.BOOLEAN, Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.REAL, Kind.DOUBLE, Kind.DECIMAL}
)


def validate_expressions(context: Context, table: TableDef) -> None:
    """Bind every expression once, so that a mistake is found now."""
    generated = {column.id for column in table.columns if column.generated is not None}
    for column in table.columns:
        if column.default is not None:
            _validate_default(context, table, column)
        if column.generated is not None:
            expression = _bound(context, table, column.generated)
            _validate_generated(table, column, expression)
            if derive.sources(expression) & generated:
                raise CatalogError(
                    f"generated column {table.name}.{column.name} reads a generated column"
                )
    for name, text in table.checks:
        found = _type_of(_bound(context, table, text), context, table)
        if found is not None and found.kind not in _TRUTHS:
            raise BindError(
                f"CHECK {name} of table {table.name}: {text} is {found}, neither true nor false"
            )
    references.pin_functions(context, table)


def _validate_default(context: Context, table: TableDef, column: ColumnDef) -> None:
    """Refuse a DEFAULT that reads a row, and a constant that its column does not take."""
    text = str(column.default)
    expression = _bound(context, table, text, is_default=True)
    if derive.sources(expression):
        raise CatalogError(f"DEFAULT of {table.name}.{column.name} reads a column")
    if isinstance(expression, ex.Literal):
        derive.cast_column(derive.evaluate_bound(context, expression, table, {}, 1), column, 1)


def _type_of(expression: ex.Expr | Relational, context: Context, table: TableDef) -> SqlType | None:
    """Return the type of an expression, None where it is not known or a truth value."""
    if isinstance(expression, Relational):
        nothing = {column.id: empty(column.type) for column in table.columns}
        answer = derive.evaluate_bound(context, expression, table, nothing, 0)
        return answer.type if isinstance(answer, Column) else None
    if isinstance(expression, ex.ColumnRef):
        return expression.column.type
    if isinstance(expression, ex.Literal) and isinstance(expression.value, str):
        return TEXT
    return getattr(expression, "returns", None)


def _bound(
    context: Context, table: TableDef, text: str, is_default: bool = False
) -> ex.Expr | Relational:
    """Bind an expression; what DuckDB evaluates, DuckDB binds too, over no rows."""
    expression = bind_expression(text, table, context.catalog)
    check_stored(text, is_default)
    if isinstance(expression, Relational):
        nothing = {column.id: empty(column.type) for column in table.columns}
        try:
            derive.evaluate_bound(context, expression, table, nothing, 0)
        except BindError as error:
            raise BindError(f"table {table.name}: {text}: {error.message}", error.hint) from error
    return expression


def _validate_generated(
    table: TableDef, column: ColumnDef, expression: ex.Expr | Relational
) -> None:
    """Refuse a vector of another width than the model's, and no vector where it gives one."""
    if not isinstance(expression, ex.Call) or expression.kind != "model":
        return
    given = expression.returns
    if given is None or not (given.is_vector or column.type.is_vector):
        return  # what is assigned can be cast
    if not (given.is_vector and column.type.is_vector and column.type.dim == given.dim):
        gives = f"{given.dim} dimensions" if given.is_vector else str(given)
        raise CatalogError(
            f"generated column {table.name}.{column.name} is {column.type}, "
            f"model {expression.target} gives {gives}",
            hint=f"declare it {given}",
        )
