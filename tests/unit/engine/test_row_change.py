"""UPDATE, DELETE and ON CONFLICT of one row by its key, beside the usual way and SQLite."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.writing import row_change, row_insert, row_values
from tarsdb.errors import ConflictError, Error, IntegrityError

COLUMNS = "k TEXT NOT NULL, a INT, b BIGINT, d DOUBLE PRECISION, u INT UNIQUE, UNIQUE (k, a)"
TABLE = f"CREATE TABLE t (id INTEGER PRIMARY KEY, {COLUMNS})"
ROWS = 330


def _short_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the usual way impossible to miss: it raises."""

    def unexpected(*_: Any) -> Any:
        raise AssertionError("the usual way")

    monkeypatch.setattr("tarsdb.engine.writing.mutate._updates", unexpected)
    monkeypatch.setattr("tarsdb.engine.writing.mutate._matching", unexpected)
    monkeypatch.setattr("tarsdb.engine.writing.mutate._source", unexpected)


class _Usual:
    """Statements inside go the usual way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def __enter__(self) -> None:
        self._context = self._patch.context()
        patch = self._context.__enter__()
        patch.setattr(row_change, "_way", lambda *_: None)
        patch.setattr(row_insert, "serves", lambda _: False)

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)


def _statements(rng: random.Random, count: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield statements and parameters, transactions and savepoints among them."""
    is_open = saved = False
    for _ in range(count):
        key, small = rng.randrange(ROWS + 20), rng.choice([None, *range(-3, 9)])
        text, large = rng.choice("xyzö") * rng.randrange(1, 4), rng.randrange(-(2**40), 2**40)
        yield rng.choice([
            ("UPDATE t SET a = ? WHERE id = ?", (small, key)),
            ("UPDATE t SET b = b + ?, d = d * 2 - a WHERE id = ?", (rng.choice([1, large]), key)),
            ("UPDATE t SET a = b, b = a + 1 WHERE id = ?", (key,)),
            ("UPDATE t SET u = ? WHERE id = ?", (rng.randrange(60), key)),
            ("UPDATE t SET k = ?, id = ? WHERE id = ?", (text, rng.randrange(ROWS + 20), key)),
            ("UPDATE t SET k = ? WHERE id = ?", (rng.choice([None, text]), key)),
            ("UPDATE t SET b = 1 WHERE id = ? AND a > ?", (key, 2)),
            ("UPDATE t SET b = a + 1 WHERE u = ?", (rng.randrange(60),)),
            ("UPDATE t SET b = 7 WHERE k = ? AND a = ?", (text, small)),
            ("DELETE FROM t WHERE id = ?", (key,)),
            ("DELETE FROM t WHERE u = ?", (rng.randrange(60),)),
            ("DELETE FROM t WHERE id = ? AND b IS NULL", (key,)),
            ("INSERT INTO t (id, k, a) VALUES (?, ?, ?)", (key, text, small)),
            ("INSERT INTO t (id, k, u) VALUES (?, ?, ?)", (ROWS + key, text, rng.randrange(60))),
            ("INSERT INTO t (id, k, a) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
             "a = excluded.a, b = t.b + 1, d = excluded.a + 0.5", (key, text, small)),
            ("INSERT INTO t (id, k, u) VALUES (?, ?, ?) ON CONFLICT (u) DO UPDATE SET k = ?",
             (ROWS + key, text, rng.randrange(60), rng.choice([None, "w"]))),
            ("INSERT INTO t (id, k) VALUES (?, ?) ON CONFLICT DO NOTHING", (key, text)),
            ("UPDATE t SET b = b + 1 WHERE id BETWEEN ? AND ?", (key, key + rng.choice([9, 300]))),
            ("DELETE FROM t WHERE id BETWEEN ? AND ?", (key, key + 3)),
            ("SELECT id FROM t WHERE u = ?", (rng.randrange(60),)),
        ])  # fmt: skip
        step = rng.random()
        if not is_open and step < 0.15:
            is_open, saved = True, False
            yield "BEGIN", ()
        elif is_open and step < 0.05:
            is_open = False
            yield rng.choice(["COMMIT", "ROLLBACK"]), ()
        elif is_open and step < 0.12:
            yield ("ROLLBACK TO SAVEPOINT s" if saved else "SAVEPOINT s"), ()
            saved = True
        elif step < 0.14:
            yield "DROP INDEX IF EXISTS t_a", ()
            yield "CREATE INDEX t_a ON t (a)", ()
    if is_open:
        yield "COMMIT", ()


def _answer(db: Any, sql: str, parameters: tuple[Any, ...]) -> Any:
    """Return what a statement says, its error for one that fails."""
    try:
        cursor = db.execute(sql, parameters)
        last = cursor.lastrowid if isinstance(db, tarsdb.Connection) else None
        names = [column[:2] for column in cursor.description or ()]
        return cursor.rowcount, sorted(cursor.fetchall()) if names else [], last, names
    except (Error, sqlite3.IntegrityError) as error:
        return type(error).__name__, str(error)


def _filled(path: Path) -> tarsdb.Connection:
    db = tarsdb.connect(path)
    db.execute(TABLE)
    _fill(db)
    return db


def _fill(db: Any) -> None:
    rows = [(i, f"k{i}", i % 7, i, i / 4, i + 100) for i in range(ROWS)]
    db.executemany("INSERT INTO t (id, k, a, b, d, u) VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.execute("UPDATE t SET u = u - 100 WHERE id < 60")


def _content(db: Any) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = db.execute("SELECT * FROM t ORDER BY id").fetchall()
    return rows


def _compare(path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, count: int = 250) -> int:
    """Run one sequence three times; return how many statements failed as they should."""
    lite = sqlite3.connect(":memory:", isolation_level=None)
    lite.execute(TABLE)
    _fill(lite)
    failed = 0
    with _filled(path / "short.tars") as short, _filled(path / "usual.tars") as usual:
        for sql, parameters in _statements(random.Random(seed), count):
            got = _answer(short, sql, parameters)
            with _Usual(monkeypatch):
                assert got == _answer(usual, sql, parameters), sql
            if got[0] == "ValueRangeError":  # SQLite's integers have no such limits
                continue
            theirs = _answer(lite, sql, parameters)
            failed += got[0] == "IntegrityError"
            assert (got[0] == "IntegrityError") == (theirs[0] == "IntegrityError"), (sql, got)
            if sql.startswith(("UPDATE", "DELETE", "INSERT")) and got[0] != "IntegrityError":
                assert got[0] == theirs[0], sql
            if not sql.startswith("SELECT"):
                assert _content(short) == _content(lite), sql
        assert _content(short) == _content(usual)
        for db in (short, usual):
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            for column, values in (("a", range(-3, 9)), ("u", range(60))):
                for value in values:
                    sql = f"SELECT id FROM t WHERE {column} {{}} ? ORDER BY id"
                    by_index = db.execute(sql.format("="), (value,)).fetchall()
                    assert by_index == lite.execute(sql.format("="), (value,)).fetchall()
    lite.close()
    return failed


@pytest.mark.parametrize("seed", range(4))
def test_as_the_usual_way_and_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    assert _compare(tmp_path, monkeypatch, seed) > 3


def test_the_comparison_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = row_values._number

    def wrong(*arguments: Any) -> Any:
        value, limit = right(*arguments)
        return (value + 1 if value == 5 else value), limit

    monkeypatch.setattr(row_values, "_number", wrong)
    with pytest.raises(AssertionError):
        _compare(tmp_path, monkeypatch, 1)


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("UPDATE t SET a = ? WHERE id = ?", (5, 7)),
        ("UPDATE t SET a = a + 1 WHERE id = ? AND b = 7", (7,)),
        ("UPDATE t SET u = NULL WHERE id = 7", ()),
        ("UPDATE t SET d = b * 0.5 WHERE k = 'k7' AND a = 0", ()),
        ("UPDATE t SET a = 3 WHERE id = ? RETURNING id, a", (7,)),
        ("UPDATE t SET a = 3 WHERE id = ? RETURNING id, a", (7000,)),
        ("DELETE FROM t WHERE id = ? RETURNING *", (None,)),
        ("DELETE FROM t WHERE id = :id", {"id": 7}),
        ("DELETE FROM t WHERE id = 7 RETURNING *", ()),
        ("INSERT INTO t (id, k) VALUES (?, 'x') ON CONFLICT (id) DO UPDATE SET a = 4", (7,)),
        ("INSERT INTO t (k, u) VALUES ('x', ?) ON CONFLICT (u) DO UPDATE SET a = 4", (107,)),
        ("INSERT INTO t (k, u) VALUES ('x', ?) ON CONFLICT (u) DO UPDATE SET a = 4", (-1,)),
        ("INSERT OR REPLACE INTO t (id, k) VALUES (?, 'x')", (7,)),
        ("INSERT OR IGNORE INTO t (id, k) VALUES (?, 'x')", (7,)),
    ],
)
def test_what_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, parameters: Any
) -> None:
    with _filled(tmp_path / "a.tars") as db, _filled(tmp_path / "b.tars") as usual:
        with _Usual(monkeypatch):
            expected = _answer(usual, sql, parameters)
        _short_only(monkeypatch)
        assert _answer(db, sql, parameters) == expected
        assert _content(db) == _content(usual)


def test_what_is_not_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _filled(tmp_path / "t.tars") as db:
        _short_only(monkeypatch)
        for sql, value in (
            ("UPDATE t SET a = 1 WHERE a = ?", 7),  # no unique key
            ("UPDATE t SET a = 1 WHERE id > ?", 7),
            ("UPDATE t SET a = 1 WHERE id = ?", 7.5),  # no integer: compared with every row
            ("DELETE FROM t WHERE id = ? OR a = 1", 7),
        ):
            with pytest.raises(AssertionError, match="usual"):
                db.execute(sql, (value,))


DERIVED = """CREATE TABLE g (id BIGINT PRIMARY KEY, a SMALLINT CHECK (a < 100), b INT NOT NULL,
    twice INT GENERATED ALWAYS AS (b * 2) STORED, v VECTOR(3), r REAL, m DECIMAL(9, 2), e VECTOR(3),
    CHECK (a < b))"""


def test_derived_columns_vectors_and_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[tuple[str, Any]] = [
        ("INSERT INTO g (id, a, b, v, r, m) VALUES (1, 2, 3, [1, 2, 3], 0.1, 1.25)", ()),
        ("INSERT INTO g (id, b) VALUES (2, 2147483647), (3, -5)", ()),
        ("UPDATE g SET b = ? WHERE id = 1", (50,)),  # a CHECK and a generated column read it
        ("UPDATE g SET b = ? WHERE id = 1", (1,)),
        ("UPDATE g SET a = 100 WHERE id = 1", ()),
        ("UPDATE g SET a = a + 98 WHERE id = 1", ()),
        ("UPDATE g SET a = 99999 WHERE id = 3", ()),
        ("UPDATE g SET b = b + 1 WHERE id = 2", ()),  # beyond INT
        ("UPDATE g SET b = NULL WHERE id = 1", ()),
        ("UPDATE g SET v = ?, r = ? WHERE id = 1", (np.array([4, 5, 6]), 1 / 3)),
        ("UPDATE g SET v = ? WHERE id = 1", ([1.0, 2.0],)),
        ("UPDATE g SET v = NULL, m = 2.345 WHERE id = ?", (1,)),
        ("UPDATE g SET v = ? WHERE id = 3", ([7, 8, 9],)),
        ("UPDATE g SET e = v, r = r + 1, m = m * 2 WHERE id = ?", (3,)),
        ("UPDATE g SET r = 'x' WHERE id = 1", ()),
        ("UPDATE g SET b = ? WHERE id = ?", (1,)),
        ("DELETE FROM g WHERE id = ?", (2,)),
        ("DELETE FROM g WHERE id = ?", ("3",)),
        ("DELETE FROM g WHERE id = ?", (None,)),
        ("UPDATE g SET r = 2 WHERE id = ?", (True,)),
    ]
    with tarsdb.connect(tmp_path / "a.tars") as short, tarsdb.connect(tmp_path / "b.tars") as usual:
        for db in (short, usual):
            db.execute(DERIVED)
        for sql, parameters in statements:
            got = _answer(short, sql, parameters)
            with _Usual(monkeypatch):
                assert got == _answer(usual, sql, parameters), sql
            shown = [repr(db.execute("SELECT * FROM g ORDER BY id").fetchall()) for db in
                     (short, usual)]  # fmt: skip
            assert shown[0] == shown[1], sql
        assert short.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("sql", ["INSERT INTO v VALUES (2, ?)", "UPDATE v SET e = ? WHERE id = 1"])
def test_an_array_is_the_callers_again(sql: str) -> None:
    with tarsdb.connect() as db:
        db.execute("CREATE TABLE v (id BIGINT PRIMARY KEY, e VECTOR(3))")
        db.execute("INSERT INTO v VALUES (1, NULL)")
        given = np.ones(3, np.float32)
        db.execute("BEGIN")
        db.execute(sql, (given,))
        given[:] = 0
        db.execute("COMMIT")
        found = db.execute("SELECT e FROM v WHERE e IS NOT NULL").fetchone()
        assert found is not None
        assert found[0].tolist() == [1, 1, 1]


def test_conflicts_are_noticed(tmp_path: Path) -> None:
    with _filled(tmp_path / "t.tars") as one, tarsdb.connect(tmp_path / "t.tars") as two:
        for first, second in (
            ("UPDATE t SET b = 1 WHERE id = 1", "UPDATE t SET d = 2 WHERE id = 1"),
            ("DELETE FROM t WHERE id = 2", "UPDATE t SET d = 2 WHERE id = 2"),
            ("UPDATE t SET b = 1 WHERE id = 3", "DELETE FROM t WHERE id = 3"),
            ("UPDATE t SET u = 999 WHERE id = 4", "UPDATE t SET u = 999 WHERE id = 5"),
        ):
            two.execute("BEGIN")
            two.execute(second)
            one.execute(first)
            with pytest.raises(ConflictError):
                two.execute("COMMIT")
        two.execute("BEGIN")
        two.execute("UPDATE t SET d = 2 WHERE id = 6")  # another row, and its keys stay
        one.execute("UPDATE t SET b = 1 WHERE id = 7")
        two.execute("COMMIT")
        with pytest.raises(IntegrityError):
            one.execute("UPDATE t SET u = 999 WHERE id = 8")
        assert one.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
