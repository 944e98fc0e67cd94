"""What kind of value an expression has, as far as comparing and computing natively goes."""

from __future__ import annotations

import datetime as dt
import decimal

from tarsdb.errors import BindError
from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, INT, REAL, TEXT, Kind, Physical, SqlType

_OF_TYPE = {
    Kind.SMALLINT: "number", Kind.INT: "number", Kind.BIGINT: "number", Kind.REAL: "number",
    Kind.DOUBLE: "number", Kind.TEXT: "text", Kind.BOOLEAN: "bool", Kind.DATE: "date",
    Kind.TIMESTAMP: "timestamp", Kind.UUID: "uuid", Kind.VECTOR: "vector", Kind.HALFVEC: "vector",
    Kind.INT8VEC: "vector", Kind.BIT: "vector",
}  # fmt: skip
_WHOLE = {Kind.SMALLINT: 0, Kind.INT: 1, Kind.BIGINT: 2}
_EXACT_BITS = {
    Kind.SMALLINT: 15, Kind.INT: 31, Kind.BIGINT: 63, Kind.REAL: 24, Kind.DOUBLE: 53,
}  # fmt: skip
_EXACT_DIGITS = 15  # of a decimal literal whose nearest float64 every way of converting finds
BOOLEAN_NODES = (ex.Compare, ex.And, ex.Or, ex.Not, ex.IsNull, ex.InList, ex.Like)


def type_category(sql_type: SqlType | None) -> str:
    """Return the category of a type: number, text, ..., or 'other'."""
    if sql_type is None:
        return "other"
    if sql_type.kind is Kind.DECIMAL:
        return "decimal" if sql_type.physical is Physical.INT64 else "other"
    return _OF_TYPE.get(sql_type.kind, "other")


def category(expr: ex.Expr) -> str:
    """Return the category of an expression; 'param' and 'null' where it is open."""
    match expr:
        case ex.ColumnRef() | ex.Excluded():
            return type_category(expr.column.type)
        case ex.Literal():
            return _literal(expr.value)
        case ex.Parameter():
            return "param"
        case ex.RowidRef() | ex.Arithmetic() | ex.Distance():
            return "number"
        case ex.Call() | ex.Scalar() | ex.Case():
            return type_category(expr.returns)
        case _:
            return "bool"


def _literal(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, (int, float, decimal.Decimal)):
        return "number"
    if isinstance(value, dt.date):
        return "timestamp" if isinstance(value, dt.datetime) else "date"
    return "text" if isinstance(value, str) else "other"


def check_operator(operator: str, column: ColumnDef, place: str) -> None:
    """Raise BindError unless the distance operator is defined for the column's type."""
    if not column.type.is_vector:
        raise BindError(
            f"operator {operator} needs a vector, column {column.name} is {column.type}{place}"
        )
    bits = column.type.kind is Kind.BIT
    if bits != (operator in ("<~>", "<%>")):
        fitting = "<~> or <%>" if bits else "<-> <#> <=> or <+>"
        raise BindError(
            f"operator {operator} is not defined for column {column.name} {column.type}{place}",
            hint=f"use {fitting}",
        )


def common_number(
    left: SqlType | None, right: SqlType | None, expr: ex.Arithmetic
) -> SqlType | None:
    """Return the type of ``left op right``, or None where DuckDB's would need its own rules."""
    first = left or _literal_type(expr.left)
    second = right or _literal_type(expr.right)
    if first is None or second is None:
        return None
    if first.kind in _WHOLE and second.kind in _WHOLE:
        if Kind.SMALLINT in (first.kind, second.kind) and None in (left, right):
            return None  # the literal takes the type of the column there
        wide = max(_WHOLE[first.kind], _WHOLE[second.kind])
        return INT if wide == 1 else BIGINT if wide == 2 else None
    kinds = {first.kind, second.kind}
    if Kind.DOUBLE in kinds:
        return DOUBLE if kinds <= {Kind.DOUBLE, Kind.REAL, *_WHOLE} else None
    return REAL if Kind.REAL in kinds and kinds <= {Kind.REAL, Kind.DECIMAL, *_WHOLE} else None


def _literal_type(expr: ex.Expr) -> SqlType | None:
    if not isinstance(expr, ex.Literal):
        return None
    if isinstance(expr.value, int) and not isinstance(expr.value, bool):
        return INT if abs(expr.value) < 2**31 else BIGINT
    if isinstance(expr.value, decimal.Decimal):
        digits = len(expr.value.as_tuple().digits)
        return SqlType(Kind.DECIMAL, digits, 0) if digits <= _EXACT_DIGITS else None
    return DOUBLE if isinstance(expr.value, float) else None


def output_type(expr: ex.Expr) -> SqlType | None:
    """Return the type of a native output; None when only running it tells."""
    if isinstance(expr, ex.ColumnRef):
        return expr.column.type
    if isinstance(expr, ex.RowidRef):
        return SqlType(Kind.BIGINT)
    if isinstance(expr, ex.Distance):
        return REAL
    if isinstance(expr, BOOLEAN_NODES):
        return BOOLEAN
    if isinstance(expr, ex.Arithmetic):
        return common_number(output_type(expr.left), output_type(expr.right), expr)
    if isinstance(expr, (ex.Call, ex.Scalar, ex.Case)):
        return expr.returns
    return None


def constant_type(expr: ex.Expr) -> SqlType | None:
    """Return the type of a literal as an output, where it is one of ours whatever is beside it."""
    value = expr.value if isinstance(expr, ex.Literal) else None
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, int):
        return INT if abs(value) < 2**31 else None
    return TEXT if isinstance(value, str) else None


def fits_declaration(call: ex.Call) -> bool:
    """Return True when a function's arguments get its types without casts that are DuckDB's.

    Numbers may become wider ones, as they do there. A call of constants only does not fit: DuckDB
    makes it once, whatever the number of rows.
    """
    nodes = tuple(ex.walk(*call.args))
    if not any(isinstance(node, ex.ColumnRef) for node in nodes):
        return False
    if any(isinstance(node, ex.Distance) for node in nodes):
        return False
    return all(_fits(node, wanted) for node, wanted in zip(call.args, call.takes, strict=True))


def _fits(node: ex.Expr, wanted: SqlType) -> bool:
    if isinstance(node, ex.Parameter):
        return True
    if isinstance(node, ex.Literal):
        return _literal_fits(node.value, wanted.kind)
    given = output_type(node)
    return given is not None and (given == wanted or is_wider(given, wanted))


def is_wider(given: SqlType, wanted: SqlType) -> bool:
    """Return True where each number of a type has one number in the other, its nearest there."""
    if given.kind in _WHOLE:
        wider = wanted.kind in _WHOLE and _WHOLE[wanted.kind] > _WHOLE[given.kind]
        return wider or wanted.kind in (Kind.REAL, Kind.DOUBLE)
    return given.kind is Kind.REAL and wanted.kind is Kind.DOUBLE


def _literal_fits(value: object, kind: Kind) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return kind is Kind.BOOLEAN
    if isinstance(value, int):
        return abs(value) < 1 << _EXACT_BITS.get(kind, 0)
    if isinstance(value, decimal.Decimal):
        exact = len(value.as_tuple().digits) <= _EXACT_DIGITS
        return exact and kind in (Kind.REAL, Kind.DOUBLE)
    if isinstance(value, float):
        return kind is Kind.DOUBLE
    return isinstance(value, str) and kind is Kind.TEXT
