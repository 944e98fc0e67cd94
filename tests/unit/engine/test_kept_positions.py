"""Rows that a filter keeps are looked for once, and forgotten where there are too many."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import vector_search

ROWS = 200
SQL = "SELECT id FROM t WHERE n < {} ORDER BY v <-> ? LIMIT 3"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many rows each look for them found."""
    found: list[int] = []
    original = vector_search._find_positions

    def find(*given: Any) -> np.ndarray | None:
        positions = original(*given)
        found.append(-1 if positions is None else len(positions))
        return positions

    monkeypatch.setattr(vector_search, "_find_positions", find)
    return found


def test_the_latest_are_kept(
    tmp_path: pathlib.Path, searches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_search, "KEPT_POSITIONS", 250)
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
        monkeypatch.setattr(vector_search, "KEPT_POSITIONS", 99)
        assert [looked(110), looked(110)] == [[111], [111]]  # more than is kept at all
