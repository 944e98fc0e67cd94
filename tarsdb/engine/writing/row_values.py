"""New values of one row as plain Python values, where they need no columns.

Serves parameters, constants, columns of one type, and whole numbers and DOUBLEs put together with
``+ - *``. What is not served, or comes out too large, is computed by ``evaluate``, column by
column: both give the same values, and only that one says what is wrong with a value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tarsdb.engine.context import Context
from tarsdb.errors import IntegrityError
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.sql import expressions as ex
from tarsdb.types import Kind, to_storage

_LIMITS = {Kind.SMALLINT: 1 << 15, Kind.INT: 1 << 31, Kind.BIGINT: 1 << 63}
_NUMBERS = frozenset({*_LIMITS, Kind.DOUBLE})
_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
}  # fmt: skip
_CONSTANTS = (ex.Parameter, ex.Literal)
Row = Mapping[int, Any]
"""Storage values by column id."""


class NotPlain(Exception):
    """These values are to be computed column by column."""


class Assignments:
    """``SET column = expression, ...``; made once a plan.

    Attributes
    ----------
    columns : list of int
        Ids of the columns the expressions read of the row.
    is_plain : bool
        Whether :meth:`values` may be asked.
    """

    __slots__ = ("_pairs", "columns", "is_plain")

    def __init__(self, pairs: Iterable[tuple[ColumnDef, ex.Expr]]) -> None:
        self._pairs = list(pairs)
        nodes = list(ex.walk(*(node for _, node in self._pairs)))
        self.columns = list({n.column.id: None for n in nodes if isinstance(n, ex.ColumnRef)})
        self.is_plain = all(_is_served(node, column) for column, node in self._pairs)

    def values(self, context: Context, old: Row, new: Row) -> dict[int, Any]:
        """Return storage values by column id.

        Parameters
        ----------
        context : Context
        old, new : mapping
            What expressions read of the row, and of ``excluded``.

        Raises
        ------
        NotPlain
        DataError
            A parameter or constant does not fit its column.
        """
        pairs = self._pairs
        found = [_value(context, node, column, (old, new)) for column, node in pairs]
        return {
            column.id: stored(item, column) if isinstance(node, _CONSTANTS) else item
            for (column, node), item in zip(pairs, found, strict=True)
        }


def stored(item: Any, column: ColumnDef) -> Any:
    """Return the storage value of a Python value; an array is never the caller's own.

    Raises
    ------
    DataError
    """
    value = to_storage(item, column.type, column.name)
    return value.copy() if isinstance(value, np.ndarray) else value


def require(table: TableDef, values: Row, number: int = 1) -> None:
    """Check NOT NULL of new values of a row.

    Raises
    ------
    IntegrityError
        Names the first column without a value, and the row's number in its statement.
    """
    for column in table.columns:
        if values.get(column.id, table) is None and is_required(table, column):
            raise missing(table, column, number)


def is_required(table: TableDef, column: ColumnDef) -> bool:
    """Return whether a column may not be NULL."""
    return column.not_null or column.id in table.primary_key


def missing(table: TableDef, column: ColumnDef, number: int) -> IntegrityError:
    """Return the error of a required column without a value."""
    return IntegrityError(f"NOT NULL constraint failed: {table.name}.{column.name} (row {number})")


def _is_served(node: ex.Expr, target: ColumnDef) -> bool:
    if isinstance(node, (ex.ColumnRef, ex.Excluded)):
        return node.column.type == target.type
    if isinstance(node, ex.Arithmetic):
        return target.type.kind in _NUMBERS and _is_number(node)
    return isinstance(node, _CONSTANTS)


def _is_number(node: ex.Expr) -> bool:
    if isinstance(node, ex.Arithmetic):
        return _is_number(node.left) and _is_number(node.right)
    if isinstance(node, (ex.ColumnRef, ex.Excluded)):
        return node.column.type.kind in _NUMBERS
    return isinstance(node, _CONSTANTS)


def _value(context: Context, node: ex.Expr, target: ColumnDef, rows: Sequence[Row]) -> Any:
    """Return an expression's value; of a parameter or constant, what the caller gave."""
    if isinstance(node, _CONSTANTS):
        return _constant(context, node)
    if isinstance(node, (ex.ColumnRef, ex.Excluded)):
        return rows[isinstance(node, ex.Excluded)][node.column.id]
    value, _ = _number(context, node, rows)
    if target.type.kind is Kind.DOUBLE:
        return None if value is None else float(value)
    limit = _LIMITS[target.type.kind]
    if value is not None and not (type(value) is int and -limit <= value < limit):
        raise NotPlain
    return value


def _number(context: Context, node: ex.Expr, rows: Sequence[Row]) -> tuple[Any, int]:
    """Return a number (None for NULL) and the limit of the type it has, as ``evaluate`` types it.

    That is INT for small whole numbers, BIGINT where a column or constant is larger.
    """
    if isinstance(node, ex.Arithmetic):
        left, low = _number(context, node.left, rows)
        right, high = _number(context, node.right, rows)
        if left is None or right is None:
            return None, max(low, high)
        if type(left) is not type(right):
            left, right = float(left), float(right)
        value, limit = _OPERATIONS[node.op](left, right), max(low, high)
        if type(value) is int and not -limit <= value < limit:
            raise NotPlain
        return value, limit
    if isinstance(node, (ex.ColumnRef, ex.Excluded)):
        value = rows[isinstance(node, ex.Excluded)][node.column.id]
        return value, max(_LIMITS.get(node.column.type.kind, 0), _LIMITS[Kind.INT])
    value = _constant(context, node)
    limit = _LIMITS[Kind.INT]
    if type(value) is int:
        if not -limit <= value < limit:
            limit = _LIMITS[Kind.BIGINT]
        if not -limit <= value < limit:
            raise NotPlain
    elif value is not None and type(value) is not float:
        raise NotPlain
    return value, limit


def _constant(context: Context, node: ex.Expr) -> Any:
    return context.parameter(node.key) if isinstance(node, ex.Parameter) else context.constant(node)
