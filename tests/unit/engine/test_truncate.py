"""TRUNCATE: no rows, the same table."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import BindError, CatalogError, ConflictError, IntegrityError

COUNT = "SELECT count(*) FROM t"


@pytest.fixture
def db(tmp_path: pathlib.Path) -> tarsdb.Connection:
    connection = tarsdb.connect(tmp_path / "t.tars")
    connection.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, s TEXT UNIQUE, v VECTOR(4), CHECK (s <> 'no'))"
    )
    connection.execute("CREATE INDEX by_text ON t (s)")
    connection.execute("CREATE INDEX near ON t USING hnsw (v)")
    fill(connection)
    return connection


def fill(db: tarsdb.Connection, rows: int = 3000) -> None:
    vectors = np.random.default_rng(rows).random((rows, 4), np.float32)
    db.table("t").insert({"s": [f"s{i}" for i in range(rows)], "v": vectors})


def first(db: tarsdb.Connection, sql: str) -> Any:
    return db.execute(sql).fetchall()[0][0]


def test_rows_go_and_the_table_stays(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    sql = db.execute(
        "SELECT sql FROM tars_tables UNION ALL SELECT sql FROM tars_indexes"
    ).fetchall()
    assert db.execute("TRUNCATE TABLE t").rowcount == 3000
    assert first(db, COUNT) == 0
    assert db.execute("SELECT * FROM t ORDER BY v <-> '[1,2,3,4]' LIMIT 3").fetchall() == []
    assert (
        sql
        == db.execute(
            "SELECT sql FROM tars_tables UNION ALL SELECT sql FROM tars_indexes"
        ).fetchall()
    )
    assert db.execute("INSERT INTO t (s, v) VALUES ('s1', '[1,2,3,4]')").lastrowid == 1
    for bad in ("'s1'", "'no'"):
        with pytest.raises(IntegrityError):
            db.execute(f"INSERT INTO t (s) VALUES ({bad})")
    db.execute("TRUNCATE t")
    fill(db, 2000)
    db.execute("OPTIMIZE t")
    plan = str(db.execute("EXPLAIN SELECT id FROM t ORDER BY v <-> '[1,2,3,4]' LIMIT 3").fetchall())
    assert "index near (hnsw): graph" in plan
    assert first(db, "PRAGMA integrity_check") == "ok"
    db.close()
    with tarsdb.connect(tmp_path / "t.tars") as again:
        assert first(again, COUNT) == 2000
        assert first(again, "PRAGMA integrity_check") == "ok"


def test_it_is_undone_with_its_transaction(db: tarsdb.Connection) -> None:
    db.execute("BEGIN")
    db.execute("TRUNCATE t")
    db.execute("INSERT INTO t (s) VALUES ('mine')")
    assert first(db, COUNT) == 1
    db.execute("ROLLBACK")
    assert first(db, COUNT) == 3000
    assert len(db.execute("SELECT id FROM t ORDER BY v <-> '[1,2,3,4]' LIMIT 3").fetchall()) == 3


def test_whoever_wrote_meanwhile_conflicts(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "t.tars") as other:
        other.execute("BEGIN")
        other.execute("INSERT INTO t (s) VALUES ('late')")
        db.execute("TRUNCATE t")
        with pytest.raises(ConflictError):
            other.execute("COMMIT")
    assert first(db, COUNT) == 0


def test_only_tables_have_rows_to_remove(db: tarsdb.Connection) -> None:
    db.execute("CREATE VIEW w AS SELECT * FROM t")
    for name in ("w", "nothing"):
        with pytest.raises((BindError, CatalogError), match=name):
            db.execute(f"TRUNCATE {name}")
    assert first(db, COUNT) == 3000
