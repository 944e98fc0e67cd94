"""Values across DuckDB's border: bound parameters in, result columns out."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from duckdb.value.constant import Value

from tarsdb.engine.arrow import sql_type_of
from tarsdb.engine.arrow_input import dump_json
from tarsdb.errors import DataError, NotSupportedError
from tarsdb.types import Kind, SqlType, arrow_type

_PLAIN = (
    bool, int, float, str, bytes, decimal.Decimal, dt.date, dt.time, dt.timedelta, uuid.UUID,
)  # fmt: skip
_HUGE = 2**127


def bind_value(value: Any, shown: str, connection: Any) -> Any:
    """Return what DuckDB binds for a parameter.

    NumPy vectors of floating point become ``FLOAT[n]``, of int8 ``TINYINT[n]``, of bool the text
    of a BIT value; other arrays and sequences become lists.

    Raises
    ------
    DataError
        The value's type cannot be bound; ``shown`` names the parameter.
    """
    if value is None or isinstance(value, _PLAIN):
        if isinstance(value, int) and not -_HUGE < value < _HUGE:
            raise DataError(f"{shown}: {value} is outside every integer type")
        return value
    if isinstance(value, np.generic):
        return bind_value(value.item(), shown, connection)
    if isinstance(value, np.ndarray):
        return _bind_array(value, shown, connection)
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (list, tuple)):
        return [bind_value(item, shown, connection) for item in value]
    if isinstance(value, dict):
        return {str(k): bind_value(item, shown, connection) for k, item in value.items()}
    if isinstance(value, pa.Scalar):
        return bind_value(value.as_py(), shown, connection)
    if hasattr(value, "__array__"):
        return _bind_array(np.asarray(value), shown, connection)
    raise DataError(f"{shown}: a {type(value).__name__} cannot be bound")


def _bind_array(array: np.ndarray, shown: str, connection: Any) -> Any:
    if array.ndim != 1:
        raise DataError(
            f"{shown}: an array of {array.ndim} axes is bound where one vector is expected",
            hint="a (q, dim) matrix can be bound only to ORDER BY distance LIMIT k on a table",
        )
    if array.dtype == np.bool_:
        return "".join("1" if bit else "0" for bit in array.tolist())
    if array.dtype.kind == "f" and len(array):
        return Value(array.tolist(), connection.sqltype(f"FLOAT[{len(array)}]"))
    if array.dtype == np.int8 and len(array):
        return Value(array.tolist(), connection.sqltype(f"TINYINT[{len(array)}]"))
    return [bind_value(item, shown, connection) for item in array.tolist()]


def tidy_result(table: pa.Table) -> tuple[pa.Table, list[SqlType]]:
    """Return a result with only columns that have a SQL type, and those types.

    Sums of integers (HUGEINT) become BIGINT where they fit, else DECIMAL(38,0); small and unsigned
    integers the next wider type; enumerations TEXT; BIT the text of its digits; structs, maps,
    unions and nested lists JSON; vectors with NULL, NaN or infinite components arrays of REAL.

    Raises
    ------
    NotSupportedError
        A column has a type with no SQL counterpart; the message names it.
    """
    columns: list[pa.ChunkedArray] = []
    types: list[SqlType] = []
    changed = False
    for name, column in zip(table.column_names, table.columns, strict=True):
        sql_type, tidy = _tidy(column, name)
        changed = changed or tidy is not column
        columns.append(tidy)
        types.append(sql_type)
    if changed:
        table = pa.Table.from_arrays(columns, names=table.column_names)
    return table, types


def _tidy(column: pa.ChunkedArray, name: str) -> tuple[SqlType, pa.ChunkedArray]:
    data_type = column.type
    if isinstance(data_type, pa.OpaqueType):
        column = _opaque(column, name)
    elif isinstance(data_type, pa.Bool8Type):
        column = pa.chunked_array([c.storage.cast(pa.bool_()) for c in column.chunks], pa.bool_())
    elif pa.types.is_uint64(data_type):
        column = _integers(column.to_pylist(), name)
    elif pa.types.is_fixed_size_list(data_type) and not _is_vector(column):
        column = column.cast(pa.list_(data_type.value_type))
    sql_type = sql_type_of(column.type, name)
    wanted = arrow_type(sql_type)
    if column.type == wanted:
        return sql_type, column
    if sql_type.kind is Kind.JSON and not isinstance(column.type, pa.BaseExtensionType):
        return sql_type, _nested(column, wanted)
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array(
            [chunk.dictionary_decode() for chunk in column.chunks], data_type.value_type
        )
    if sql_type.is_vector or sql_type.kind is Kind.ARRAY:
        return sql_type, column  # differs in the name of the list's item only, or in its width
    return sql_type, column.cast(wanted, safe=False)


def _is_vector(column: pa.ChunkedArray) -> bool:
    """Return True when every component is there and finite."""
    for chunk in column.chunks:
        flat = chunk.flatten()
        if flat.null_count:
            return False
        if pa.types.is_floating(flat.type) and not np.isfinite(np.asarray(flat)).all():
            return False
    return bool(
        pa.types.is_float32(column.type.value_type) or pa.types.is_int8(column.type.value_type)
    )


def _opaque(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    kind = column.type.type_name
    raw = [item for chunk in column.chunks for item in chunk.storage.to_pylist()]
    if kind in ("hugeint", "uhugeint"):
        signed = kind == "hugeint"
        return _integers(
            [None if r is None else int.from_bytes(r, "little", signed=signed) for r in raw], name
        )
    if kind == "bit":
        return pa.chunked_array([pa.array([_bit_text(r) for r in raw], pa.string())])
    raise NotSupportedError(
        f"column {name}: values of type {kind.upper()} cannot be returned",
        hint=f"cast it: CAST({name} AS TEXT)",
    )


def _integers(values: Sequence[int | None], name: str) -> pa.ChunkedArray:
    present = [value for value in values if value is not None]
    if all(-(2**63) <= value < 2**63 for value in present):
        return pa.chunked_array([pa.array(values, pa.int64())])
    if any(abs(value) >= 10**38 for value in present):
        raise DataError(f"column {name}: an integer has more than 38 digits")
    exact = [None if value is None else decimal.Decimal(value) for value in values]
    return pa.chunked_array([pa.array(exact, pa.decimal128(38, 0))])


def _bit_text(raw: bytes | None) -> str | None:
    """Read DuckDB's BIT: the number of padding bits, then the bits, most significant first."""
    if raw is None:
        return None
    return "".join(f"{byte:08b}" for byte in raw[1:])[raw[0] :]


def _nested(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray:
    maps = pa.types.is_map(column.type)
    texts = [
        None if item is None else dump_json(dict(item) if maps else item)
        for item in column.to_pylist()
    ]
    storage = pa.array(texts, pa.string())
    return pa.chunked_array([pa.ExtensionArray.from_storage(wanted, storage)])
