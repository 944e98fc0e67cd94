"""Generated queries equal a flat oracle, in and out of transactions."""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

import tarsdb
from tests.property.query_oracle import DIM, TAGS, Oracle, Query, random_row

QUERIES = int(os.environ.get("TARSDB_QUERIES", "5000"))
ROUNDS = 20


def _close(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, (int, float)):
        return bool(abs(left - right) <= 1e-5 * max(1.0, abs(right)))
    return bool(left == right)


def same(found: list[tuple[Any, ...]], query: Query) -> bool:
    """Return True when an answer is what the oracle says."""
    if not query.ordered:
        return Counter(found) == Counter(query.expected)
    return len(found) == len(query.expected) and all(
        len(a) == len(b) and all(map(_close, a, b))
        for a, b in zip(found, query.expected, strict=True)
    )


def bound(query: Query) -> list[Any]:
    return [np.array(p, dtype=np.float32) for p in query.parameters]


def setup(db: tarsdb.Connection, oracle: Oracle, rng: random.Random) -> None:
    db.execute(
        f"CREATE TABLE docs (id INT PRIMARY KEY, views INT, lang TEXT, score DOUBLE, "
        f"emb VECTOR({DIM})); CREATE TABLE tags (doc_id INT, tag TEXT);"
        "CREATE INDEX docs_views ON docs (views); CREATE INDEX docs_lang ON docs (lang)"
    )
    add(db, oracle, rng, 150)


def add(db: tarsdb.Connection, oracle: Oracle, rng: random.Random, count: int) -> None:
    start = max(oracle.docs, default=0) + 1
    rows = [random_row(rng, start + i) for i in range(count)]
    db.executemany("INSERT INTO docs VALUES (?, ?, ?, ?, ?)", [tuple(r.values()) for r in rows])
    tags = [(r["id"], rng.choice(TAGS)) for r in rows for _ in range(rng.randint(0, 2))]
    if tags:
        db.executemany("INSERT INTO tags VALUES (?, ?)", tags)
    for row in rows:
        oracle.docs[row["id"]] = row
        oracle.inserted.append(row["id"])
    oracle.tags += tags


def change(db: tarsdb.Connection, oracle: Oracle, rng: random.Random) -> None:
    """Insert, update and delete some rows in both."""
    add(db, oracle, rng, rng.choice([1, 5, 90]))
    for row in rng.sample(list(oracle.docs), 5):
        fresh = random_row(rng, row)
        if rng.random() < 0.5:
            db.execute("UPDATE docs SET views = ? WHERE id = ?", (fresh["views"], row))
            oracle.docs[row] = {**oracle.docs[row], "views": fresh["views"]}
        else:
            db.execute(
                "UPDATE docs SET emb = ?, lang = ? WHERE id = ?", (fresh["emb"], fresh["lang"], row)
            )
            oracle.docs[row] = {**oracle.docs[row], "emb": fresh["emb"], "lang": fresh["lang"]}
    for row in rng.sample(list(oracle.docs), 4):
        db.execute("DELETE FROM docs WHERE id = ?", (row,))
        del oracle.docs[row]
        oracle.inserted.remove(row)


def save(oracle: Oracle) -> tuple[Any, ...]:
    return dict(oracle.docs), list(oracle.tags), list(oracle.inserted)


def load(oracle: Oracle, state: tuple[Any, ...]) -> None:
    oracle.docs, oracle.tags, oracle.inserted = dict(state[0]), list(state[1]), list(state[2])


@pytest.mark.parametrize("seed", range(4))
def test_generated_queries_equal_the_oracle(tmp_path: Any, seed: int) -> None:
    rng = random.Random(seed)
    oracle = Oracle(rng)
    options = tarsdb.OpenOptions(delta_limit_rows=64, segment_rows=64)
    with tarsdb.connect(tmp_path / "q.tars", options=options) as db:
        setup(db, oracle, rng)
        for round_number in range(ROUNDS):
            state = save(oracle)
            db.execute("BEGIN")
            change(db, oracle, rng)
            run_queries(db, oracle, QUERIES // (4 * ROUNDS * 2))
            if rng.random() < 0.4:
                db.execute("ROLLBACK")
                load(oracle, state)
            else:
                db.execute("COMMIT")
            if round_number % 5 == 4:
                db.execute("OPTIMIZE")
            run_queries(db, oracle, QUERIES // (4 * ROUNDS * 2))


def run_queries(db: tarsdb.Connection, oracle: Oracle, count: int) -> None:
    for _ in range(count):
        query = oracle.query()
        found = db.execute(query.sql, bound(query)).fetchall()
        assert same(found, query), (
            f"{query.shape}: {query.sql}\nparameters {query.parameters}\n"
            f"expected {query.expected[:12]}\nfound    {found[:12]}"
        )


def test_the_comparison_can_fail() -> None:
    query = Query("", [], [(1, 0.5), (2, 1.0)], True, "knn")
    assert same([(1, 0.5), (2, 1.0)], query)
    assert not same([(2, 1.0), (1, 0.5)], query)
    assert not same([(1, 0.5)], query)
    assert not same([(1, 0.5), (2, 1.1)], query)


def test_exact_fallbacks_are_named_by_explain() -> None:
    with tarsdb.connect() as db:
        oracle = Oracle(random.Random(1))
        setup(db, oracle, random.Random(1))
        query = oracle.above_join()
        plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN {query.sql}", bound(query)))
        assert "exact" in plan.lower(), plan
        plan = "\n".join(
            row[0]
            for row in db.execute(
                "EXPLAIN SELECT id FROM docs ORDER BY emb <-> '[0,0,0,0]' LIMIT 3"
            )
        )
        assert "exact" in plan.lower(), plan
