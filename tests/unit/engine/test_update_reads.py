"""What an UPDATE reads: the columns it sets, and what depends on them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import IntegrityError
from tarsdb.storage import gather, state, view

DIM, ROWS = 4, 300


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(
            "CREATE TABLE t (id INT PRIMARY KEY, a INT, b INT CHECK (b < 1000), "
            f"c INT GENERATED ALWAYS AS (a + b) STORED, emb VECTOR({DIM}), "
            "CONSTRAINT small CHECK (c < 5000))"
        )
        ids = np.arange(ROWS)
        emb = np.random.default_rng(0).standard_normal((ROWS, DIM)).astype(np.float32)
        db.table("t").insert({"id": ids, "a": ids, "b": ids % 7, "emb": emb})
        db.execute("CREATE INDEX ta ON t (a)")
        yield db


UPDATES = (
    lambda db: db.execute("UPDATE t SET a = a + 1 WHERE id = 5"),
    lambda db: db.execute("UPDATE t SET a = 3 WHERE id < 200"),
    lambda db: db.executemany("UPDATE t SET b = ? WHERE id = ?", [(i, i) for i in range(90)]),
    lambda db: db.execute("UPDATE t SET a = s.n FROM (SELECT 7 AS k, 8 AS n) s WHERE id = s.k"),
    lambda db: db.execute(
        "INSERT INTO t (id, a, b) VALUES (5, 1, 1) ON CONFLICT (id) DO UPDATE SET a = excluded.a"
    ),
)


def contents(db: tarsdb.Connection) -> list[tuple[object, ...]]:
    rows = db.execute("SELECT id, a, b, c, emb FROM t ORDER BY id").fetchall()
    return [(*row[:4], None if row[4] is None else np.asarray(row[4]).tobytes()) for row in rows]


@pytest.mark.parametrize("update", UPDATES[:4])
def test_scalar_updates_look_at_no_vector(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch, update: object
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("a vector was looked at")

    before = contents(db)
    with monkeypatch.context() as patched:
        patched.setattr(view.TableView, "vector_group", refuse)
        patched.setattr(gather, "gather_vectors", refuse)
        update(db)  # type: ignore[operator]
        with pytest.raises(AssertionError, match="looked at"):
            db.execute("UPDATE t SET emb = emb WHERE id = 1")
    after = contents(db)
    assert after != before
    assert [row[4] for row in after] == [row[4] for row in before]
    assert all(row[3] == row[1] + row[2] for row in after)  # type: ignore[operator]


@pytest.mark.parametrize("update", UPDATES)
def test_indexes_and_values_after_updates(db: tarsdb.Connection, update: object) -> None:
    with db.transaction():
        update(db)  # type: ignore[operator]
        inside = contents(db)
        assert db.execute("SELECT count(*) FROM t WHERE a >= 0").fetchone() == (ROWS,)
    assert contents(db) == inside
    for row in inside[:20]:
        found = db.execute("SELECT id FROM t WHERE a = ?", (row[1],)).fetchall()
        assert (row[0],) in found
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_vector_given_again_keeps_its_version(db: tarsdb.Connection) -> None:
    env = db._require_session().env

    def group() -> state.GroupState:
        with tarsdb.storage.Snapshot(env) as snapshot:
            (table,) = snapshot.catalog.tables()
            found = snapshot.table(table)
            return found.vector_group(table.column("emb"))

    before = group()
    db.execute("UPDATE t SET emb = emb, a = 1 WHERE id < 100")
    assert group() is before
    db.execute("UPDATE t SET emb = '[1, 2, 3, 4]' WHERE id < 3")
    assert group() is not before
    assert group().count == 3
    db.execute("UPDATE t SET emb = NULL WHERE id < 2")
    assert db.execute("SELECT count(*) FROM t WHERE emb IS NULL").fetchone() == (2,)


def test_constraints_that_depend_on_what_changes_hold(db: tarsdb.Connection) -> None:
    with pytest.raises(IntegrityError, match="t_b_check"):
        db.execute("UPDATE t SET b = 1000 WHERE id = 1")
    with pytest.raises(IntegrityError, match="small"):  # by way of the generated column
        db.execute("UPDATE t SET a = 5000 WHERE id = 1")
    with pytest.raises(IntegrityError, match="NOT NULL"):
        db.execute("UPDATE t SET id = NULL WHERE id = 1")
    with pytest.raises(IntegrityError, match="exists already"):
        db.execute("UPDATE t SET id = 2 WHERE id = 1")
    assert contents(db)[1][:4] == (1, 1, 1, 2)


def test_rows_of_the_transaction_itself(db: tarsdb.Connection) -> None:
    more = np.arange(1000, 1000 + ROWS)
    emb = np.ones((ROWS, DIM), np.float32)
    with db.transaction():
        db.table("t").insert({"id": more, "a": more - 1000, "b": more % 7, "emb": emb})
        db.execute("UPDATE t SET a = 9 WHERE id >= 1290")  # rows of a block
        db.execute("UPDATE t SET b = 2 WHERE id >= 1290")  # and again
        db.execute("SAVEPOINT s")
        db.execute("UPDATE t SET a = 1, emb = NULL WHERE id >= 1280 OR id < 3")
        db.execute("ROLLBACK TO s")
        assert db.execute("SELECT count(*) FROM t WHERE a = 9").fetchone() == (12,)
        db.execute("UPDATE t SET id = id + 1 WHERE id = 1299")
    rows = contents(db)
    assert len(rows) == 2 * ROWS
    assert rows[-1][:4] == (1300, 9, 2, 11)
    assert rows[-1][4] == np.ones(DIM, np.float32).tobytes()
    assert rows[1][:4] == (1, 1, 1, 2)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_returning_shows_whole_rows(db: tarsdb.Connection) -> None:
    (row,) = db.execute("UPDATE t SET a = 50 WHERE id = 3 RETURNING *").fetchall()
    assert row[:4] == (3, 50, 3, 53)
    assert len(row[4]) == DIM
