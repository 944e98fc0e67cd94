"""Searches inside larger queries: no NULL vectors, ties by row id, whoever answers them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb

NEAR = [1, 4, 6, 3]  # by distance from the origin; 4 and 6 are as far, 2 and 5 have no vector


@pytest.fixture(scope="module")
def db() -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE k (id INT PRIMARY KEY, g INT, emb VECTOR(2))")
        db.execute("""INSERT INTO k VALUES (1, 1, '[1, 0]'), (2, 1, NULL), (3, 1, '[3, 0]'),
                      (4, 2, '[2, 0]'), (5, 1, NULL), (6, 1, '[0, 2]')""")
        yield db


def ids(db: tarsdb.Connection, sql: str) -> list[int]:
    return [row[0] for row in db.execute(sql)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM k ORDER BY emb <-> '[0, 0]' LIMIT 10",
        "SELECT id FROM k ORDER BY emb <-> '[0, 0]', id LIMIT 10",
        "SELECT id, emb <-> '[0, 0]' AS d FROM k ORDER BY d, id LIMIT 10",
        "SELECT id FROM k ORDER BY 2 * (emb <-> '[0, 0]') + 0 * id LIMIT 10",
        "SELECT k.id FROM k JOIN (SELECT 1) u ON true ORDER BY k.emb <-> '[0, 0]', k.id LIMIT 10",
        "SELECT id FROM (SELECT * FROM k) q ORDER BY emb <-> '[0, 0]', id LIMIT 10",
        "SELECT id FROM (SELECT id FROM k WHERE id IN (SELECT id FROM k) "
        "ORDER BY emb <-> '[0, 0]' LIMIT 10)",
        "SELECT unnest((SELECT list(i) FROM (SELECT b.id AS i FROM k b "
        "ORDER BY b.emb <-> a.emb - a.emb LIMIT 10))) FROM k a WHERE id = 1",
    ],
)
def test_null_vectors_are_no_neighbours(db: tarsdb.Connection, sql: str) -> None:
    assert ids(db, sql) == NEAR


@pytest.mark.parametrize("query", [[0, 0], "[0, 0]", np.zeros(2), None])
def test_the_query_may_be_bound(db: tarsdb.Connection, query: Any) -> None:
    for sql in ("SELECT id FROM k ORDER BY emb <-> ?, id LIMIT 10",
                "SELECT id FROM k ORDER BY l2_distance(?, emb), id LIMIT 10"):  # fmt: skip
        found = [row[0] for row in db.execute(sql, [query])]
        assert found == ([] if query is None else NEAR)


def test_each_row_of_an_outer_query_has_its_neighbours(db: tarsdb.Connection) -> None:
    sql = """SELECT a.id, n.id FROM k a, LATERAL (SELECT b.id FROM k b WHERE b.id <> a.id
             ORDER BY b.emb <-> a.emb LIMIT 2) n ORDER BY 1, 2"""
    wanted = [(1, 3), (1, 4), (3, 1), (3, 4), (4, 1), (4, 3), (6, 1), (6, 4)]
    assert db.execute(sql).fetchall() == wanted


def test_ties_of_a_search_that_duckdb_answers() -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE k (id INT PRIMARY KEY, emb VECTOR(2))")
        rows = [((7919 * i) % 3000, [1, i % 2]) for i in range(3000)]
        db.executemany("INSERT INTO k VALUES (?, ?)", rows)
        first = [key for key, vector in rows if vector[1] == 0][:50]
        inner = "SELECT b.id FROM k b WHERE b.id >= a.id ORDER BY b.emb <-> '[1, 0]' LIMIT 50"
        found = ids(db, f"SELECT n.id FROM (SELECT 0 AS id) a, LATERAL ({inner}) n")
        assert sorted(found) == sorted(first)


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [  # NULL is in the answer where it was asked for, or where leaving it out changes other values
        ("SELECT id FROM k ORDER BY emb <-> '[0, 0]' NULLS FIRST, id LIMIT 3", [2, 5, 1]),
        ("SELECT id FROM k ORDER BY emb <-> '[0, 0]', id", [*NEAR, 2, 5]),
        ("SELECT id FROM k ORDER BY coalesce(emb <-> '[0, 0]', 0), id LIMIT 3", [2, 5, 1]),
        ("SELECT count(*) FROM k GROUP BY g ORDER BY min(emb <-> '[0, 0]') LIMIT 9", [5, 1]),
        ("SELECT count(*) FROM k ORDER BY min(emb <-> '[0, 0]') LIMIT 9", [6]),
        (
            "SELECT row_number() OVER (ORDER BY -id) FROM k ORDER BY emb <-> '[0, 0]' LIMIT 2",
            [6, 3],
        ),
        ("SELECT count(*) OVER () FROM k ORDER BY emb <-> '[0, 0]', id LIMIT 1", [6]),
    ],
)
def test_other_queries_keep_them(db: tarsdb.Connection, sql: str, wanted: list[int]) -> None:
    assert ids(db, sql) == wanted


def test_a_subquery_in_the_condition_does_not_keep_a_search_from_ours(
    db: tarsdb.Connection,
) -> None:
    inner = "SELECT id FROM k WHERE id IN (SELECT id FROM {}) ORDER BY emb <-> '[0, 0]' LIMIT 10"
    plain = "EXPLAIN SELECT * FROM (" + inner.format("k") + ")"
    assert any("Knn k.emb" in row[0] for row in db.execute(plain))
    of_cte = "WITH c AS (SELECT id FROM k WHERE id < 4) SELECT * FROM (" + inner.format("c") + ")"
    assert ids(db, of_cte) == [1, 3]
    around = "SELECT id FROM k a WHERE id = (SELECT id FROM k WHERE id IN (SELECT a.id) "
    assert ids(db, around + "ORDER BY emb <-> '[0, 0]' LIMIT 1) ORDER BY id") == [1, 3, 4, 6]
