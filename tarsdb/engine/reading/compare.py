"""Compare columns with constants and with each other, exactly, under three-valued logic.

Integers are compared with integers and decimals without a cast to float, and with floats the way
DuckDB does it: BIGINT and DECIMAL become DOUBLE. A bound text is cast to the column's type. NaN
equals itself and sorts above every number, as DuckDB orders it; text compares by its UTF-8 bytes.
"""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import BindError, DataError, ProgrammingError
from tarsdb.records import dataclass
from tarsdb.types import TIMESTAMP, Kind, Physical, SqlType, to_storage

_DAY_MICROS = 86_400_000_000
FLIP = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_UFUNC: dict[str, Any] = {
    "=": np.equal, "<>": np.not_equal, "<": np.less,
    "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip
_NOT_BELOW: dict[str, Any] = {">": np.less_equal, ">=": np.less}
_PYTHON: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b, "<>": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip


_BOOLEANS = {
    "true": True, "t": True, "1": True, "yes": True, "y": True,
    "false": False, "f": False, "0": False, "no": False, "n": False,
}  # fmt: skip


@dataclass(slots=True)
class Constant:
    """One Python value for every row."""

    value: Any


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
        return Truth(np.full(rows, _compare_values(op, left.value, right.value)))
    if isinstance(left, Constant):
        left, right, op = right, left, FLIP[op]
    assert isinstance(left, Column)
    if isinstance(right, Constant):
        if right.value is None:
            return Truth(np.zeros(rows, bool), np.ones(rows, bool))
        return _masked(_compare_constant(op, left, right.value), left.validity)
    validity = both_valid(left.validity, right.validity)
    return _masked(_compare_columns(op, left, right), validity)


def _compare_values(op: str, left: Any, right: Any) -> bool:
    if isinstance(left, float) != isinstance(right, float):
        left, right = float(left), float(right)  # DOUBLE is the common type
    return _PYTHON[op](left, right)


def _masked(true: np.ndarray, validity: np.ndarray | None) -> Truth:
    return Truth(true) if validity is None else Truth(true & validity, ~validity)


def both_valid(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Return the validity of rows valid in both."""
    if first is None or second is None:
        return first if second is None else second
    both: np.ndarray = first & second
    return both


def _compare_constant(op: str, column: Column, item: Any) -> np.ndarray:
    """Compare a column with one value that is not NULL, by DuckDB's rules of common types."""
    if isinstance(item, np.generic):
        item = item.item()
    compare_kind = _BY_KIND.get(column.type.kind)
    if compare_kind is not None:
        return compare_kind(op, column, item)
    stored = to_storage(item, column.type, "constant")
    if column.type.physical is Physical.FIXED16:
        test = _PYTHON[op]
        items = [raw is not None and test(raw, stored) for raw in column.to_list()]
        return np.array(items, dtype=bool)
    return np.asarray(_UFUNC[op](column.values, stored))


def _incomparable(sql_type: SqlType, item: Any) -> BindError:
    return BindError(
        f"cannot compare {sql_type} with {type(item).__name__} {item!r:.40}",
        hint=f"bind a value of the column's type, or CAST it to {sql_type}",
    )


def _boolean(op: str, column: Column, item: Any) -> np.ndarray:
    if isinstance(item, str):
        if item.lower() not in _BOOLEANS:
            raise DataError(f"cannot compare BOOLEAN with {item!r}")
        item = _BOOLEANS[item.lower()]
    if not isinstance(item, int) and (not _is_real(item) or op not in ("=", "<>")):
        raise _incomparable(column.type, item)
    return _compare_integer(op, column.values, item)


def _whole(op: str, column: Column, item: Any) -> np.ndarray:
    if isinstance(item, str):  # a text is cast to the column's type, as a literal is
        number = _number(item, column.type)
        if not number.is_finite():
            raise DataError(f"cannot compare {column.type} with {item!r}")
        item = int(number.to_integral_value(decimal.ROUND_HALF_UP))
        to_storage(item, column.type, "constant")
    elif not _is_real(item):
        raise _incomparable(column.type, item)
    if isinstance(item, float) and column.type.kind is Kind.BIGINT:
        return _ordered(op, column.values.astype(np.float64), item)
    return _compare_integer(op, column.values, item)


def _float(op: str, column: Column, item: Any) -> np.ndarray:
    if isinstance(item, str):
        try:
            item = column.type.dtype.type(item)
        except ValueError as error:
            raise DataError(f"cannot compare {column.type} with {item!r}") from error
        return _ordered(op, column.values, item)
    if not _is_real(item) or (isinstance(item, bool) and op not in ("=", "<>")):
        raise _incomparable(column.type, item)
    if isinstance(item, float):
        values = column.values.astype(np.float64, copy=False)
        return _ordered(op, values, np.float64(item))
    return _ordered(op, column.values, column.type.dtype.type(item))


def _decimal(op: str, column: Column, item: Any) -> np.ndarray:
    scale = column.type.scale or 0
    if isinstance(item, str):
        item = _show_stored(to_storage(item, column.type, "constant"), scale)
    if not _is_real(item) or (isinstance(item, bool) and op not in ("=", "<>")):
        raise _incomparable(column.type, item)
    wide = column.type.physical is Physical.FIXED16
    numbers = [int.from_bytes(raw, "little", signed=True) for raw in
               Column(column.type, column.values).to_list()] if wide else column.values  # fmt: skip
    if isinstance(item, float):
        values = np.asarray(numbers, dtype=np.float64) / np.float64(10**scale)
        return _ordered(op, values, np.float64(item))
    if isinstance(item, decimal.Decimal) and not item.is_finite():
        return _compare_integer(op, np.zeros(len(column), np.int64), item)
    with decimal.localcontext(prec=100):
        scaled = decimal.Decimal(item).scaleb(scale)
    if not wide:
        return _compare_integer(op, column.values, scaled)
    test = _PYTHON[op]
    return np.array([test(number, scaled) for number in numbers], dtype=bool)


def _show_stored(stored: Any, scale: int) -> decimal.Decimal:
    number = int.from_bytes(stored, "little", signed=True) if isinstance(stored, bytes) else stored
    with decimal.localcontext(prec=40):
        return decimal.Decimal(number).scaleb(-scale)


def _day(op: str, column: Column, item: Any) -> np.ndarray:
    if isinstance(item, dt.datetime):  # a date is midnight of its day
        stored = to_storage(item, TIMESTAMP, "constant")
        return np.asarray(_UFUNC[op](column.values.astype(np.int64) * _DAY_MICROS, stored))
    if not isinstance(item, (dt.date, str)):
        raise _incomparable(column.type, item)
    return np.asarray(_UFUNC[op](column.values, to_storage(item, column.type, "constant")))


def _moment(op: str, column: Column, item: Any) -> np.ndarray:
    if not isinstance(item, (dt.date, str)):
        raise _incomparable(column.type, item)
    return np.asarray(_UFUNC[op](column.values, to_storage(item, column.type, "constant")))


def _is_real(item: Any) -> bool:
    return isinstance(item, (bool, int, float, decimal.Decimal))


def _number(text: str, sql_type: SqlType) -> decimal.Decimal:
    try:
        return decimal.Decimal(text.strip())
    except decimal.InvalidOperation as error:
        raise DataError(f"cannot compare {sql_type} with {text!r}") from error


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
    if np.ndim(right) == 0 and not np.isnan(right):
        return _ordered_by_number(op, left, right)
    with np.errstate(invalid="ignore"):
        result = np.asarray(_UFUNC[op](left, right))
    left_nan, right_nan = np.isnan(left), np.isnan(right)
    if not (left_nan.any() or np.any(right_nan)):
        return result
    rank_left, rank_right = left_nan.astype(np.int8), np.asarray(right_nan).astype(np.int8)
    return np.where(left_nan | right_nan, _UFUNC[op](rank_left, rank_right), result)


def _ordered_by_number(op: str, left: np.ndarray, right: Any) -> np.ndarray:
    """Do the same where the right side is one number: NaN is above it, so not below or equal."""
    opposite = _NOT_BELOW.get(op)
    with np.errstate(invalid="ignore"):
        if opposite is None:
            return np.asarray(_UFUNC[op](left, right))
        below = np.asarray(opposite(left, right))
    return np.asarray(np.logical_not(below, out=below))


def _compare_text(op: str, column: Column, item: Any) -> np.ndarray:
    if not isinstance(item, str):
        raise _incomparable(column.type, item)
    item = to_storage(item, column.type, "constant").encode()
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
            common = np.result_type(left.values, right.values)
            if Kind.DOUBLE not in (left.type.kind, right.type.kind):
                common = np.dtype(np.float32)  # REAL is above every integer type
            return _ordered(op, left.values.astype(common), right.values.astype(common))
        test = _PYTHON[op]
        pairs = zip(left.to_list(), right.to_list(), strict=True)
        return np.array(
            [a is not None and b is not None and test(a, b) for a, b in pairs], dtype=bool
        )
    if left.type.kind in (Kind.REAL, Kind.DOUBLE):
        return _ordered(op, left.values, right.values)
    return np.asarray(_UFUNC[op](left.values, right.values))


_BY_KIND: dict[Kind, Callable[[str, Column, Any], np.ndarray]] = {
    Kind.BOOLEAN: _boolean, Kind.SMALLINT: _whole, Kind.INT: _whole, Kind.BIGINT: _whole,
    Kind.REAL: _float, Kind.DOUBLE: _float, Kind.DECIMAL: _decimal, Kind.TEXT: _compare_text,
    Kind.DATE: _day, Kind.TIMESTAMP: _moment,
}  # fmt: skip


def _both_numbers(left: Column, right: Column) -> bool:
    plain = {Kind.SMALLINT, Kind.INT, Kind.BIGINT, Kind.REAL, Kind.DOUBLE, Kind.BOOLEAN}
    return left.type.kind in plain and right.type.kind in plain
