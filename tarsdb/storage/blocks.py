"""Column blocks: a column as the payload of one stored value, and zero-copy back.

Payload: validity bitmap (least significant bit first) when any row is NULL, ``int32`` offsets for
variable types, values; each part starts at a multiple of 64 bytes, as Arrow lays buffers out.
Knows no keys, headers or transactions.
"""

from __future__ import annotations

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.errors import CorruptionError
from tarsdb.schema import ColumnDef
from tarsdb.types import Physical, SqlType

_ALIGN = 64
_PADDING = bytes(_ALIGN)


def encode_block(column: Column) -> tuple[list[memoryview | bytes], bool]:
    """Return the payload parts of a column and whether a validity bitmap leads them."""
    parts: list[memoryview | bytes] = []
    nulls = False
    if column.validity is not None and not column.validity.all():
        nulls = True
        _append(parts, np.packbits(column.validity, bitorder="little"))
    values = column.values
    if column.offsets is not None:
        first = int(column.offsets[0])
        offsets = column.offsets if first == 0 else column.offsets - first
        _append(parts, np.ascontiguousarray(offsets, dtype=np.int32))
        values = values[first : int(column.offsets[-1])]
    parts.append(_bytes_of(values))
    return parts, nulls


def _append(parts: list[memoryview | bytes], array: np.ndarray) -> None:
    parts.append(_bytes_of(array))
    if array.nbytes % _ALIGN:
        parts.append(_PADDING[: _ALIGN - array.nbytes % _ALIGN])


def _bytes_of(array: np.ndarray) -> memoryview:
    contiguous = np.ascontiguousarray(array)
    return contiguous.view(np.uint8).reshape(-1).data if contiguous.size else memoryview(b"")


def payload_size(parts: list[memoryview | bytes]) -> int:
    """Return the total length of payload parts in bytes."""
    return sum(len(part) for part in parts)


def parse_block(payload: memoryview, rows: int, sql_type: SqlType, nulls: bool) -> Column:
    """Return the column of a payload as views of it.

    Parameters
    ----------
    payload : memoryview
        Everything behind the header; the caller keeps it alive.
    rows : int
    sql_type : SqlType
    nulls : bool
        A validity bitmap leads the payload.

    Raises
    ------
    CorruptionError
        Lengths disagree; the caller adds the table and the rows.
    """
    start, validity, offsets = 0, None, None
    if nulls:
        size = (rows + 7) // 8
        bitmap = _array(payload, 0, size, np.dtype(np.uint8))
        validity = np.unpackbits(bitmap, count=rows, bitorder="little").view(np.bool_)
        start = _round(size)
    if sql_type.is_variable:
        offsets = _array(payload, start, rows + 1, np.dtype(np.int32))
        start = _round(start + offsets.nbytes)
        total = int(offsets[-1])
        if offsets[0] != 0 or total < 0 or (rows and bool((offsets[1:] < offsets[:-1]).any())):
            raise CorruptionError("offsets of a text block do not ascend")
        return Column(sql_type, _array(payload, start, total, sql_type.dtype), offsets, validity)
    values = _array(payload, start, rows * sql_type.width, sql_type.dtype)
    if sql_type.is_vector:
        values = values.reshape(rows, sql_type.width)
    return Column(sql_type, values, None, validity)


def _round(size: int) -> int:
    return (size + _ALIGN - 1) // _ALIGN * _ALIGN


def _array(payload: memoryview, start: int, count: int, dtype: np.dtype) -> np.ndarray:
    need = start + count * dtype.itemsize
    if need > len(payload):
        raise CorruptionError(f"a block holds {len(payload)} bytes where {need} are needed")
    return np.frombuffer(payload, dtype=dtype, count=count, offset=start)


def missing_column(column: ColumnDef, rows: int) -> Column:
    """Return what rows older than a column hold in it: its ``missing`` value, or NULL."""
    value = missing_value(column)
    if value is None and not column.type.is_variable:
        width = (rows, column.type.width) if column.type.is_vector else (rows,)
        return Column(
            column.type, np.zeros(width, dtype=column.type.dtype), None, np.zeros(rows, dtype=bool)
        )
    one = from_list(column.type, [value])
    return one.take(np.zeros(rows, dtype=np.int64))


def missing_value(column: ColumnDef) -> object:
    """Return the storage value of rows older than a column."""
    value = column.missing
    if isinstance(value, str) and column.type.physical in (Physical.BINARY, Physical.FIXED16):
        return bytes.fromhex(value)
    if value is not None and column.type.is_vector:
        raw = bytes.fromhex(value) if isinstance(value, str) else None
        if raw is not None:
            return np.frombuffer(raw, dtype=column.type.dtype)
        return np.asarray(value, dtype=column.type.dtype)
    return value
