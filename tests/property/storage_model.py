"""A dict model of one table, and random transactions run against both the model and storage."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from tarsdb.columns import from_list
from tarsdb.errors import IntegrityError
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.storage import PROVISIONAL, Environment, Snapshot, TableView, WriteSet
from tarsdb.types import parse_type

DIM = 3
Row = tuple[Any, ...]


def create_table(env: Environment, name: str = "t") -> TableDef:
    """Create a table with a primary key, two more indexes and two vector columns."""
    with Snapshot(env) as snapshot:
        writes = WriteSet(env, snapshot.commit)
        specs = ["BIGINT", "TEXT", "DOUBLE", "BOOLEAN", f"VECTOR({DIM})", f"HALFVEC({DIM})"]
        columns = tuple(
            ColumnDef(i, f"c{i}", parse_type(spec)) for i, spec in enumerate(specs, start=1)
        )
        indexes = (
            IndexDef(writes.new_id(), f"{name}_pk", name, (1,), True, origin="primary key"),
            IndexDef(writes.new_id(), f"{name}_text", name, (2,)),
            IndexDef(writes.new_id(), f"{name}_pair", name, (3, 2), True),
        )
        table = TableDef(writes.new_id(), name, columns, (1,), (), indexes, len(specs) + 1)
        writes.put_object("table", name, table)
        writes.commit()
    with Snapshot(env) as snapshot:
        found = snapshot.catalog.table(name)
        assert found is not None
        return found


def random_row(rng: random.Random, key: int) -> Row:
    """Return a row whose (c3, c2) pair is distinct unless it holds a NULL."""
    text = rng.choice([None, "", "a", "b\0c", "zebra", "ünï"])
    number = None if rng.random() < 0.3 else key / 4
    vector = None if rng.random() < 0.3 else np.array([key, rng.random(), 1], dtype=np.float32)
    half = None if rng.random() < 0.5 else np.array([key % 7, 1, 0], dtype=np.float16)
    return (key, text, number, rng.choice([None, True, False]), vector, half)


def same(left: Any, right: Any) -> bool:
    """Compare two storage values."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return left is not None and right is not None and np.array_equal(left, right)
    return bool(left == right) and type(left) is type(right)


def assert_same_row(found: Row | None, expected: Row, rowid: int) -> None:
    """Fail naming the row when two rows differ."""
    assert found is not None, f"row {rowid} is missing"
    assert all(map(same, found, expected)), f"row {rowid}: {found} instead of {expected}"


def verify(view: TableView, model: dict[int, Row], rng: random.Random) -> None:
    """Compare every way of reading a view with the model."""
    table = view.table
    ids = [column.id for column in table.columns]
    assert view.count() == len(model)
    found: dict[int, Row] = {}
    for chunk in view.chunks(ids):
        lists = [column.to_list() for column in chunk.columns]
        for rowid, row in zip(chunk.rowids.tolist(), zip(*lists, strict=True), strict=True):
            assert rowid not in found, f"row {rowid} came twice"
            found[rowid] = row
    assert found.keys() == model.keys()
    for rowid, row in model.items():
        assert_same_row(found[rowid], row, rowid)
    sample = rng.sample(sorted(model), min(len(model), rng.choice([3, 90])))
    for rowid in sample[:5]:
        assert_same_row(view.row(rowid, ids), model[rowid], rowid)
    gathered = [c.to_list() for c in view.rows(np.array(sample, dtype=np.int64), ids)]
    for position, rowid in enumerate(sample):
        assert_same_row(tuple(values[position] for values in gathered), model[rowid], rowid)
    assert view.row(10**9, ids) is None
    _verify_indexes(view, model, sample[:5])
    for column_id in (5, 6):
        _verify_vectors(view, model, column_id)


def _verify_indexes(view: TableView, model: dict[int, Row], sample: list[int]) -> None:
    for index in view.table.indexes:
        at = [view.table.ordinals[c] for c in index.column_ids]
        keys_of = {rowid: tuple(row[i] for i in at) for rowid, row in model.items()}
        for rowid in sample:
            key = keys_of[rowid]
            expected = sorted(r for r, k in keys_of.items() if k == key)
            assert view.find(index, key).tolist() == expected, (index.name, key)
        assert sorted(view.range(index, (None, True), (None, True)).tolist()) == sorted(model)
    numbers = {r: row[0] for r, row in model.items()}
    inside = sorted((k, r) for r, k in numbers.items() if 10 <= k < 60)
    primary = view.table.indexes[0]
    assert view.range(primary, ((10,), True), ((60,), False)).tolist() == [r for _, r in inside]
    above = sorted((k, r) for r, k in numbers.items() if k > 20)
    assert view.range(primary, ((20,), False), (None, True)).tolist() == [r for _, r in above]


def _verify_vectors(view: TableView, model: dict[int, Row], column_id: int) -> None:
    blocks = view.vectors(column_id)
    assert view.vectors(column_id) is blocks
    found = {}
    for block in blocks:
        live = np.ones(len(block.rowids), bool) if block.live is None else block.live
        for at in np.flatnonzero(live).tolist():
            assert int(block.rowids[at]) not in found
            found[int(block.rowids[at])] = block.data[at]
    at = view.table.ordinals[column_id]
    expected = {rowid: row[at] for rowid, row in model.items() if row[at] is not None}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[rowid], vector) for rowid, vector in expected.items())


class Transaction:
    """One transaction in storage and in the model.

    ``touched`` holds committed rowids it changed, ``keys`` the primary keys it took.
    """

    def __init__(
        self, env: Environment, table: TableDef, model: dict[int, Row], rng: random.Random
    ) -> None:
        self.snapshot = Snapshot(env)
        self.writes = WriteSet(env, self.snapshot.commit)
        self.table, self.rng = table, rng
        self.model = dict(model)
        self.base = model
        self.marks: list[tuple[int, dict[int, Row]]] = []

    def view(self) -> TableView:
        return self.snapshot.table(self.table, self.writes)

    def step(self) -> None:
        """Do one random operation."""
        choice = self.rng.choice(
            ["insert", "insert", "bulk", "update", "update", "delete", "mark", "back", "look"]
        )
        getattr(self, choice)()

    def _fresh_keys(self, count: int) -> list[int]:
        used = {row[0] for row in self.model.values()}
        free = [key for key in range(2000) if key not in used]
        return self.rng.sample(free, count)

    def insert(self) -> None:
        rows = [random_row(self.rng, key) for key in self._fresh_keys(self.rng.randint(1, 4))]
        if self.model and self.rng.random() < 0.2:
            taken = self.rng.choice(list(self.model.values()))[0]
            rows.append(random_row(self.rng, taken))
            with np.testing.assert_raises(IntegrityError):
                self.writes.insert(self.table, self.view(), rows)
            return
        self.model.update(zip(self.writes.insert(self.table, self.view(), rows), rows, strict=True))

    def bulk(self) -> None:
        if len(self.model) > 900:
            return
        count = self.rng.choice([10, 70, 150, 300])
        rows = [random_row(self.rng, key) for key in self._fresh_keys(count)]
        clash = bool(self.model) and self.rng.random() < 0.2
        if clash:
            rows[-1] = random_row(self.rng, self.rng.choice(list(self.model.values()))[0])
        columns = [
            from_list(c.type, [row[i] for row in rows]) for i, c in enumerate(self.table.columns)
        ]
        if clash:
            with np.testing.assert_raises(IntegrityError):
                self.writes.insert_columns(self.table, self.view(), columns)
            return
        rowids = self.writes.insert_columns(self.table, self.view(), columns)
        self.model.update(zip(rowids.tolist(), rows, strict=True))

    def update(self) -> None:
        if not self.model:
            return
        most = min(len(self.model), self.rng.choice([6, 6, 60]))
        chosen = self.rng.sample(
            sorted(self.model), min(len(self.model), self.rng.randint(1, most))
        )
        rows, fresh = [], self._fresh_keys(len(chosen))
        for rowid in chosen:
            old = self.model[rowid]
            kind = self.rng.choice(["scalar", "vector", "key", "swap"])
            new = random_row(self.rng, old[0])
            if kind == "scalar":
                new = (*new[:4], old[4], old[5])
            elif kind == "vector":
                new = (*old[:4], new[4], old[5])
            elif kind == "key":
                new = random_row(self.rng, fresh.pop())
            rows.append(new)
        if len(chosen) in (2, 30):  # exchange the keys of rows
            rows = [random_row(self.rng, self.model[rowid][0]) for rowid in reversed(chosen)]
        named = self.rng.random() < 0.5  # name all columns, or those that change
        changed = {
            c.id: [row[i] for row in rows]
            for i, c in enumerate(self.table.columns)
            if named or not all(map(same, (self.model[r][i] for r in chosen), (r[i] for r in rows)))
        }
        if self.rng.random() < 0.2 and len(chosen) < len(self.model):
            self._clash(chosen, rows)
        self._update(chosen, changed)
        self.model.update(zip(chosen, rows, strict=True))

    def _update(self, chosen: list[int], changed: dict[int, list[Any]]) -> None:
        """Give the values one by one, or as columns."""
        if self.rng.random() < 0.3:
            self.writes.update(self.table, self.view(), chosen, changed)
            return
        columns = {i: from_list(self.table.column_by_id(i).type, v) for i, v in changed.items()}
        self.writes.update_columns(self.table, self.view(), np.array(chosen), columns)

    def _clash(self, chosen: list[int], rows: list[Row]) -> None:
        """Give a row the key of one that keeps it."""
        others = sorted(self.model.keys() - set(chosen))
        keys = [row[0] for row in rows]
        keys[self.rng.randrange(len(keys))] = self.model[self.rng.choice(others)][0]
        with np.testing.assert_raises(IntegrityError):
            self._update(chosen, {1: keys})

    def delete(self) -> None:
        if not self.model:
            return
        count = min(len(self.model), self.rng.choice([1, 2, 5, 40]))
        chosen = self.rng.sample(sorted(self.model), count)
        gone = self.writes.delete(self.table, self.view(), np.array(chosen, dtype=np.int64))
        assert gone == len(chosen)
        for rowid in chosen:
            del self.model[rowid]

    def mark(self) -> None:
        self.marks.append((self.writes.savepoint(), dict(self.model)))

    def back(self) -> None:
        if self.marks:
            at = self.rng.randrange(len(self.marks))
            mark, self.model = self.marks[at]
            self.writes.rollback_to(mark)
            self.model = dict(self.model)
            del self.marks[at + 1 :]

    def look(self) -> None:
        verify(self.view(), self.model, self.rng)

    @property
    def touched(self) -> set[int]:
        """Committed rows this transaction changed or deleted."""
        return {r for r in self.base if self.model.get(r) is not self.base[r]}

    @property
    def keys(self) -> set[int]:
        """Primary keys of the rows it wrote."""
        return {row[0] for r, row in self.model.items() if self.base.get(r) is not row}

    def finish(self) -> None:
        self.snapshot.close()

    def committed_model(self, latest: dict[int, Row]) -> dict[int, Row]:
        """Return the latest committed model with this transaction's changes on top."""
        result = {r: row for r, row in latest.items() if r not in self.touched}
        for rowid, row in self.model.items():
            if self.base.get(rowid) is not row:
                result[self.writes.final_rowids(self.table, [rowid])[0]] = row
        return result


def is_provisional(rowid: int) -> bool:
    """Return True for rowids that only a transaction knows."""
    return rowid >= PROVISIONAL
