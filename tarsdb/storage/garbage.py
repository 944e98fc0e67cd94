"""Removing the data of dropped tables and indexes, at once when small, later when large.

A large one is only noted under ``garbage/`` in ``meta``; ids are never reused, so what remains is
invisible, and :func:`collect` takes it away in bounded transactions.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tarsdb.errors import CorruptionError
from tarsdb.schema import TableDef
from tarsdb.storage import keys
from tarsdb.storage.index_parts import forget_parts
from tarsdb.storage.stopping import CheckStop, never
from tarsdb.storage.table_meta import read_counters
from tarsdb.storage.transaction import WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_PREFIX = b"garbage/"
_AT_ONCE = 2000
_BATCH = 20_000
_TABLE_DATA = ("delta", "blocks", "segments", "tombs")


def drop_table(txn: WriteTxn, table: TableDef) -> None:
    """Remove a table's rows and index entries, or note them for collection."""
    counters = read_counters(txn, table.id, table.name)
    txn.delete("meta", keys.table_key(table.id))
    txn.delete("meta", keys.identity_key(table.id))
    size = counters.live_rows + counters.delta_records + counters.segments + counters.tombstones
    indexes = [index.id for index in table.indexes]
    for index in indexes:
        forget_parts(txn, index)
    if size <= _AT_ONCE:
        _remove(txn, table.id, indexes, 10 * _AT_ONCE * (1 + len(indexes)))
    else:
        _note(txn, table.id, [table.id], indexes)


def drop_index(txn: WriteTxn, index: int) -> None:
    """Remove an index's entries, or note them for collection."""
    forget_parts(txn, index)
    start, stop = keys.table_range(index)
    if delete_range(txn, "index", start, stop, _AT_ONCE) == _AT_ONCE:
        _note(txn, index, [], [index])


def _note(txn: WriteTxn, number: int, tables: list[int], indexes: list[int]) -> None:
    record = json.dumps({"tables": tables, "indexes": indexes}).encode()
    txn.put("meta", _PREFIX + keys.index_prefix(number), record)


def _remove(txn: WriteTxn, table: int | None, indexes: list[int], limit: int) -> int:
    gone = 0
    for db in _TABLE_DATA if table is not None else ():
        gone += delete_range(txn, db, *keys.table_range(table or 0), limit - gone)
    for index in indexes:
        gone += delete_range(txn, "index", *keys.table_range(index), limit - gone)
    return gone


def delete_range(
    txn: WriteTxn, db: str, start: bytes, stop: bytes, limit: int | None = None
) -> int:
    """Delete the keys in [start, stop), at most ``limit``; return how many."""
    doomed: list[bytes] = []
    for key, _ in txn.range(db, start, stop):
        if limit is not None and len(doomed) >= limit:
            break
        doomed.append(key)
    for key in doomed:
        txn.delete(db, key)
    return len(doomed)


def has_garbage(txn: WriteTxn) -> bool:
    """Return True when dropped data waits for collection."""
    return next(iter(txn.range("meta", _PREFIX, keys.successor(_PREFIX))), None) is not None


def collect(env: Environment, check_stop: CheckStop = never) -> int:
    """Remove noted data in transactions of bounded size; return the keys removed."""
    total = 0
    while True:
        check_stop()
        gone = env.stage(_collect_some, frees_space=True)
        if gone < 0:
            return total
        total += gone


def _read(value: memoryview) -> tuple[list[int], list[int]]:
    try:
        record = json.loads(bytes(value))
        return [int(each) for each in record["tables"]], [int(each) for each in record["indexes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(
            f"a note of dropped tables does not read: {error}",
            hint="restore from a backup",
        ) from error


def _collect_some(txn: WriteTxn) -> int:
    entry = next(iter(txn.range("meta", _PREFIX, keys.successor(_PREFIX))), None)
    if entry is None:
        return -1
    tables, indexes = _read(entry[1])
    gone = sum(_remove(txn, table, [], _BATCH) for table in tables)
    gone += _remove(txn, None, indexes, max(_BATCH - gone, 0))
    if gone < _BATCH:
        txn.delete("meta", entry[0])
    return gone
