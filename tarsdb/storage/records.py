"""Delta records: the scalar columns of one row version as bytes, and back.

Layout: ``u16`` column count, per column ``u32`` id and ``u8`` physical type (the *shape*), a NULL
bitmap, the fixed part (variable columns hold their ``u32`` length there), the variable bytes.
The shape makes a record readable after columns were added or dropped. Knows no keys, headers
or transactions.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from tarsdb.errors import CorruptionError
from tarsdb.schema import ColumnDef
from tarsdb.types import Physical

_CODES = {
    Physical.BOOL: "B", Physical.INT16: "h", Physical.INT32: "i", Physical.INT64: "q",
    Physical.FLOAT32: "f", Physical.FLOAT64: "d", Physical.FIXED16: "16s",
    Physical.UTF8: "I", Physical.BINARY: "I",
}  # fmt: skip
_ZERO: dict[Physical, Any] = {
    Physical.FIXED16: bytes(16), Physical.UTF8: "", Physical.BINARY: b"",
}  # fmt: skip
_COUNT = struct.Struct("<H")
_COLUMN = struct.Struct("<IB")


class RecordShape:
    """Codec of records that hold one sequence of columns.

    Attributes
    ----------
    column_ids : tuple of int
    index : dict
        Column id -> position in the decoded tuple.
    raw : bytes
        The encoded shape every such record starts with.
    """

    def __init__(self, columns: Sequence[tuple[int, Physical]]) -> None:
        self.column_ids = tuple(column_id for column_id, _ in columns)
        self.index = {column_id: i for i, column_id in enumerate(self.column_ids)}
        self.raw = _COUNT.pack(len(columns)) + b"".join(
            _COLUMN.pack(column_id, physical) for column_id, physical in columns
        )
        self._null_bytes = (len(columns) + 7) // 8
        self._fixed = struct.Struct("<" + "".join(_CODES[physical] for _, physical in columns))
        self._zeros = [_ZERO.get(physical, 0) for _, physical in columns]
        self._variable = [
            (i, physical is Physical.UTF8)
            for i, (_, physical) in enumerate(columns)
            if physical in (Physical.UTF8, Physical.BINARY)
        ]
        self._booleans = [i for i, (_, p) in enumerate(columns) if p is Physical.BOOL]
        self._no_nulls = bytes(self._null_bytes)

    def encode(self, values: Sequence[Any]) -> bytes:
        """Return the record of storage values, one for each column of the shape."""
        fixed = list(values)
        nulls = self._no_nulls
        if None in fixed:
            bits = 0
            for i, value in enumerate(fixed):
                if value is None:
                    bits |= 1 << i
                    fixed[i] = self._zeros[i]
            nulls = bits.to_bytes(self._null_bytes, "little")
        tail = []
        for i, is_text in self._variable:
            piece = fixed[i].encode() if is_text else fixed[i]
            fixed[i] = len(piece)
            tail.append(piece)
        return b"".join((self.raw, nulls, self._fixed.pack(*fixed), *tail))

    def decode(self, record: bytes) -> tuple[Any, ...]:
        """Return the storage values of a record of this shape."""
        start = len(self.raw)
        nulls = int.from_bytes(record[start : start + self._null_bytes], "little")
        start += self._null_bytes
        values = list(self._fixed.unpack_from(record, start))
        start += self._fixed.size
        for i, is_text in self._variable:
            stop = start + values[i]
            piece = record[start:stop]
            values[i] = piece.decode() if is_text else piece
            start = stop
        for i in self._booleans:
            values[i] = bool(values[i])
        if nulls:
            for i in range(len(values)):
                if nulls >> i & 1:
                    values[i] = None
        return tuple(values)


_SHAPES: dict[bytes, RecordShape] = {}
_BY_COLUMNS: dict[tuple[tuple[int, Physical], ...], RecordShape] = {}


def shape_of(columns: Sequence[ColumnDef]) -> RecordShape:
    """Return the shape of records that hold these scalar columns."""
    wanted = tuple((column.id, column.type.physical) for column in columns)
    shape = _BY_COLUMNS.get(wanted)
    if shape is None:
        shape = _BY_COLUMNS[wanted] = RecordShape(wanted)
        _SHAPES.setdefault(shape.raw, shape)
    return shape


def decode(record: bytes) -> tuple[RecordShape, tuple[Any, ...]]:
    """Return shape and storage values of any record.

    Raises
    ------
    CorruptionError
        The bytes are no record; the caller adds the table and the row.
    """
    try:
        (count,) = _COUNT.unpack_from(record, 0)
        size = _COUNT.size + count * _COLUMN.size
        if len(record) < size:
            raise ValueError(f"{count} columns do not fit in {len(record)} bytes")
        raw = record[:size]
        shape = _SHAPES.get(raw)
        if shape is None:
            columns = [
                (column_id, Physical(physical))
                for column_id, physical in _COLUMN.iter_unpack(raw[_COUNT.size :])
            ]
            shape = _SHAPES[raw] = RecordShape(columns)
        return shape, shape.decode(record)
    except (struct.error, ValueError, KeyError) as error:
        raise CorruptionError(f"a delta record is damaged: {error}") from error
