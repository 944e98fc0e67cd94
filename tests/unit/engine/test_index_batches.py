"""Batches of queries through an index on several threads."""

from __future__ import annotations

import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search import vector_index
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.index.hnsw import Graph
from tarsdb.index.hnsw.nearest import Nearest
from tarsdb.index.ivf import Ivf
from tarsdb.index.threads import in_threads
from tarsdb.kernels import dispatch, graph, ivf
from tarsdb.metrics import METRICS

DIM, ROWS = 24, 3000
KINDS: dict[str, Any] = {"hnsw": Graph, "ivf": Ivf}
FEW = {"hnsw": 10, "ivf": 1}
SQL = "SELECT id, emb <-> ? AS d FROM t ORDER BY d LIMIT 10"


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    graph.wait()
    ivf.wait()
    dispatch.prepare("f32")  # else NumPy compares the first candidates, to other last bits
    dispatch.wait()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def db(tmp_path: pathlib.Path, method: str) -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(1)
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, kind INT, emb VECTOR({DIM}))")
        ids, rows = np.arange(ROWS), rng.standard_normal((ROWS, DIM)).astype(np.float32)
        db.table("t").insert({"id": ids, "kind": ids % 100, "emb": rows})
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb)")
        yield db


def count(name: str) -> int:
    return int(METRICS.snapshot().get(name, 0))


def queries(number: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((number, DIM)).astype(np.float32)


@pytest.mark.parametrize("number", [1, 2, 7, 33, 200])
@pytest.mark.parametrize("where", ["", "WHERE kind < 80"])
def test_several_threads_answer_as_one_does(
    db: tarsdb.Connection, method: str, number: int, where: str
) -> None:
    sql = SQL.replace("FROM t", f"FROM t {where}")
    alone = db.execute(sql, (queries(number),)).fetchall()
    for threads in (2, 3, 8):
        db.execute(f"SET threads = {threads}")
        before = count(METHODS[method].counter)
        assert db.execute(sql, (queries(number),)).fetchall() == alone
        assert count(METHODS[method].counter) == before + number
    assert len(alone) == number * 10


def test_more_than_one_thread_searches(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    kind, name = (Nearest, "_ask") if method == "hnsw" else (Ivf, "search")
    real, names = getattr(kind, name), set()
    both = threading.Barrier(2, timeout=60)

    def watched(self: Any, *given: Any) -> object:
        thread = threading.get_ident()
        if thread not in names:
            names.add(thread)
            both.wait()  # breaks unless a second thread comes
        return real(self, *given)

    monkeypatch.setattr(kind, name, watched)
    db.execute("SET threads = 2")
    db.execute(SQL, (queries(64),))
    assert len(names) == 2
    assert threading.get_ident() not in names


@pytest.mark.parametrize("fails_at", [0, 40, 99])
@pytest.mark.parametrize("answer", [None, np.empty(0, np.int32)])
def test_one_query_without_an_answer_sends_all_to_exact_search(
    db: tarsdb.Connection,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    fails_at: int,
    answer: np.ndarray | None,
) -> None:
    kind, batch = KINDS[method], queries(100)
    real = kind.search

    def failing(self: Any, query: np.ndarray, *given: object) -> np.ndarray | None:
        if np.array_equal(query, batch[fails_at]):
            return answer
        return real(self, query, *given)  # type: ignore[arg-type]

    db.execute(f"SET {METHODS[method].setting} = {FEW[method]}")
    approximate = db.execute(SQL, (batch,)).fetchall()
    instead = "search: exact instead"
    assert instead not in str(db.execute(f"EXPLAIN ANALYZE {SQL}", (batch,)).fetchall())
    monkeypatch.setattr(kind, "search", failing)
    monkeypatch.setattr(vector_index, "prepared", lambda *given: None)
    db.execute("SET threads = 3")
    before = count("index.exact_instead"), count(METHODS[method].counter)
    found = db.execute(SQL, (batch,)).fetchall()
    assert (count("index.exact_instead"), count(METHODS[method].counter)) == (
        before[0] + 1, before[1],
    )  # fmt: skip
    assert instead in str(db.execute(f"EXPLAIN ANALYZE {SQL}", (batch,)).fetchall())
    db.execute("DROP INDEX tv")
    assert found == db.execute(SQL, (batch,)).fetchall()
    assert found != approximate


def test_what_one_thread_raises_is_raised() -> None:
    def part(at: int) -> int:
        if at == 2:
            raise ValueError("two")
        return at

    assert in_threads(lambda at: at * at, range(5), 3) == [0, 1, 4, 9, 16]
    with pytest.raises(ValueError, match="two"):
        in_threads(part, range(5), 3)
