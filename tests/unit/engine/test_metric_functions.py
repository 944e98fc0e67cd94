"""Sandboxed metrics: exact search by them, indexes that compare by them, and what goes wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.index import own_metric
from tarsdb.kernels import graph, ivf
from tests.sandbox.kinds_text import ABOVE, CHEBYSHEV, metric

DIM, ROWS, K = 8, 3000, 10


def create(name: str, text: str, *, returns: str = "DOUBLE", options: str = "") -> str:
    return (
        f"CREATE FUNCTION {name}(a VECTOR({DIM}), b VECTOR({DIM})) RETURNS {returns} LANGUAGE wasm "
        f"AS '{text}' WITH (role = 'metric'{options})"
    )


def chebyshev(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.abs(rows - query).max(axis=1)
    return found


def above(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.maximum(query - rows, 0).sum(axis=1, dtype=np.float32)
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("metric") / "a.tars"


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def shared(path: pathlib.Path, vectors: np.ndarray) -> Iterator[tarsdb.Connection]:
    with opened(path, vectors) as db:
        yield db


@contextmanager
def opened(path: pathlib.Path, vectors: np.ndarray) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as db:
        db.execute(create("cheb", metric("cheb", DIM, CHEBYSHEV)))
        db.execute(create("cheb32", metric("cheb32", DIM, CHEBYSHEV, result="f32"), returns="REAL"))
        db.execute(create("above", metric("above", DIM, ABOVE)))
        text = metric("apart", DIM, CHEBYSHEV)
        db.execute(create("apart", text, options=", backend = 'worker'"))
        db.execute(create("boom", metric("boom", DIM, "(unreachable)")))
        db.execute(
            f"CREATE TABLE t (id BIGINT PRIMARY KEY, g INT, emb VECTOR({DIM}), "
            f"half HALFVEC({DIM}), "
            "tiny VECTOR(2))"
        )
        db.table("t").insert({
            "id": np.arange(ROWS), "g": np.arange(ROWS) % 7, "emb": vectors, "half": vectors,
            "tiny": vectors[:, :2],
        })  # fmt: skip
        db.execute("DELETE FROM t WHERE id % 10 = 3")
        db.execute("UPDATE t SET emb = NULL WHERE id % 100 = 5")
        yield db


@pytest.fixture
def db(shared: tarsdb.Connection) -> Iterator[tarsdb.Connection]:
    """Give each test the table as it is, and undo what it does."""
    shared.execute("BEGIN")
    yield shared
    shared.rollback()


@pytest.fixture
def indexed(tmp_path: pathlib.Path, vectors: np.ndarray) -> Iterator[tarsdb.Connection]:
    """Give a table of the test's own: indexes answer once they are committed."""
    graph.wait()
    ivf.wait()
    with opened(tmp_path / "a.tars", vectors) as db:
        yield db


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, parameters).fetchall()


def live(db: tarsdb.Connection, condition: str = "true") -> np.ndarray:
    found = rows(db, f"SELECT id FROM t WHERE emb IS NOT NULL AND {condition} ORDER BY id")
    return np.array([number for (number,) in found])


def nearest(
    ids: np.ndarray, vectors: np.ndarray, query: np.ndarray, distance: Callable[..., np.ndarray]
) -> list[tuple[int, float]]:
    values = distance(vectors[ids], query)
    order = np.lexsort((ids, values))[:K]
    return list(zip(ids[order].tolist(), values[order].tolist(), strict=True))


METRICS = [("apart", chebyshev), ("cheb", chebyshev), ("cheb32", chebyshev), ("above", above)]


@pytest.mark.parametrize("block_rows", [7, 100_000])
@pytest.mark.parametrize(("name", "distance"), METRICS)
def test_order_by_a_metric_is_exact(
    db: tarsdb.Connection, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch,
    name: str, distance: Callable[..., np.ndarray], block_rows: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(own_metric, "BLOCK_BYTES", 4 * DIM * block_rows)
    query = vectors[5] + 0.25
    expected = nearest(live(db), vectors, query, distance)
    for sql in (f"SELECT id, {name}(emb, ?) AS d FROM t ORDER BY d LIMIT {K}",
                f"SELECT id, {name}(emb, $1) FROM t ORDER BY {name}(emb, $1) LIMIT {K}",
                f"SELECT id, {name}(b => $1, a => emb) FROM t ORDER BY 2 LIMIT {K}",
                f"SELECT id, d FROM (SELECT id, {name}(emb, ?) AS d FROM t ORDER BY d LIMIT {K})",
                ):  # fmt: skip
        found = rows(db, sql, query)
        assert [i for i, _ in found] == [i for i, _ in expected]
        assert [d for _, d in found] == pytest.approx([d for _, d in expected], rel=1e-6)
    assert [
        i for (i,) in rows(db, f"SELECT id FROM t ORDER BY {name}(emb, ?) LIMIT {K}", query)
    ] == [i for i, _ in expected]


def test_which_argument_the_column_is_matters(db: tarsdb.Connection, vectors: np.ndarray) -> None:
    query = vectors[8] + 0.25

    def below(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.maximum(rows - query, 0).sum(axis=1, dtype=np.float32)
        return found

    expected = nearest(live(db), vectors, query, below)
    found = rows(db, f"SELECT id, above(?, emb) AS d FROM t ORDER BY d LIMIT {K}", query)
    assert [i for i, _ in found] == [i for i, _ in expected]
    assert expected != nearest(live(db), vectors, query, above)


def test_a_filter_an_offset_and_a_batch(db: tarsdb.Connection, vectors: np.ndarray) -> None:
    query = vectors[9] - 0.5
    expected = nearest(live(db, "g = 3"), vectors, query, chebyshev)
    sql = f"SELECT id FROM t WHERE {{}} ORDER BY cheb(emb, ?) LIMIT {K}"
    for condition in ("g = 3", "g = 3 AND id >= 0", "abs(g) = 3"):
        assert rows(db, sql.format(condition), query) == [(i,) for i, _ in expected]
    page = rows(db, "SELECT id FROM t ORDER BY cheb(emb, ?) LIMIT 4 OFFSET 3", query)
    assert page == [(i,) for i, _ in nearest(live(db), vectors, query, chebyshev)[3:7]]
    queries = vectors[[1, 2, 4]] + 0.125
    found = rows(db, f"SELECT id FROM t ORDER BY cheb(emb, ?) LIMIT {K}", queries)
    assert found == [
        (number, i)
        for number, one in enumerate(queries)
        for i, _ in nearest(live(db), vectors, one, chebyshev)
    ]
    db.execute("INSERT INTO t (id, emb) VALUES (99999, ?)", (query,))  # own writes count
    assert rows(db, sql.format("true"), query)[0] == (99999,)


def test_elsewhere_a_metric_is_a_function(db: tarsdb.Connection, vectors: np.ndarray) -> None:
    query = vectors[11] + 0.25
    ids = live(db)
    values = dict(zip(ids.tolist(), chebyshev(vectors[ids], query).tolist(), strict=True))
    found = dict(rows(db, "SELECT id, cheb(emb, ?) FROM t", query))
    assert {i: d for i, d in found.items() if d is not None} == pytest.approx(values)
    assert sum(d is None for d in found.values()) == len(found) - len(values) > 0
    close = sorted(i for i, d in values.items() if d < 1.5)
    for sql in ("SELECT id FROM t WHERE cheb(emb, ?) < 1.5 ORDER BY id",
                "SELECT id FROM t WHERE cheb(emb, ?) < 1.5 ORDER BY id LIMIT 100000"):  # fmt: skip
        assert rows(db, sql, query) == [(i,) for i in close]
    far = rows(db, "SELECT id FROM t ORDER BY cheb(emb, ?) DESC NULLS LAST LIMIT 1", query)
    assert far == [(max(values, key=lambda i: values[i]),)]
    pairs = (
        "SELECT count(*) FROM t a JOIN t b ON cheb(a.emb, b.emb) = 0 WHERE a.id < 50 AND b.id < 50"
    )
    assert rows(db, pairs) == [(len(live(db, "id < 50")),)]
    assert rows(db, "SELECT id FROM t ORDER BY cheb(emb, NULL) LIMIT 3") == []
    with pytest.raises(errors.DimensionMismatchError):
        rows(db, "SELECT id FROM t ORDER BY cheb(emb, ?) LIMIT 3", [1.0, 2.0])
    half = rows(db, "SELECT id FROM t ORDER BY cheb(half, ?) LIMIT 3", query)
    everyone = np.array([i for (i,) in rows(db, "SELECT id FROM t")])
    narrow = vectors.astype(np.float16).astype(np.float32)
    assert half == [(i,) for i, _ in nearest(everyone, narrow, query, chebyshev)[:3]]


def test_explain_says_what_compares(db: tarsdb.Connection, vectors: np.ndarray) -> None:
    plan = "\n".join(
        line
        for (line,) in rows(
            db, "EXPLAIN SELECT id FROM t ORDER BY cheb(emb, ?) LIMIT 3", vectors[0]
        )
    )
    assert "Knn t by cheb(emb, $1), k=3" in plan and "exact (flat)" in plan


@pytest.mark.parametrize("method", ["hnsw", "ivf", "auto"])
def test_an_index_compares_its_candidates_by_the_metric(
    indexed: tarsdb.Connection, vectors: np.ndarray, method: str
) -> None:
    db = indexed
    db.execute(f"CREATE INDEX near ON t USING {method} (emb) WITH (metric = 'cheb')")
    if method == "hnsw":
        db.execute("SET ef_search = 300")
    elif method == "ivf":
        db.execute("SET probes = 1000")
    db.execute("INSERT INTO t (id, emb) VALUES (77777, ?)", (vectors[20] * 1.001,))
    ids = live(db, "id < 77777")
    hits = 0
    for number in range(20):
        query = vectors[number] + 0.1
        found = rows(db, f"SELECT id, cheb(emb, ?) AS d FROM t ORDER BY d LIMIT {K}", query)
        assert [d for _, d in found] == sorted(d for _, d in found)
        for i, d in found:  # what it gives is right, whether or not it is all there is
            if i < ROWS:
                assert d == pytest.approx(chebyshev(vectors[[i]], query)[0], rel=1e-6)
        expected = {i for i, _ in nearest(ids, vectors, query, chebyshev)}
        hits += len(expected & {i for i, _ in found})
    assert hits >= 0.9 * 20 * K
    assert rows(db, "SELECT id FROM t ORDER BY cheb(emb, ?) LIMIT 1", vectors[20] * 1.001) == [
        (77777,)
    ]
    plan = str(rows(db, "EXPLAIN SELECT id FROM t ORDER BY cheb(emb, ?) LIMIT 3", vectors[0]))
    if method != "auto":
        assert f"index near ({method})" in plan and "compared by cheb" in plan
    other = str(rows(db, "EXPLAIN SELECT id FROM t ORDER BY above(emb, ?) LIMIT 3", vectors[0]))
    assert "no index for above, near is for cheb" in other


def test_an_index_pins_its_metric(db: tarsdb.Connection) -> None:
    db.execute("CREATE INDEX near ON t USING ivf (emb) WITH (metric = 'cheb', navigate = 'cosine')")
    text = create("cheb", metric("cheb", DIM, ABOVE))
    for sql in ("DROP FUNCTION cheb", text.replace("CREATE", "CREATE OR REPLACE", 1)):
        with pytest.raises(errors.CatalogError, match="index near compares by it"):
            db.execute(sql)
    db.execute("DROP INDEX near")
    db.execute(text.replace("CREATE", "CREATE OR REPLACE", 1))
    db.execute("DROP FUNCTION cheb")


NAN = "(f32.div (f32.const 0) (f32.sub (local.get $x) (local.get $x)))"


@pytest.mark.parametrize("index", ["", "hnsw", "ivf"])
def test_nan_names_the_row_and_a_trap_rolls_back(
    indexed: tarsdb.Connection, vectors: np.ndarray, index: str
) -> None:
    db = indexed
    # NaN for row 17 only: 0 / 0 where the first element is that of row 17
    only = (
        f"(select {NAN} {CHEBYSHEV} (f32.eq (local.get $x) (f32.const {float(vectors[17, 0])!r})))"
    )
    db.execute(create("odd", metric("odd", DIM, only)))
    if index:
        for name in ("odd", "boom"):
            db.execute(
                f"CREATE INDEX near_{name} ON t USING {index} (emb) WITH (metric = '{name}')"
            )
    rowid = rows(db, "SELECT rowid FROM t WHERE id = 17")[0][0]
    with pytest.raises(errors.DataError, match=f"odd gave NaN for row {rowid}$"):
        rows(db, "SELECT id FROM t ORDER BY odd(emb, ?) LIMIT 3", vectors[17])
    assert (
        len(rows(db, "SELECT id FROM t WHERE id <> 17 ORDER BY odd(emb, ?) LIMIT 3", vectors[17]))
        == 3
    )
    before = rows(db, "SELECT count(*), sum(id) FROM t")
    for sql in ("SELECT id FROM t ORDER BY boom(emb, ?) LIMIT 3",
                "DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY boom(emb, ?) LIMIT 3)",
                "UPDATE t SET g = 1 WHERE boom(emb, ?) < 3"):  # fmt: skip
        with pytest.raises(errors.UdfTrapError, match="boom"):
            rows(db, sql, vectors[17])
    assert rows(db, "SELECT count(*), sum(id) FROM t") == before


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        (create("m", metric("m", DIM, CHEBYSHEV)).replace(f"b VECTOR({DIM})", "b VECTOR(3)"),
         errors.UdfValidationError, "role 'metric' needs"),
        (create("m", metric("m", DIM, CHEBYSHEV), returns="BIGINT"), errors.UdfValidationError,
         "RETURNS BIGINT"),
        (create("m", metric("m", DIM, CHEBYSHEV)).replace("'metric'", "'oracle'"), errors.BindError,
         "role 'oracle' is not known"),
        (create("m", metric("m", DIM, CHEBYSHEV)).replace("'metric'", "'tokenizer'"),
         errors.BindError, "role 'tokenizer' is for STRICT table functions"),
        (create("m", metric("m", DIM, CHEBYSHEV))
         .replace("LANGUAGE", "CALLED ON NULL INPUT LANGUAGE"),
         errors.BindError, "STRICT"),
        ("CREATE INDEX i ON t USING hnsw (tiny) WITH (metric = 'cheb')", errors.CatalogError,
         "compares VECTOR(8), tiny is VECTOR(2)"),
        ("CREATE INDEX i ON t USING hnsw (emb) WITH (metric = 'cheb', navigate = 'hamming')",
         errors.NotSupportedError, "metric 'hamming' is not defined"),
        ("CREATE INDEX i ON t USING hnsw (emb) WITH (metric = 'nobody')",
         errors.NotSupportedError, "metric 'nobody' is not defined"),
        ("SELECT id FROM t ORDER BY cheb(tiny, '[1, 2]') LIMIT 3", errors.DatabaseError, ""),
    ],
)  # fmt: skip
def test_what_is_refused(
    db: tarsdb.Connection, sql: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        db.execute(sql)
    assert message in str(caught.value)


@pytest.mark.parametrize("volatility", ["STABLE", "VOLATILE"])
def test_an_index_needs_an_immutable_metric(db: tarsdb.Connection, volatility: str) -> None:
    db.execute(
        create("m", metric("m", DIM, CHEBYSHEV)).replace("LANGUAGE", f"{volatility} LANGUAGE")
    )
    with pytest.raises(errors.CatalogError, match=f"metric m is {volatility}"):
        db.execute("CREATE INDEX i ON t USING hnsw (emb) WITH (metric = 'm')")


def test_it_is_in_the_file(db: tarsdb.Connection, path: pathlib.Path, vectors: np.ndarray) -> None:
    with tarsdb.connect(path) as other:
        sql = f"SELECT id FROM t ORDER BY cheb(emb, ?) LIMIT {K}"
        assert rows(other, sql, vectors[3]) == rows(db, sql, vectors[3])
