"""Sandboxed filters and rerankers of searches, beside the same functions without a role."""

from __future__ import annotations

import gc
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.engine.search import filter_arguments, lazy_filter
from tarsdb.index.flat import FlatIndex
from tarsdb.kernels import graph
from tests.sandbox.wasm_text import PRELUDE

DIM, ROWS, K = 8, 4000, 10

# passes(n, m) = n % m = 0; traps where m is 0
PASSES = """(module (func (export "passes") (param i64 i64) (result i32)
  (i64.eqz (i64.rem_s (local.get 0) (local.get 1)))))"""
# apart(q, n) = |q - n|; NaN for n = 13
SCORE = """(module (func (export "apart") (param f64 i64) (result f64)
  (select (f64.const nan) (f64.abs (f64.sub (local.get 0) (f64.convert_i64_s (local.get 1))))
    (i64.eq (local.get 1) (i64.const 13)))))"""
# begins(t, c): whether t begins with c, over text
BEGINS = f"""(module {PRELUDE}
  (func (export "begins") (param $d i32) (param $n i32) (result i32) (local $i i32) (local $a i32)
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (local.set $a (i32.add (i32.load offset=20 (local.get $d))
        (i32.shl (local.get $i) (i32.const 2))))
      (i32.store8 (i32.add (i32.load offset=72 (local.get $d)) (local.get $i))
        (i32.and (i32.lt_u (i32.load (local.get $a)) (i32.load offset=4 (local.get $a)))
          (i32.eq (i32.load8_u
              (i32.add (i32.load offset=8 (local.get $d)) (i32.load (local.get $a))))
            (i32.load8_u (i32.load offset=40 (local.get $d))))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (i32.const 0)))"""


def create(name: str, signature: str, text: str, more: str = "") -> str:
    return f"CREATE FUNCTION {name}{signature} LANGUAGE wasm {more} AS '{text}'"


FILTER = "(n BIGINT, m BIGINT) RETURNS BOOLEAN"
TEXT = "(t TEXT, c TEXT) RETURNS BOOLEAN"
RANK = "(q DOUBLE, n BIGINT) RETURNS DOUBLE"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(2)
    graph.wait()
    with tarsdb.connect(tmp_path_factory.mktemp("filter") / "a.tars") as db:
        for suffix, role in (("", ""), ("_f", " WITH (role = 'filter')")):
            for name, signature, text in (("passes", FILTER, PASSES), ("begins", TEXT, BEGINS)):
                code = text.replace(f'"{name}"', f'"{name}{suffix}"')
                db.execute(create(f"{name}{suffix}", signature, code) + role)
        db.execute(create("apart", RANK, SCORE) + " WITH (role = 'reranker')")
        for table in ("t", "indexed"):
            db.execute(
                f"CREATE TABLE {table} (id BIGINT PRIMARY KEY, n BIGINT, word TEXT, "
                f"emb VECTOR({DIM}))"
            )
            db.table(table).insert({
                "id": np.arange(ROWS), "n": rng.integers(0, 1000, ROWS),
                "word": [f"{chr(97 + i % 26)}{i}" for i in range(ROWS)],
                "emb": rng.standard_normal((ROWS, DIM)).astype(np.float32),
            })  # fmt: skip
            db.execute(f"DELETE FROM {table} WHERE id % 17 = 4")
            db.execute(f"UPDATE {table} SET n = NULL WHERE id % 13 = 2")
            db.execute(f"UPDATE {table} SET emb = NULL WHERE id % 19 = 3")
        db.execute("CREATE INDEX near ON indexed USING hnsw (emb)")
        yield db


@pytest.fixture
def db(shared: tarsdb.Connection) -> Iterator[tarsdb.Connection]:
    shared.execute("BEGIN")
    yield shared
    shared.rollback()


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, parameters).fetchall()


def calls(db: tarsdb.Connection) -> float:
    found = rows(db, "SELECT value FROM tars_metrics WHERE name = 'udf_rows'")
    return float(found[0][0]) if found else 0.0


def query(number: int) -> np.ndarray:
    return np.random.default_rng(number + 100).standard_normal(DIM).astype(np.float32)


CONDITIONS = [
    "passes(n, 2)", "passes(n, 300)", "passes(n, 7) AND id > 2000", "passes(n, 3) AND n > 5",
    "passes(n, 2) AND passes(n, 3)", "passes(n, 4) AND abs(id) % 3 = 1", "passes(m => 5, n => n)",
    "passes(id, 100000)", "passes(n, 1000000)", "begins(word, 'c')",
    "begins(word, 'q') AND n < 500",
    "passes(7, 2)", "passes(n, 5) AND lower(word) < 'k'", "NOT passes(n, 2)",
    "passes(n, 2) OR id = 3", "passes(n + 1, 2)", "passes(n, NULL)",
]  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(
    "form",
    ["SELECT id FROM t WHERE {} ORDER BY emb <-> ? LIMIT 10",
     "SELECT id, emb <-> ? AS d FROM t WHERE {} ORDER BY d LIMIT 3 OFFSET 4",
     "SELECT id FROM t WHERE {} AND emb <-> ? < 2.5",
     "SELECT id FROM t WHERE {} ORDER BY emb <=> ? DESC LIMIT 5",
     "SELECT sum(id) FROM (SELECT id FROM t WHERE {} ORDER BY emb <#> ? LIMIT 20)"],
)  # fmt: skip
def test_a_filter_gives_what_the_function_gives(
    shared: tarsdb.Connection, condition: str, form: str
) -> None:
    marked = condition.replace("passes(", "passes_f(").replace("begins(", "begins_f(")
    for _ in range(3):  # the second time what all rows gave is known
        found = rows(shared, form.format(marked), query(1))
        assert found == rows(shared, form.format(condition), query(1))


def kept_arguments(db: tarsdb.Connection) -> dict[Any, filter_arguments.Arguments]:
    found: dict[Any, filter_arguments.Arguments]
    found = db._require_session().env.caches.get("filter arguments", {})
    return found


def forget_habits(db: tarsdb.Connection) -> None:
    """Forget which share of rows passed in earlier searches."""
    db._require_session().env.caches.pop("filter habits", None)


def test_numbers_of_all_rows_are_asked_about_where_that_is_cheaper(
    shared: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = shared
    sql = f"SELECT id FROM {{}} WHERE {{}}(n, ?) ORDER BY emb <-> ? LIMIT {K}"
    rows(db, sql.format("t", "passes_f"), 6, query(5))  # what a call costs is known from here on
    live = rows(db, "SELECT count(n) FROM t WHERE emb IS NOT NULL")[0][0]
    monkeypatch.setattr(lazy_filter, "ROUND_S", 1e9)
    kept_arguments(db).clear()
    held = None
    for m in (11, 21, 31, 401):
        before = calls(db)
        found = rows(db, sql.format("t", "passes_f"), m, query(m))
        assert calls(db) - before >= live
        assert found == rows(db, sql.format("t", "passes"), m, query(m))
        (key,) = kept_arguments(db)
        assert held is None or kept_arguments(db)[key] is held
        held = kept_arguments(db)[key]
    db.execute("INSERT INTO t VALUES (77777, 4030, 'x', ?)", (query(31),))
    assert rows(db, sql.format("t", "passes_f"), 31, query(31))[0] == (77777,)
    assert kept_arguments(db)[key] is not held
    db.execute("BEGIN")
    db.execute("UPDATE t SET n = 1 WHERE id = 77777")
    for _ in range(2):
        assert (77777,) not in rows(db, sql.format("t", "passes_f"), 31, query(31))
    db.execute("ROLLBACK")
    assert rows(db, sql.format("t", "passes_f"), 31, query(31))[0] == (77777,)
    db.execute("DELETE FROM t WHERE id = 77777")
    assert (77777,) not in rows(db, sql.format("t", "passes_f"), 31, query(31))
    assert rows(db, sql.format("t", "passes_f"), 51, query(31)) == rows(
        db, sql.format("t", "passes"), 51, query(31)
    )
    with pytest.raises(errors.UdfTrapError, match="passes_f"):
        rows(db, sql.format("t", "passes_f"), 0, query(1))
    monkeypatch.setattr(lazy_filter, "WHOLE_S", 1e12)
    forget_habits(db)
    before = calls(db)
    assert len(rows(db, sql.format("t", "passes_f"), 2, query(77))) == K
    assert 0 < calls(db) - before <= lazy_filter.FIRST_ROWS


def test_only_candidates_are_asked_about(
    shared: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = shared
    monkeypatch.setattr(lazy_filter, "WHOLE_S", 1e12)  # rows to a thousand are cheap at once
    forget_habits(db)
    sql = f"SELECT id FROM t WHERE passes_f(n, 2) ORDER BY emb <-> ? LIMIT {K}"
    before = calls(db)
    found = rows(db, sql, query(2))
    asked = calls(db) - before
    assert len(found) == K and 0 < asked <= lazy_filter.FIRST_ROWS
    plan = str(rows(db, f"EXPLAIN {sql}", query(2)))
    assert "filter candidates by: passes_f(n, 2)" in plan
    # few rows pass: all are asked about, once
    rare = f"SELECT id FROM t WHERE passes_f(n, 301) ORDER BY emb <-> ? LIMIT {K}"
    rows(db, rare, query(2))
    before = calls(db)
    for number in range(5):
        rows(db, rare, query(number))
    assert calls(db) == before
    db.execute("INSERT INTO t VALUES (99999, 301, 'x', ?)", (query(2),))
    assert rows(db, rare, query(2))[0] == (99999,)
    assert calls(db) > before
    db.execute("DELETE FROM t WHERE id = 99999")
    assert (99999,) not in rows(db, rare, query(2))


def test_searches_with_the_same_constants_ask_about_all_rows_in_the_end(
    shared: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = shared
    price = 2 * (lazy_filter.FIRST_ROWS + lazy_filter.ROUND_S / lazy_filter.NEAREST_S)
    monkeypatch.setattr(lazy_filter, "_price", lambda *_: price)
    sql = f"SELECT id FROM t WHERE {{}}(n, ?) ORDER BY emb <-> ? LIMIT {K}"

    def asked(constant: int, number: int) -> int:
        forget_habits(db)
        before = calls(db)
        found = rows(db, sql.format("passes_f"), constant, query(number))
        count = calls(db) - before
        assert found == rows(db, sql.format("passes"), constant, query(number))
        return count

    few = [asked(2, number) for number in range(2)]
    assert all(0 < count <= lazy_filter.FIRST_ROWS for count in few)
    assert asked(4, 5) <= lazy_filter.FIRST_ROWS  # each constant has its own account
    assert asked(2, 2) > ROWS / 2  # the third search would make it as dear as all rows
    assert [asked(2, number) for number in range(3, 6)] == [0, 0, 0]
    db.execute("UPDATE t SET word = 'x' WHERE id = 1")
    assert 0 < asked(2, 2) <= lazy_filter.FIRST_ROWS  # another state, another account


def test_what_searches_spent_holds_no_vectors_of_commits_before(
    shared: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_filter, "_price", lambda *_: ROWS)
    sql = f"SELECT id FROM t WHERE passes_f(n, ?) ORDER BY emb <-> ? LIMIT {K}"
    for number in range(30):
        shared.execute("UPDATE t SET emb = ? WHERE id = 1", (query(number),))
        assert rows(shared, sql, 2 + number, query(number))
    gc.collect()
    assert sum(type(each) is FlatIndex for each in gc.get_objects()) < 20


def test_what_a_transaction_wrote_is_filtered_too(db: tarsdb.Connection) -> None:
    sql = f"SELECT id FROM t WHERE passes_f(n, 301) ORDER BY emb <-> ? LIMIT {K}"
    expected = rows(db, sql, query(3))
    db.execute("INSERT INTO t VALUES (88888, 602, 'x', ?), (88887, 603, 'x', ?)", (query(3),) * 2)
    assert rows(db, sql, query(3)) == [(88888,), *expected][:K]
    db.execute("UPDATE t SET n = 603 WHERE id = 88888")
    assert rows(db, sql, query(3)) == expected


def test_another_function_of_the_name_gets_no_kept_answer(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (n BIGINT, v VECTOR(1))")
        db.table("t").insert({"n": np.arange(100), "v": np.arange(100.0)[:, None]})
        sql = "SELECT n FROM t WHERE passes(n, 50) ORDER BY v <-> '[10]' LIMIT 10"
        other = PASSES.replace("(i64.eqz", "(i32.eqz (i64.eqz").replace("1)))))", "1))))))")
        for text, expected in ((PASSES, [(0,), (50,)]), (other, None)):
            db.execute(create("passes", FILTER, text) + " WITH (role = 'filter')")
            for _ in range(2):
                found = rows(db, sql)
                assert found == expected if expected else len(found) == 10 and (0,) not in found
            db.execute("DROP FUNCTION passes")
        db.execute(create("passes", FILTER, PASSES, "VOLATILE") + " WITH (role = 'filter')")
        before = calls(db)
        for _ in range(2):
            assert rows(db, sql) == [(0,), (50,)]
        assert calls(db) == before + 200  # nothing is kept


def test_with_an_index_and_in_a_batch(shared: tarsdb.Connection) -> None:
    sql = f"SELECT id FROM {{}} WHERE {{}}(n, 3) ORDER BY emb <-> ? LIMIT {K}"
    shared.execute("SET ef_search = 400")
    hits = 0
    for number in range(10):
        found = rows(shared, sql.format("indexed", "passes_f"), query(number))
        exact = rows(shared, sql.format("indexed", "passes"), query(number))
        assert len(found) == K
        hits += len(set(found) & set(exact))
    shared.execute("SET ef_search = 0")
    assert hits >= 95
    batch = np.stack([query(1), query(2)])
    marked = rows(shared, sql.format("t", "passes_f"), batch)
    assert marked == rows(shared, sql.format("t", "passes"), batch) and len(marked) == 2 * K


@pytest.mark.parametrize("m", [0, None])
def test_a_trap_in_a_filter(db: tarsdb.Connection, m: int | None) -> None:
    sql = "SELECT id FROM t WHERE passes_f(n, ?) ORDER BY emb <-> ? LIMIT 3"
    before = rows(db, "SELECT count(*), sum(n) FROM t")
    if m is None:
        assert rows(db, sql, m, query(1)) == []
        return
    for text in (sql, f"DELETE FROM t WHERE id IN ({sql})"):
        with pytest.raises(errors.UdfTrapError, match="passes_f"):
            rows(db, text, m, query(1))
    assert rows(db, "SELECT count(*), sum(n) FROM t") == before


def test_a_reranker_orders_the_candidates_of_a_search(shared: tarsdb.Connection) -> None:
    inner = "SELECT id, n FROM t WHERE n <> 13 ORDER BY emb <-> ? LIMIT 40"
    near = rows(shared, inner, query(4))
    expected = sorted(near, key=lambda row: (abs(500.5 - row[1]), row[0]))[:5]
    before = calls(shared)
    for call in (
        "rerank('apart', 500.5, n)",
        "apart(500.5, n)",
        "rerank('APART', n => n, q => 500.5)",
    ):
        found = rows(shared, f"SELECT id, n FROM ({inner}) ORDER BY {call}, id LIMIT 5", query(4))
        assert found == expected
    assert calls(shared) - before == 3 * 40
    with pytest.raises(errors.UdfError, match=r"apart: the score of row \d+ is NaN"):
        rows(shared, "SELECT id FROM t ORDER BY rerank('apart', 1.0, 13) LIMIT 3")
    with pytest.raises(errors.BindError, match="model 'nobody' does not exist"):
        rows(shared, "SELECT rerank('nobody', 1.0, n) FROM t")
    with pytest.raises(errors.BindError, match="model 'passes' does not exist"):
        rows(shared, "SELECT rerank('passes', 1, n) FROM t")  # no reranker


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        (create("z", FILTER.replace("BOOLEAN", "INT"), PASSES.replace("passes", "z"))
         + " WITH (role = 'filter')", errors.UdfValidationError, "needs RETURNS BOOLEAN, not INT"),
        (create("z", FILTER, PASSES.replace("passes", "z")) + " WITH (role = 'reranker')",
         errors.UdfValidationError, "needs RETURNS REAL or DOUBLE, not BOOLEAN"),
    ],
)  # fmt: skip
def test_what_is_refused(
    db: tarsdb.Connection, sql: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        db.execute(sql)
    assert message in str(caught.value)


def test_what_is_kept_of_0_is_no_answer_for_minus_0(tmp_path: pathlib.Path) -> None:
    code = (
        '(module (func (export "above") (param f64 f64) (result i32) '
        "(f64.gt (f64.div (local.get 0) (local.get 1)) (f64.const 0))))"
    )
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, r DOUBLE, emb VECTOR(2))")
        db.execute("INSERT INTO t VALUES (1, 1, '[1, 0]'), (2, -1, '[0, 1]')")
        db.execute(
            f"CREATE FUNCTION above(r DOUBLE, c DOUBLE) RETURNS BOOLEAN LANGUAGE wasm AS '{code}' "
            "WITH (role = 'filter')"
        )
        sql = "SELECT id FROM t WHERE above(r, ?) ORDER BY emb <-> ? LIMIT 2"
        for zero, found in ((0.0, 1), (0.0, 1), (-0.0, 2), (-0.0, 2), (0.0, 1)):
            assert rows(db, sql, zero, [1, 0]) == [(found,)]
