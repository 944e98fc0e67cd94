"""What the power-loss workload does, and what each state of the file must then hold.

Every thread has a counter row. Its value says how many steps of that thread are committed, and the
whole content that belongs to the thread follows from it: so a state that mixes two transactions, in
tables, indexes, vectors or blobs, is seen without knowing which commit it should be.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from tarsdb.columns import from_list
from tarsdb.schema import ColumnDef, IndexDef, ModuleDef, TableDef
from tarsdb.storage import Environment, Snapshot, WriteSet, check
from tarsdb.types import parse_type

DIM = 8
BULK = 70  # rows of a load that goes through staging
Row = tuple[Any, ...]


def create(env: Environment, threads: int) -> None:
    """Make the two tables and a counter row for each thread."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        for name, types in (("ledger", ("BIGINT", "BIGINT")), ("items", ITEM_TYPES)):
            columns = tuple(
                ColumnDef(i, f"c{i}", parse_type(text)) for i, text in enumerate(types, start=1)
            )
            indexes = (
                IndexDef(writes.new_id(), f"{name}_pk", name, (1,), True, origin="primary key"),
                IndexDef(writes.new_id(), f"{name}_second", name, (2,)),
            )
            table = TableDef(writes.new_id(), name, columns, (1,), (), indexes, len(columns) + 1)
            writes.put_object("table", name, table)
        writes.commit()
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        ledger = table_of(snapshot, "ledger")
        counters = [(-1 - thread, 0) for thread in range(threads)]
        writes.insert(ledger, snapshot.table(ledger, writes), counters)
        writes.commit()


ITEM_TYPES = ("BIGINT", "BIGINT", "TEXT", f"VECTOR({DIM})")


def table_of(snapshot: Snapshot, name: str) -> TableDef:
    """Return a table's definition."""
    table = snapshot.catalog.table(name)
    assert table is not None, f"table {name} is missing"
    return table


def vector(item: int, version: int) -> np.ndarray:
    """Return the vector of an item."""
    return np.arange(DIM, dtype=np.float32) * (version + 1) + item % 1000


def items_of(token: int) -> list[Row]:
    """Return the items one step inserts."""
    count = BULK if token % 1000 % 6 == 0 else 3
    first = token * 100
    return [(first + i, token, f"text of {first + i}", vector(first + i, 0)) for i in range(count)]


def module(step: int) -> bytes:
    """Return the content of the blob that a step stores."""
    return hashlib.sha256(b"%d" % step).digest() * 200


def token_of(thread: int, step: int) -> int:
    """Return the ledger key of a step."""
    return (thread + 1) * 1000 + step


def take_step(env: Environment, thread: int, step: int) -> int:
    """Do one transaction; return its commit number. Raises ConflictError."""
    token = token_of(thread, step)
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        try:
            ledger, items = table_of(snapshot, "ledger"), table_of(snapshot, "items")
            books, goods = snapshot.table(ledger, writes), snapshot.table(items, writes)
            counter = books.find(ledger.indexes[0], (-1 - thread,)).tolist()
            writes.update(ledger, books, counter, {ledger.columns[1].id: [step]})
            rows = items_of(token)
            writes.insert(ledger, books, [(token, len(rows))])
            columns = [from_list(c.type, [r[i] for r in rows]) for i, c in enumerate(items.columns)]
            writes.insert_columns(items, goods, columns)
            if step % 4 == 0:
                changed = items_of(token - 1)[0]
                rowid = goods.find(items.indexes[0], changed[:1]).tolist()
                new = {items.columns[3].id: [vector(changed[0], 1)]}
                writes.update(items, goods, rowid, new)
            if step % 5 == 0:
                gone = token - 3
                writes.delete(ledger, books, books.find(ledger.indexes[0], (gone,)))
                writes.delete(items, goods, goods.find(items.indexes[1], (gone,)))
            if step % 8 == 0:
                digest = writes.put_blob(module(step))
                size = len(module(step))
                name = f"m{thread}"
                definition = ModuleDef(writes.new_id(), name, digest, digest, size)
                writes.put_object("module", name, definition)
            return writes.commit().number
        except BaseException:
            writes.discard()
            raise


def expected(thread: int, done: int) -> tuple[dict[int, int], dict[int, Row]]:
    """Return ledger and items of a thread that committed ``done`` steps."""
    ledger = {-1 - thread: done}
    items: dict[int, Row] = {}
    for step in range(1, done + 1):
        token = token_of(thread, step)
        rows = items_of(token)
        ledger[token] = len(rows)
        items.update({row[0]: row for row in rows})
        if step % 4 == 0:
            changed = items_of(token - 1)[0]
            items[changed[0]] = (*changed[:3], vector(changed[0], 1))
        if step % 5 == 0:
            del ledger[token - 3]
            items = {key: row for key, row in items.items() if row[1] != token - 3}
    return ledger, items


def read(snapshot: Snapshot, name: str) -> dict[int, Row]:
    """Return a table's rows by primary key."""
    table = table_of(snapshot, name)
    found: dict[int, Row] = {}
    for chunk in snapshot.table(table).chunks([c.id for c in table.columns]):
        lists = [column.to_list() for column in chunk.columns]
        found.update({row[0]: row for row in zip(*lists, strict=True)})
    return found


def findings(env: Environment, threads: int) -> tuple[list[str], dict[int, int], int]:
    """Return what is wrong with a state, the steps each thread committed, and the last commit."""
    wrong = check(env, full=True)
    with Snapshot(env) as snapshot:
        ledger = {key: row[1] for key, row in read(snapshot, "ledger").items()}
        items = read(snapshot, "items")
        done = {thread: ledger.get(-1 - thread, -1) for thread in range(threads)}
        for thread, steps in done.items():
            books, goods = expected(thread, max(steps, 0))
            mine = {k: v for k, v in ledger.items() if k == -1 - thread or k // 1000 == thread + 1}
            if mine != books:
                wrong.append(f"thread {thread}, step {steps}: ledger {mine} instead of {books}")
            held = {key: row for key, row in items.items() if row[1] // 1000 == thread + 1}
            if held.keys() != goods.keys() or not all(
                _same(held[key], row) for key, row in goods.items()
            ):
                wrong.append(f"thread {thread}, step {steps}: items differ")
            wrong += _module_findings(snapshot, thread, steps)
        return wrong, done, snapshot.commit


def _same(left: Row, right: Row) -> bool:
    return left[:3] == right[:3] and np.array_equal(left[3], right[3])


def _module_findings(snapshot: Snapshot, thread: int, steps: int) -> list[str]:
    stored = snapshot.catalog.module(f"m{thread}")
    last = steps // 8 * 8
    if stored is None:
        return [f"thread {thread}, step {steps}: no module"] if last else []
    if not last or snapshot.read_blob(stored.digest) != module(last):
        return [f"thread {thread}, step {steps}: another step's module"]
    return []
