"""Random ALTER TABLE, CREATE INDEX, changes of rows, transactions and upkeep equal a plain model.

What caches know of a column must end with it: also of one whose transaction was rolled back.
"""

from __future__ import annotations

import copy
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import tarsdb
from tarsdb import OpenOptions

STEPS = 60
Row = dict[str, Any]


@dataclass
class Column:
    """A column of the model; ``source`` is the column it is twice of, where it is generated."""

    name: str
    type: str
    default: Any = None
    source: str | None = None


@dataclass
class Table:
    """What the table should hold."""

    columns: list[Column] = field(default_factory=lambda: [Column("id", "BIGINT")])
    rows: dict[int, Row] = field(default_factory=dict)
    indexes: dict[str, str] = field(default_factory=dict)

    @property
    def plain(self) -> list[Column]:
        return [column for column in self.columns[1:] if column.source is None]

    @property
    def sources(self) -> set[str | None]:
        return {column.source for column in self.columns}

    def compute(self, row: Row) -> None:
        for column in self.columns:
            if column.source is not None:
                value = row[column.source]
                row[column.name] = None if value is None else 2 * value


class Story:
    """One random sequence of statements, and the model beside it."""

    def __init__(self, path: pathlib.Path, seed: int) -> None:
        self.pick = random.Random(seed)
        self.path, self.names, self.keys = path, 0, 0
        self.table = Table()
        self.saved: Table | None = None
        self.savepoint: Table | None = None
        self.db = self._connect()
        self.db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY)")

    def _connect(self) -> tarsdb.Connection:
        options = OpenOptions(
            segment_rows=64,
            delta_limit_rows=self.pick.choice([16, 64, 4096]),
            background_merge=self.pick.random() < 0.5,
        )
        return tarsdb.connect(self.path, durability="relaxed", options=options)

    def name(self) -> str:
        self.names += 1
        return f"c{self.names}"

    def value(self, of: str) -> Any:
        if self.pick.random() < 0.2:
            return None
        number = self.pick.randrange(-50, 50)
        return str(number) if of == "TEXT" else number

    def insert(self) -> None:
        given = [column for column in self.table.plain if self.pick.random() < 0.7]
        rows = []
        for _ in range(self.pick.choice([1, 1, 3, 40])):
            self.keys += 1
            row = {column.name: column.default for column in self.table.plain}
            row |= {column.name: self.value(column.type) for column in given}
            rows.append({"id": self.keys} | row)
        names = ["id", *(column.name for column in given)]
        marks = ", ".join("?" * len(names))
        sql = f"INSERT INTO t ({', '.join(names)}) VALUES ({marks})"
        self.db.executemany(sql, [tuple(row[name] for name in names) for row in rows])
        for row in rows:
            self.table.compute(row)
            self.table.rows[row["id"]] = row

    def update(self) -> None:
        column, every = self.pick.choice(self.table.plain), self.pick.choice([2, 3, 7, 1000])
        value, rest = self.value(column.type), self.pick.randrange(every)
        self.db.execute(f"UPDATE t SET {column.name} = ? WHERE id % {every} = {rest}", (value,))
        for key, row in self.table.rows.items():
            if key % every == rest:
                row[column.name] = value
                self.table.compute(row)

    def delete(self) -> None:
        every = self.pick.choice([5, 7, 50])
        self.db.execute(f"DELETE FROM t WHERE id % {every} = 1")
        self.table.rows = {k: row for k, row in self.table.rows.items() if k % every != 1}

    def add(self) -> None:
        of, value = self.pick.choice(["INT", "BIGINT", "TEXT"]), None
        column, how = Column(self.name(), of), self.pick.randrange(4)
        numbers = [each.name for each in self.table.plain if each.type != "TEXT"]
        clause = ""
        if how == 1:
            value = self.value(of)
            clause = f" DEFAULT {_literal(value)}"
        elif how == 2:
            value = "3" if of == "TEXT" else 3
            clause = " DEFAULT length('abc')"
        elif how == 3 and numbers:
            column = Column(column.name, "BIGINT", source=self.pick.choice(numbers))
            clause = f" GENERATED ALWAYS AS ({column.source} * 2) STORED"
        self.db.execute(f"ALTER TABLE t ADD COLUMN {column.name} {column.type}{clause}")
        column.default = value
        self.table.columns.append(column)
        for row in self.table.rows.values():
            row[column.name] = value
            self.table.compute(row)

    def drop(self) -> None:
        column = self.pick.choice(self.table.columns[1:])
        if column.name in self.table.sources | set(self.table.indexes.values()):
            return
        self.db.execute(f"ALTER TABLE t DROP COLUMN {column.name}")
        self.table.columns.remove(column)
        for row in self.table.rows.values():
            del row[column.name]

    def rename(self) -> None:
        column, new = self.pick.choice(self.table.columns[1:]), self.name()
        if column.name in self.table.sources:
            return
        self.db.execute(f"ALTER TABLE t RENAME COLUMN {column.name} TO {new}")
        for row in self.table.rows.values():
            row[new] = row.pop(column.name)
        indexes = self.table.indexes
        indexes |= {name: new for name, of in indexes.items() if of == column.name}
        column.name = new

    def change_type(self) -> None:
        column, of = self.pick.choice(self.table.plain), self.pick.choice(["INT", "BIGINT", "TEXT"])
        if column.name in self.table.sources:
            return
        self.db.execute(f"ALTER TABLE t ALTER {column.name} TYPE {of}")
        convert = str if of == "TEXT" else int
        for row in self.table.rows.values():
            value = row[column.name]
            row[column.name] = None if value is None else convert(value)
        default = column.default
        column.type, column.default = of, None if default is None else convert(default)

    def index(self) -> None:
        indexes = self.table.indexes
        if indexes and self.pick.random() < 0.3:
            name = self.pick.choice(sorted(indexes))
            self.db.execute(f"DROP INDEX {name}")
            del indexes[name]
            return
        column, name = self.pick.choice(self.table.columns[1:]), f"i{self.name()}"
        self.db.execute(f"CREATE INDEX {name} ON t ({column.name})")
        indexes[name] = column.name

    def transaction(self) -> None:
        if self.saved is None:
            self.db.execute("BEGIN")
            self.saved, self.savepoint = copy.deepcopy(self.table), None
        elif self.pick.random() < 0.4:
            if self.savepoint is None:
                self.db.execute("SAVEPOINT s")
                self.savepoint = copy.deepcopy(self.table)
            else:
                self.db.execute("ROLLBACK TO s")
                self.table = copy.deepcopy(self.savepoint)
        elif self.pick.random() < 0.5:
            self.db.execute("COMMIT")
            self.saved = None
        else:
            self.db.execute("ROLLBACK")
            self.table, self.saved = self.saved, None

    def upkeep(self) -> None:
        if self.saved is not None:
            return
        if self.pick.random() < 0.3:
            self.db.close()
            self.db = self._connect()
        else:
            self.db.execute(self.pick.choice(["OPTIMIZE", "VACUUM", "OPTIMIZE t", "VACUUM t"]))

    def step(self) -> None:
        chances = {
            "insert": 30, "update": 12, "delete": 5, "add": 12, "drop": 5, "rename": 4,
            "change_type": 8, "index": 7, "transaction": 9, "upkeep": 6,
        }  # fmt: skip
        if len(self.table.columns) == 1:
            del chances["drop"], chances["rename"], chances["index"]
        if not self.table.plain:
            del chances["update"], chances["change_type"]
        if len(self.table.columns) > 7:
            del chances["add"]
        names, weights = zip(*chances.items(), strict=True)
        getattr(self, self.pick.choices(names, weights)[0])()

    def differences(self) -> Iterator[object]:
        """Yield what the database says that the model does not."""
        names, rows = [column.name for column in self.table.columns], self.table.rows
        found = self.db.execute(f"SELECT {', '.join(names)} FROM t ORDER BY id").fetchall()
        expected = [tuple(rows[key][name] for name in names) for key in sorted(rows)]
        if found != expected:
            yield names, [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
        for index, name in self.table.indexes.items():
            values = sorted({row[name] for row in rows.values()} - {None})
            for value in self.pick.sample(values, min(2, len(values))):
                sql = f"SELECT id FROM t WHERE {name} = ?"
                keys = sorted(key for (key,) in self.db.execute(sql, (value,)).fetchall())
                if keys != sorted(key for key, row in rows.items() if row[name] == value):
                    yield index, value, keys


def _literal(value: Any) -> str:
    return "NULL" if value is None else repr(value)


@pytest.mark.parametrize("seed", range(12))
def test_schema_changes_equal_a_model(tmp_path: pathlib.Path, seed: int) -> None:
    story = Story(tmp_path / "t.tars", seed)
    for _ in range(STEPS):
        story.step()
        assert list(story.differences()) == []
    assert story.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    story.db.close()


def test_a_difference_is_seen(tmp_path: pathlib.Path) -> None:
    story = Story(tmp_path / "t.tars", 0)
    story.insert()
    story.add()
    story.index()
    assert list(story.differences()) == []
    next(iter(story.table.rows.values()))[story.table.columns[1].name] = 77
    assert list(story.differences())


def test_a_column_of_a_rolled_back_transaction_leaves_nothing(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "t.tars", durability="relaxed") as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        for merged in (False, True):
            if merged:
                db.execute("OPTIMIZE")
            db.execute("BEGIN; ALTER TABLE t ADD COLUMN a INT DEFAULT 24")
            assert db.execute("SELECT a FROM t").fetchall() == [(24,), (24,)]
            db.execute("ROLLBACK; BEGIN; ALTER TABLE t ADD COLUMN a TEXT")
            assert db.execute("SELECT a FROM t").fetchall() == [(None,), (None,)]
            db.execute("ROLLBACK")
