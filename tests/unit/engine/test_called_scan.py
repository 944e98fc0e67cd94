"""Functions in a plain SELECT: computed over all rows at once, with DuckDB's way as the oracle."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb.errors import UdfTrapError
from tests.sandbox.wasm_text import DEMO

ROWS = 5_000
TEXTKIT = (DEMO / "textkit.wat").read_text("utf-8")
HALF = """(module (func (export "half") (param f64) (result f64)
  (f64.mul (local.get 0) (f64.const 0.5))))"""
INVERSE = """(module (func (export "inverse") (param i64) (result i64)
  (i64.div_s (i64.const 100) (local.get 0))))"""


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "called.tars") as connection:
        connection.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INT, x DOUBLE, s TEXT)")
        connection.executemany(
            "INSERT INTO t VALUES (?, ?, ?, ?)",
            [
                (i, i % 100, None if i % 7 == 0 else i / 8, None if i % 11 == 0 else f"row {i}")
                for i in range(ROWS)
            ],
        )
        connection.execute("OPTIMIZE t")
        connection.execute("DELETE FROM t WHERE id % 13 = 0")
        connection.execute(f"INSERT INTO t VALUES ({ROWS}, 1, 2.5, 'last')")
        for signature, code in (
            ("half(x DOUBLE) RETURNS DOUBLE", HALF),
            ("inverse(n BIGINT) RETURNS BIGINT", INVERSE),
            ("shout(s TEXT) RETURNS TEXT", TEXTKIT),
        ):
            text = code.replace("'", "''")
            connection.execute(f"CREATE FUNCTION {signature} LANGUAGE wasm AS '{text}'")
        yield connection


CLAUSES = ("", "WHERE id < 700", "WHERE x > 100 AND n <> 5", "LIMIT 10", "LIMIT 9 OFFSET 2040",
           "WHERE id = 5000", "WHERE id < 0", "OFFSET 4000", "LIMIT 0")  # fmt: skip


@pytest.mark.parametrize("clause", CLAUSES)
def test_the_answer_is_the_relational_one(db: tarsdb.Connection, clause: str) -> None:
    items = "id, half(x), shout(s) AS loud, x, half(x) AS again"
    sql = f"SELECT {items} FROM t {clause}"
    if "WHERE id = " not in clause:
        assert db.execute(f"EXPLAIN {sql}").fetchall()[0] == ("Scan t",)
    native = db.execute(sql)
    oracle = db.execute(f"SELECT {items} FROM (SELECT * FROM t {clause}) AS s")
    names = [column[0] for column in native.description or ()]
    assert names == [column[0] for column in oracle.description or ()]
    assert sorted(native.fetchall()) == sorted(oracle.fetchall())


def test_own_writes_are_seen(db: tarsdb.Connection) -> None:
    db.execute("BEGIN")
    db.execute("UPDATE t SET x = 8 WHERE id = 1")
    db.execute("DELETE FROM t WHERE id = 2")
    rows = db.execute("SELECT id, half(x) FROM t WHERE id <= 3").fetchall()
    db.execute("ROLLBACK")
    assert rows == [(1, 4.0), (3, 0.1875)]


def test_narrower_numbers_and_expressions_are_arguments_too(db: tarsdb.Connection) -> None:
    for items in ("inverse(n + 1)", "half(x + 1)", "half(n)", "half(half(x))"):
        sql = f"SELECT id, {items} FROM {{}}"
        assert db.execute(f"EXPLAIN {sql.format('t')}").fetchall()[0] == ("Scan t",), items
        native, oracle = (
            db.execute(sql.format(t)).fetchall() for t in ("t", "(SELECT * FROM t) AS t")
        )
        assert sorted(native) == sorted(oracle), items


def test_casts_and_constants_stay_relational(db: tarsdb.Connection) -> None:
    for items in ("half(2.0)", "half(CAST(s AS DOUBLE))", "half(x / 2)", "shout(n::TEXT)"):
        plan = db.execute(f"EXPLAIN SELECT {items} FROM t").fetchall()
        assert plan[0] != ("Scan t",), items


def test_a_trap_ends_the_statement_only(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO t VALUES (0, 0, 0, '')")
    with pytest.raises(UdfTrapError, match="inverse"):
        db.execute("SELECT inverse(id) FROM t").fetchall()
    assert db.execute("SELECT inverse(id) FROM t WHERE id = 1").fetchall() == [(100,)]
