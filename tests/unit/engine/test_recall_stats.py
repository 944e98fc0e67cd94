"""``tars_recall_stats``: an index measured on rows of its own table."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import vector_index
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.kernels import graph, ivf
from tarsdb.metrics import METRICS

DIM, ROWS = 24, 3000


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def db(tmp_path: pathlib.Path, method: str) -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(1)
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        rows = rng.standard_normal((ROWS, DIM)).astype(np.float32)
        db.table("t").insert({"id": np.arange(ROWS), "emb": rows})
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb)")
        yield db


def stats(db: tarsdb.Connection) -> list[dict[str, Any]]:
    cursor = db.execute("SELECT * FROM tars_recall_stats")
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def searches(method: str) -> int:
    return int(METRICS.snapshot().get(METHODS[method].counter, 0))


def test_recall_is_that_of_an_independent_count(db: tarsdb.Connection, method: str) -> None:
    """The same rows are drawn by hand and their answers compared with NumPy's."""
    db.execute(f"SET {METHODS[method].setting} = 16")
    before = searches(method)
    (row,) = stats(db)
    assert searches(method) >= before + 64
    chosen = np.sort(np.random.default_rng([ROWS, 1]).choice(ROWS, 64, replace=False))
    vectors = db.execute("SELECT emb FROM t ORDER BY id").numpy()["emb"].astype(np.float64)
    hits = 0
    for own in chosen.tolist():
        away = ((vectors - vectors[own]) ** 2).sum(1)
        away[own] = np.inf
        wanted = set(np.argsort(away, kind="stable")[:10].tolist())
        sql = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 11"
        found = [i for (i,) in db.execute(sql, (vectors[own].astype(np.float32),)).fetchall()]
        hits += len(wanted & set([i for i in found if i != own][:10]))
    assert row["recall"] == pytest.approx(hits / 640)
    assert row["effort"] == 16
    assert (row["index"], row["table_name"], row["column"]) == ("tv", "t", "emb")
    assert (row["method"], row["metric"], row["sample"], row["k"]) == (method, "l2", 64, 10)
    assert (row["fresh_rows"], row["parts"]) == (0, 1)
    assert row["index_us"] > 0
    assert row["exact_us"] > 0


def test_a_sabotaged_index_is_seen(db: tarsdb.Connection, method: str) -> None:
    (sound,) = stats(db)
    placed = next(iter(db._require_session().env.caches["placed"].values()))[2]
    (part,) = placed.parts
    name = {"hnsw": "edges", "ivf": "centroids"}[method]
    array = getattr(part.part, name)
    shuffled = np.random.default_rng(5).permutation(array.reshape(-1)).reshape(array.shape)
    part.part = dataclasses.replace(part.part, **{name: shuffled})
    placed.scopes.clear()
    before = searches(method)
    (broken,) = stats(db)
    assert searches(method) > before
    assert sound["recall"] >= 0.9
    assert broken["recall"] < sound["recall"] - 0.2


@pytest.mark.parametrize(("left_out", "expected"), [((10, 12), 1.0), ((8, 11), 0.9)])
def test_equally_near_rows_count_as_found(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    left_out: tuple[int, int],
    expected: float,
) -> None:
    """Every vector is there 3 times: the 10th neighbour is one of three that are as near.

    The index is made to answer the nearest 13 but two: one of the three, or one nearer than they.
    """
    rows = np.repeat(np.random.default_rng(1).standard_normal((700, DIM)), 3, axis=0)

    def answer(placed: Any, flat: Any, ask: Any, op: str) -> Any:
        return tuple(np.delete(a, left_out, axis=1) for a in flat.search(ask.queries, 13, op))

    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(2100), "emb": rows.astype(np.float32)})
        db.execute("CREATE INDEX tv ON t USING hnsw (emb)")
        db.execute("SET ef_search = 200")
        monkeypatch.setattr(vector_index, "search", answer)
        (row,) = stats(db)
        assert row["recall"] == pytest.approx(expected)


def test_where_the_index_is_not_run(db: tarsdb.Connection) -> None:
    db.execute(f"CREATE TABLE few (id INT PRIMARY KEY, emb VECTOR({DIM}))")
    db.execute("CREATE INDEX fv ON few USING hnsw (emb vector_cosine_ops)")
    empty = next(row for row in stats(db) if row["index"] == "fv")
    assert (empty["sample"], empty["recall"], empty["exact_us"]) == (0, None, None)
    assert "fewer than 2" in empty["reason"]
    db.table("few").insert({"id": np.arange(20), "emb": np.eye(20, DIM, dtype=np.float32)})
    fresh = next(row for row in stats(db) if row["index"] == "fv")
    assert (fresh["sample"], fresh["recall"], fresh["index_us"]) == (20, None, None)
    assert "no usable parts" in fresh["reason"]
    assert fresh["exact_us"] > 0
    db.execute("REINDEX fv")
    built = next(row for row in stats(db) if row["index"] == "fv")
    assert (built["recall"], built["parts"]) == (None, 1)
    assert built["reason"] == "exact: most rows are wanted"
