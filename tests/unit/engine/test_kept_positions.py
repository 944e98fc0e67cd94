"""Rows that a filter keeps are looked for once, and forgotten where there are too many."""

from __future__ import annotations

import gc
import pathlib
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import filtered_rows
from tarsdb.index.flat import FlatIndex

ROWS = 200
SQL = "SELECT id FROM t WHERE n < {} ORDER BY v <-> ? LIMIT 3"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many rows each look for them found."""
    found: list[int] = []
    original = filtered_rows._find

    def find(*given: Any) -> np.ndarray | None:
        positions = original(*given)
        found.append(-1 if positions is None else len(positions))
        return positions

    monkeypatch.setattr(filtered_rows, "_find", find)
    return found


def test_the_latest_are_kept(
    tmp_path: pathlib.Path, searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtered_rows, "KEPT_POSITIONS", 250)
    monkeypatch.setattr(filtered_rows, "FEW_POSITIONS", 20)
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, v VECTOR(2))")
        vectors = np.stack([np.arange(ROWS), np.ones(ROWS)], 1)
        db.table("t").insert({"id": np.arange(ROWS), "n": np.arange(ROWS), "v": vectors})

        def looked(most: int) -> list[int]:
            searches.clear()
            answer = db.execute(SQL.format(most), ([50, 1],)).fetchall()
            assert answer == [(50,), (49,), (51,)]
            return searches[:]

        assert [looked(100), looked(100)] == [[100], []]
        assert [looked(150), looked(150), looked(100)] == [[150], [], []]  # 250 of 250
        assert looked(120) == [120]
        # 100 had been found before 150 was, so it went
        assert [looked(120), looked(100)] == [[], [100]]
        assert looked(150) == [150]
        db.execute("UPDATE t SET n = 0 WHERE id = 199")
        assert looked(150) == [151]
        monkeypatch.setattr(filtered_rows, "KEPT_POSITIONS", 99)
        assert [looked(110), looked(110)] == [[111], [111]]  # more than is kept at all


def test_plans_that_are_not_run_again_keep_no_index_of_an_old_commit(
    tmp_path: pathlib.Path,
) -> None:
    def alive() -> int:
        gc.collect()
        return sum(isinstance(each, FlatIndex) for each in gc.get_objects())

    before = alive()
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, v VECTOR(2))")
        vectors = np.stack([np.arange(ROWS), np.ones(ROWS)], 1)
        db.table("t").insert({"id": np.arange(ROWS), "n": np.arange(ROWS), "v": vectors})
        for number in range(20):
            db.execute("UPDATE t SET v = ? WHERE id = ?", ([number, 2], number))
            assert len(db.execute(SQL.format(50 + number), ([1, 1],)).fetchall()) == 3
        assert alive() <= before + 2


CONDITIONS = [
    "n < ?", "n BETWEEN ? AND 150", "n = ? OR real > 0.5", "NOT n < ?", "n IS NULL AND small < ?",
    "n IN (?, 7, 9)", "flag AND n >= ?", "n + small < ?", "CASE WHEN n > ? THEN real END > 0.2",
]  # fmt: skip
TEXTS = ["word < 'w5' AND n < ?", "rowid < ? AND n < 150"]


@pytest.mark.parametrize("condition", CONDITIONS + TEXTS)
def test_columns_that_are_kept_give_what_a_look_at_all_rows_gives(
    tmp_path: pathlib.Path, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    by_columns = filtered_rows._by_columns

    def both(context: Any, plan: Any, view: Any, index: Any) -> np.ndarray | None:
        found: np.ndarray | None = by_columns(context, plan, view, index)
        seen.append(found is not None)
        if found is not None:
            wanted = index.positions(filtered_rows._by_scan(context, view, plan.predicate))
            live = np.flatnonzero(index.live())
            assert found.tolist() == np.intersect1d(wanted, live).tolist()
        return found

    monkeypatch.setattr(filtered_rows, "_by_columns", both)
    rng = np.random.default_rng(4)
    sql = f"SELECT id FROM t WHERE {condition} ORDER BY v <-> ? LIMIT 3"
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(
            "CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, real DOUBLE, small SMALLINT, "
            "flag BOOLEAN, word TEXT, v VECTOR(2))"
        )
        db.table("t").insert({
            "id": np.arange(ROWS), "n": rng.integers(0, 200, ROWS), "real": rng.random(ROWS),
            "small": rng.integers(-9, 9, ROWS), "flag": rng.random(ROWS) < 0.6,
            "word": [f"w{i % 9}" for i in range(ROWS)], "v": rng.random((ROWS, 2)),
        })  # fmt: skip
        for change in (
            "SELECT 1", "UPDATE t SET n = NULL WHERE id % 7 = 1", "DELETE FROM t WHERE id % 5 = 2",
            "UPDATE t SET v = NULL WHERE id % 11 = 3",
            "INSERT INTO t (id, n, v) VALUES (999, 3, '[1,1]')",
        ):  # fmt: skip
            db.execute(change)
            seen.clear()
            for number in range(filtered_rows.SCANS + 4):
                db.execute(sql, (100 + number, [0.5, 0.5])).fetchall()
            kept = 0 if condition in TEXTS else 4
            assert seen == [False] * (len(seen) - kept) + [True] * kept
        seen.clear()
        with db.transaction():
            db.execute("UPDATE t SET n = 3 WHERE id = 4")
            db.execute(sql, (100, [0.5, 0.5])).fetchall()
        assert not any(seen)
        db.execute("CREATE INDEX by_n ON t (n)")
        if condition == "n < ?":
            seen.clear()
            for number in range(filtered_rows.SCANS + 4):
                db.execute(sql, (number % 3, [0.5, 0.5])).fetchall()
            assert not seen  # the index knows the rows
