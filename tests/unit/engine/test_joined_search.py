"""Nearest neighbours under joins: exact answers of few rows, and what is compared with all rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine import executor
from tarsdb.engine.reading import joined_keys, scans
from tarsdb.errors import DataError
from tarsdb.kernels import dispatch
from tarsdb.sql import relational

ROWS, DOCS, DIM = 3000, 200, 16
JOINED = "SELECT d.title, c.id FROM chunks c JOIN docs d ON d.id = c.doc_id"


@pytest.fixture(scope="module")
def db() -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(5)
    db = tarsdb.connect(":memory:")
    db.execute("CREATE TABLE docs (id BIGINT PRIMARY KEY, title TEXT, year INT)")
    db.execute("CREATE TABLE notes (id BIGINT PRIMARY KEY, doc_id BIGINT, note TEXT)")
    db.execute(f"CREATE TABLE chunks (id BIGINT PRIMARY KEY, doc_id BIGINT, emb VECTOR({DIM}))")
    db.execute("CREATE INDEX years ON docs (year)")
    db.execute("CREATE INDEX noted ON notes (doc_id)")
    db.execute("CREATE INDEX chunked ON chunks (doc_id)")
    ids = np.arange(DOCS)
    titles = [f"title {i}" for i in ids]
    db.table("docs").insert({"id": ids, "title": titles, "year": 1900 + ids % 50})
    of = rng.integers(0, DOCS, 300)
    db.table("notes").insert(
        {"id": np.arange(300), "doc_id": of, "note": [f"note {i % 7}" for i in range(300)]}
    )
    emb = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    doc_ids = rng.integers(0, DOCS + 40, ROWS)  # some of no document
    db.table("chunks").insert({"id": np.arange(ROWS), "doc_id": doc_ids, "emb": emb})
    dispatch.warmup()  # until then NumPy compares
    yield db
    db.close()


@pytest.fixture
def query() -> np.ndarray:
    return np.random.default_rng(9).standard_normal(DIM).astype(np.float32)


def exactly(db: tarsdb.Connection, sql: str, parameters: Any, patch: pytest.MonkeyPatch) -> Any:
    """Return the answer of the statement when DuckDB compares every row."""
    with patch.context() as patched:
        patched.setattr(relational, "push_joined_search", lambda *given: False)
        return db.execute(f"{sql} -- exactly", parameters).fetchall()


def plan_of(db: tarsdb.Connection, sql: str, parameters: Any = ()) -> str:
    return "\n".join(row[0] for row in db.execute(f"EXPLAIN {sql}", parameters).fetchall())


def comparable(rows: list[tuple[Any, ...]]) -> list[str]:
    """Return rows as texts: vectors and NULL too can be compared."""
    return [str(row) for row in rows]


CASES = [
    f"{JOINED} ORDER BY c.emb <-> ? LIMIT 5",
    f"{JOINED} ORDER BY c.emb <=> ? LIMIT 7 OFFSET 3",
    f"{JOINED} ORDER BY c.emb <#> ? DESC LIMIT 4",
    f"{JOINED} WHERE d.year = 1907 ORDER BY c.emb <-> ? LIMIT 5",
    f"{JOINED} WHERE d.title LIKE '%99' ORDER BY c.emb <-> ? LIMIT 50",
    f"{JOINED} WHERE d.title = 'nowhere' ORDER BY c.emb <-> ? LIMIT 5",
    f"{JOINED} WHERE c.id < 100 AND d.year > 1920 ORDER BY c.emb <-> ? LIMIT 9",
    f"{JOINED} WHERE c.id % 2 = 0 ORDER BY c.emb <-> ? LIMIT 9",
    "SELECT d.title, c.id, c.emb <-> $1 AS far FROM chunks c LEFT JOIN docs d ON d.id = c.doc_id "
    "WHERE d.id IS NULL ORDER BY far LIMIT 6",
    "SELECT c.id FROM docs d JOIN chunks c ON c.doc_id = d.id JOIN notes n "
    "ON n.doc_id = d.id ORDER BY c.emb <-> ? LIMIT 20",
    "SELECT c.id FROM chunks c LEFT JOIN notes n USING (doc_id) ORDER BY c.emb <-> ? LIMIT 20",
    "SELECT c.*, title FROM docs d, chunks c WHERE c.doc_id = d.id ORDER BY emb <-> ? LIMIT 3",
    f"{JOINED} WHERE c.emb <-> $1 < 4.5 ORDER BY c.emb <-> $1 LIMIT 1000",
    f"{JOINED} ORDER BY 1 - (c.emb <=> ?) DESC LIMIT 5",
    f"WITH old AS (SELECT id FROM docs WHERE year < 1910) {JOINED} JOIN old ON old.id = d.id "
    "ORDER BY c.emb <-> ? LIMIT 5",
    "SELECT b.id FROM chunks a JOIN chunks b ON a.doc_id = b.doc_id AND a.id < b.id "
    "ORDER BY b.emb <-> ? LIMIT 12",
    f"{JOINED} ORDER BY c.emb <-> ? LIMIT 100000",
    f"{JOINED} ORDER BY c.emb <-> ? LIMIT 0",
]


@pytest.mark.parametrize("share", [1, 8])
@pytest.mark.parametrize("sql", CASES)
def test_the_answer_is_that_of_exact_search(
    db: tarsdb.Connection, query: np.ndarray, sql: str, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where ever more rows are searched for, up to all."""
    monkeypatch.setattr(executor, "WHOLE_SHARE", share)
    monkeypatch.setattr(scans, "SMALL_ROWS", 0)
    monkeypatch.setattr(joined_keys, "SHARE", 1)
    expected = exactly(db, sql, [query], monkeypatch)
    assert "Knn chunks" in plan_of(db, sql, [query])
    found = db.execute(sql, [query]).fetchall()
    assert comparable(found) == comparable(expected)


def test_own_writes_are_seen(
    db: tarsdb.Connection, query: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = f"{JOINED} ORDER BY c.emb <-> ? LIMIT 5"
    db.execute("BEGIN")
    db.execute("INSERT INTO docs VALUES (5000, 'mine', 2000)")
    db.execute("INSERT INTO chunks VALUES (9000, 5000, ?)", [query])
    db.execute("DELETE FROM docs WHERE id IN (SELECT doc_id FROM chunks WHERE id < 300)")
    found = db.execute(sql, [query]).fetchall()
    assert found[0] == ("mine", 9000)
    assert found == exactly(db, sql, [query], monkeypatch)
    db.execute("ROLLBACK")


def test_random_statements(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "SMALL_ROWS", 0)
    rng = random.Random(3)
    draws = np.random.default_rng(3)
    for _ in range(60):
        side = rng.choice(["JOIN", "LEFT JOIN"])
        terms = rng.sample([
            f"d.year >= {rng.randrange(1900, 1950)}", f"c.id < {rng.randrange(ROWS)}",
            f"d.year = {rng.randrange(1900, 1950)}", "n.note IS NOT NULL",
            f"n.note = 'note {rng.randrange(8)}'", "d.title IS NOT NULL",
        ], rng.randrange(3))  # fmt: skip
        where = f"WHERE {' AND '.join(terms)} " if terms else ""
        sql = (
            f"SELECT c.id, c.emb <-> $1 AS far FROM chunks c {side} docs d ON d.id = c.doc_id "
            f"LEFT JOIN notes n ON n.doc_id = d.id {where}"
            f"ORDER BY far LIMIT {rng.randrange(1, 40)} OFFSET {rng.choice([0, 0, 5])}"
        )
        query = draws.standard_normal(DIM).astype(np.float32)
        expected = exactly(db, sql, [query], monkeypatch)
        found = db.execute(sql, [query]).fetchall()
        assert found == expected, sql


@pytest.fixture
def shouted(db: tarsdb.Connection) -> list[str]:
    """What a function of the connection was called with."""
    given: list[str] = []

    def shout(text: str) -> str:
        given.append(text)
        return text.upper()

    db.create_function("shout", shout, ["TEXT"], "TEXT")
    return given


def test_where_many_rows_are_wanted_all_are_compared(
    db: tarsdb.Connection, query: np.ndarray, asked: list[Any]
) -> None:
    """No search then holds most of the table in memory."""
    sql = f"{JOINED} WHERE d.title = 'nowhere' OR c.id = 2999 ORDER BY c.emb <-> ? LIMIT 5"
    db.execute(sql, [query]).fetchall()
    assert [plan.limit.value for plan in asked] == [5, 64]


def test_functions_are_asked_about_rows_of_the_answer(
    db: tarsdb.Connection, query: np.ndarray, shouted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first search finds too few rows, and behind an OFFSET."""
    sql = (
        "SELECT shout(d.title) AS loud, c.id, $2 AS said FROM chunks c JOIN docs d "
        "ON d.id = c.doc_id WHERE d.year > 1920 AND c.id % 3 = 0 "
        "ORDER BY c.emb <-> $1 LIMIT 6 OFFSET 2"
    )
    assert "Knn chunks" in plan_of(db, sql, [query, "so"])
    found = db.execute(sql, [query, "so"]).fetchall()
    assert len(found) == 6
    assert 6 <= len(shouted) <= 8
    shouted.clear()
    assert exactly(db, sql, [query, "so"], monkeypatch) == found
    assert len(shouted) > 100  # negative control


def test_a_function_in_a_condition_is_asked_by_exact_search(
    db: tarsdb.Connection, query: np.ndarray, shouted: list[str]
) -> None:
    for sql in (
        f"{JOINED} WHERE shout(d.title) = 'TITLE 7' ORDER BY c.emb <-> ? LIMIT 2",
        "SELECT shout(d.title) AS loud FROM chunks c JOIN docs d ON d.id = c.doc_id "
        "WHERE loud = 'TITLE 7' ORDER BY c.emb <-> ? LIMIT 2",
    ):
        assert "exact: LIMIT is above a join" in plan_of(db, sql, [query])
        assert len(db.execute(sql, [query]).fetchall()) == 2


@pytest.mark.parametrize(
    "sql",
    [
        f"{JOINED} ORDER BY c.emb <-> ?, d.title LIMIT 5",
        "SELECT d.title, min(c.emb <-> $1) AS far FROM chunks c JOIN docs d ON d.id = c.doc_id "
        "GROUP BY ALL ORDER BY far LIMIT 5",
        "SELECT d.title, c.id FROM docs d LEFT JOIN chunks c ON d.id = c.doc_id AND c.id < 50 "
        "ORDER BY c.emb <-> ? LIMIT 150",
        "SELECT d.title, c.id FROM docs d FULL JOIN chunks c ON d.id = c.doc_id "
        "ORDER BY c.emb <-> ? LIMIT 5",
        f"SELECT * FROM ({JOINED} ORDER BY c.emb <-> ? LIMIT 5) ORDER BY 1",
    ],
)
def test_what_else_is_exact(db: tarsdb.Connection, query: np.ndarray, sql: str) -> None:
    plan = plan_of(db, sql, [query])
    assert "exact: LIMIT is above" in plan
    assert "Knn" not in plan
    assert db.execute(sql, [query]).fetchall()


def test_few_rows_are_read(
    db: tarsdb.Connection, query: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without links the joined table is read whole."""
    monkeypatch.setattr(scans, "SMALL_ROWS", 0)
    monkeypatch.setattr(joined_keys, "SHARE", 1)
    read: list[int] = []
    chunks = scans.TableScan._chunks

    def counted(self: Any, wanted: Any) -> Any:
        for chunk in chunks(self, wanted):
            read.append(len(chunk.rowids))
            yield chunk

    monkeypatch.setattr(scans.TableScan, "_chunks", counted)
    sql = f"{JOINED} ORDER BY c.emb <-> ? LIMIT 5"
    db.execute(sql, [query]).fetchall()
    assert sum(read) <= 5 + executor.FEWEST_NEAREST
    read.clear()
    db.execute("SELECT d.title FROM docs d JOIN notes n ON n.doc_id = d.id WHERE d.id = 7")
    assert sum(read) < 20
    read.clear()
    monkeypatch.setattr(relational, "link_sources", lambda node, scope: None)
    db.execute(f"{sql} -- unlinked", [query]).fetchall()
    assert sum(read) % DOCS == 0


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The searches that statements make."""
    asked: list[Any] = []
    search = executor.vector_search.search

    def noted(context: Any, plan: Any) -> Any:
        asked.append(plan)
        return search(context, plan)

    monkeypatch.setattr(executor.vector_search, "search", noted)
    return asked


@pytest.mark.parametrize("term", ["d.id = 33", "d.title = 'title 33'"])
def test_a_selective_join_is_looked_up_first(
    db: tarsdb.Connection, query: np.ndarray, asked: list[Any], term: str
) -> None:
    """One of 200 documents: its chunks are compared, once, not ever more of all.

    The title has no index: the documents are looked through.
    """
    sql = f"{JOINED} WHERE {term} ORDER BY c.emb <-> ? LIMIT 3"
    assert len(db.execute(sql, [query]).fetchall()) == 3
    assert len(asked) == 1
    assert asked[0].predicate is not None


def test_the_second_search_is_wide_enough_mostly(
    db: tarsdb.Connection, query: np.ndarray, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chunk in five passes, which the first search of 40 tells."""
    monkeypatch.setattr(executor, "WHOLE_SHARE", 1)
    sql = f"{JOINED} WHERE c.id % 5 = 0 ORDER BY c.emb <-> ? LIMIT 40"
    assert len(db.execute(sql, [query]).fetchall()) == 40
    assert len(asked) == 2


def test_limits_that_are_no_counts_and_many_queries_are_refused(
    db: tarsdb.Connection, query: np.ndarray
) -> None:
    sql = f"{JOINED} ORDER BY c.emb <-> ? LIMIT ?"
    assert len(db.execute(sql, [query, 4]).fetchall()) == 4
    with pytest.raises(DataError, match="LIMIT must be a whole number"):
        db.execute(sql, [query, -1])
    with pytest.raises(DataError, match=r"chunks\.emb: a search whose rows are joined"):
        db.execute(f"{JOINED} ORDER BY c.emb <-> ? LIMIT 4", [np.stack([query, query])])
