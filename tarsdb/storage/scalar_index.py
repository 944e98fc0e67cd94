"""Ordered scalar indexes: looking entries up, with a transaction's own entries merged in.

A key holds the rowids of its rows, ascending; in a unique index one, but for keys with a NULL.
Entries describe the live rows of the snapshot, so no liveness check is needed. They have no
checksum: where one row is looked for, its key is compared; otherwise only rowids that were never
given out are noticed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import CorruptionError
from tarsdb.schema import IndexDef
from tarsdb.storage import keys
from tarsdb.storage.own_rows import OwnRows
from tarsdb.storage.transaction import ReadTxn

if TYPE_CHECKING:
    from tarsdb.storage.view import TableView

_ROWID = 8
_MANY = 4  # rows a key from which its rowids are better read in one call


def find(
    view: TableView,
    own: OwnRows | None,
    index: IndexDef,
    key: tuple[Any, ...],
) -> np.ndarray:
    """Return ascending rowids of live rows whose index key equals ``key``."""
    encoded = view.state.cache.codec(view.table, index).encode(key)
    unique = index.unique and None not in key
    if own is None or own.is_untouched:
        return given_out(view, index, base_rowids(view.txn, index, encoded, unique))
    found = own.find_key(index.id, encoded)
    if not _is_rebuilt(own, index):
        base = base_rowids(view.txn, index, encoded, unique)
        found += [rowid for rowid in base.tolist() if not own.ends_entry(index.id, rowid)]
    return np.array(sorted(found), dtype=np.int64)


def find_one(view: TableView, own: OwnRows | None, index: IndexDef, key: tuple[Any, ...]) -> int:
    """Return the rowid of the live row with a key of a unique index without NULLs; -1 for none."""
    encoded = view.state.cache.codec(view.table, index).encode(key)
    if own is not None and not own.is_untouched:
        mine = own.find_key(index.id, encoded)
        if mine or _is_rebuilt(own, index):
            return mine[0] if mine else -1
    raw = view.txn.get("index", keys.index_prefix(index.id) + encoded)
    if raw is None:
        return -1
    rowid = keys.read_rowid(raw)
    if own is not None and own.ends_entry(index.id, rowid):
        return -1
    row = view.row(rowid, index.column_ids)
    # a key may equal what is stored without being the same to Python: NaN, say
    if row != key and (
        row is None or view.state.cache.codec(view.table, index).encode(row) != encoded
    ):
        raise _damaged(view, index, rowid, f"of key {', '.join(map(repr, key))} ")
    return rowid


def find_each(view: TableView, own: OwnRows | None, index: IndexDef, column: Column) -> np.ndarray:
    """Return the rowid of the live row of each key of a unique index; -1 where there is none.

    The index is of one column, without NULLs.
    """
    encoded = view.state.cache.codec(view.table, index).encode_columns([column])
    if own is not None and _is_rebuilt(own, index):
        rowids = np.full(len(encoded), -1, dtype=np.int64)
    else:
        prefix = keys.index_prefix(index.id)
        found = view.txn.each("index", [prefix + key for key in encoded], _NOWHERE)
        rowids = np.frombuffer(found, dtype=">i8").astype(np.int64)
        _require_keys(view, index, rowids, encoded)
    if own is not None and not own.is_untouched:
        for at, (key, rowid) in enumerate(zip(encoded, rowids.tolist(), strict=True)):
            if rowid < 0 or own.ends_entry(index.id, rowid):
                rowids[at] = next(iter(own.find_key(index.id, key)), -1)
    return rowids


def _require_keys(
    view: TableView, index: IndexDef, rowids: np.ndarray, encoded: list[bytes]
) -> None:
    """Raise CorruptionError unless committed rows, -1 for none, have their keys."""
    there = np.flatnonzero(rowids != -1)
    codec = view.state.cache.codec(view.table, index)
    found = codec.encode_columns(view.base_rows(rowids[there], index.column_ids))
    if found != [encoded[at] for at in there.tolist()]:
        at = next(at for at, key in zip(there.tolist(), found, strict=True) if key != encoded[at])
        raise _damaged(view, index, int(rowids[at]))


def given_out(view: TableView, index: IndexDef, rowids: np.ndarray) -> np.ndarray:
    """Return committed rowids an index holds; one that no row ever had is a CorruptionError."""
    if len(rowids):
        greatest = rowids.view(np.uint64).max()
        if greatest >= view.state.counters.next_rowid:
            raise _damaged(view, index, int(greatest))
    return rowids


def _damaged(view: TableView, index: IndexDef, rowid: int, which: str = "") -> CorruptionError:
    return CorruptionError(
        f"table {view.table.name}, index {index.name}: an entry {which}leads to row {rowid}, which "
        f"{'is not there' if view.row(rowid, ()) is None else 'has another key'}",
        hint=f"REINDEX {index.name} makes it anew from the rows",
    )


_NOWHERE = b"\xff" * _ROWID
_NONE = np.empty(0, dtype=np.int64)


def base_rowids(txn: ReadTxn, index: IndexDef, encoded: bytes, unique: bool) -> np.ndarray:
    """Return the rowids stored under one key of an index, ascending; int64 (n,)."""
    stored = keys.index_prefix(index.id) + encoded
    if unique:
        raw = txn.get("index", stored)
        if raw is None:
            return _NONE
        return np.array((keys.read_rowid(raw),), dtype=np.uint64).view(np.int64)
    return np.frombuffer(txn.values("index", [stored], _ROWID), dtype=">u8").astype(np.int64)


def scan(
    view: TableView,
    own: OwnRows | None,
    index: IndexDef,
    bounds: tuple[bytes, bytes],
    most: int | None = None,
) -> np.ndarray:
    """Return rowids of live rows with ``bounds[0] <= key < bounds[1]`` in key order.

    With ``most``, reading stops soon after that many: a longer answer is incomplete.
    """
    prefix = keys.index_prefix(index.id)
    start, stop = prefix + bounds[0], prefix + bounds[1]
    if own is None or own.is_untouched:
        parts: list[np.ndarray] = []
        rows = 0
        for part in _range_rowids(view.txn, start, stop):
            parts.append(part)
            rows += len(part)
            if most is not None and rows > most:
                break
        found = np.concatenate(parts).astype(np.int64) if parts else _NONE
        return given_out(view, index, found)
    merged = list(own.entries(index.id, *bounds))
    if not _is_rebuilt(own, index):
        for key, value in view.txn.range("index", start, stop):
            encoded, rowid = split_entry(key, value)
            if not own.ends_entry(index.id, rowid):
                merged.append((encoded, rowid))
    merged.sort()
    return np.array([rowid for _, rowid in merged], dtype=np.int64)


def in_order(
    txn: ReadTxn, index: IndexDef, bounds: tuple[bytes, bytes], most: int, descending: bool
) -> np.ndarray:
    """Return committed rowids with ``bounds[0] <= key < bounds[1]`` from one end; int64 (n,)."""
    prefix = keys.index_prefix(index.id)
    start, stop = prefix + bounds[0], prefix + bounds[1]
    found = txn.tail("index", start, stop, most) if descending else []
    for block in txn.entries("index", start, stop) if not descending else ():
        found += [bytes(value) for _, value in block]
        if len(found) >= most:
            break
    return np.frombuffer(b"".join(found[:most]), dtype=">u8").astype(np.int64)


def _range_rowids(txn: ReadTxn, start: bytes, stop: bytes) -> Iterator[np.ndarray]:
    """Yield the rowids of keys in a range; the first keys tell how to read the others."""
    blocks = txn.keys("index", start, stop)
    first = next(blocks, [])
    found = np.frombuffer(txn.values("index", first, _ROWID), dtype=">u8")
    if len(found) < _MANY * len(first):  # about as many keys as rows: one entry after the other
        for block in txn.entries("index", start, stop):
            yield np.frombuffer(b"".join([value for _, value in block]), dtype=">u8")
        return
    yield found
    for keys_read in blocks:
        yield np.frombuffer(txn.values("index", keys_read, _ROWID), dtype=">u8")


def split_entry(key: bytes, value: memoryview) -> tuple[bytes, int]:
    """Return (encoded key, rowid) of a stored index entry."""
    return key[4:], keys.read_rowid(value)


def _is_rebuilt(own: OwnRows, index: IndexDef) -> bool:
    entries = own.indexes.get(index.id)
    return entries is not None and entries.rebuilt is not None


def entry(index_id: int, key: bytes, rowid: int) -> tuple[bytes, bytes]:
    """Return the stored (key, value) of an index entry."""
    return keys.index_prefix(index_id) + key, keys.rowid_bytes(rowid)
