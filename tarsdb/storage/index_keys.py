"""Order-preserving encoding of index keys: comparing the bytes compares the values.

One component is a tag byte (1 value, 2 NULL, so NULLs sort last) and the value: integers
big-endian with the sign bit flipped; floats with their IEEE order made unsigned (-0.0 equals 0.0,
NaN above everything); UUID as is; text and bytes with 0x00 escaped as 0x00 0xFF and closed by
0x00. A fixed-width NULL is padded with zeros so that all keys of such an index have one width.
Keys longer than ``MAX_KEY`` keep ``PREFIX`` bytes and a 128-bit hash of the whole: equality
stays exact, order among keys that share the prefix does not, so range bounds are widened and the
caller checks the predicate again.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash

from tarsdb.columns import Column
from tarsdb.errors import NotSupportedError
from tarsdb.types import Kind, Physical, SqlType

MAX_KEY = 400
PREFIX = 384
_VALUE, _NULL = 1, 2
_ABOVE = b"\xff"  # above any tag and any rowid
_DAY = 86_400_000_000

_INTEGERS = {Physical.INT16: (2, "H"), Physical.INT32: (4, "I"), Physical.INT64: (8, "Q")}
_WIDTHS = {
    Physical.BOOL: 1, Physical.INT16: 2, Physical.INT32: 4, Physical.INT64: 8,
    Physical.FLOAT32: 4, Physical.FLOAT64: 8, Physical.FIXED16: 16,
}  # fmt: skip


class KeyCodec:
    """Encoder of the keys of one index.

    Parameters
    ----------
    types : sequence of SqlType
        Types of the indexed columns, in index order.
    """

    def __init__(self, types: Sequence[SqlType]) -> None:
        for sql_type in types:
            if sql_type.is_vector:
                raise NotSupportedError(f"an ordered index cannot hold {sql_type} columns")
        self.types = tuple(types)
        self._encoders = [_encoder(sql_type) for sql_type in types]
        self._nulls = [_null(sql_type) for sql_type in types]
        self.fixed_width = (
            None
            if any(t.is_variable for t in types)
            else sum(1 + _WIDTHS[t.physical] for t in types)
        )

    def encode(self, values: Sequence[Any]) -> bytes:
        """Return the key of storage values (``None`` for NULL), one for each column."""
        if len(values) == 1:
            value = values[0]
            key = self._nulls[0] if value is None else self._encoders[0](value)
        else:
            key = self._concatenate(values)
        return key if len(key) <= MAX_KEY else _shorten(key)

    def _concatenate(self, values: Sequence[Any]) -> bytes:
        return b"".join(
            [
                null if value is None else encoder(value)
                for value, encoder, null in zip(values, self._encoders, self._nulls, strict=False)
            ]
        )

    def encode_columns(self, columns: Sequence[Column]) -> list[bytes]:
        """Return the keys of many rows; the same bytes as :meth:`encode` row by row."""
        if self.fixed_width is not None:
            raw = np.ascontiguousarray(self.encode_fixed(columns))
            encoded: list[bytes] = raw.view(f"V{self.fixed_width}")[:, 0].tolist()
            return encoded
        parts = [
            _variable_keys(column, text_type)
            if text_type.is_variable
            else _split(_fixed_keys(column, text_type))
            for column, text_type in zip(columns, self.types, strict=True)
        ]
        whole = parts[0] if len(parts) == 1 else [b"".join(row) for row in zip(*parts, strict=True)]
        return [key if len(key) <= MAX_KEY else _shorten(key) for key in whole]

    def encode_fixed(self, columns: Sequence[Column]) -> np.ndarray:
        """Return the keys of fixed-width columns as a ``(n, width)`` uint8 matrix."""
        parts = [_fixed_keys(c, t) for c, t in zip(columns, self.types, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def bounds(
        self, low: Sequence[Any] | None, high: Sequence[Any] | None, low_in: bool, high_in: bool
    ) -> tuple[bytes, bytes]:
        """Return ``[start, stop)`` of the keys between two bounds, without the index prefix.

        Bounds may name fewer columns than the index has. With one bound given, NULLs of the
        first column are left out; with none, every entry is inside.
        """
        start, stop = b"", _ABOVE
        if low is not None:
            start = self._concatenate(low)
            if len(start) > PREFIX:
                start = start[:PREFIX]
            elif not low_in:
                start += _ABOVE
        if high is not None:
            stop = self._concatenate(high)
            if len(stop) >= PREFIX:  # a hash may follow, of any bytes
                stop = stop[:PREFIX] + b"\xff" * 17
            elif high_in:
                stop += _ABOVE
        elif low is not None:
            stop = bytes([_NULL])
        return start, stop

    def between(
        self, prefix: Sequence[Any], low: tuple[Any, bool], high: tuple[Any, bool]
    ) -> tuple[bytes, bytes] | None:
        """Return ``[start, stop)`` of keys that begin with some values.

        The value that follows lies between bounds (None: open; and whether the bound itself
        belongs) and is not NULL. None where the index may keep such keys shortened, out of order.
        """
        head = self._concatenate(prefix)
        following = self.types[len(prefix)]
        if following.is_variable or len(head) + 1 + _WIDTHS[following.physical] > MAX_KEY:
            return None
        start, stop = head, head + bytes([_NULL])
        if low[0] is not None:
            start = self._concatenate((*prefix, low[0])) + (b"" if low[1] else _ABOVE)
        if high[0] is not None:
            stop = self._concatenate((*prefix, high[0])) + (_ABOVE if high[1] else b"")
        return start, stop


def integer_of(key: bytes) -> int:
    """Return the value of the key of one integer column that is not NULL."""
    bits = 8 * (len(key) - 1)
    return int.from_bytes(key[1:], "big") - (1 << (bits - 1))


def null_rows(columns: Sequence[Column]) -> np.ndarray | None:
    """Return a bool array marking rows with a NULL in any column, or None when there is none."""
    result: np.ndarray | None = None
    for column in columns:
        if column.validity is not None:
            missing = ~column.validity
            result = missing if result is None else result | missing
    return result if result is not None and result.any() else None


def _shorten(key: bytes) -> bytes:
    return key[:PREFIX] + xxhash.xxh3_128_digest(key)


def _null(sql_type: SqlType) -> bytes:
    return bytes([_NULL]) + bytes(0 if sql_type.is_variable else _WIDTHS[sql_type.physical])


def _encoder(sql_type: SqlType) -> Callable[[Any], bytes]:
    physical = sql_type.physical
    if physical in _INTEGERS:
        width, code = _INTEGERS[physical]
        pack, bias = struct.Struct(">B" + code).pack, 1 << (8 * width - 1)
        return lambda value: pack(_VALUE, value + bias)
    if physical is Physical.BOOL:
        return lambda value: b"\x01\x01" if value else b"\x01\x00"
    if physical in (Physical.FLOAT32, Physical.FLOAT64):
        return _float_encoder(4 if physical is Physical.FLOAT32 else 8)
    if physical is Physical.UTF8:
        return lambda value: _escape(value.encode())
    if physical is Physical.BINARY:
        return _escape
    return _FIXED16.get(sql_type.kind, _uuid_key)


def _escape(raw: bytes) -> bytes:
    if b"\0" in raw:
        raw = raw.replace(b"\0", b"\0\xff")
    return b"\x01" + raw + b"\0"


def _float_encoder(width: int) -> Callable[[float], bytes]:
    to_bytes = struct.Struct(">f" if width == 4 else ">d").pack
    sign = 1 << (8 * width - 1)
    every = (1 << (8 * width)) - 1

    def encode(value: float) -> bytes:
        if value != value:
            return b"\x01" + b"\xff" * width
        bits = int.from_bytes(to_bytes(value + 0.0), "big")
        return b"\x01" + ((every - bits) if bits & sign else bits | sign).to_bytes(width, "big")

    return encode


def _uuid_key(value: bytes) -> bytes:
    return b"\x01" + value


def _decimal_key(value: bytes) -> bytes:
    number = int.from_bytes(value, "little", signed=True) + (1 << 127)
    return b"\x01" + number.to_bytes(16, "big")


def _interval_key(value: bytes) -> bytes:
    months, days, micros = struct.unpack("<iiq", value)
    total = (months * 30 + days) * _DAY + micros  # as DuckDB compares intervals
    shifted: int = total + (1 << 127)
    return b"\x01" + shifted.to_bytes(16, "big")


_FIXED16: dict[Kind, Callable[[bytes], bytes]] = {
    Kind.DECIMAL: _decimal_key,
    Kind.INTERVAL: _interval_key,
    Kind.UUID: _uuid_key,
}


def _fixed_keys(column: Column, sql_type: SqlType) -> np.ndarray:
    """Return ``(n, 1 + width)`` uint8: tag and value of one fixed-width column."""
    n, width = len(column), _WIDTHS[sql_type.physical]
    out = np.empty((n, 1 + width), dtype=np.uint8)
    out[:, 0] = _VALUE
    if n:
        out[:, 1:] = _value_bytes(column, sql_type, width)
    if column.validity is not None:
        missing = ~column.validity
        out[missing] = 0
        out[missing, 0] = _NULL
    return out


def _value_bytes(column: Column, sql_type: SqlType, width: int) -> np.ndarray:
    n, physical = len(column), sql_type.physical
    if physical is Physical.BOOL:
        flags: np.ndarray = (column.values != 0).astype(np.uint8)
        return flags.reshape(n, 1)
    if physical is Physical.FIXED16:
        encode = _FIXED16.get(sql_type.kind, _uuid_key)
        raw = np.ascontiguousarray(column.values).tobytes()
        joined = b"".join([encode(raw[i : i + 16])[1:] for i in range(0, len(raw), 16)])
        return np.frombuffer(joined, dtype=np.uint8).reshape(n, 16)
    unsigned = np.dtype(f"u{width}")
    sign = unsigned.type(1 << (8 * width - 1))
    if physical in _INTEGERS:
        bits = np.ascontiguousarray(column.values).view(unsigned) ^ sign
    else:
        values = np.ascontiguousarray(column.values) + column.values.dtype.type(0)
        bits = values.view(unsigned)
        bits = np.where(bits & sign, ~bits, bits | sign)
        bits[np.isnan(values)] = unsigned.type((1 << (8 * width)) - 1)
    big: np.ndarray = bits.astype(unsigned.newbyteorder(">")).view(np.uint8)
    return big.reshape(n, width)


def _split(matrix: np.ndarray) -> list[bytes]:
    raw, width = matrix.tobytes(), matrix.shape[1]
    return [raw[i : i + width] for i in range(0, len(raw), width)]


def _variable_keys(column: Column, sql_type: SqlType) -> list[bytes]:
    if column.offsets is None:
        raise TypeError(f"a {sql_type} column needs offsets")
    raw = column.values.tobytes()
    bounds = column.offsets.tolist()
    if b"\0" in raw:
        keys = [_escape(raw[a:b]) for a, b in itertools.pairwise(bounds)]
    else:
        keys = [b"\x01" + raw[a:b] + b"\0" for a, b in itertools.pairwise(bounds)]
    if column.validity is not None:
        for row in np.flatnonzero(~column.validity).tolist():
            keys[row] = b"\x02"
    return keys
