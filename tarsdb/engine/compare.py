"""Compare columns with constants and with each other, exactly, under three-valued logic.

Integers are compared with any real number without a cast to float; NaN equals itself and sorts
above every number, as DuckDB orders it; text compares by its UTF-8 bytes.
"""

from __future__ import annotations

import decimal
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import DataError, ProgrammingError
from tarsdb.types import Kind, Physical, SqlType, to_storage

FLIP = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_UFUNC: dict[str, Any] = {
    "=": np.equal, "<>": np.not_equal, "<": np.less,
    "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip
_PYTHON: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b, "<>": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip


@dataclass(slots=True)
class Constant:
    """One Python value for every row; ``literal`` when it was written in the statement."""

    value: Any
    literal: bool = True


@dataclass(slots=True)
class Truth:
    """Which rows are true; which are NULL (absent when none is)."""

    true: np.ndarray
    null: np.ndarray | None = None


def compare(op: str, left: Column | Constant, right: Column | Constant, rows: int) -> Truth:
    """Compare two operands row by row."""
    if isinstance(left, Constant) and isinstance(right, Constant):
        if left.value is None or right.value is None:
            return Truth(np.zeros(rows, bool), np.ones(rows, bool))
        return Truth(np.full(rows, _PYTHON[op](left.value, right.value)))
    if isinstance(left, Constant):
        left, right, op = right, left, FLIP[op]
    assert isinstance(left, Column)
    if isinstance(right, Constant):
        if right.value is None:
            return Truth(np.zeros(rows, bool), np.ones(rows, bool))
        return _masked(_compare_constant(op, left, right), left.validity)
    validity = both_valid(left.validity, right.validity)
    return _masked(_compare_columns(op, left, right), validity)


def _masked(true: np.ndarray, validity: np.ndarray | None) -> Truth:
    return Truth(true) if validity is None else Truth(true & validity, ~validity)


def both_valid(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Return the validity of rows valid in both."""
    if first is None or second is None:
        return first if second is None else second
    both: np.ndarray = first & second
    return both


def _compare_constant(op: str, column: Column, constant: Constant) -> np.ndarray:
    kind, item = column.type.kind, constant.value
    if column.type.is_variable:
        return _compare_text(op, column, item)
    if isinstance(item, np.generic):
        item = item.item()
    if kind in (Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.BOOLEAN):
        return _compare_integer(op, column.values, _number(item, column.type))
    if kind in (Kind.REAL, Kind.DOUBLE):
        number = float(_number(item, column.type))
        if kind is Kind.REAL and not constant.literal:
            return _ordered(op, column.values.astype(np.float64), number)
        return _ordered(op, column.values, column.type.dtype.type(number))
    if kind is Kind.DECIMAL and column.type.physical is Physical.INT64:
        exact = decimal.Decimal(_number(item, column.type)).scaleb(column.type.scale or 0)
        return _compare_integer(op, column.values, exact)
    stored = to_storage(item, column.type, "constant")
    if column.type.physical is Physical.FIXED16:
        test = _PYTHON[op]
        items = [raw is not None and test(raw, stored) for raw in column.to_list()]
        return np.array(items, dtype=bool)
    return np.asarray(_UFUNC[op](column.values, stored))


def _number(item: Any, sql_type: SqlType) -> Any:
    if isinstance(item, str):
        try:
            return decimal.Decimal(item)
        except decimal.InvalidOperation as error:
            raise DataError(f"cannot compare {sql_type} with {item!r}") from error
    if not isinstance(item, (bool, int, float, decimal.Decimal)):
        raise DataError(f"cannot compare {sql_type} with {type(item).__name__}")
    return item


def _compare_integer(op: str, values: np.ndarray, item: Any) -> np.ndarray:
    """Compare integers with any real number exactly, without casting the column to float."""
    if isinstance(item, (float, decimal.Decimal)) and not _finite(item):
        above = item != item or item > 0  # NaN sorts above every number
        return np.full(len(values), op in (("<", "<=", "<>") if above else (">", ">=", "<>")))
    whole = math.floor(item)
    if whole != item:
        if op in ("=", "<>"):
            return np.full(len(values), op == "<>")
        op = "<=" if op in ("<", "<=") else ">"
    limits = np.iinfo(values.dtype)
    if not limits.min <= whole <= limits.max:
        return np.full(len(values), _PYTHON[op](0, whole))
    return np.asarray(_UFUNC[op](values, values.dtype.type(whole)))


def _finite(item: float | decimal.Decimal) -> bool:
    return item.is_finite() if isinstance(item, decimal.Decimal) else math.isfinite(item)


def _ordered(op: str, left: np.ndarray, right: Any) -> np.ndarray:
    """Compare floats with NaN equal to itself and above every number, as DuckDB orders them."""
    with np.errstate(invalid="ignore"):
        result = np.asarray(_UFUNC[op](left, right))
    left_nan, right_nan = np.isnan(left), np.isnan(right)
    if not (left_nan.any() or np.any(right_nan)):
        return result
    rank_left, rank_right = left_nan.astype(np.int8), np.asarray(right_nan).astype(np.int8)
    return np.where(left_nan | right_nan, _UFUNC[op](rank_left, rank_right), result)


def _compare_text(op: str, column: Column, item: Any) -> np.ndarray:
    if isinstance(item, str):
        item = item.encode()
    if not isinstance(item, (bytes, bytearray)):
        raise DataError(f"cannot compare {column.type} with {type(item).__name__}")
    assert column.offsets is not None
    if op in ("=", "<>"):
        equal = _text_equal(column.values, column.offsets, bytes(item))
        return equal if op == "=" else ~equal
    raw, bounds, test = column.values.tobytes(), column.offsets.tolist(), _PYTHON[op]
    pairs = itertools.pairwise(bounds)
    return np.array([test(raw[a:b], item) for a, b in pairs], dtype=bool)


def _text_equal(values: np.ndarray, offsets: np.ndarray, item: bytes) -> np.ndarray:
    result: np.ndarray = np.diff(offsets) == len(item)
    rows = np.flatnonzero(result)
    if len(item) == 0 or len(rows) == 0:
        return result
    wanted = np.frombuffer(item, dtype=np.uint8)
    starts = offsets[rows]
    for position in range(len(item)):  # rows drop out at the first byte that differs
        same = values[starts + position] == wanted[position]
        if not same.all():
            result[rows[~same]] = False
            rows, starts = rows[same], starts[same]
            if len(rows) == 0:
                break
    return result


def _compare_columns(op: str, left: Column, right: Column) -> np.ndarray:
    kinds = left.type.dtype.kind + right.type.dtype.kind
    if left.type.is_variable or right.type.is_variable or "V" in kinds or left.type != right.type:
        if left.type != right.type and not _both_numbers(left, right):
            raise ProgrammingError(f"cannot compare {left.type} with {right.type}")
        if left.type != right.type and "f" not in kinds:
            return np.asarray(_UFUNC[op](left.values, right.values))
        if left.type != right.type:
            return _ordered(op, left.values.astype(float), right.values.astype(float))
        test = _PYTHON[op]
        pairs = zip(left.to_list(), right.to_list(), strict=True)
        return np.array(
            [a is not None and b is not None and test(a, b) for a, b in pairs], dtype=bool
        )
    if left.type.kind in (Kind.REAL, Kind.DOUBLE):
        return _ordered(op, left.values, right.values)
    return np.asarray(_UFUNC[op](left.values, right.values))


def _both_numbers(left: Column, right: Column) -> bool:
    plain = {Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.REAL, Kind.DOUBLE, Kind.BOOLEAN}
    return left.type.kind in plain and right.type.kind in plain
