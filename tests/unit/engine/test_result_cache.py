"""Kept answers of repeated searches: the same as fresh ones, gone with every change, bounded."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine import result_cache
from tarsdb.errors import CatalogError, DataError
from tarsdb.kernels import dispatch
from tarsdb.metrics import METRICS

DIM, ROWS = 8, 200
TABLE = f"CREATE TABLE t (id INT PRIMARY KEY, name TEXT, weight REAL, emb VECTOR({DIM}))"
SQL = "SELECT id, name, emb <-> ? AS d FROM t ORDER BY d LIMIT 5"
FILTERED = "SELECT id, emb <-> ? AS d FROM t WHERE weight > ? ORDER BY d LIMIT 5"
QUERY = np.zeros(DIM, np.float32)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """NumPy, which answers until kernels are compiled, may round a distance otherwise."""
    dispatch.warmup()


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "a.tars"


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as db:
        db.execute(TABLE)
        db.execute("CREATE TABLE other (id INT PRIMARY KEY)")
        vectors = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32) + 2
        db.table("t").insert(
            {"id": np.arange(ROWS), "name": [f"n{i}" for i in range(ROWS)],
             "weight": np.linspace(-1, 1, ROWS, dtype=np.float32), "emb": vectors}
        )  # fmt: skip
        db.execute("SET result_cache = on")
        yield db


def hits() -> float:
    return METRICS.snapshot().get("result_cache.hits", 0)


def ask(db: tarsdb.Connection, *bound: Any, sql: str = SQL) -> tuple[list[Any], bool]:
    """Return the rows of a search, and whether they were kept ones."""
    before = hits()
    rows = db.execute(sql, bound or (QUERY,)).fetchall()
    return rows, hits() > before


def warm(db: tarsdb.Connection, *bound: Any, sql: str = SQL) -> list[Any]:
    """Ask until the answer is kept."""
    rows = [ask(db, *bound, sql=sql)[0] for _ in range(2)]
    again, is_kept = ask(db, *bound, sql=sql)
    assert is_kept
    assert rows == [again, again]
    return again


def fresh(db: tarsdb.Connection, *bound: Any, sql: str = SQL) -> list[Any]:
    """Return the rows of the same search without the cache."""
    db.execute("SET result_cache = off")
    rows = db.execute(sql, bound or (QUERY,)).fetchall()
    db.execute("SET result_cache = on")
    return rows


def test_it_is_off_unless_asked_for(path: pathlib.Path, db: tarsdb.Connection) -> None:
    with tarsdb.connect(path) as other:
        assert [ask(other)[1] for _ in range(4)] == [False] * 4
        with pytest.raises(DataError, match="result_cache"):
            other.execute("SET result_cache = 'perhaps'")


def test_a_kept_answer_is_the_answer_in_every_form(db: tarsdb.Connection) -> None:
    rows = warm(db)
    assert rows == fresh(db)
    warm(db)
    kept, plain = db.execute(SQL, (QUERY,)), fresh(db)
    assert kept.arrow().to_pylist() == [
        dict(zip(("id", "name", "d"), row, strict=True)) for row in plain
    ]
    assert kept.numpy()["name"].tolist() == [row[1] for row in plain]
    assert [column[0] for column in kept.description or ()] == ["id", "name", "d"]
    assert kept.rowcount == 5


def test_other_arguments_are_other_answers(db: tarsdb.Connection) -> None:
    warm(db)
    middle = np.full(DIM, 2, np.float32)
    rows, is_kept = ask(db, middle)
    assert not is_kept
    assert rows == fresh(db, middle)
    wide = QUERY.astype(np.float64)
    warm(db)
    assert not ask(db, wide)[1]
    short = np.zeros(DIM - 1, np.float32)
    with pytest.raises(tarsdb.DataError):
        db.execute(SQL, (short,))


def test_queries_alike_at_both_ends_are_told_apart(tmp_path: pathlib.Path) -> None:
    dim = 100
    with tarsdb.connect(tmp_path / "b.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, name TEXT, emb VECTOR({dim}))")
        vectors = np.eye(dim, dtype=np.float32)
        db.table("t").insert({"id": np.arange(dim), "name": ["x"] * dim, "emb": vectors})
        db.execute("SET result_cache = on")
        for _ in range(3):
            for at in (40, 50, 60):
                rows, _ = ask(db, vectors[at])
                assert rows[0][0] == at


def test_a_changed_query_array_is_another_query(db: tarsdb.Connection) -> None:
    query = QUERY.copy()
    warm(db, query)
    query[:] = 3
    rows, is_kept = ask(db, query)
    assert not is_kept
    assert rows == fresh(db, query)


def test_rows_handed_out_are_the_caller_s(db: tarsdb.Connection) -> None:
    rows = warm(db)
    db.execute(SQL, (QUERY,)).fetchall().clear()
    db.execute(SQL, (QUERY,)).numpy()["id"][:] = -1
    assert ask(db) == (rows, True)


CHANGES = {
    "insert": f"INSERT INTO t VALUES (1000, 'new', 0, '[{', '.join(['0'] * DIM)}]')",
    "update of a scalar": "UPDATE t SET name = 'changed'",
    "update of the vectors": f"UPDATE t SET emb = '[{', '.join(['0'] * DIM)}]' WHERE id = 7",
    "delete": "DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY emb <-> '[0,0,0,0,0,0,0,0]' "
              "LIMIT 1)",
    "delete of all": "DELETE FROM t",
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_commit_ends_it(db: tarsdb.Connection, change: str) -> None:
    before = warm(db)
    db.execute(CHANGES[change])
    rows, is_kept = ask(db)
    assert not is_kept
    assert rows != before
    assert rows == fresh(db)


@pytest.mark.parametrize("change", CHANGES)
def test_a_commit_of_another_connection_ends_it(
    path: pathlib.Path, db: tarsdb.Connection, change: str
) -> None:
    before = warm(db)
    with tarsdb.connect(path) as other:
        other.execute(CHANGES[change])
    rows, is_kept = ask(db)
    assert not is_kept
    assert rows != before
    assert rows == fresh(db)


@pytest.mark.parametrize("change", CHANGES)
def test_a_commit_of_another_process_ends_it(
    path: pathlib.Path, db: tarsdb.Connection, change: str
) -> None:
    before = warm(db)
    code = "import sys, tarsdb\nwith tarsdb.connect(sys.argv[1]) as db: db.execute(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, str(path), CHANGES[change]], check=True)
    rows, is_kept = ask(db)
    assert not is_kept
    assert rows != before
    assert rows == fresh(db)


def test_a_commit_elsewhere_does_not_end_it(db: tarsdb.Connection) -> None:
    rows = warm(db)
    db.execute("INSERT INTO other VALUES (1)")
    assert ask(db) == (rows, True)


def test_upkeep_keeps_answers_right(db: tarsdb.Connection) -> None:
    rows = warm(db)
    for statement in ("OPTIMIZE t", "VACUUM t", "CHECKPOINT"):
        db.execute(statement)
        assert ask(db)[0] == rows
        assert warm(db) == rows


def test_definitions_end_it(db: tarsdb.Connection) -> None:
    warm(db)
    db.execute("ALTER TABLE t RENAME COLUMN name TO other_name")
    with pytest.raises(tarsdb.ProgrammingError):
        db.execute(SQL, (QUERY,))
    db.execute("ALTER TABLE t RENAME COLUMN other_name TO name")
    warm(db)
    db.execute("DROP TABLE t")
    with pytest.raises(tarsdb.ProgrammingError):
        db.execute(SQL, (QUERY,))
    db.execute(TABLE)
    assert ask(db) == ([], False)


def test_settings_end_it(db: tarsdb.Connection) -> None:
    rows = warm(db)
    db.execute("SET target_recall = 0.5")
    assert ask(db) == (rows, False)


def test_it_rests_inside_a_transaction(db: tarsdb.Connection) -> None:
    rows = warm(db)
    db.execute("BEGIN")
    assert ask(db) == (rows, False)
    db.execute("UPDATE t SET name = 'mine'")
    assert {row[1] for row in ask(db)[0]} == {"mine"}
    db.execute("ROLLBACK")
    assert ask(db) == (rows, True)


def test_what_a_predicate_is_given_is_part_of_it(db: tarsdb.Connection) -> None:
    for value in (0.5, -0.5, 1, 0, None):
        rows = warm(db, QUERY, value, sql=FILTERED)
        assert rows == fresh(db, QUERY, value, sql=FILTERED)
    warm(db, QUERY, 0.0, sql=FILTERED)
    assert not ask(db, QUERY, -0.0, sql=FILTERED)[1]
    assert not ask(db, QUERY, 0, sql=FILTERED)[1]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id, twice(id) AS x, emb <-> ? AS d FROM t ORDER BY d LIMIT 5",
        "SELECT id, emb <-> ? AS d FROM t WHERE twice(id) > 3 ORDER BY d LIMIT 5",
    ],
)
def test_functions_are_called_each_time(db: tarsdb.Connection, sql: str) -> None:
    calls: list[int] = []

    def twice(value: int) -> int:
        calls.append(value)
        return 2 * value

    db.create_function("twice", twice, ["INT"], "BIGINT")
    counts = []
    for _ in range(4):
        calls.clear()
        assert not ask(db, sql=sql)[1]
        counts.append(len(calls))
    assert counts[0] > 0
    assert counts == counts[:1] * 4


def test_batches_and_odd_queries_are_searched_each_time(db: tarsdb.Connection) -> None:
    for query in (np.stack([QUERY, QUERY]), QUERY.tolist(), str(QUERY.tolist())):
        assert [ask(db, query)[1] for _ in range(3)] == [False] * 3


def test_it_is_bounded_by_entries(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "MOST_ENTRIES", 3)
    queries = [np.full(DIM, i, np.float32) for i in range(4)]
    results = db._require_session().engines.results
    ask(db)  # the plan's first run
    for query in queries[:3]:
        ask(db, query)
    assert ask(db, queries[0])[1]  # used last: it stays
    ask(db, queries[3])
    assert len(results) == 3
    assert [ask(db, queries[i])[1] for i in (0, 2, 3)] == [True] * 3
    assert not ask(db, queries[1])[1]


def test_it_is_bounded_by_bytes(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_cache, "MOST_BYTES", 40_000)
    results = db._require_session().engines.results
    for i in range(200):
        ask(db, np.full(DIM, i, np.float32))
        assert results.nbytes <= 40_000
    assert 10 < len(results) < 40
    db.execute("UPDATE t SET name = ?", ["long" * 1000])
    held = len(results)
    ask(db, np.full(DIM, 500, np.float32))
    assert len(results) == held  # too large to be kept at all
    db.close()
    assert (len(results), results.nbytes) == (0, 0)


def test_a_missing_table_is_an_error_still(db: tarsdb.Connection) -> None:
    warm(db)
    db.execute("DROP TABLE t")
    with pytest.raises((CatalogError, tarsdb.ProgrammingError)):
        db.execute(SQL, (QUERY,))
