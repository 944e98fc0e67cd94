"""A row's distance is the same float32 number in every plan (docs/decisions/0002)."""

from __future__ import annotations

import numpy as np
import pytest

import tarsdb
from tarsdb.index import flat
from tarsdb.kernels import dispatch, reference

ROWS = 500
PLANS = {
    "search": "SELECT id, v {op} $1 AS d FROM t ORDER BY d LIMIT 500",
    "few of a search": "SELECT id, v {op} $1 AS d FROM t ORDER BY d LIMIT 20",
    "filtered search": "SELECT id, v {op} $1 AS d FROM t WHERE g = 1 ORDER BY d LIMIT 500",
    "scan": "SELECT id, v {op} $1 FROM t",
    "relational": "SELECT a.id, a.v {op} $1 FROM t a JOIN t b ON a.g + a.id = b.g + b.id",
    "relational, turned": "SELECT a.id, $1 {op} a.v FROM t a JOIN t b ON a.g + a.id = b.g + b.id",
    "two columns": "SELECT t.id, t.v {op} q.v FROM t, q WHERE q.id = 0",
}
TYPES = [
    *((f"VECTOR({dim})", op) for dim in (16, 100) for op in ("<->", "<#>", "<=>", "<+>")),
    ("HALFVEC(40)", "<->"), ("HALFVEC(40)", "<=>"), ("INT8VEC(40)", "<->"),
    ("INT8VEC(40)", "<=>"), ("BIT(48)", "<~>"), ("BIT(48)", "<%>"),
]  # fmt: skip


def vectors(sql_type: str, rows: int, rng: np.random.Generator) -> list[list[float]]:
    dim = int(sql_type.partition("(")[2][:-1])
    if sql_type.startswith("BIT"):
        return rng.integers(0, 2, (rows, dim)).tolist()
    if sql_type.startswith("INT8"):
        return rng.integers(-128, 128, (rows, dim)).tolist()
    return rng.standard_normal((rows, dim)).astype(np.float16).astype(np.float32).tolist()


def answers(sql_type: str, op: str) -> dict[str, dict[int, float]]:
    """Return the distances of rows to one query, by plan."""
    rng = np.random.default_rng(5)
    with tarsdb.connect(":memory:") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, g INT, v {sql_type})")
        db.execute(f"CREATE TABLE q (id INT PRIMARY KEY, v {sql_type})")
        (query,) = vectors(sql_type, 1, rng)
        (other,) = vectors(sql_type, 1, rng)
        rows = enumerate(vectors(sql_type, ROWS, rng))
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, i % 3, v) for i, v in rows])
        db.execute("INSERT INTO q VALUES (0, ?), (1, ?)", [query, other])
        return {
            name: dict(db.execute(sql.format(op=op), [query] if "$1" in sql else []).fetchall())
            for name, sql in PLANS.items()
        }


@pytest.mark.parametrize(("sql_type", "op"), TYPES)
def test_plans_agree(sql_type: str, op: str) -> None:
    dispatch.warmup()
    if dispatch.level() == "portable":
        pytest.skip("BLAS sums one query and many differently")
    found = answers(sql_type, op)
    expected = found.pop("scan")
    assert len(expected) == ROWS
    for name, distances in found.items():
        assert distances == {key: expected[key] for key in distances}, name


def test_rows_and_queries_in_pairs_are_compared_as_a_search_does() -> None:
    """NumPy's sums are the control: they differ for some rows."""
    dispatch.warmup()
    if dispatch.level() == "portable":
        pytest.skip("NumPy is the way there")
    rng = np.random.default_rng(5)
    rows, queries = rng.standard_normal((2, 300, 100)).astype(np.float32)
    sql_type = tarsdb.types.parse_type("VECTOR(100)")
    one_by_one = [flat.distances("<->", rows[i : i + 1], queries[i], sql_type) for i in range(300)]
    expected = np.concatenate(one_by_one)
    assert (flat.distances("<->", rows, queries, sql_type) == expected).all()
    by_numpy = reference.distances(reference.L2, rows, queries)
    assert np.allclose(by_numpy, expected)
    assert (by_numpy != expected).any()
