"""Evaluate bound expressions over a batch of rows, column by column.

Three-valued logic: a predicate gives a :class:`Truth`, which knows which rows are true and which
are NULL. The same few operations run relationally in DuckDB for anything richer; the two agree by
test. Knows no tables and no transactions.
"""

from __future__ import annotations

import decimal
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.engine.compare import Constant, Truth, both_valid, compare
from tarsdb.errors import BindError, InternalError, ProgrammingError
from tarsdb.index.flat import distances, prepare_query
from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, INT, REAL, Kind, SqlType, to_storage


class Calls(Protocol):
    """Where parameters and calls of an expression get their values."""

    def parameter(self, key: int | str) -> Any:
        """Return the bound Python value."""

    def call(self, call: ex.Call, arguments: list[Column], rows: int) -> Column:
        """Return the values of a function call over a batch."""

    def compare(self, node: ex.Distance, vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return the distances of float32 (n, dim) to a query by a sandboxed metric."""


@dataclass(slots=True)
class Batch:
    """Rows an expression is evaluated over: columns by column id."""

    rows: int
    columns: dict[int, Column]
    calls: Calls
    rowids: np.ndarray | None = None
    excluded: dict[int, Column] = field(default_factory=dict)


def columns_of(*expressions: ex.Expr | None) -> dict[int, ColumnDef]:
    """Return the columns expressions read, by id (``excluded`` columns left out)."""
    found: dict[int, ColumnDef] = {}
    stack: list[Any] = [expression for expression in expressions if expression is not None]
    while stack:
        node = stack.pop()
        if isinstance(node, ex.ColumnRef):
            found[node.column.id] = node.column
        else:
            stack.extend(children(node))
    return found


def parameters_of(expression: ex.Expr) -> tuple[int | str, ...] | None:
    """Return the parameters an expression reads; None when it calls a function."""
    found: dict[int | str, None] = {}
    stack: list[ex.Expr] = [expression]
    while stack:
        node = stack.pop()
        if isinstance(node, ex.Call):
            return None
        if isinstance(node, ex.Parameter):
            found[node.key] = None
        stack.extend(children(node))
    return tuple(found)


def children(node: ex.Expr) -> Sequence[ex.Expr]:
    """Return the operands of an expression."""
    match node:
        case ex.Compare() | ex.Arithmetic() | ex.Distance():
            return (node.left, node.right)
        case ex.And() | ex.Or():
            return node.terms
        case ex.Not() | ex.IsNull():
            return (node.operand,)
        case ex.InList():
            return (node.operand, *node.items)
        case ex.Call():
            return node.args
        case _:
            return ()


def select(predicate: ex.Expr | None, batch: Batch) -> np.ndarray | None:
    """Return the bool mask of rows where the predicate is true; None means every row."""
    return None if predicate is None else truth(predicate, batch).true


def truth(node: ex.Expr, batch: Batch) -> Truth:
    """Evaluate a predicate."""
    match node:
        case ex.And():
            return _conjunction(node.terms, batch)
        case ex.Or():
            flipped = _all([_negate(truth(term, batch)) for term in node.terms])
            return _negate(flipped)
        case ex.Not():
            return _negate(truth(node.operand, batch))
        case ex.IsNull():
            return Truth(_null_mask(value(node.operand, batch), batch.rows))
        case ex.Compare():
            return compare(node.op, value(node.left, batch), value(node.right, batch), batch.rows)
        case ex.InList():
            operand = value(node.operand, batch)
            tests = [compare("=", operand, value(i, batch), batch.rows) for i in node.items]
            return _negate(_all([_negate(test) for test in tests]))
        case _:
            return _as_truth(value(node, batch), batch.rows)


def _conjunction(terms: Sequence[ex.Expr], batch: Batch) -> Truth:
    """Evaluate terms joined by AND; what may overflow sees only rows the others let through."""
    computing = [term for term in terms if _computes(term)]
    if not computing or len(computing) == len(terms):
        return _all([truth(term, batch) for term in terms])
    plain = _all([truth(term, batch) for term in terms if term not in computing])
    open_rows = plain.true if plain.null is None else plain.true | plain.null
    if open_rows.all():
        return _all([plain, *(truth(term, batch) for term in computing)])
    columns = {key: column.take(open_rows) for key, column in batch.columns.items()}
    excluded = {key: column.take(open_rows) for key, column in batch.excluded.items()}
    rowids = None if batch.rowids is None else batch.rowids[open_rows]
    kept = Batch(int(open_rows.sum()), columns, batch.calls, rowids, excluded)
    inner = _all([truth(term, kept) for term in computing])
    rest = Truth(np.zeros(batch.rows, bool), np.zeros(batch.rows, bool))
    assert rest.null is not None
    rest.true[open_rows] = inner.true
    rest.null[open_rows] = False if inner.null is None else inner.null
    return _all([plain, rest])


def _computes(node: ex.Expr) -> bool:
    return isinstance(node, ex.Arithmetic) or any(map(_computes, children(node)))


def _all(terms: list[Truth]) -> Truth:
    true = np.logical_and.reduce([term.true for term in terms])
    if all(term.null is None for term in terms):
        return Truth(true)
    possible = np.logical_and.reduce(
        [term.true if term.null is None else term.true | term.null for term in terms]
    )
    return Truth(true, possible & ~true)


def _negate(operand: Truth) -> Truth:
    false = ~operand.true
    return Truth(false) if operand.null is None else Truth(false & ~operand.null, operand.null)


def _as_truth(operand: Column | Constant, rows: int) -> Truth:
    if isinstance(operand, Constant):
        if operand.value is None:
            return Truth(np.zeros(rows, bool), np.ones(rows, bool))
        return Truth(np.full(rows, bool(operand.value)))
    if operand.type.dtype.kind not in "iuf" or operand.type.is_variable:
        raise ProgrammingError(f"a condition must be BOOLEAN, not {operand.type}")
    true = operand.values != 0
    if operand.validity is None:
        return Truth(true)
    return Truth(true & operand.validity, ~operand.validity)


def _null_mask(operand: Column | Constant, rows: int) -> np.ndarray:
    if isinstance(operand, Constant):
        return np.full(rows, operand.value is None)
    return np.zeros(rows, bool) if operand.validity is None else ~operand.validity


def value(node: ex.Expr, batch: Batch) -> Column | Constant:
    """Evaluate an expression to a column, or to a constant where it is one."""
    match node:
        case ex.Literal():
            return Constant(node.value)
        case ex.Parameter():
            return Constant(batch.calls.parameter(node.key))
        case ex.ColumnRef():
            return batch.columns[node.column.id]
        case ex.Excluded():
            return batch.excluded[node.column.id]
        case ex.RowidRef():
            if batch.rowids is None:
                raise InternalError("rowid is not known here")
            return Column(BIGINT, batch.rowids)
        case ex.Arithmetic():
            return _arithmetic(node.op, value(node.left, batch), value(node.right, batch))
        case ex.Distance():
            return _distance(node, batch)
        case ex.Call():
            arguments = [materialise(value(a, batch), batch.rows) for a in node.args]
            return batch.calls.call(node, arguments, batch.rows)
        case _:
            return _column_of_truth(truth(node, batch))


def _column_of_truth(answer: Truth) -> Column:
    validity = None if answer.null is None else ~answer.null
    return Column(BOOLEAN, answer.true.astype(np.uint8), None, validity)


def materialise(operand: Column | Constant, rows: int, sql_type: SqlType | None = None) -> Column:
    """Return a column of ``rows`` values; a constant is repeated."""
    if isinstance(operand, Column):
        return operand
    wanted = sql_type or natural_type(operand.value)
    return from_list(wanted, [to_storage(operand.value, wanted, "constant")] * rows)


def natural_type(item: Any) -> SqlType:
    """Return the SQL type a bare Python value has."""
    if isinstance(item, (bool, np.bool_)):
        return BOOLEAN
    if isinstance(item, (int, np.integer)):
        return BIGINT
    if isinstance(item, (float, np.floating, decimal.Decimal)):
        return DOUBLE
    if isinstance(item, (bytes, bytearray, memoryview)):
        return SqlType(Kind.BLOB)
    if isinstance(item, np.ndarray) and item.ndim == 1:
        return SqlType(Kind.VECTOR, dim=len(item))
    return SqlType(Kind.TEXT)


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul,
}  # fmt: skip


def _arithmetic(op: str, left: Column | Constant, right: Column | Constant) -> Column | Constant:
    """Compute in DuckDB's common type: INT, BIGINT, DECIMAL or DOUBLE; overflow is an error."""
    operate = _ARITHMETIC[op]
    a, b = _operand(left), _operand(right)
    if isinstance(left, Constant) and isinstance(right, Constant):
        if left.value is None or right.value is None:
            return Constant(None)
        if _is_double(a) or _is_double(b):
            return Constant(operate(float(a), float(b)))
        result = operate(a, b)
        return Constant(to_storage(result, BIGINT, op) if isinstance(result, int) else result)
    rows = len(left) if isinstance(left, Column) else len(right)  # type: ignore[arg-type]
    validity = both_valid(_validity(left, rows), _validity(right, rows))
    if _is_double(a) or _is_double(b):
        with np.errstate(all="ignore"):
            answer = operate(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
        if validity is not None:
            answer = np.where(validity, answer, 0)
        return Column(DOUBLE, np.broadcast_to(answer, (rows,)), None, validity)
    return _exact_column(op, (a, b), rows, validity)


def _exact_column(
    op: str, operands: tuple[Any, Any], rows: int, validity: np.ndarray | None
) -> Column:
    operate = _ARITHMETIC[op]
    wanted = _exact_type(operands)
    if wanted.kind is not Kind.DECIMAL and rows:
        low, high = -(2 ** (wanted.dtype.itemsize * 8 - 1)), 2 ** (wanted.dtype.itemsize * 8 - 1)
        first, second = ((int(np.min(x)), int(np.max(x))) for x in operands)
        if all(low <= operate(x, y) < high for x in first for y in second):
            answer = operate(*(np.asarray(x, dtype=np.int64) for x in operands))
            return Column(
                wanted, np.broadcast_to(answer, (rows,)).astype(wanted.dtype), None, validity
            )
    with decimal.localcontext(prec=76):
        results = operate(*(np.asarray(x, dtype=object) for x in operands))
    items = np.broadcast_to(results, (rows,)).tolist()
    if validity is not None:
        items = [item if ok else None for item, ok in zip(items, validity.tolist(), strict=True)]
    return from_list(wanted, [to_storage(item, wanted, f"({op})") for item in items])


def _exact_type(operands: tuple[Any, Any]) -> SqlType:
    """Return the common type of whole numbers and decimals."""
    scales = [-int(x.as_tuple().exponent) for x in operands if isinstance(x, decimal.Decimal)]
    if scales:
        return SqlType(Kind.DECIMAL, precision=38, scale=min(max(*scales, 0, 0), 38))
    small = all(
        item.dtype.itemsize <= 4 if isinstance(item, np.ndarray) else -(2**31) <= item < 2**31
        for item in operands
    )
    return INT if small else BIGINT


def _is_double(operand: Any) -> bool:
    return isinstance(operand, float) or getattr(operand, "dtype", None) == np.float64


def _plain(item: Any) -> Any:
    if isinstance(item, np.generic):
        item = item.item()
    if isinstance(item, decimal.Decimal) and not item.is_finite():
        return float(item)
    if isinstance(item, bool) or not isinstance(item, (int, float, decimal.Decimal)):
        raise BindError(f"{item!r:.40} ({type(item).__name__}) is not a number")
    return item


def _operand(operand: Column | Constant) -> Any:
    """Return a column's values or a constant's number (NULL as 0: its validity says so)."""
    if isinstance(operand, Constant):
        return 0 if operand.value is None else _plain(operand.value)
    sql_type = operand.type
    if sql_type.kind not in (Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.REAL, Kind.DOUBLE):
        raise BindError(f"{sql_type} is not a number")
    return operand.values.astype(np.float64) if sql_type.kind is Kind.REAL else operand.values


def _validity(operand: Column | Constant, rows: int) -> np.ndarray | None:
    if isinstance(operand, Column):
        return operand.validity
    return np.zeros(rows, bool) if operand.value is None else None


def _distance(node: ex.Distance, batch: Batch) -> Column:
    op, left, right = node.op, value(node.left, batch), value(node.right, batch)
    if node.function:
        return _metric(node, left, right, batch.calls)
    if isinstance(left, Constant):
        left, right = right, left  # every metric is symmetric
    if isinstance(left, Constant):
        raise ProgrammingError(f"{op} needs a vector column on one side")
    if isinstance(right, Constant):
        if right.value is None:
            nothing = np.zeros(len(left), dtype=np.float32)
            return Column(REAL, nothing, None, np.zeros(len(left), bool))
        other, validity = prepare_query(right.value, left.type), left.validity
    else:
        other, validity = right.values, both_valid(left.validity, right.validity)
    result = distances(op, left.values, other, left.type)
    return Column(REAL, np.asarray(result, dtype=np.float32), None, validity)


def _metric(
    node: ex.Distance, rows: Column | Constant, query: Column | Constant, calls: Calls
) -> Column:
    assert isinstance(rows, Column)  # the binder puts a column on the left
    asked = query.get(0) if isinstance(query, Column) else query.value
    if asked is None:
        nothing = np.zeros(len(rows), dtype=np.float32)
        return Column(REAL, nothing, None, np.zeros(len(rows), bool))
    one = prepare_query(asked, rows.type).astype(np.float32, copy=False)
    if rows.validity is None:
        return Column(REAL, calls.compare(node, rows.values.astype(np.float32, copy=False), one))
    result = np.zeros(len(rows), dtype=np.float32)
    vectors = rows.values[rows.validity].astype(np.float32, copy=False)
    result[rows.validity] = calls.compare(node, vectors, one)
    return Column(REAL, result, None, rows.validity)
