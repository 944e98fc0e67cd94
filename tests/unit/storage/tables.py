"""What the tests of tables share: an environment, a table, rows in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.storage import Environment, Snapshot, WriteSet
from tarsdb.types import parse_type

DIM = 4


def make_table(
    env: Environment, specs: Sequence[str] = ("BIGINT", "TEXT", f"VECTOR({DIM})"), name: str = "t"
) -> TableDef:
    """Create a table with columns a, b, c, ... and a primary key on the first."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        columns = tuple(
            ColumnDef(i, chr(96 + i), parse_type(spec)) for i, spec in enumerate(specs, start=1)
        )
        indexes = [IndexDef(writes.new_id(), "pk", name, (1,), True, origin="primary key")]
        if len(specs) > 1 and not columns[1].type.is_vector:
            indexes.append(IndexDef(writes.new_id(), "second", name, (2,)))
        table = TableDef(writes.new_id(), name, columns, (1,), (), tuple(indexes), len(columns) + 1)
        writes.put_object("table", name, table)
        writes.commit()
    return current(env, name)


def current(env: Environment, name: str = "t") -> TableDef:
    """Return the committed definition of a table."""
    with Snapshot(env) as snapshot:
        table = snapshot.catalog.table(name)
        assert table is not None
        return table


def vector(seed: int) -> np.ndarray:
    """Return a vector made from a number."""
    return np.arange(DIM, dtype=np.float32) + seed


def rows(*keys: int) -> list[tuple[Any, ...]]:
    """Return rows of the default table."""
    return [(key, f"text {key}", vector(key)) for key in keys]


def insert(env: Environment, table: TableDef, new: list[tuple[Any, ...]]) -> list[int]:
    """Insert rows in a transaction of their own; return their rowids."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        rowids = writes.insert(table, snapshot.table(table, writes), new)
        writes.commit()
    return writes.final_rowids(table, rowids)


def load(env: Environment, table: TableDef, new: list[tuple[Any, ...]]) -> None:
    """Insert rows as columns in a transaction of their own."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.insert_columns(table, snapshot.table(table, writes), columns_of(table, new))
        writes.commit()


def columns_of(table: TableDef, new: list[tuple[Any, ...]]) -> list[Column]:
    """Return rows as columns in table order."""
    return [from_list(c.type, [row[i] for row in new]) for i, c in enumerate(table.columns)]


def changed(table: TableDef, new: list[tuple[Any, ...]]) -> dict[int, list[Any]]:
    """Return full new rows as what ``WriteSet.update`` takes."""
    return {c.id: [row[i] for row in new] for i, c in enumerate(table.columns)}


def update(env: Environment, table: TableDef, rowid: int, row: tuple[Any, ...]) -> None:
    """Update one row in a transaction of its own."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        writes.update(table, snapshot.table(table, writes), [rowid], changed(table, [row]))
        writes.commit()


def delete(env: Environment, table: TableDef, rowids: Sequence[int]) -> None:
    """Delete rows in a transaction of their own."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        view = snapshot.table(table, writes)
        writes.delete(table, view, np.array(rowids, dtype=np.int64))
        writes.commit()


def contents(env: Environment, table: TableDef) -> dict[int, tuple[Any, ...]]:
    """Return every live row of the latest commit by rowid; vectors as lists."""
    found = {}
    with Snapshot(env) as snapshot:
        for chunk in snapshot.table(table).chunks([c.id for c in table.columns]):
            lists = [column.to_list() for column in chunk.columns]
            for rowid, row in zip(chunk.rowids.tolist(), zip(*lists, strict=True), strict=True):
                found[rowid] = tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in row)
    return found


def keys_of(env: Environment, db: str) -> dict[bytes, bytes]:
    """Return everything one named database holds."""
    with env.read() as txn:
        return {key: bytes(value) for key, value in txn.range(db, b"", None)}
