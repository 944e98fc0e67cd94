"""Checks and small conversions that INSERT and UPDATE share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlglot import exp

from tarsdb.errors import BindError, DataError, NotSupportedError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.sql.binding import where
from tarsdb.types import Kind, to_storage


def check_targets(table: TableDef, columns: Iterable[ColumnDef]) -> None:
    """Raise BindError for a column nobody may write."""
    for column in columns:
        if column.generated is not None:
            raise BindError(
                f"column {table.name}.{column.name} is generated, it cannot be written",
                hint="leave it out, it is computed",
            )


def is_default(node: Any) -> bool:
    """Return True for the keyword DEFAULT in place of a value."""
    if isinstance(node, exp.Var):
        return bool(node.name.upper() == "DEFAULT")
    if not isinstance(node, exp.Column) or node.args.get("table") is not None:
        return False
    return bool(node.name.upper() == "DEFAULT" and not node.this.args.get("quoted"))


def reject_parts(tree: Any, known: set[str]) -> None:
    """Raise NotSupportedError for a clause that would be ignored."""
    for part, value in tree.args.items():
        if value and part not in known:
            raise NotSupportedError(
                f"{part.strip('_').upper()} in {type(tree).__name__.upper()} is not supported"
                f"{where(tree)}"
            )


def fits(expr: ex.Expr, column: ColumnDef) -> bool:
    """Return True when a value can be stored as it is: DuckDB's casts are not needed."""
    if not isinstance(expr, ex.Literal) or expr.value is None or column.type.is_vector:
        return True
    if isinstance(expr.value, str) and column.type.kind in (Kind.DATE, Kind.TIMESTAMP, Kind.TIME,
                                                           Kind.TIMESTAMPTZ, Kind.INTERVAL,
                                                           Kind.BLOB, Kind.ARRAY):  # fmt: skip
        from tarsdb.sql.core import is_date, is_timestamp

        if column.type.kind is Kind.DATE:
            return is_date(expr.value)
        return column.type.kind is Kind.TIMESTAMP and is_timestamp(expr.value)
    try:
        to_storage(expr.value, column.type, column.name)
    except DataError:
        return False
    return True
