"""Ids of tables, indexes, models: reserved in blocks, so that most need no transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tarsdb.errors import CorruptionError
from tarsdb.schema import CatalogObject, TableDef
from tarsdb.storage.catalog import load_objects
from tarsdb.storage.transaction import ReadTxn, WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_KEY = b"ids"
_BLOCK = 256
_END = 1 << 32


def new_id(env: Environment) -> int:
    """Return a number never returned before for this file; gaps are harmless."""
    with env.id_lock:
        free: list[int] = env.caches.setdefault("object ids", [])
        if not free:
            first = env.stage(_reserve)
            free.extend(range(first + _BLOCK - 1, first - 1, -1))
        return free.pop()


def _reserve(txn: WriteTxn) -> int:
    raw = txn.get("meta", _KEY)
    first = 1 if raw is None else int.from_bytes(raw, "little")
    given = greatest_id(load_objects(txn, {}))
    if not given < first < _END:  # two objects of one id would share their rows
        found = "missing" if raw is None else str(first)
        raise CorruptionError(
            f"the next object id is {found}, and {given} is in use",
            hint="restore from a backup",
        )
    txn.put("meta", _KEY, (first + _BLOCK).to_bytes(8, "little"))
    return first


def greatest_id(objects: Mapping[tuple[str, str], CatalogObject]) -> int:
    """Return the greatest id of a table or an index, 0 where there is none."""
    tables = [table for table in objects.values() if isinstance(table, TableDef)]
    return max([0, *(t.id for t in tables), *(i.id for t in tables for i in t.indexes)])


def check(txn: ReadTxn, objects: Mapping[tuple[str, str], CatalogObject]) -> list[str]:
    """Return what is wrong with the next id: none below may be in use, or given out again."""
    raw, given = txn.get("meta", _KEY), greatest_id(objects)
    first = 1 if raw is None else int.from_bytes(raw, "little")
    return [] if given < first < _END else [f"the next object id is {first}, {given} is in use"]
