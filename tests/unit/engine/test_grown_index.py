"""An index that grew part by part finds what one built at once finds, at the same effort."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import index_build
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.kernels import graph, ivf
from tarsdb.storage import Snapshot, read_parts

DIM, ROWS, STEP = 32, 8000, 500
EFFORT = {"hnsw": 64, "ivf": 40}
SQL = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 10"


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()


def parts(db: tarsdb.Connection) -> int:
    with Snapshot(db._require_session().env) as snapshot:
        table = snapshot.catalog.table("t")
        assert table is not None
        (index,) = (each for each in table.indexes if each.name == "tv")
        return len(read_parts(snapshot.txn, index.id))


@pytest.mark.parametrize("method", METHODS)
def test_recall_is_that_of_one_build(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(index_build, "FRESH_ROWS", STEP - 1)
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    queries = rng.standard_normal((200, DIM)).astype(np.float32)
    near = np.argsort(((queries[:, None] - rows[None]) ** 2).sum(2), axis=1)[:, :10]

    def recall(db: tarsdb.Connection) -> float:
        assert f"index tv ({method})" in str(db.execute(f"EXPLAIN {SQL}", (queries[0],)).fetchall())
        found = db.execute(SQL, (queries,)).numpy()["id"].reshape(-1, 10)
        return float(np.mean([np.isin(*pair).mean() for pair in zip(found, near, strict=True)]))

    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb)")
        for start in range(0, ROWS, STEP):
            ids = np.arange(start, start + STEP)
            db.table("t").insert({"id": ids, "emb": rows[ids]})
            index_build.wait(db._require_session().env)
        db.execute(f"SET {METHODS[method].setting} = {EFFORT[method]}")
        assert parts(db) > 1
        grown = recall(db)
        db.execute("REINDEX tv")
        assert parts(db) == 1
        once = recall(db)
        assert 0.7 < once < 1  # there is something to lose
        assert grown >= once - 0.01
