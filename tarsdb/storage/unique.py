"""Keys of own rows and the UNIQUE check at statement time.

Checks against the snapshot and the transaction's own rows; the commit checks again against the
latest state. NULLs are distinct.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.errors import IntegrityError
from tarsdb.records import dataclass
from tarsdb.schema import IndexDef, TableDef
from tarsdb.storage import keys, scalar_index
from tarsdb.storage.index_keys import KeyCodec, null_rows
from tarsdb.storage.own_rows import Entry, OwnRows
from tarsdb.storage.own_runs import RunKeys
from tarsdb.types import SqlType, presenter

if TYPE_CHECKING:
    from tarsdb.storage.view import TableView

_SHOWN = 80
BulkKeys = tuple[list[bytes], np.ndarray | None]


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How one index reads its key from a row in column order."""

    index: IndexDef
    codec: KeyCodec
    ordinals: tuple[int, ...]

    def entry(self, row: Sequence[Any]) -> Entry:
        """Return the entry of a row."""
        return self.entry_of([row[at] for at in self.ordinals])

    def entry_of(self, values: Sequence[Any]) -> Entry:
        """Return the entry of the index's own values."""
        return self.codec.encode(values), self.index.unique and None not in values


def index_plans(view: TableView, table: TableDef) -> list[IndexPlan]:
    """Return the plans of a table's ordered indexes; kept for the definition asked for last."""
    cache = view.state.cache
    known = cache.plans
    if known is None or known[0] is not table:
        plans = [
            IndexPlan(
                index,
                cache.codec(table, index),
                tuple(table.ordinals[column_id] for column_id in index.column_ids),
            )
            for index in table.indexes
            if index.method == "btree"
        ]
        known = cache.plans = table, plans
    return known[1]


def is_taken(view: TableView, own: OwnRows, index_id: int, key: bytes) -> bool:
    """Return True when a live row has a key already."""
    if own.find_key(index_id, key):
        return True
    if is_rebuilt(own, index_id):
        return False
    raw = view.txn.get("index", keys.index_prefix(index_id) + key)
    return raw is not None and not own.ends_entry(index_id, keys.read_rowid(raw))


def is_rebuilt(own: OwnRows, index_id: int) -> bool:
    """Return True when this transaction builds the index anew."""
    entries = own.indexes.get(index_id)
    return entries is not None and entries.rebuilt is not None


def violation(table: TableDef, index: IndexDef, values: Sequence[Any]) -> IntegrityError:
    """Return the error of a key that exists twice."""
    names = ", ".join(table.column_by_id(column_id).name for column_id in index.column_ids)
    types = [table.column_by_id(column_id).type for column_id in index.column_ids]
    shown = ", ".join(_shown(value, kind) for value, kind in zip(values, types, strict=True))
    kind = "PRIMARY KEY" if index.origin == "primary key" else "UNIQUE"
    return IntegrityError(
        f"table {table.name}, {kind} index {index.name}: ({names}) = ({shown}) exists already"
    )


def _shown(value: Any, sql_type: SqlType) -> str:
    """Return a storage value as its reader would see it, not too long."""
    present = presenter(sql_type)
    text = repr(value if present is None else present(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def bulk_keys(
    view: TableView, own: OwnRows, plan: IndexPlan, columns: Sequence[Column]
) -> BulkKeys:
    """Encode the keys of bulk rows (columns in table order) and check a unique index.

    Raises
    ------
    IntegrityError
    """
    parts = [columns[at] for at in plan.ordinals]
    encoded = plan.codec.encode_columns(parts)
    nulls = null_rows(parts)
    if plan.index.unique:
        _require_all_unique(view, own, plan, parts, (encoded, nulls))
    return encoded, nulls


def _require_all_unique(
    view: TableView, own: OwnRows, plan: IndexPlan, parts: list[Column], found: BulkKeys
) -> None:
    encoded, nulls = found
    rows = range(len(encoded)) if nulls is None else np.flatnonzero(~nulls).tolist()
    wanted = encoded if nulls is None else [encoded[row] for row in rows]
    low = min(wanted, default=b"")
    checks = [taken for taken, high in _lookups(view, own, plan.index) if high >= low]
    if not checks and _are_distinct(wanted):
        return
    seen: set[bytes] = set()
    for row, key in zip(rows, wanted, strict=True):
        if key in seen or any(taken(key) for taken in checks):
            raise violation(view.table, plan.index, [part.get(row) for part in parts])
        seen.add(key)


def require_moved_unique(
    view: TableView, own: OwnRows, plan: IndexPlan, parts: Sequence[Column], moved: RunKeys
) -> None:
    """Check the keys that many rows of a unique index get at once in exchange for old ones.

    Raises
    ------
    IntegrityError
    """
    moving = [at for at, (a, b) in enumerate(zip(moved.old, moved.new, strict=True)) if a != b]
    freed = {moved.old[at] for at in moving}
    rows = moving if moved.nulls is None else [at for at in moving if not moved.nulls[at]]
    wanted = [moved.new[at] for at in rows]
    low = min(wanted, default=b"")
    checks = [taken for taken, high in _lookups(view, own, plan.index) if high >= low]
    seen: set[bytes] = set()
    for row, key in zip(rows, wanted, strict=True):
        if key in seen or (key not in freed and any(taken(key) for taken in checks)):
            raise violation(view.table, plan.index, [part.get(row) for part in parts])
        seen.add(key)


def _are_distinct(found: list[bytes]) -> bool:
    ascending = all(map(operator.lt, found, islice(found, 1, None)))
    return ascending or len(set(found)) == len(found)


def _lookups(view: TableView, own: OwnRows, index: IndexDef) -> list[tuple[Any, bytes]]:
    """Return (function telling whether a key is taken, greatest key it could know)."""
    found: list[tuple[Any, bytes]] = []
    txn, prefix = view.txn, keys.index_prefix(index.id)
    entries = own.indexes.get(index.id)
    in_rows = entries is not None and (entries.new or entries.rebuilt is not None)
    if in_rows or any(index.id in run.keys for run in own.runs):
        found.append((lambda key: bool(own.find_key(index.id, key)), b"\xff"))
    for block in own.blocks:
        if index.id in block.index_keys:
            found.append((_block_lookup(block, index.id), block.greatest_key(index.id)))
    last = txn.last("index", prefix, keys.successor(prefix))
    if last is not None and not is_rebuilt(own, index.id):

        def stored(key: bytes) -> bool:
            raw = txn.get("index", prefix + key)
            return raw is not None and not own.ends_entry(index.id, keys.read_rowid(raw))

        found.append((stored, scalar_index.split_entry(*last)[0]))
    return found


def _block_lookup(block: Any, index_id: int) -> Any:
    return lambda key: bool(block.find_key(index_id, key))
