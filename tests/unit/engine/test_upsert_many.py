"""ON CONFLICT for many rows at once: as row by row, and as SQLite."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import tarsdb
from tarsdb.engine.writing import upsert, upsert_many
from tarsdb.errors import IntegrityError

TABLE = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, txt TEXT, "
    "twice INTEGER GENERATED ALWAYS AS (n * 2) STORED, CHECK (n < 1000))"
)
INTO = "INSERT INTO t (id, n, txt) VALUES (?, ?, ?) "
SERVED = (
    "INSERT OR REPLACE INTO t (id, n, txt) VALUES (?, ?, ?)",
    "INSERT OR IGNORE INTO t (id, n, txt) VALUES (?, ?, ?)",
    INTO + "ON CONFLICT DO NOTHING",
    INTO + "ON CONFLICT (id) DO UPDATE SET n = excluded.n + t.n, txt = excluded.txt",
    INTO + "ON CONFLICT (id) DO UPDATE SET n = t.n + 1 WHERE t.n < excluded.n",
    INTO + "ON CONFLICT (id) DO UPDATE SET id = excluded.id, txt = 'seen'",
)
QUERIES = ("SELECT * FROM t ORDER BY id", "SELECT id FROM t WHERE n = 7 ORDER BY id")


def _filled(db: Any) -> Any:
    db.execute(TABLE)
    db.execute("CREATE INDEX t_n ON t (n)")
    rows = [(i, i % 50, f"r{i}") for i in range(0, 1000, 2)]
    db.executemany("INSERT INTO t (id, n, txt) VALUES (?, ?, ?)", rows)
    return db


def _rows(rng: random.Random, count: int) -> list[tuple[Any, ...]]:
    keys = rng.sample(range(1500), count)
    return [(k, rng.choice([None, k % 60]), rng.choice([None, f"x{k}"])) for k in keys]


@pytest.mark.parametrize("sql", SERVED)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_same_rows(
    tmp_path: Path, sql: str, in_transaction: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    dbs = [_filled(tarsdb.connect(tmp_path / name)) for name in ("many", "each")]
    dbs.append(_filled(sqlite3.connect(":memory:", isolation_level=None)))
    sets = [_rows(rng, count) for count in (200, 9, 400, 1)]
    sets[3] += [(3, 1, "a"), *_rows(rng, 20), (3, 2, "b")]  # a key twice
    if in_transaction:
        for db in dbs:
            db.execute("BEGIN")
            db.execute("UPDATE t SET n = n + 1, txt = 'own' WHERE id < 300")
            db.execute("DELETE FROM t WHERE id BETWEEN 300 AND 400")
            db.execute("INSERT INTO t (id, n) VALUES (301, 7)")
    for rows in sets:
        changed = []
        for db, least in zip(dbs, (8, 10**9, 0), strict=True):
            monkeypatch.setattr(upsert_many, "LEAST_ROWS", least)
            changed.append(db.executemany(sql, rows).rowcount)
        assert changed[0] == changed[1] == changed[2]
        for query in QUERIES:
            found = [[tuple(row) for row in db.execute(query).fetchall()] for db in dbs]
            assert found[0] == found[1] == found[2], query
    for db in dbs[:2]:
        if in_transaction:
            db.execute("COMMIT")
        assert db.execute("PRAGMA integrity_check").fetchall()[0][0] == "ok"
        db.close()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with _filled(tarsdb.connect(tmp_path / "a.tars")) as db:
        before = db.execute(QUERIES[0]).fetchall()
        with pytest.raises(IntegrityError, match="CHECK"):
            sql = INTO + "ON CONFLICT (id) DO UPDATE SET n = excluded.n * 100"
            db.executemany(sql, [(i, i % 30, "x") for i in range(100)])
        assert db.execute(QUERIES[0]).fetchall() == before


@pytest.mark.parametrize(
    ("sql", "is_served"),
    [
        *((sql, True) for sql in SERVED),
        (INTO + "ON CONFLICT (id) DO UPDATE SET txt = t.txt || excluded.txt", False),
        (INTO + "ON CONFLICT (id) DO UPDATE SET id = t.id + 5000", False),
        (INTO + "ON CONFLICT (id) DO UPDATE SET n = 1 RETURNING id", False),
    ],
)
def test_which_statements_are_served(
    tmp_path: Path, sql: str, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = upsert.apply

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(upsert, "apply", counted)
    with _filled(tarsdb.connect(tmp_path / "a.tars")) as db:
        db.executemany(sql, _rows(random.Random(1), 50))
        assert bool(calls) is not is_served
        db.execute("CREATE UNIQUE INDEX t_txt ON t (id, txt)")  # two may decide
        calls.clear()
        db.executemany(sql, _rows(random.Random(2), 20))
        assert calls
