"""Search and comparison in one compiled call, against the same part by part, bit for bit."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import index_build, vector_index
from tarsdb.engine.search.index_methods import Hnsw
from tarsdb.index.base import Found
from tarsdb.index.hnsw import nearest
from tarsdb.index.hnsw.nearest import Nearest
from tarsdb.kernels import dispatch, graph
from tarsdb.kernels.cpu import graph_nearest
from tests.unit.engine.test_index_matrix import PAIRS, Life, drawn


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    for kind in (*dispatch.KINDS, *dispatch.CODED):
        dispatch.prepare(kind)
    dispatch.wait()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Compare every search with what its parts answer.

    Tells queries, parts, fresh rows, masks, parts with a short list, searches of codes.
    """
    seen: list[tuple[int, ...]] = []

    def both(scope: Any, ask: Any, op: str) -> Found | None:
        prepared = vector_index.prepared(scope, op)
        assert prepared is not None
        found, parts = prepared.search(ask.queries, ask.threads), vector_index.one_by_one(
            scope, ask, op
        )  # fmt: skip
        assert (found is None) == (parts is None)
        for one, other in zip(found or (), parts or (), strict=True):
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()
        masks = sum(look.allowed is not None for look in scope.looks)
        short = sum(look.short < look.whole for look in scope.looks)
        by_codes = int(bool(prepared._coded))
        seen.append((len(ask.queries), len(scope.looks), len(scope.fresh), masks, short, by_codes))
        return found

    monkeypatch.setattr(vector_index, "_answer", both)
    monkeypatch.setattr(index_build, "FRESH_ROWS", 250)
    monkeypatch.setattr(index_build, "TIER", 0)  # parts stay apart
    monkeypatch.setattr(nearest, "CODED_ROWS", 40)
    return seen


def search(life: Life, where: str = "", k: int = 10) -> None:
    sql = life.sql.replace("WHEREd", where).replace("LIMIT 10", f"LIMIT {k}")
    for query in life.queries:
        life.db.execute(sql, (query,))
    life.db.execute(sql, (life.queries,))


@pytest.mark.parametrize(("kind", "metric"), PAIRS)
def test_all_of_a_table_s_life(
    tmp_path: pathlib.Path, asked: list[tuple[int, ...]], kind: str, metric: str
) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, "hnsw", kind, metric)
        db.execute("SET threads = 2")
        search(life)
        life.insert(1500, 200, 2)
        search(life)
        for step in range(2):
            life.insert(1700 + 300 * step, 300, 3 + step)
            index_build.wait(db._require_session().env)
        life.insert(2300, 60, 6)
        life.update(range(3, 603, 4), 4)
        life.delete(7)
        for k in (1, 10, 33, 100):
            search(life, k=k)
        search(life, "WHERE kind < 60")
        db.execute("SET ef_search = 40")
        search(life)
        db.execute("BEGIN")
        life.insert(5000, 50, 5)
        life.delete(11)
        search(life)
        db.execute("ROLLBACK")
    queries, parts, fresh, masks, short, by_codes = map(max, zip(*asked, strict=True))
    assert (queries, parts, masks) == (15, 3, 3)
    assert fresh > 200
    assert short == (0 if metric in ("l1", "jaccard") else 2)
    assert by_codes == (kind == "VECTOR" and metric != "l1")


def test_what_codes_cannot_tell_is_compared(
    tmp_path: pathlib.Path, asked: list[tuple[int, ...]]
) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, "hnsw", "VECTOR", "l2")
        life.insert(1500, 120, 2)
        search(life)
        life.queries = np.vstack([life.queries, life.queries * np.float32(1e30)])
        search(life)
        huge = drawn(10, 4, "VECTOR") * np.float32(1e18)
        db.executemany(
            "UPDATE t SET emb = ? WHERE id = ?", zip(huge, range(1510, 1520), strict=True)
        )
        search(life)
    assert max(by_codes for *_, by_codes in asked) == 1


def test_the_words_are_the_kernel_s() -> None:
    assert nearest._CODED == graph_nearest.CODED


def test_a_difference_is_noticed(
    tmp_path: pathlib.Path, asked: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, "hnsw", "VECTOR", "l2")
        search(life)

        def other(self: Hnsw, looks: Any, fresh: np.ndarray, *given: Any) -> Nearest:
            return Nearest(looks, np.arange(1), *given)  # one row of a graph is there twice

        monkeypatch.setattr(Hnsw, "prepare", other)
        life.insert(1500, 1, 2)
        with pytest.raises(AssertionError):
            for _ in range(20):
                life.queries = drawn(1500, 1, "VECTOR")[:15]
                search(life)


def test_a_search_that_cannot_be_answered(
    tmp_path: pathlib.Path, asked: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reach does not suffice: both say so."""
    found: list[Found | None] = []
    both = vector_index._answer

    def kept(*given: Any) -> Found | None:
        found.append(both(*given))
        return found[-1]

    monkeypatch.setattr(vector_index, "_answer", kept)
    monkeypatch.setattr(Hnsw, "reach", lambda self, effort, allowed: 1)
    monkeypatch.setattr(Hnsw, "prefers_exact", lambda *given, **named: False)
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, "hnsw", "VECTOR", "l2")
        search(life, "WHERE kind < 4")
        assert life.recall(kinds=4) == 1
    assert None in found


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_levels(tmp_path: pathlib.Path, level: str) -> None:
    """What another level has no call for is answered by parts; a search follows the level."""
    if level == "avx2" and dispatch._best_level() == "portable":
        pytest.skip("this processor has no avx2")
    with tarsdb.connect(tmp_path / "a.tars") as db:
        life = Life(db, "hnsw", "VECTOR", "l2")
        sql = life.sql.replace("WHEREd", "")
        found = [db.execute(sql, (query,)).fetchall() for query in life.queries]
        try:
            dispatch.use(level)
            graph.wait()
            dispatch.prepare("f32")
            dispatch.wait()
            other = [db.execute(sql, (query,)).fetchall() for query in life.queries]
        finally:
            dispatch.use(None)
        assert found == [db.execute(sql, (query,)).fetchall() for query in life.queries]
    for one, two in zip(found, other, strict=True):
        assert [row for row, _ in one] == [row for row, _ in two]
        np.testing.assert_allclose([d for _, d in one], [d for _, d in two], rtol=1e-5)
