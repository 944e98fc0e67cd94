"""Evaluate bound expressions over a batch of rows, column by column.

Three-valued logic: a predicate gives a :class:`Truth`, which knows which rows are true and which
are NULL. The same few operations run relationally in DuckDB for anything richer; the two agree by
test. Knows no tables and no transactions.
"""

from __future__ import annotations

import decimal
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, Protocol

import numpy as np

from tarsdb.columns import Column, concat, from_list
from tarsdb.engine.reading import like, scalar
from tarsdb.engine.reading.compare import Constant, Truth, both_valid, compare
from tarsdb.errors import BindError, InternalError, ProgrammingError
from tarsdb.index.flat import distances, prepare_query
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef
from tarsdb.sql import expressions as ex
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, INT, REAL, TEXT, Kind, SqlType, to_storage


class Calls(Protocol):
    """Where parameters and calls of an expression get their values."""

    def parameter(self, key: int | str) -> Any:
        """Return the bound Python value."""

    def call(self, call: ex.Call, arguments: list[Column], rows: int) -> Column:
        """Return the values of a function call over a batch."""

    def in_case(self, name: str, texts: Column) -> Column:
        """Return ``lower`` or ``upper`` of texts that have other letters than ASCII's."""

    def ilike(self, texts: Column, pattern: str) -> np.ndarray:
        """Return which texts match whatever the case, where some have other letters than ASCII's.

        bool (rows,); False where NULL.
        """

    def compare(self, node: ex.Distance, vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
        """Return the distances of float32 (n, dim) to a query by a sandboxed metric."""


@dataclass(slots=True)
class Batch:
    """Rows an expression is evaluated over: columns by column id.

    ``called`` are values of functions that were called for these rows already, and distances that
    are known.
    """

    rows: int
    columns: dict[int, Column]
    calls: Calls
    rowids: np.ndarray | None = None
    excluded: dict[int, Column] = field(default_factory=dict)
    called: dict[ex.Call | ex.Distance, Column] = field(default_factory=dict)

    def where(self, mask: np.ndarray, *read: ex.Expr | None) -> Batch:
        """Return the rows of a bool mask, with what some expressions read of them."""
        nodes = list(ex.walk(*read))
        if not nodes:
            return Batch(int(np.count_nonzero(mask)), {}, self.calls)
        rows = np.flatnonzero(mask)
        wanted = {node.column.id for node in nodes if isinstance(node, ex.ColumnRef)}
        columns = {key: self.columns[key].take(rows) for key in wanted}
        excluded = {key: column.take(rows) for key, column in self.excluded.items()}
        rowids = None if self.rowids is None else self.rowids[rows]
        kinds = (ex.Call, ex.Distance)
        known = {node for node in nodes if isinstance(node, kinds) and node in self.called}
        called = {node: self.called[node].take(rows) for node in known}
        return Batch(len(rows), columns, self.calls, rowids, excluded, called)


def columns_of(*expressions: ex.Expr | None) -> dict[int, ColumnDef]:
    """Return the columns expressions read, by id (``excluded`` columns left out)."""
    nodes = ex.walk(*expressions)
    return {node.column.id: node.column for node in nodes if isinstance(node, ex.ColumnRef)}


def parameters_of(expression: ex.Expr) -> tuple[int | str, ...] | None:
    """Return the parameters an expression reads; None when it calls a function."""
    nodes = list(ex.walk(expression))
    if any(isinstance(node, ex.Call) for node in nodes):
        return None
    return tuple(dict.fromkeys(node.key for node in nodes if isinstance(node, ex.Parameter)))


def select(predicate: ex.Expr | None, batch: Batch) -> np.ndarray | None:
    """Return the bool mask of rows where the predicate is true; None means every row."""
    if predicate is None:
        return None
    stages = _stages(predicate.terms if isinstance(predicate, ex.And) else (predicate,))
    mask = truth(stages[0], batch).true
    for number, stage in enumerate(stages[1:], 1):
        if mask.all():
            mask = truth(stage, batch).true
        else:
            passed = truth(stage, batch.where(mask, *stages[number:])).true
            mask[np.flatnonzero(mask)[~passed]] = False
    return mask


def narrowed(batch: Batch, predicate: ex.Expr | None, *read: ex.Expr) -> Batch:
    """Return the rows where a predicate is true, with what some expressions read of them.

    What costs more, or may fail, sees only the rows that everything cheaper lets through.
    """
    if predicate is None:
        return batch
    stages = _stages(predicate.terms if isinstance(predicate, ex.And) else (predicate,))
    for number, stage in enumerate(stages, 1):
        mask = truth(stage, batch).true
        if not mask.all():
            batch = batch.where(mask, *stages[number:], *read)
    return batch


_COMPUTING = (ex.Arithmetic, ex.Like, ex.Scalar, ex.Case)


def _stages(terms: Sequence[ex.Expr]) -> list[ex.Expr]:
    """Return terms joined by AND in order of their cost: plain, computing, calls one by one."""
    if len(terms) == 1:
        return list(terms)
    groups: list[list[ex.Expr]] = [[], []]
    for term in terms:
        if ex.calls(term):
            groups.append([term])
        else:
            computes = any(isinstance(node, _COMPUTING) for node in ex.walk(term))
            groups[computes].append(term)
    return [group[0] if len(group) == 1 else ex.And(tuple(group)) for group in groups if group]


def truth(node: ex.Expr, batch: Batch) -> Truth:
    """Evaluate a predicate."""
    match node:
        case ex.And():
            return _conjunction(node.terms, batch)
        case ex.Or():
            return _negate(_conjunction([ex.Not(term) for term in node.terms], batch))
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
        case ex.Like():
            return _like(node, batch)
        case _:
            return _as_truth(value(node, batch), batch.rows)


def _like(node: ex.Like, batch: Batch) -> Truth:
    texts, pattern = value(node.operand, batch), value(node.pattern, batch)
    assert isinstance(texts, Column)  # the binder says so
    assert isinstance(pattern, Constant)
    if pattern.value is None:
        return Truth(np.zeros(batch.rows, bool), np.ones(batch.rows, bool))
    if not isinstance(pattern.value, str):
        found = f"{pattern.value!r:.40} ({type(pattern.value).__name__})"
        raise BindError(f"LIKE needs a pattern of TEXT, not {found}")
    if not node.ignores_case:
        true = like.matches(texts, pattern.value)
    elif pattern.value.isascii() and scalar.is_ascii(texts):
        true = like.matches(scalar.ascii_in_case("lower", texts), pattern.value.lower())
    else:
        true = batch.calls.ilike(texts, pattern.value)
    return Truth(true) if texts.validity is None else Truth(true & texts.validity, ~texts.validity)


def _conjunction(terms: Sequence[ex.Expr], batch: Batch) -> Truth:
    """Evaluate terms joined by AND; a later stage sees only rows the earlier leave open."""
    stages = _stages(terms)
    if len(stages) == 1:
        return _all([truth(term, batch) for term in terms])
    answer = truth(stages[0], batch)
    for stage in stages[1:]:
        open_rows = answer.true if answer.null is None else answer.true | answer.null
        if open_rows.all():
            answer = _all([answer, truth(stage, batch)])
            continue
        inner = truth(stage, batch.where(open_rows, stage))
        rest = Truth(np.zeros(batch.rows, bool), np.zeros(batch.rows, bool))
        assert rest.null is not None
        rest.true[open_rows] = inner.true
        rest.null[open_rows] = False if inner.null is None else inner.null
        answer = _all([answer, rest])
    return answer


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
        case ex.Scalar() | ex.Case() | ex.Distance():
            return _distance(node, batch) if isinstance(node, ex.Distance) else _scalar(node, batch)
        case ex.Call() | ex.Guarded():
            return _called(node, batch) if isinstance(node, ex.Call) else _guarded(node, batch)
        case _:
            return _column_of_truth(truth(node, batch))


def _scalar(node: ex.Scalar | ex.Case, batch: Batch) -> Column:
    if isinstance(node, ex.Scalar) and node.name == "cast":
        given = materialise(value(node.args[0], batch), batch.rows)
        return Column(node.returns, given.values.astype(node.returns.dtype), None, given.validity)
    if isinstance(node, ex.Scalar):
        texts = [materialise(value(each, batch), batch.rows, TEXT) for each in node.args]
        return scalar.text_function(node.name, texts, node.returns, batch.calls.in_case)
    values = [materialise(value(each, batch), batch.rows, node.returns) for each in node.values]
    return scalar.choose([truth(each, batch).true for each in node.conditions], values)


def _called(node: ex.Call, batch: Batch) -> Column:
    known = batch.called.get(node) if batch.called else None
    if known is not None:
        return known
    arguments = [argument_of(node, number, batch) for number in range(len(node.args))]
    answer = batch.calls.call(node, arguments, batch.rows)
    if node.kind == "udf" and not node.is_volatile:
        batch.called[node] = answer
    return answer


def argument_of(node: ex.Call, number: int, batch: Batch) -> Column:
    """Return an argument of a call for the rows of a batch, not cast to the function's type yet."""
    sql_type = node.takes[number] if node.takes else None
    given = value(node.args[number], batch)
    return _argument(given, batch.rows, sql_type, f"{node.name}: argument {number + 1}")


def _guarded(node: ex.Guarded, batch: Batch) -> Column:
    """Return a call's values where a condition holds; the function sees those rows only."""
    mask = truth(node.condition, batch).true
    if mask.all():
        return _called(node.call, batch)
    rows = np.flatnonzero(mask)
    found = _called(node.call, batch.where(mask, node.call))
    none = from_list(found.type, [None])
    places = np.full(batch.rows, len(rows), np.int64)  # of the NULL behind what was found
    places[rows] = np.arange(len(rows))
    return concat(found.type, [found, none]).take(places)


def _argument(operand: Column | Constant, rows: int, sql_type: SqlType | None, what: str) -> Column:
    """Return an argument as a column; a broken number is not rounded to a whole one."""
    item = operand.value if isinstance(operand, Constant) else None
    if (
        sql_type is not None
        and sql_type.kind in (Kind.SMALLINT, Kind.INT, Kind.BIGINT)
        and isinstance(item, (float, np.floating, decimal.Decimal))
        and not (math.isfinite(item) and item == int(item))
    ):
        raise BindError(
            f"function {what} is {sql_type}, the value is {item}", hint="round it, or CAST it"
        )
    return materialise(operand, rows, sql_type)


def _column_of_truth(answer: Truth) -> Column:
    validity = None if answer.null is None else ~answer.null
    return Column(BOOLEAN, answer.true.astype(np.uint8), None, validity)


def materialise(operand: Column | Constant, rows: int, sql_type: SqlType | None = None) -> Column:
    """Return a column of ``rows`` values; a constant is repeated."""
    if isinstance(operand, Column):
        return operand
    wanted = sql_type or natural_type(operand.value)
    one = from_list(wanted, [to_storage(operand.value, wanted, "constant")])
    if one.offsets is not None:
        return one.take(np.zeros(rows, np.int64))
    validity = None if one.validity is None else one.validity.repeat(rows)
    return Column(wanted, one.values.repeat(rows, axis=0), None, validity)


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
    """Compute in DuckDB's common type: whole numbers, DECIMAL, REAL or DOUBLE.

    Overflow of exact numbers is an error.
    """
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
    wanted = DOUBLE if _is_double(a) or _is_double(b) else REAL
    if wanted is DOUBLE or _is_real(a) or _is_real(b):
        with np.errstate(all="ignore"):
            answer = operate(np.asarray(a, dtype=wanted.dtype), np.asarray(b, dtype=wanted.dtype))
        if validity is not None:
            answer = np.where(validity, answer, wanted.dtype.type(0))
        return Column(wanted, np.broadcast_to(answer, (rows,)), None, validity)
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


def _is_real(operand: Any) -> bool:
    return getattr(operand, "dtype", None) == np.float32


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
    return operand.values


def _validity(operand: Column | Constant, rows: int) -> np.ndarray | None:
    if isinstance(operand, Column):
        return operand.validity
    return np.zeros(rows, bool) if operand.value is None else None


def _distance(node: ex.Distance, batch: Batch) -> Column:
    known = batch.called.get(node) if batch.called else None
    if known is not None:
        return known
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
