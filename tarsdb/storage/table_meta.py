"""Reading and writing a table's counters inside a transaction, past every cache."""

from __future__ import annotations

from tarsdb.storage import keys
from tarsdb.storage.formats import TableCounters
from tarsdb.storage.state import decode_counters, require_no_rows
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import ValueType, pack


def read_counters(txn: ReadTxn, table: int, name: str) -> TableCounters:
    """Return a table's counters; fresh ones when it has no data yet."""
    raw = txn.get("meta", keys.table_key(table))
    if raw is None:
        require_no_rows(txn, table, name)
        return TableCounters()
    return decode_counters(table, raw, name)


def write_counters(txn: WriteTxn, table: int, counters: TableCounters) -> None:
    """Store a table's counters."""
    key = keys.table_key(table)
    txn.put("meta", key, pack(ValueType.META, key, counters.encode(), 0, txn.commit_number))
