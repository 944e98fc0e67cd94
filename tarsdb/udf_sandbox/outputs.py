"""Decide whether a column that a guest returned is a legal column of its SQL type.

Knows only columns and types. Text must be UTF-8, JSON must parse, dates must be presentable,
vectors finite: what the rest of the database takes for granted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import DataError, UdfError
from tarsdb.types import Kind, Physical, from_storage

_DAY_US = 86_400_000_000
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # 0001-01-01 .. 9999-12-31
_RANGES = {
    Kind.DATE: (_FIRST_DAY, _LAST_DAY),
    Kind.TIME: (0, _DAY_US - 1),
    Kind.TIMESTAMP: (_FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1),
    Kind.TIMESTAMPTZ: (_FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1),
    Kind.SMALLINT: (-(2**15), 2**15 - 1),
}


def checked(column: Column, function: str) -> Column:
    """Return the column, normalised, or raise UdfError naming the function and the row."""
    kind = column.type.kind
    if column.type.physical is Physical.BOOL:
        column.values = (column.values != 0).astype(np.uint8)
    elif kind is Kind.DECIMAL:
        _check_decimal(column, function)
    elif kind in _RANGES:
        low, high = _RANGES[kind]
        bad = (column.values < low) | (column.values > high)
        _refuse(bad, column, function, lambda row: str(column.values[row]))
    elif column.type.physical is Physical.UTF8:
        _check_utf8(column, function)
    elif kind in (Kind.VECTOR, Kind.HALFVEC):
        bad = ~np.isfinite(column.values).all(axis=1)
        _refuse(bad, column, function, lambda row: "a vector with NaN or infinity")
    elif kind is Kind.BIT and (column.type.dim or 0) % 8:
        column.values[:, -1] &= 0xFF << (8 - (column.type.dim or 0) % 8) & 0xFF
    if kind in (Kind.JSON, Kind.ARRAY):
        _check_json(column, function)
    return column


def _refuse(bad: np.ndarray, column: Column, function: str, show: Callable[[int], str]) -> None:
    if column.validity is not None:
        bad = bad & column.validity
    if bad.any():
        row = int(np.argmax(bad))
        raise UdfError(f"function {function}: row {row} is {show(row)}, which is no {column.type}")


def _check_decimal(column: Column, function: str) -> None:
    limit = 10 ** (column.type.precision or 18)
    if column.type.physical is Physical.INT64:
        bad = (column.values <= -limit) | (column.values >= limit)
    else:
        raw = column.values.tobytes()
        numbers = [int.from_bytes(raw[i : i + 16], "little", signed=True)
                   for i in range(0, len(raw), 16)]  # fmt: skip
        bad = np.array([abs(number) >= limit for number in numbers], dtype=bool)
    _refuse(bad, column, function, lambda row: "out of range")


def _check_utf8(column: Column, function: str) -> None:
    """Whole buffer valid, and no row starts inside a character: then every row is valid."""
    assert column.offsets is not None  # variable columns have them
    raw = column.values.tobytes()
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        row = int(np.searchsorted(column.offsets, error.start, side="right")) - 1
        at = error.start - int(column.offsets[row])
        raise UdfError(f"function {function}: row {row} is not UTF-8 (byte {at})") from error
    starts = column.offsets[:-1]
    inside = np.zeros(len(starts), dtype=bool)
    real = starts < len(raw)
    inside[real] = (column.values[starts[real]] & 0xC0) == 0x80
    if inside.any():
        row = int(np.argmax(inside))
        raise UdfError(f"function {function}: row {row} starts inside a UTF-8 character")


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _check_json(column: Column, function: str) -> None:
    array = column.type.kind is Kind.ARRAY
    for row in range(len(column)):
        text = column.get(row)
        if text is None:
            continue
        try:
            found = json.loads(text, parse_constant=_no_constant)
            if array:
                if not isinstance(found, list):
                    raise ValueError("not a list")
                from_storage(text, column.type)
        except (ValueError, TypeError, ArithmeticError, RecursionError, DataError) as error:
            raise UdfError(
                f"function {function}: row {row} is no {column.type}: {error}"
            ) from error
