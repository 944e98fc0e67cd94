"""Numbers of identity columns: reserved in blocks, so that most inserts need no transaction.

A number is given once and above every committed one; a number that was reserved and not used
leaves a gap. The index that an identity column has tells its greatest number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tarsdb.errors import DataError
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.storage import keys
from tarsdb.storage.index_keys import integer_of
from tarsdb.storage.transaction import WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment
    from tarsdb.storage.view import TableView

_MOST = 256


@dataclass
class _Block:
    """Numbers that are reserved and free; the first block has one, each next one twice as many."""

    next: int = 0
    end: int = 0
    size: int = 0


def next_numbers(env: Environment, view: TableView, column: ColumnDef, count: int) -> int:
    """Reserve consecutive numbers for the identity column of a table.

    Parameters
    ----------
    env : Environment
    view : TableView
        Of the transaction that inserts: numbers that its rows have are passed over.
    column : ColumnDef
        The only column of a unique index.
    count : int
        At least 1.

    Returns
    -------
    int
        The first of them.

    Raises
    ------
    DataError
        The column's type has no such numbers left.
    """
    table = view.table
    index = unique_index(table, column)
    assert index is not None
    with env.id_lock:
        block: _Block = env.caches.setdefault("identity", {}).setdefault(table.id, _Block())
        while True:
            if block.next + count > block.end:
                block.size = min(max(2 * block.size, 1), _MOST)
                size = max(count, block.size)
                block.next = env.stage(lambda txn, size=size: _reserve(txn, table, index, size))  # type: ignore[misc]
                block.end = block.next + size
            first, last = block.next, block.next + count - 1
            greatest = int(np.iinfo(column.type.dtype).max)
            if last > greatest:
                raise DataError(
                    f"identity column {table.name}.{column.name}: {last} is above {greatest}, the "
                    f"greatest {column.type}"
                )
            block.next += count
            if not any(len(view.find(index, (number,))) for number in {first, last}):
                return first


def unique_index(table: TableDef, column: ColumnDef) -> IndexDef | None:
    """Return the constraint that keeps a column's values apart, or None."""
    return next((i for i in table.indexes if i.unique and i.column_ids == (column.id,)), None)


def _reserve(txn: WriteTxn, table: TableDef, index: IndexDef, size: int) -> int:
    key = keys.identity_key(table.id)
    kept = txn.get("meta", key)
    first = 1 if kept is None else int.from_bytes(kept, "little")
    greatest = txn.last("index", *keys.table_range(index.id))
    if greatest is not None:
        first = max(first, integer_of(greatest[0][len(keys.index_prefix(index.id)) :]) + 1)
    txn.put("meta", key, (first + size).to_bytes(16, "little"))
    return first
