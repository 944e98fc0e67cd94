"""Exact conversions between ``Column`` and Arrow arrays, for every SQL type.

``to_arrow`` shares buffers wherever the layouts agree (numbers, text, float32 and int8 vectors,
wide decimals), so an array may view the memory map: consume it inside the read transaction.
``from_arrow`` lives in ``engine.arrow_input``. Knows no tables and no SQL text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tarsdb.columns import Column, from_list
from tarsdb.engine.arrow_input import from_arrow
from tarsdb.errors import NotSupportedError, ValueRangeError
from tarsdb.types import TEXT, Kind, Physical, SqlType, arrow_type

__all__ = ["from_arrow", "sql_type_of", "to_arrow"]

_STORED_INTERVAL = np.dtype([("months", "<i4"), ("days", "<i4"), ("micros", "<i8")])
_ARROW_INTERVAL = np.dtype([("months", "<i4"), ("days", "<i4"), ("nanos", "<i8")])


def to_arrow(column: Column) -> pa.Array:
    """Return an Arrow array of ``types.arrow_type(column.type)``.

    Parameters
    ----------
    column : Column
        Its buffers are shared where the layouts agree: the array is valid only as long as they are.

    Raises
    ------
    ValueRangeError
        An INTERVAL is too long for Arrow's nanoseconds (about 292 years).
    """
    return _TO_ARROW[column.type.kind](column)


def bitmap(validity: np.ndarray | None) -> pa.Buffer | None:
    """Return Arrow's validity bitmap (least significant bit first) of a bool array, or None."""
    if validity is None:
        return None
    return pa.py_buffer(np.packbits(validity, bitorder="little"))


def _primitive(column: Column) -> pa.Array:
    buffer = pa.py_buffer(np.ascontiguousarray(column.values))
    return pa.Array.from_buffers(
        arrow_type(column.type), len(column), [bitmap(column.validity), buffer]
    )


def _boolean(column: Column) -> pa.Array:
    bits = pa.py_buffer(np.packbits(column.values.astype(bool), bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(column), [bitmap(column.validity), bits])


def _variable(column: Column) -> pa.Array:
    assert column.offsets is not None
    buffers = [
        bitmap(column.validity),
        pa.py_buffer(np.ascontiguousarray(column.offsets)),
        pa.py_buffer(np.ascontiguousarray(column.values)),
    ]
    storage = pa.binary() if column.type.kind is Kind.BLOB else pa.string()
    return pa.Array.from_buffers(storage, len(column), buffers)


def _json(column: Column) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), _variable(column))


def _uuid(column: Column) -> pa.Array:
    buffers = [bitmap(column.validity), pa.py_buffer(np.ascontiguousarray(column.values))]
    storage = pa.Array.from_buffers(pa.binary(16), len(column), buffers)
    return pa.ExtensionArray.from_storage(pa.uuid(), storage)


def _decimal(column: Column) -> pa.Array:
    if column.type.physical is Physical.FIXED16:
        return _primitive(column)
    words = np.empty((len(column), 2), dtype=np.int64)  # low word, sign word
    words[:, 0] = column.values
    words[:, 1] = column.values >> 63
    buffers = [bitmap(column.validity), pa.py_buffer(words)]
    return pa.Array.from_buffers(arrow_type(column.type), len(column), buffers)


def _interval(column: Column) -> pa.Array:
    stored = np.ascontiguousarray(column.values).view(_STORED_INTERVAL).reshape(-1)
    if len(stored) and not _fits_nanos(stored["micros"]):
        raise ValueRangeError("an INTERVAL is longer than Arrow can hold (292 years)")
    result = np.empty(len(stored), dtype=_ARROW_INTERVAL)
    result["months"], result["days"] = stored["months"], stored["days"]
    result["nanos"] = stored["micros"] * 1000
    buffers = [bitmap(column.validity), pa.py_buffer(result.view(np.uint8))]
    return pa.Array.from_buffers(arrow_type(column.type), len(column), buffers)


def _fits_nanos(micros: np.ndarray) -> bool:
    limit = (2**63 - 1) // 1000
    return bool(micros.min() >= -limit and micros.max() <= limit)


def _vector(column: Column) -> pa.Array:
    values = column.values
    if column.type.kind is Kind.HALFVEC:
        values = values.astype(np.float32)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    buffers = [bitmap(column.validity)]
    return pa.Array.from_buffers(arrow_type(column.type), len(column), buffers, children=[flat])


def _bit(column: Column) -> pa.Array:
    dim = column.type.dim or 0
    digits = np.unpackbits(np.ascontiguousarray(column.values), axis=1, count=dim) + ord("0")
    offsets = np.arange(len(column) + 1, dtype=np.int64) * dim
    large = pa.Array.from_buffers(
        pa.large_string(),
        len(column),
        [
            bitmap(column.validity),
            pa.py_buffer(offsets),
            pa.py_buffer(np.ascontiguousarray(digits)),
        ],
    )
    return large.cast(pa.string())


def _array(column: Column) -> pa.Array:
    element = column.type.element or TEXT
    binary = element.physical in (Physical.BINARY, Physical.FIXED16)
    offsets = np.zeros(len(column) + 1, dtype=np.int32)
    flat: list[Any] = []
    for row, text in enumerate(column.to_list()):
        items = [] if text is None else json.loads(text)
        flat.extend(bytes.fromhex(i) if binary and i is not None else i for i in items)
        offsets[row + 1] = len(flat)
    children = [to_arrow(from_list(element, flat))]
    buffers = [bitmap(column.validity), pa.py_buffer(offsets)]
    return pa.Array.from_buffers(arrow_type(column.type), len(column), buffers, children=children)


_TO_ARROW: dict[Kind, Callable[[Column], pa.Array]] = {
    Kind.BOOLEAN: _boolean, Kind.SMALLINT: _primitive, Kind.INT: _primitive,
    Kind.BIGINT: _primitive, Kind.REAL: _primitive, Kind.DOUBLE: _primitive,
    Kind.DECIMAL: _decimal, Kind.TEXT: _variable, Kind.BLOB: _variable, Kind.DATE: _primitive,
    Kind.TIME: _primitive, Kind.TIMESTAMP: _primitive, Kind.TIMESTAMPTZ: _primitive,
    Kind.INTERVAL: _interval, Kind.UUID: _uuid, Kind.JSON: _json, Kind.ARRAY: _array,
    Kind.VECTOR: _vector, Kind.HALFVEC: _vector, Kind.INT8VEC: _vector, Kind.BIT: _bit,
}  # fmt: skip


def sql_type_of(data_type: pa.DataType, name: str = "?") -> SqlType:
    """Return the SQL type that holds an Arrow type's values (``CREATE TABLE AS``, results).

    Unsigned and 8-bit integers take the next wider type, uint64 DECIMAL(20,0); lists of scalars
    are arrays, fixed-size lists of floating point VECTOR, of int8 INT8VEC; structs, maps, unions
    and nested lists JSON; the null type TEXT.

    Raises
    ------
    NotSupportedError
        No SQL type fits; the message names the column.
    """
    known = _PLAIN.get(data_type)
    if known is not None:
        return SqlType(known)
    for test, make in _FAMILIES:
        if test(data_type):
            return make(data_type)
    raise NotSupportedError(f"column {name}: Arrow type {data_type} has no SQL type")


_PLAIN: dict[pa.DataType, Kind] = {
    pa.null(): Kind.TEXT, pa.bool_(): Kind.BOOLEAN,
    pa.int8(): Kind.SMALLINT, pa.uint8(): Kind.SMALLINT, pa.int16(): Kind.SMALLINT,
    pa.uint16(): Kind.INT, pa.int32(): Kind.INT, pa.uint32(): Kind.BIGINT, pa.int64(): Kind.BIGINT,
    pa.float16(): Kind.REAL, pa.float32(): Kind.REAL, pa.float64(): Kind.DOUBLE,
    pa.string(): Kind.TEXT, pa.large_string(): Kind.TEXT, pa.string_view(): Kind.TEXT,
    pa.binary(): Kind.BLOB, pa.large_binary(): Kind.BLOB, pa.binary_view(): Kind.BLOB,
    pa.date32(): Kind.DATE, pa.date64(): Kind.DATE, pa.month_day_nano_interval(): Kind.INTERVAL,
    pa.uuid(): Kind.UUID, pa.json_(): Kind.JSON,
}  # fmt: skip


def _timestamp(data_type: pa.DataType) -> SqlType:
    return SqlType(Kind.TIMESTAMP if data_type.tz is None else Kind.TIMESTAMPTZ)


def _list(data_type: pa.DataType) -> SqlType:
    element = sql_type_of(data_type.value_type)
    if element.is_vector or element.kind in (Kind.ARRAY, Kind.JSON):
        return SqlType(Kind.JSON)
    return SqlType(Kind.ARRAY, element=element)


def _fixed_list(data_type: pa.DataType) -> SqlType:
    value_type, dim = data_type.value_type, data_type.list_size
    if pa.types.is_floating(value_type) and dim >= 1:
        half = pa.types.is_float16(value_type)
        return SqlType(Kind.HALFVEC if half else Kind.VECTOR, dim=dim)
    if pa.types.is_int8(value_type) and dim >= 1:
        return SqlType(Kind.INT8VEC, dim=dim)
    return _list(data_type)


def _decimal_type(data_type: pa.DataType) -> SqlType:
    precision = min(data_type.precision, 38)
    return SqlType(Kind.DECIMAL, precision=precision, scale=max(data_type.scale, 0))


def _extension(data_type: pa.DataType) -> SqlType:
    if isinstance(data_type, pa.FixedShapeTensorType) and len(data_type.shape) == 1:
        return _fixed_list(pa.list_(data_type.value_type, data_type.shape[0]))
    if isinstance(data_type, pa.Bool8Type):
        return SqlType(Kind.BOOLEAN)
    return sql_type_of(data_type.storage_type)


def _nested(data_type: pa.DataType) -> bool:
    return any(test(data_type) for test in (pa.types.is_struct, pa.types.is_map, pa.types.is_union))


_FAMILIES: Sequence[tuple[Callable[[Any], bool], Callable[[Any], SqlType]]] = (
    (pa.types.is_decimal, _decimal_type),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_uint64, lambda _: SqlType(Kind.DECIMAL, precision=20, scale=0)),
    (pa.types.is_time, lambda _: SqlType(Kind.TIME)),
    (pa.types.is_duration, lambda _: SqlType(Kind.INTERVAL)),
    (pa.types.is_fixed_size_binary, lambda _: SqlType(Kind.BLOB)),
    (pa.types.is_fixed_size_list, _fixed_list),
    (pa.types.is_list, _list),
    (pa.types.is_large_list, _list),
    (lambda t: pa.types.is_list_view(t) or pa.types.is_large_list_view(t), _list),
    (pa.types.is_dictionary, lambda t: sql_type_of(t.value_type)),
    (pa.types.is_run_end_encoded, lambda t: sql_type_of(t.value_type)),
    (_nested, lambda _: SqlType(Kind.JSON)),
    (
        lambda t: isinstance(t, pa.BaseExtensionType) and not isinstance(t, pa.OpaqueType),
        _extension,
    ),
)
