"""UPDATE and DELETE of many rows: as columns, row by row, and in SQLite; one outcome."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import ConflictError, IntegrityError
from tarsdb.storage import apply_rows, column_changes, staging
from tarsdb.storage.own_rows import OwnRows

ROWS = 1200
TABLE = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, code TEXT UNIQUE, txt TEXT, "
    "twice INTEGER GENERATED ALWAYS AS (n * 2) STORED, CHECK (n > -50))"
)
INDEXES = ("CREATE INDEX t_n ON t (n)", "CREATE INDEX t_twice ON t (twice, txt)")
STATEMENTS = (
    "UPDATE t SET n = n + {a} WHERE id % {m} = 0",
    "UPDATE t SET txt = coalesce(txt, '') || 'x' WHERE n > {b}",
    "UPDATE t SET id = id + 1",
    "UPDATE t SET id = {top} - id WHERE id > 0",
    "UPDATE t SET code = NULL WHERE id % {m} = 1",
    "UPDATE t SET code = 'c' || (id + {a})",
    "UPDATE t SET n = n - {b} WHERE id % 3 = 0",
    "UPDATE t SET n = NULL, txt = 'none' WHERE id BETWEEN {b} AND {b} + 90",
    "UPDATE t SET n = {a}, txt = NULL WHERE id % {m} = 2",
    "UPDATE t SET id = {a} WHERE id % {m} = 0",
    "DELETE FROM t WHERE id % 17 = {a} % 17",
    "DELETE FROM t WHERE id BETWEEN {b} AND {b} + 60",
    "DELETE FROM t WHERE n = {b}",
    "INSERT INTO t (id, n, code) VALUES ({top} + {a}, {b}, 'new{a}')",
    "INSERT INTO t (id, n) SELECT id + {top}, n FROM t WHERE id < {b}",
    "SAVEPOINT s", "ROLLBACK TO s", "COMMIT", "BEGIN", "ROLLBACK",
)  # fmt: skip
QUERIES = (
    "SELECT id, n, code, txt, twice FROM t ORDER BY id",
    "SELECT id FROM t WHERE n BETWEEN 10 AND 30 ORDER BY id",
    "SELECT id FROM t WHERE id IN (5, 6, 7, 400, 401) ORDER BY id",
    "SELECT id FROM t WHERE code IN ('c5', 'c6', 'c7', 'new3') ORDER BY id",
    "SELECT count(*) FROM t WHERE twice = 40",
)


def _rows() -> list[tuple[Any, ...]]:
    return [(i, i % 100, f"c{i}" if i % 7 else None, f"text {i}") for i in range(ROWS)]


def _outcome(db: Any, sql: str) -> Any:
    """Run a statement; return its number of rows, or the class of its failure."""
    try:
        return max(db.execute(sql).rowcount, 0)
    except (tarsdb.Error, sqlite3.Error) as error:
        return "integrity" if "Integrity" in type(error).__name__ else "refused"


@contextmanager
def _as_rows(monkeypatch: pytest.MonkeyPatch, least: int) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setattr(column_changes, "MANY_ROWS", least)
        yield


@pytest.mark.parametrize("seed", range(4))
def test_equals_row_by_row_and_sqlite(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_rows, "MIN_SEGMENT_ROWS", 100)
    monkeypatch.setattr(staging, "STAGE_BYTES", (1 << 12) if seed % 2 else (20 << 20))
    rng = random.Random(seed)
    files = [tarsdb.connect(tmp_path / name) for name in ("columns", "rows")]
    dbs = [*files, sqlite3.connect(tmp_path / "sqlite", isolation_level=None)]
    dbs[2].execute("PRAGMA synchronous = OFF")
    for db in dbs:
        db.execute(TABLE)
        db.executemany("INSERT INTO t (id, n, code, txt) VALUES (?, ?, ?, ?)", _rows())
        for sql in INDEXES:
            db.execute(sql)
    for _ in range(30):
        given = {"a": rng.randrange(60), "b": rng.randrange(100), "m": rng.choice([2, 5, 40])}
        sql = rng.choice(STATEMENTS).format(top=rng.choice([5000, 9000, 20000]), **given)
        outcomes: list[Any] = []
        for db, least in zip(dbs, (1, 10**9, 0), strict=True):
            with _as_rows(monkeypatch, least):  # SQLite takes a SAVEPOINT for a BEGIN
                outcomes.append("refused" if "refused" in outcomes else _outcome(db, sql))
        if outcomes[0] == "integrity" == outcomes[1] and outcomes[2] != "integrity":
            pytest.fail(f"{sql}: SQLite allows it")
        assert outcomes[0] == outcomes[1], sql
        if outcomes[2] == "integrity" != outcomes[0]:  # SQLite checks a key row by row
            assert sql.startswith("UPDATE t SET id =") or sql.startswith("UPDATE t SET code =")
            _copy(dbs[0], dbs[2])
        _compare(dbs, sql)
    for db in dbs:
        _outcome(db, "COMMIT")
    _compare(dbs, "the end")
    for db in files:
        assert db.execute("PRAGMA integrity_check").fetchall()[0][0] == "ok"
        db.close()


def _copy(source: Any, target: Any) -> None:
    """Make SQLite's rows those of another database."""
    rows = source.execute("SELECT id, n, code, txt FROM t").fetchall()
    target.execute("DELETE FROM t")
    target.executemany("INSERT INTO t (id, n, code, txt) VALUES (?, ?, ?, ?)", rows)


def _compare(dbs: list[Any], after: str) -> None:
    for sql in QUERIES:
        found = [[tuple(row) for row in db.execute(sql).fetchall()] for db in dbs]
        assert found[0] == found[1] == found[2], (sql, after)


def _vectors(path: Path) -> tarsdb.Connection:
    db = tarsdb.connect(path)
    db.execute("CREATE TABLE v (id INTEGER PRIMARY KEY, tag TEXT, emb VECTOR(8), twin HALFVEC(4))")
    rng = np.random.default_rng(3)
    rows = [
        (i, f"t{i % 9}", rng.standard_normal(8) if i % 5 else None, np.full(4, i % 30))
        for i in range(ROWS)
    ]
    db.executemany("INSERT INTO v VALUES (?, ?, ?, ?)", rows)
    return db


def _vector_rows(db: tarsdb.Connection) -> list[Any]:
    rows = db.execute("SELECT id, tag, emb, twin FROM v ORDER BY id").fetchall()
    return [tuple(None if c is None else np.asarray(c).tolist() for c in row) for row in rows]


def test_vectors_as_columns_and_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements = (
        "UPDATE v SET emb = emb + emb WHERE id % 3 = 0",
        "UPDATE v SET tag = 'new' WHERE id % 4 = 1",
        "UPDATE v SET emb = NULL WHERE id % 10 = 3",
        "UPDATE v SET emb = emb WHERE id < 300",
        "UPDATE v SET emb = [1, 2, 3, 4, 5, 6, 7, 8], twin = [1, 1, 1, 1] WHERE id % 5 < 2",
        "DELETE FROM v WHERE id % 6 = 2",
    )
    query = "SELECT id FROM v ORDER BY emb <-> [1, 2, 3, 4, 5, 6, 7, 9], id LIMIT 20"
    for at, opened in enumerate((False, True)):
        dbs = [_vectors(tmp_path / f"{name}{at}") for name in ("columns", "rows")]
        for sql in ("BEGIN", *statements, "COMMIT") if opened else statements:
            for db, least in zip(dbs, (1, 10**9), strict=True):
                with _as_rows(monkeypatch, least):
                    db.execute(sql)
            assert _vector_rows(dbs[0]) == _vector_rows(dbs[1]), sql
            assert dbs[0].execute(query).fetchall() == dbs[1].execute(query).fetchall()
        for db in dbs:
            assert db.execute("PRAGMA integrity_check").fetchall()[0][0] == "ok"
            db.close()


def test_vectors_given_again_are_not_written(tmp_path: Path) -> None:
    with _vectors(tmp_path / "a.tars") as db:
        before = _bytes_of(db)
        db.execute("UPDATE v SET emb = emb, tag = 'z'")
        assert _bytes_of(db) == before
        db.execute("UPDATE v SET emb = emb + emb")
        assert _bytes_of(db) > before


def _bytes_of(db: tarsdb.Connection) -> int:
    """Return the bytes of vectors of ``emb`` in segments and delta, whole versions each."""
    env = db._require_session().env
    column = next(c for c in env_table(env).columns if c.name == "emb")
    with env.read() as txn:
        start, stop = tarsdb.storage.keys.group_range(env_table(env).id, column.id)
        return sum(len(v) for name in ("delta", "blocks") for _, v in txn.range(name, start, stop))


def env_table(env: Any) -> Any:
    from tarsdb.storage import tables_of

    return next(table for table in tables_of(env) if table.name == "v")


def test_keys_may_move_among_more_rows_than_a_batch(tmp_path: Path) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE k (id INTEGER PRIMARY KEY, v INTEGER)")
        db.executemany("INSERT INTO k VALUES (?, ?)", [(i, i) for i in range(10_000)])
        assert db.execute("UPDATE k SET id = id + 1").rowcount == 10_000
        assert db.execute("SELECT count(*), sum(id - v), min(id) FROM k").fetchall() == [
            (10_000, 10_000, 1)
        ]
        with pytest.raises(IntegrityError, match=r"\(id\) = \(5\) exists already"):
            db.execute("UPDATE k SET id = 5 WHERE id >= 9000")
        assert db.execute("SELECT count(*) FROM k WHERE id >= 9000").fetchone() == (1001,)


def test_two_writers_of_many_rows_conflict(tmp_path: Path) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db, tarsdb.connect(tmp_path / "a.tars") as other:
        db.execute("CREATE TABLE k (id INTEGER PRIMARY KEY, v INTEGER UNIQUE)")
        db.executemany("INSERT INTO k VALUES (?, ?)", [(i, i) for i in range(500)])
        for first, second in (
            ("UPDATE k SET v = v + 1000", "DELETE FROM k WHERE id = 77"),
            ("UPDATE k SET v = v + 1000 WHERE id < 200", "INSERT INTO k VALUES (900, 1100)"),
        ):
            db.execute("BEGIN")
            db.execute(first)
            other.execute(second)
            with pytest.raises(ConflictError):
                db.execute("COMMIT")


def test_rows_as_columns_are_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    add = OwnRows.add_run

    def noted(own: OwnRows, run: Any) -> None:
        made.append(len(run))
        add(own, run)

    monkeypatch.setattr(OwnRows, "add_run", noted)
    with _vectors(tmp_path / "a.tars") as db:
        db.execute("UPDATE v SET tag = 'a'")
        db.execute("DELETE FROM v WHERE id < 600")
        assert sum(made) == ROWS + 600
