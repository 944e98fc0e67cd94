"""Searches ordered by what is made of a distance, beside DuckDB's sorting of all rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors

DIM, ROWS, K = 6, 400, 12
SEARCHES = {  # what ORDER BY names, and the operator of the search that it is
    "1 - (emb <=> $q) DESC": "<=>",
    "-(emb <=> $q) DESC": "<=>",
    "1 - cosine_distance(emb, $q) DESC NULLS LAST": "<=>",
    "1 - (emb <=> $q)": "<=>, descending",
    "(1 - (emb <=> $q)) / 2 DESC": "<=>",
    "(1.5 + (emb <-> $q)) * 2": "<->",
    "(emb <-> $q) / -4e0 DESC": "<->",
    "((emb <-> $q)) - 3": "<->",
    "-2 * (emb <-> $q)": "<->, descending",
    "1 / (1 + (emb <-> $q)) DESC": "<->",
    "2e0 / ((emb <+> $q) + 0.5) DESC": "<+>",
    "-1 / (1 + (emb <=> $q))": "<=>",
    "inner_product(emb, $q) DESC": "<#>",
    "inner_product($q, emb)": "<#>, descending",
    "0.5 * inner_product(emb, $q) + 1 DESC": "<#>",
}
OTHERS = [  # no search: the order would be another, or is not the distance's alone
    "0 * (emb <-> $q)", "1 / (1 + (emb <#> $q)) DESC", "1 / (0 + (emb <-> $q)) DESC",
    "1 / (emb <-> $q) DESC", "1 / (-1 + (emb <-> $q)) DESC", "(emb <-> $q) * (emb <-> $q)",
    "(emb <-> $q) + n", "1 - (emb <=> $q) DESC NULLS FIRST", "abs(emb <#> $q)", "(emb <-> $q) * $n",
]  # fmt: skip


@pytest.fixture(scope="module")
def db() -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(8)
    with tarsdb.connect(":memory:") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, n REAL, emb VECTOR({DIM}))")
        vectors = rng.standard_normal((ROWS, DIM)).astype(np.float32)
        db.table("t").insert({
            "id": np.arange(ROWS), "n": rng.random(ROWS).astype(np.float32), "emb": vectors,
        })  # fmt: skip
        db.execute("UPDATE t SET emb = NULL WHERE id % 50 = 7")
        yield db


QUERY = {"q": np.linspace(-1, 1, DIM).astype(np.float32), "n": 2}


def rows(db: tarsdb.Connection, sql: str) -> list[tuple[Any, ...]]:
    asked = {key: value for key, value in QUERY.items() if f"${key}" in sql}
    return db.execute(sql, asked).fetchall()


@pytest.mark.parametrize("key", [*SEARCHES, *OTHERS])
def test_the_same_rows_as_sorting_all(db: tarsdb.Connection, key: str) -> None:
    wanted = rows(db, f"SELECT id FROM (SELECT * FROM t WHERE abs(id) >= 0) s ORDER BY {key}, id")
    sql = f"SELECT id FROM t WHERE emb IS NOT NULL ORDER BY {key} LIMIT {K}"
    found, head = rows(db, sql), rows(db, f"EXPLAIN {sql}")[0][0]
    if key in SEARCHES:
        operator, *falls = SEARCHES[key].split(", ")
        assert head == ", ".join([f"Knn t.emb {operator} :q", f"k={K}", *falls])
        asked = [row for row in wanted if row[0] % 50 != 7]
        assert found == asked[:K]
    else:
        assert head.startswith("Relational")


@pytest.mark.parametrize(
    ("expression", "sql_type"),
    [
        ("1 - (emb <=> $q)", "REAL"), ("-(emb <-> $q)", "REAL"), ("(emb <-> $q) * 2.5", "REAL"),
        ("1e0 - (emb <=> $q)", "DOUBLE"), ("inner_product(emb, $q)", "REAL"),
        ("1 - (emb <=> $q) * (emb <=> $q)", "REAL"), ("(emb <-> $q) + n", "REAL"),
        ("n * n - (emb <-> $q)", "REAL"), ("(emb <-> $q) + id", "REAL"), ("(emb <-> $q) < 1", ""),
    ],
)  # fmt: skip
def test_the_same_values_as_duckdb(db: tarsdb.Connection, expression: str, sql_type: str) -> None:
    operator = next((op for op in ("<=>", "<->") if op in expression), "<#>")
    search = f"SELECT id, {expression} AS x FROM t ORDER BY emb {operator} $q LIMIT {K}"
    assert rows(db, f"EXPLAIN {search}")[0][0].startswith("Knn")
    found = db.execute(search, {"q": QUERY["q"]})
    sql = f"SELECT id, {expression} AS x, abs(id) FROM t WHERE emb IS NOT NULL"
    wanted = {row[0]: row[1] for row in rows(db, sql)}
    assert sql_type in ("", str((found.description or [])[1][1]))
    answer = found.fetchall()
    assert len(answer) == K
    for row, value in answer:  # distances of a search and of a scan may differ in their last bits
        assert value == pytest.approx(wanted[row], rel=1e-5, abs=1e-6)


def test_computed_from_the_distance_in_its_type(db: tarsdb.Connection) -> None:
    sql = f"SELECT emb <=> $q, 1 - (emb <=> $q), 1e0 - (emb <=> $q) FROM t ORDER BY 1 LIMIT {K}"
    for distance, real, double in rows(db, sql):
        assert real == float(np.float32(1) - np.float32(distance))
        assert double == 1 - distance


def test_an_index_serves_it() -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        vectors = np.random.default_rng(9).standard_normal((ROWS, DIM)).astype(np.float32)
        db.table("t").insert({"id": np.arange(ROWS), "emb": vectors})
        sql = f"SELECT id, 1 - (emb <=> $q) AS similarity FROM t ORDER BY similarity DESC LIMIT {K}"
        exact = rows(db, sql)
        db.execute("CREATE INDEX near ON t USING hnsw (emb vector_cosine_ops)")
        assert "index near (hnsw)" in rows(db, f"EXPLAIN {sql}")[-1][0]
        by_index = rows(db, sql)
    assert [row for row, _ in by_index] == [row for row, _ in exact]
    assert [value for _, value in by_index] == sorted((v for _, v in by_index), reverse=True)


def test_a_broken_query_is_named(db: tarsdb.Connection) -> None:
    with pytest.raises(errors.DimensionMismatchError, match=f"{DIM}"):
        db.execute("SELECT id FROM t ORDER BY 1 - (emb <=> ?) DESC LIMIT 2", (np.zeros(2),))
    with pytest.raises(errors.DimensionMismatchError, match=f"{DIM}"):
        db.execute("SELECT id FROM t ORDER BY inner_product(emb, ?) DESC LIMIT 2", (np.zeros(2),))
