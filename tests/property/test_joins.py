"""Joins whose tables are looked up by keys give what SQLite gives, and read few rows."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

import tarsdb
from tarsdb.engine.reading import joined_keys, scans

STATEMENTS = int(os.environ.get("TARSDB_QUERIES", "5000")) // 32
TABLES = {
    "a": "CREATE TABLE a (id BIGINT PRIMARY KEY, k INT, t TEXT)",
    "b": "CREATE TABLE b (id BIGINT PRIMARY KEY, a_id BIGINT, t TEXT, n SMALLINT)",
    "c": "CREATE TABLE c (id BIGINT PRIMARY KEY, b_id INT, a_id BIGINT, t TEXT)",
}
INDEXES = ("a (k)", "a (t)", "b (a_id)", "b (t)", "c (b_id)", "c (a_id)")
COLUMNS = {
    "a": ("id", "k", "t"), "b": ("id", "a_id", "t", "n"), "c": ("id", "b_id", "a_id", "t"),
}  # fmt: skip
LINKS = [
    ("a", "id", "b", "a_id"), ("b", "id", "c", "b_id"), ("a", "id", "c", "a_id"),
    ("a", "t", "b", "t"), ("b", "t", "c", "t"), ("a", "k", "b", "n"), ("b", "n", "c", "b_id"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tables of few rows treated as large ones are."""
    monkeypatch.setattr(scans, "SMALL_ROWS", 0)
    monkeypatch.setattr(joined_keys, "SHARE", 0)


def rows_of(rng: random.Random, table: str, count: int) -> list[tuple[Any, ...]]:
    def some(limit: int) -> int | None:
        return None if rng.random() < 0.15 else rng.randrange(limit)

    def text() -> str | None:
        return None if rng.random() < 0.15 else f"t{rng.randrange(12)}"

    made: list[tuple[Any, ...]] = []
    for number in rng.sample(range(60), count):
        made.append({
            "a": (number, some(20), text()), "b": (number, some(60), text(), some(20)),
            "c": (number, some(60), some(60), text()),
        }[table])  # fmt: skip
    return made


@pytest.fixture
def both() -> Iterator[tuple[tarsdb.Connection, sqlite3.Connection]]:
    rng = random.Random(11)
    ours, theirs = tarsdb.connect(":memory:"), sqlite3.connect(":memory:", isolation_level=None)
    for db in (ours, theirs):
        for create in TABLES.values():
            db.execute(create)
        for number, index in enumerate(INDEXES):
            db.execute(f"CREATE INDEX i{number} ON {index}")
    for table in TABLES:
        rows = rows_of(rng, table, 40)
        marks = ", ".join("?" * len(rows[0]))
        for db in (ours, theirs):
            db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    yield ours, theirs
    ours.close()
    theirs.close()


class Statement:
    """One random SELECT over joined tables."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names: list[tuple[str, str]] = []  # alias, table
        self.text = self._text()

    def _on(self, alias: str, table: str) -> list[str]:
        """Return equalities of a table with those before it."""
        found = []
        for other, known in self.names:
            for left, x, right, y in LINKS:
                if (left, right) == (known, table):
                    found.append(f"{other}.{x} = {alias}.{y}")
                elif (left, right) == (table, known):
                    found.append(f"{alias}.{x} = {other}.{y}")
                if known == table and left == table:
                    found.append(f"{other}.{x} = {alias}.{x}")
        return found

    def _term(self) -> str:
        rng = self.rng
        alias, table = rng.choice(self.names)
        column = rng.choice(COLUMNS[table])
        name = f"{alias}.{column}"
        value = f"'t{rng.randrange(12)}'" if column == "t" else str(rng.randrange(60))
        kinds = [
            f"{name} = {value}", f"{name} = {value}", f"{name} < {value}", f"{name} >= {value}",
            f"{name} IS NULL", f"{name} IS NOT NULL", f"{name} <> {value}",
            f"({name} = {value} OR {alias}.id = {rng.randrange(60)})", self._nested(alias, table),
        ]  # fmt: skip
        return rng.choice(kinds)

    def _nested(self, alias: str, table: str) -> str:
        rng = self.rng
        left, x, right, y = rng.choice([link for link in LINKS if table in (link[0], link[2])])
        inner, own, of = (right, x, y) if left == table else (left, y, x)
        limit = f"s.id < {rng.randrange(60)}"
        negated = "NOT " if rng.random() < 0.3 else ""
        if rng.random() < 0.5:
            return f"{alias}.{own} {negated}IN (SELECT s.{of} FROM {inner} s WHERE {limit})"
        return f"{negated}EXISTS (SELECT 1 FROM {inner} s WHERE s.{of} = {alias}.{own} AND {limit})"

    def _source(self, table: str) -> str:
        """Return a table, or a query that passes its rows on."""
        rng, columns = self.rng, ", ".join(COLUMNS[table])
        if rng.random() < 0.75:
            return table
        order = " ORDER BY id LIMIT 9" if rng.random() < 0.5 else ""
        return f"(SELECT {columns} FROM {table} WHERE id < {rng.randrange(60)}{order})"

    def _text(self) -> str:
        rng, text = self.rng, ""
        for number in range(rng.choice([1, 2, 2, 3, 3, 4])):
            table = rng.choice(list(TABLES))
            alias = f"x{number}"
            on = self._on(alias, table)
            join = ""
            if number:
                chosen = rng.sample(on, min(len(on), rng.choice([1, 1, 2])))
                self.names.append((alias, table))
                if rng.random() < 0.2:
                    chosen.append(self._term())
                self.names.pop()
                kind = rng.choice(["JOIN", "JOIN", "LEFT JOIN"])
                join = f" {kind} {self._source(table)} {alias} ON {' AND '.join(chosen) or '1 = 1'}"
            else:
                join = f"{self._source(table)} {alias}"
            self.names.append((alias, table))
            text += join
        terms = [self._term() for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        where = f" WHERE {' AND '.join(terms)}" if terms else ""
        shown = ", ".join(f"{alias}.{c}" for alias, t in self.names for c in COLUMNS[t])
        return f"SELECT {shown} FROM {text}{where}"


def key(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((value is None, str(value)) for value in row)


def compare(both: tuple[Any, Any], seeds: range) -> None:
    ours, theirs = both
    for seed in seeds:
        sql = Statement(random.Random(seed)).text
        expected = sorted(theirs.execute(sql).fetchall(), key=key)
        assert sorted(ours.execute(sql).fetchall(), key=key) == expected, f"{seed}: {sql}"


def test_joins_are_those_of_sqlite(both: tuple[Any, Any]) -> None:
    compare(both, range(STATEMENTS))


def test_joins_see_what_the_transaction_wrote(both: tuple[Any, Any]) -> None:
    rng = random.Random(4)
    for db in both:
        db.execute("BEGIN")
    for table in TABLES:
        for row in rows_of(rng, table, 20):
            for db in both:
                db.execute(f"DELETE FROM {table} WHERE id = ?", (row[0],))
                if row[0] % 3:
                    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    compare(both, range(STATEMENTS, STATEMENTS + STATEMENTS // 4))


def test_a_wrong_link_is_noticed(both: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a left join's left side must not be looked up by the right one's keys."""
    from tarsdb.sql import joined_keys as links

    found = links._link
    monkeypatch.setattr(links, "_link", lambda one, other, only=None: found(one, other))
    with pytest.raises(AssertionError, match="LEFT JOIN"):
        compare(both, range(2000))  # ends at the first
