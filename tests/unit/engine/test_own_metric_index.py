"""A search through an index whose candidates are compared by a distance of the caller's own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.context import Context
from tarsdb.engine.search import vector_index, vector_search
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.errors import DataError
from tarsdb.index.base import Found
from tarsdb.index.flat import FlatIndex
from tarsdb.index.own_metric import Distance
from tarsdb.kernels import graph, ivf
from tarsdb.storage import Snapshot

DIM, ROWS, FRESH, K = 24, 3000, 40, 10


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


def euclidean(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.sqrt(((rows - query) ** 2).sum(axis=1)).astype(np.float32)
    return found


def chebyshev(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.abs(rows - query).max(axis=1)
    return found


Ask = Callable[..., tuple[Found | None, FlatIndex]]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ask(tmp_path: pathlib.Path, method: str) -> Iterator[Ask]:
    graph.wait()
    ivf.wait()
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(ROWS), "emb": vectors(ROWS, 1)})
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb)")
        db.execute("DELETE FROM t WHERE id % 10 = 3")
        db.table("t").insert({"id": np.arange(ROWS, ROWS + FRESH), "emb": vectors(FRESH, 2)})
        session = db._require_session()
        with Snapshot(session.env) as snapshot:
            context = Context(session.engines, snapshot, None, ())
            table = snapshot.catalog.table("t")
            assert table is not None
            column = next(c for c in table.columns if c.name == "emb")
            flat = vector_search.flat_index(context, context.view(table), column.id, column.type)
            index = next(i for i in table.indexes if i.name == "tv")
            placed = vector_index.place(context, index, flat)
            assert placed is not None

            def run(
                queries: np.ndarray, distance: Distance | None, positions: np.ndarray | None = None
            ) -> tuple[Found | None, FlatIndex]:
                asked = vector_index.Ask(queries, K, positions, 64, 0.95, distance=distance)
                return vector_index.search(placed, flat, asked, "<->"), flat

            yield run


def test_the_index_s_own_metric_by_hand_finds_what_the_index_finds(ask: Ask) -> None:
    queries = vectors(20, 3)
    own, _ = ask(queries, euclidean)
    plain, _ = ask(queries, None)
    assert own is not None
    assert plain is not None
    assert own[0].shape == (20, K)
    same = (own[0] == plain[0]).mean()
    assert same > 0.95  # it compares all of the list, the plain search only the nearest of it
    np.testing.assert_allclose(own[1], plain[1], atol=0.3)


@pytest.mark.parametrize("filtered", [False, True])
def test_it_is_exact_over_the_candidates_and_all_fresh_rows(
    ask: Ask, method: str, filtered: bool
) -> None:
    seen: list[np.ndarray] = []

    def spied(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        seen.append(rows.copy())
        return chebyshev(query, rows)

    _, flat = ask(vectors(1, 3), chebyshev)
    allowed = np.flatnonzero(flat.live() & (flat.rowids(np.arange(flat.rows)) % 5 != 0))
    positions = allowed if filtered else None
    for query in vectors(10, 4):
        seen.clear()
        found, _ = ask(query[np.newaxis], spied, positions)
        assert found is not None
        compared = np.concatenate(seen)
        fresh = flat.vectors(np.flatnonzero(flat.live()))[-FRESH:]
        if not filtered:
            # the list of a graph's search; of 219 lists 64 hold so many rows, about
            pool = {"hnsw": 64, "ivf": 64 * ROWS // 219}[method]
            assert len(compared) == pool + FRESH
            assert {row.tobytes() for row in fresh} <= {row.tobytes() for row in compared}
        best = np.sort(chebyshev(query, compared))[:K]
        np.testing.assert_array_equal(found[1][0], best)
        at = flat.positions(found[0][0])
        if filtered:
            assert set(at.tolist()) <= set(allowed.tolist())
        order = np.argsort(at)
        np.testing.assert_array_equal(chebyshev(query, flat.vectors(at[order])), found[1][0][order])
        true, _ = flat.search_by(chebyshev, query, K, positions)
        assert len(set(true.tolist()) & set(found[0][0].tolist())) >= 2


def test_what_the_function_does_wrong_is_named(ask: Ask) -> None:
    with pytest.raises(DataError, match=r"returned float64 \(\d+,\) for rows \(\d+, 24\)"):
        ask(vectors(1, 3), lambda query, rows: np.zeros(len(rows)))
