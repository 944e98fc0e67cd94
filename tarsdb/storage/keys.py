"""Database keys of tables: how table, group, segment, commit and rowid become ordered bytes.

Every integer is big-endian, so LMDB's byte order is numeric order. Knows no values and no
transactions; the keys of index entries are made by :mod:`tarsdb.storage.index_keys`.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable

import numpy as np

from tarsdb.errors import CorruptionError

PROVISIONAL = 1 << 62
"""First rowid of rows that are not committed yet."""

ROWIDS_COLUMN = 0xFFFFFFFF
"""Pseudo column id of the block with explicit rowids (u64)."""
CREATED_COLUMN = 0xFFFFFFFE
"""Pseudo column id of the block with creating commit numbers (u64)."""
HOLES_COLUMN = 0xFFFFFFFD
"""Pseudo column id of the block marking rows that were never live (uint8 0/1)."""

_GROUP = struct.Struct(">II")
_SEGMENT = struct.Struct(">IIQ")
_BLOCK = struct.Struct(">IIQI")
_DELTA = struct.Struct(">IIQQ")
_TOMB = struct.Struct(">IIQQQ")
_INDEX = struct.Struct(">I")
_U64 = struct.Struct(">Q")

group_prefix = _GROUP.pack
segment_key = _SEGMENT.pack
block_key = _BLOCK.pack
delta_key = _DELTA.pack
tomb_key = _TOMB.pack
index_prefix = _INDEX.pack
rowid_bytes = _U64.pack


def _reader(layout: struct.Struct, what: str) -> Callable[[bytes], tuple[int, ...]]:
    def read(key: bytes) -> tuple[int, ...]:
        try:
            return layout.unpack(key)
        except struct.error:
            size = f"{len(key)} bytes, expected {layout.size}"
            raise CorruptionError(f"a key of {what} has {size}: {key.hex()}") from None

    return read


read_segment_key = _reader(_SEGMENT, "a segment")
read_block_key = _reader(_BLOCK, "a block")
read_delta_key = _reader(_DELTA, "the delta")
read_tomb_key = _reader(_TOMB, "a tombstone")

TOMB_DTYPE = np.dtype(
    [("table", ">u4"), ("group", ">u4"), ("deleted", ">u8"), ("rowid", ">u8"), ("created", ">u8")]
)
"""NumPy layout of a ``tombs`` key, to decode many at once."""


def tomb_keys(
    table: int, group: int, deleted: int, rowids: np.ndarray, created: np.ndarray
) -> list[bytes]:
    """Return the ``tombs`` keys of many versions that end in one commit."""
    fields = np.empty(len(rowids), dtype=TOMB_DTYPE)
    fields["table"], fields["group"], fields["deleted"] = table, group, deleted
    fields["rowid"], fields["created"] = rowids, created
    found: list[bytes] = fields.view(f"V{TOMB_DTYPE.itemsize}").tolist()
    return found


_DELTA_DTYPE = np.dtype([("table", ">u4"), ("group", ">u4"), ("created", ">u8"), ("rowid", ">u8")])


def delta_keys(table: int, group: int, created: np.ndarray, rowids: np.ndarray) -> list[bytes]:
    """Return the ``delta`` keys of many versions."""
    fields = np.empty(len(rowids), dtype=_DELTA_DTYPE)
    fields["table"], fields["group"] = table, group
    fields["created"], fields["rowid"] = created, rowids
    found: list[bytes] = fields.view(f"V{_DELTA_DTYPE.itemsize}").tolist()
    return found


def read_rowid(value: bytes | memoryview) -> int:
    """Return the rowid of 8 bytes as an index entry stores them."""
    if len(value) != _U64.size:
        raise CorruptionError(f"an index entry has {len(value)} bytes, expected {_U64.size}")
    rowid: int = _U64.unpack(value)[0]
    return rowid


@functools.lru_cache(1024)
def table_key(table: int) -> bytes:
    """Return the ``meta`` key of a table's counters."""
    return b"table/" + _INDEX.pack(table)


def identity_key(table: int) -> bytes:
    """Return the ``meta`` key of the next number of a table's identity column."""
    return b"identity/" + _INDEX.pack(table)


def group_range(table: int, group: int) -> tuple[bytes, bytes]:
    """Return ``[start, stop)`` of all keys of one column group."""
    return _GROUP.pack(table, group), _successor(_GROUP.pack(table, group))


def table_range(table: int) -> tuple[bytes, bytes]:
    """Return ``[start, stop)`` of all keys of one table, or of one index in ``index``."""
    return _INDEX.pack(table), _successor(_INDEX.pack(table))


def commits_after(table: int, group: int, commit: int) -> tuple[bytes, bytes]:
    """Return ``[start, stop)`` of delta or tombstone keys of commits above ``commit``."""
    start = _SEGMENT.pack(table, group, commit + 1)
    return start, _successor(_GROUP.pack(table, group))


def segment_blocks(table: int, group: int, segment: int) -> tuple[bytes, bytes]:
    """Return ``[start, stop)`` of the block keys of one segment."""
    start = _SEGMENT.pack(table, group, segment)
    return start, _successor(start)


def _successor(prefix: bytes) -> bytes:
    """Return the least byte string above every string that starts with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\xff" * (len(prefix) + 1)


successor = _successor
