"""Searches through SQL give the same rows before and after codes are made, and after changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tarsdb
from tarsdb.kernels import dispatch
from tarsdb.metrics import METRICS

DIM = 64


@pytest.fixture
def compiled() -> None:
    dispatch.warmup()
    if dispatch.get("sieve") is None:
        pytest.skip("this processor has no codes")


def certified() -> float:
    return METRICS.snapshot().get("index.exact_certified", 0)


def nearest(vectors: dict[int, np.ndarray], query: np.ndarray, k: int) -> list[int]:
    distances = {i: float(np.linalg.norm(v - query)) for i, v in vectors.items()}
    return sorted(distances, key=lambda i: (distances[i], i))[:k]


def test_changes_are_seen_through_codes(tmp_path: Path, compiled: None) -> None:
    rng = np.random.default_rng(3)
    held = dict(enumerate(rng.standard_normal((6000, DIM)).astype(np.float32)))
    sql = "SELECT id FROM t ORDER BY v <-> ? LIMIT 7"
    with tarsdb.connect(tmp_path / "a.tars") as db:

        def assert_right() -> None:
            for query in rng.standard_normal((3, DIM)).astype(np.float32):
                found = [row[0] for row in db.execute(sql, [query]).fetchall()]
                assert found == nearest(held, query, 7)

        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, v VECTOR({DIM}))")
        db.executemany("INSERT INTO t VALUES (?, ?)", list(held.items()))
        before = certified()
        assert_right()
        assert_right()
        assert certified() > before
        for gone in list(held)[::3]:
            del held[gone]
        db.execute("DELETE FROM t WHERE id % 3 = 0")
        assert_right()
        held[1] = rng.standard_normal(DIM).astype(np.float32)
        db.execute("UPDATE t SET v = ? WHERE id = 1", [held[1]])
        held[9000] = rng.standard_normal(DIM).astype(np.float32)
        db.execute("INSERT INTO t VALUES (9000, ?)", [held[9000]])
        assert_right()
        db.execute("BEGIN")
        db.execute("DELETE FROM t WHERE id = 1")
        kept = held.pop(1)
        assert_right()
        db.execute("ROLLBACK")
        held[1] = kept
        assert_right()


def test_a_filter_over_rows_whose_vectors_and_scalars_were_moved_apart(
    tmp_path: Path, compiled: None
) -> None:
    """Vectors of some rows changed, scalars of others: a scan finds rows in another order."""
    rng = np.random.default_rng(1)
    held = dict(enumerate(rng.standard_normal((4000, DIM)).astype(np.float32)))
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, kind INT, v VECTOR({DIM}))")
        db.executemany("INSERT INTO t VALUES (?, 1, ?)", list(held.items()))
        db.execute("OPTIMIZE t")
        for row in range(0, 4000, 5):
            held[row] = rng.standard_normal(DIM).astype(np.float32)
        db.executemany("UPDATE t SET v = ? WHERE id = ?",
                       [(held[row], row) for row in range(0, 4000, 5)])  # fmt: skip
        db.execute("UPDATE t SET kind = 2 WHERE id % 3 = 0")
        before = certified()
        sql = "SELECT id FROM t WHERE id >= 1500 ORDER BY v <-> ? LIMIT 7"
        kept = {row: vector for row, vector in held.items() if row >= 1500}
        for query in rng.standard_normal((5, DIM)).astype(np.float32):
            assert [row[0] for row in db.execute(sql, [query]).fetchall()] == nearest(
                kept, query, 7
            )
        assert certified() > before
