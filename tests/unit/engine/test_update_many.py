"""executemany of UPDATE by key, many rows as one statement, beside one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.writing import update_many
from tarsdb.errors import DataError, IntegrityError

TABLE = (
    "CREATE TABLE t (id BIGINT PRIMARY KEY, sel INT, name TEXT UNIQUE, twice INT "
    "GENERATED ALWAYS AS (sel * 2) STORED, emb VECTOR(4), CHECK (sel < 1000))"
)
ROWS = 3000


def _filled(path: Path) -> tarsdb.Connection:
    db = tarsdb.connect(path)
    db.execute(TABLE)
    vectors = np.arange(ROWS * 4, dtype=np.float32).reshape(ROWS, 4)
    names = np.array([f"n{i}" for i in range(ROWS)], dtype=object)
    db.table("t").insert(
        {"id": np.arange(ROWS), "sel": np.zeros(ROWS, np.int32), "name": names, "emb": vectors}
    )
    db.execute("CREATE INDEX t_sel ON t (sel)")
    return db


def _content(db: tarsdb.Connection) -> list[Any]:
    rows = db.execute("SELECT id, sel, name, twice, emb FROM t ORDER BY id").fetchall()
    return [(*row[:4], np.asarray(row[4]).tolist()) for row in rows]


def _sets(rng: np.random.Generator) -> list[tuple[Any, Any]]:
    """Keys that repeat, are absent, NULL, or equal an integer without being one."""
    keys: list[Any] = rng.integers(0, ROWS + 50, 2500).tolist()
    keys[100], keys[200], keys[300], keys[400] = None, 7.0, 7.5, np.int64(9)
    keys[500] = 2**70
    return list(zip(rng.integers(0, 1000, 2500).tolist(), keys, strict=True))


def _distinct(rng: np.random.Generator) -> list[tuple[Any, Any]]:
    """Keys that are integers, some absent, each once: sets that stay columns."""
    keys = rng.permutation(ROWS + 50)[:2500].tolist()
    return list(zip(rng.integers(0, 1000, 2500).tolist(), keys, strict=True))


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("made", [_sets, _distinct])
def test_same_rows_as_one_by_one(tmp_path: Path, in_transaction: bool, made: Any) -> None:
    sets = made(np.random.default_rng(1))
    sql = "UPDATE t SET sel = ? WHERE id = ?"
    with _filled(tmp_path / "many.tars") as many, _filled(tmp_path / "each.tars") as each:
        if in_transaction:
            for db in (many, each):
                db.execute("BEGIN")
                db.execute("INSERT INTO t (id, sel) VALUES (3001, 5), (3002, 6)")
                db.execute("DELETE FROM t WHERE id BETWEEN 10 AND 20")
                db.execute("UPDATE t SET id = id + 1 WHERE id BETWEEN 700 AND 3000")
                db.execute("UPDATE t SET sel = 9 WHERE id BETWEEN 100 AND 300")
        else:
            each.execute("BEGIN")
        changed = many.executemany(sql, sets).rowcount
        one_by_one = sum(each.execute(sql, pair).rowcount for pair in sets)
        if in_transaction:
            many.execute("COMMIT")
        each.execute("COMMIT")
        assert changed == one_by_one > 2000
        assert _content(many) == _content(each)
        for value in (0, 17, 500):
            sql_of = "SELECT id FROM t WHERE sel = ? ORDER BY id"
            found = many.execute(sql_of, (value,)).fetchall()
            assert found == each.execute(sql_of, (value,)).fetchall()


def test_vectors_and_constants(tmp_path: Path) -> None:
    new = np.random.default_rng(2).random((500, 4), dtype=np.float32)
    with _filled(tmp_path / "t.tars") as db:
        sql = "UPDATE t SET emb = :v, sel = 7 WHERE id = :k"
        db.executemany(sql, ({"v": v, "k": k} for k, v in enumerate(new)))
        rows = _content(db)
    assert [row[4] for row in rows[:500]] == new.tolist()
    assert [row[1:4:2] for row in rows[:501]] == [(7, 14)] * 500 + [(0, 0)]
    assert rows[500][4] == [2000.0, 2001.0, 2002.0, 2003.0]


def test_distinct_keys_stay_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: Any) -> int:
        raise AssertionError("one set after the other")

    with _filled(tmp_path / "t.tars") as db:
        monkeypatch.setattr(update_many, "_gathered", unexpected)
        db.executemany("UPDATE t SET sel = ? WHERE id = ?", _distinct(np.random.default_rng(4)))
        with pytest.raises(AssertionError):
            db.executemany("UPDATE t SET sel = ? WHERE id = ?", _sets(np.random.default_rng(4)))


@pytest.mark.parametrize(
    ("value", "error"), [(1000, IntegrityError), ("x", DataError), (2**31, DataError)]
)
def test_an_error_leaves_nothing(tmp_path: Path, value: Any, error: type[Exception]) -> None:
    with _filled(tmp_path / "t.tars") as db:
        before = _content(db)
        sets = [(1, key) for key in range(2000)] + [(value, 5)]
        with pytest.raises(error):
            db.executemany("UPDATE t SET sel = ? WHERE id = ?", sets)
        assert _content(db) == before


@pytest.mark.parametrize(
    ("sql", "is_served"),
    [
        ("UPDATE t SET sel = ? WHERE id = ?", True),
        ("UPDATE t SET name = ? WHERE id = ?", False),  # unique: the order of rows matters
        ("UPDATE t SET sel = sel + ? WHERE id = ?", False),  # reads the row
        ("UPDATE t SET sel = ? WHERE id > ?", False),
        ("UPDATE t SET sel = ? WHERE sel = ?", False),
    ],
)
def test_which_plans_are_served(
    tmp_path: Path, sql: str, is_served: bool, monkeypatch: Any
) -> None:
    calls: list[int] = []
    real = update_many.update

    def counted(*arguments: Any) -> int:
        calls.append(1)
        return real(*arguments)

    monkeypatch.setattr(update_many, "update", counted)
    with _filled(tmp_path / "t.tars") as db:
        value: Any = "new" if "name" in sql else 3
        db.executemany(sql, [(value, 4)])
    assert bool(calls) is is_served
