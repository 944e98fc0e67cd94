"""Functions in WHERE, aggregates, GROUP BY and ORDER BY: in large batches, as DuckDB answers them.

The oracle is the same query over a subquery, which DuckDB runs whole, 2,048 rows a call; Python
computes some answers anew.
"""

from __future__ import annotations

import decimal
import math
import pathlib
import random
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import BindError, UdfLimitError, UdfTrapError
from tests.sandbox.wasm_text import DEMO

ROWS = 6_000
TEXTKIT = (DEMO / "textkit.wat").read_text("utf-8")
MODULES = {
    "half(x DOUBLE) RETURNS DOUBLE": """(module (func (export "half") (param f64) (result f64)
      (f64.mul (local.get 0) (f64.const 0.5))))""",
    "inverse(n BIGINT) RETURNS BIGINT": """(module (func (export "inverse")
      (param i64) (result i64) (i64.div_s (i64.const 100) (local.get 0))))""",
    "quotient(a BIGINT, b BIGINT) RETURNS BIGINT": """(module (func (export "quotient")
      (param i64 i64) (result i64) (i64.div_s (local.get 0) (local.get 1))))""",
    "plus(x DOUBLE, y DOUBLE) RETURNS DOUBLE": """(module (func (export "plus")
      (param f64 f64) (result f64) (f64.add (local.get 0) (local.get 1))))""",
    "root(x REAL) RETURNS REAL": """(module (func (export "root") (param f32) (result f32)
      (f32.sqrt (local.get 0))))""",
    "odd(n INT) RETURNS BOOLEAN": """(module (func (export "odd") (param i32) (result i32)
      (i32.and (local.get 0) (i32.const 1))))""",
    "shout(s TEXT) RETURNS TEXT": TEXTKIT,
    "again(x DOUBLE) RETURNS DOUBLE": """(module (func (export "again") (param f64) (result f64)
      (local.get 0)))""",
}


def make(db: tarsdb.Connection) -> None:
    db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INT, x DOUBLE, s TEXT, b BIGINT, r REAL)")
    db.executemany(
        "INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)",
        [
            (i, i % 50, None if i % 7 == 0 else i / 8, None if i % 11 == 0 else f"row {i % 9}",
             None if i % 5 == 0 else i * 2**33, i / 4 - 3)
            for i in range(ROWS)
        ],
    )  # fmt: skip
    db.execute("OPTIMIZE t; DELETE FROM t WHERE id % 13 = 1")
    db.execute("INSERT INTO t VALUES (100000, 1, 2.5, 'last', 7, 4), (100001, 2, NULL, '', 8, 9)")
    for signature, code in MODULES.items():
        volatility = "VOLATILE" if signature.startswith("again") else "IMMUTABLE"
        text = code.replace("'", "''")
        db.execute(f"CREATE FUNCTION {signature} LANGUAGE wasm {volatility} AS '{text}'")


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    path = tmp_path_factory.mktemp("native") / "calls.tars"
    with tarsdb.connect(path) as connection:
        make(connection)
        yield connection


def plan(db: tarsdb.Connection, sql: str, *bound: Any) -> list[str]:
    return [line for (line,) in db.execute(f"EXPLAIN {sql}", bound).fetchall()]


def counted(db: tarsdb.Connection, sql: str, *bound: Any) -> dict[str, tuple[int, int]]:
    """Run a query; return how often each function was called, and for how many rows."""
    lines = [line for (line,) in db.execute(f"EXPLAIN ANALYZE {sql}", bound).fetchall()]
    found = [re.match(r"function (\w+): (\d+) calls of (\d+) rows", line) for line in lines]
    return {m[1]: (int(m[2]), int(m[3])) for m in found if m is not None}


def _key(row: tuple[Any, ...]) -> Any:
    return [(v is None, "" if v is None else v) for v in row]


def same(found: list[tuple[Any, ...]], wanted: list[tuple[Any, ...]], ordered: bool) -> None:
    if not ordered:
        found, wanted = sorted(found, key=_key), sorted(wanted, key=_key)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert type(left) is type(right)
            if isinstance(left, float):
                assert math.isclose(left, right, rel_tol=1e-12) or left != left != right != right
            else:
                assert left == right


CONDITIONS = (
    "half(x) > 100", "half(x) > 100 AND n < 20", "n < 20 AND NOT half(x) > 100", "odd(n)",
    "NOT odd(n)", "odd(n) AND half(x) BETWEEN 10 AND 20.5", "odd(n) OR half(x) > 300",
    "half(x) IS NULL", "half(x) IS NOT NULL AND shout(s) = 'ROW 3'", "shout(s) IS NULL OR odd(n)",
    "shout(s) > 'ROW 4' AND x < 200", "half(x) < half(x + 1)", "half(n) = 3", "half(id) > 2990",
    "half(b) > 1e13", "half(r) = 2", "root(n) = 3", "root(r) > 20", "half(x) * 2 = x",
    "half(half(x)) > 180", "plus(x, 1.5) > 700", "plus(1, x) > 700 OR plus(x, NULL) IS NULL",
    "n <> 0 AND inverse(n) > 9", "inverse(n) > 9 AND n <> 0", "n = 0 OR inverse(n) > 9",
    "x > 0 AND n > 0 AND inverse(n) < 4", "id = 77 AND half(x) > 1", "id = 78 AND half(x) > 1e9",
    "id < 40 AND odd(n)", "half(x) > 1e300", "half(x) IN (half(8), 2)", "again(x) > 500",
    "half(x) <> 2.5 AND b > 9007199254740993", "n IN (1, 2) OR (odd(n) AND x < 10)",
)  # fmt: skip


@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_keep_the_rows_duckdb_keeps(db: tarsdb.Connection, condition: str) -> None:
    sql = "SELECT id, x, shout(s), half(x) AS h FROM {} WHERE " + condition
    found = db.execute(sql.format("t")).fetchall()
    same(found, db.execute(sql.format("(SELECT * FROM t) AS t")).fetchall(), False)
    count = "SELECT count(*), min(half(x)), sum(n), max(s) FROM {} WHERE " + condition
    alike = [db.execute(count.format(t)).fetchall() for t in ("t", "(SELECT * FROM t) AS t")]
    same(*alike, ordered=True)
    assert alike[0][0][0] == len(found)


ATOMS = (
    "half(x) > 150", "odd(n)", "x < 300", "n IN (1, 4, 7)", "inverse(id + 1) = 0", "b IS NULL",
    "shout(s) = 'ROW 2'", "half(n) <= plus(x, -3)", "again(x) <> 4", "r * 2 > n", "NULL",
    "root(r) < 9.5", "half(x) IS NULL", "half(b) BETWEEN 1e12 AND 3e13", "s <> 'row 1'",
)  # fmt: skip


def _condition(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(ATOMS)
    if rng.random() < 0.2:
        return f"NOT ({_condition(rng, depth - 1)})"
    parts = [_condition(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    return "(" + f" {rng.choice(('AND', 'OR'))} ".join(parts) + ")"


@pytest.mark.parametrize("seed", range(6))
def test_generated_conditions(db: tarsdb.Connection, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        condition = _condition(rng, 3)
        item = rng.choice(("id", "half(x)", "id, shout(s), again(x)", "half(x), half(x) + r"))
        sql = f"SELECT {item} FROM {{}} WHERE {condition}"
        native, oracle = (
            db.execute(sql.format(t)).fetchall() for t in ("t", "(SELECT * FROM t) AS t")
        )
        same(native, oracle, False)
        counts = (
            f"SELECT odd(n) AS o, count(*), sum(half(x)) FROM {{}} WHERE {condition} GROUP BY o"
        )
        same(*(db.execute(counts.format(t)).fetchall()
               for t in ("t", "(SELECT * FROM t) AS t")), False)  # fmt: skip


def test_conditions_are_native_where_the_core_has_all_of_them(db: tarsdb.Connection) -> None:
    for condition in CONDITIONS:
        if "half(8)" not in condition:
            head = plan(db, f"SELECT id FROM t WHERE {condition}")[0]
            assert head.startswith(("Scan t", "PointLookup t")), condition
    for condition in ("half(x) > 1 AND s ILIKE 'row%'", "half(r::DOUBLE) > 1 AND n::DOUBLE > 0.5"):
        assert plan(db, f"SELECT id FROM t WHERE {condition}")[0].startswith("Scan t")
    for condition in ("half(x) > 1 AND s SIMILAR TO 'row.*'", "half(s) > 1", "half('7') > x"):
        assert plan(db, f"SELECT id FROM t WHERE {condition}")[0].startswith("Relational")


def test_python_agrees(db: tarsdb.Connection) -> None:
    rows = db.execute("SELECT id, n, x FROM t").fetchall()
    wanted = sorted(i for i, n, x in rows if n % 2 and x is not None and 10 <= x / 2 <= 20.5)
    sql = "SELECT id FROM t WHERE odd(n) AND half(x) BETWEEN 10 AND 20.5"
    assert sorted(i for (i,) in db.execute(sql).fetchall()) == wanted
    assert wanted
    total = db.execute("SELECT sum(half(x)), count(half(x)), avg(inverse(n)) FROM t WHERE n > 0")
    halves = [x / 2 for _, n, x in rows if n > 0 and x is not None]
    inverses = [100 // n for _, n, _ in rows if n > 0]
    (answer,) = total.fetchall()
    assert answer[1] == len(halves)
    assert math.isclose(answer[0], math.fsum(halves), rel_tol=1e-12)
    assert math.isclose(answer[2], sum(inverses) / len(inverses), rel_tol=1e-12)


AGGREGATES = (
    "sum(half(x)), avg(half(x)), min(half(x)), max(half(x)), count(half(x))",
    "count(shout(s)), min(shout(s)), max(shout(s)), count(*)",
    "sum(inverse(id + 1)), min(inverse(id + 1)), avg(inverse(id + 1))", "sum(root(id))",
    "sum(half(x) * 2), count(odd(n)), sum(half(x)) AS total", "max(half(x) - x), sum(n)",
)  # fmt: skip


@pytest.mark.parametrize("items", AGGREGATES)
@pytest.mark.parametrize("clause", ["", "WHERE n < 3", "WHERE half(x) > 100", "WHERE id < 0"])
def test_aggregates(db: tarsdb.Connection, items: str, clause: str) -> None:
    sql = f"SELECT {items} FROM {{}} {clause}"
    assert plan(db, sql.format("t"))[0].startswith("Aggregate t")
    native, oracle = (db.execute(sql.format(t)) for t in ("t", "(SELECT * FROM t) AS t"))
    assert [c[0] for c in native.description or ()] == [c[0] for c in oracle.description or ()]
    same(native.fetchall(), oracle.fetchall(), True)


GROUPED = (
    "SELECT odd(n), count(*) FROM {} GROUP BY odd(n)",
    "SELECT odd(n) AS o, sum(half(x)) FROM {} GROUP BY o ORDER BY o",
    "SELECT half(n), count(*), half(n) * 2 FROM {} GROUP BY 1 ORDER BY half(n) DESC",
    "SELECT shout(s), n, avg(half(x)) FROM {} GROUP BY ALL ORDER BY ALL",
    "SELECT n, half(n), sum(half(n)) FROM {} GROUP BY n ORDER BY n",
    "SELECT n FROM {} GROUP BY n HAVING sum(half(x)) > 17500 ORDER BY n",
    "SELECT n, sum(half(x)) FILTER (WHERE x > 5), count(DISTINCT half(n)) FROM {} GROUP BY n",
    "SELECT half(x) AS x, count(*) FROM {} GROUP BY x ORDER BY x LIMIT 20",
    "SELECT shout(s) FROM {} GROUP BY shout(s) HAVING count(*) > 3 ORDER BY 1",
    "SELECT id, half(x) FROM {} ORDER BY half(x), id",
    "SELECT id, half(x) AS h FROM {} ORDER BY h DESC NULLS FIRST, id LIMIT 900",
    "SELECT id, x FROM {} ORDER BY half(x) DESC, id LIMIT 7 OFFSET 3",
    "SELECT id, -x AS x FROM {} ORDER BY half(x), id LIMIT 50",
    "SELECT * FROM {} ORDER BY plus(x, 3), id LIMIT 5",
    "SELECT COLUMNS(c -> c <> 's') FROM {} ORDER BY half(x), id LIMIT 5",
    "SELECT t FROM {} ORDER BY half(x), id LIMIT 3",
    "SELECT id, CASE WHEN n <> 0 THEN inverse(n) END AS i FROM {} ORDER BY half(x), id",
    "SELECT DISTINCT half(n), odd(n) FROM {} ORDER BY 1",
    "SELECT id, rank() OVER (ORDER BY half(x)), sum(half(x)) OVER (PARTITION BY n) FROM {}"
    " ORDER BY id",
    "SELECT id, half(x), (SELECT max(half(x)) FROM u) FROM {} ORDER BY half(x), id LIMIT 9",
    "SELECT id, list_transform([x], x -> half(3)) FROM {} ORDER BY half(x), id LIMIT 9",
    "SELECT id, sum(again(x)) FROM {} WHERE odd(n) GROUP BY id ORDER BY again(id) LIMIT 9",
    "SELECT sum(h) FROM (SELECT half(x) AS h FROM {} WHERE odd(n)) AS q",
    "WITH w AS (SELECT * FROM {} WHERE half(x) > 300) SELECT n, count(*) FROM w GROUP BY n",
    "SELECT a.id FROM {} JOIN u ON u.x = half(t.x) JOIN t AS a ON a.id = t.id ORDER BY a.id",
    "SELECT id FROM {} WHERE half(x) > 360 UNION ALL SELECT id FROM t WHERE odd(n) AND id < 9",
    "SELECT id FROM {} WHERE half(x) > (SELECT max(x) FROM u) AND half(x) < 50 ORDER BY id",
    "SELECT count(*) FROM {} WHERE half(x) > 1 AND s ILIKE 'row%'",
    "SELECT count(*) FROM {} WHERE half(x) > 1 AND s LIKE 'row%'",
    "SELECT id, CASE WHEN n > 40 THEN inverse(n) WHEN n > 9 THEN inverse(n - 9) ELSE half(x) END"
    " FROM {} ORDER BY id",
    "SELECT id, CASE WHEN x > 5 THEN CASE WHEN n <> 0 THEN inverse(n) END ELSE id END FROM {}",
    "SELECT id, CASE WHEN x > 5 THEN 1 WHEN n <> 0 AND inverse(n) > 3 THEN inverse(n) END FROM {}",
    "SELECT id, CASE n WHEN 0 THEN 0 WHEN NULL THEN inverse(0) ELSE inverse(n) END FROM {}",
    "SELECT id, CASE half(n) WHEN 0 THEN 0 WHEN 3 THEN half(x) ELSE inverse(n) END FROM {}",
    "SELECT id, COALESCE(half(x), half(b), root(r)), if(n = 0, 1, inverse(n)) FROM {}",
    "SELECT upper(shout(s)), length(shout(s)), shout(s) || 'x', shout(s) LIKE 'R%' FROM {}",
    "SELECT sum(CASE WHEN n BETWEEN 1 AND 7 THEN inverse(n) ELSE 0 END), count(*) FROM {}",
    "SELECT CASE WHEN length(s) > 3 THEN half(x) WHEN n <> 0 THEN inverse(n) END, half(x) FROM {}",
    "SELECT CASE WHEN n > 3 THEN shout(s) END AS s, max(x) FROM {} GROUP BY 1 ORDER BY 1",
    "SELECT id, CASE WHEN again(x) > 3 THEN half(x) END FROM {}",
)  # fmt: skip


@pytest.mark.parametrize("sql", GROUPED)
def test_groups_orders_and_what_is_around_them(db: tarsdb.Connection, sql: str) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS u (x DOUBLE)")
    if db.table("u").count() == 0:
        db.execute("INSERT INTO u VALUES (16.25), (3.5)")
    native, oracle = (db.execute(sql.format(t)) for t in ("t", "(SELECT * FROM t) AS t"))
    assert [c[0] for c in native.description or ()] == [c[0] for c in oracle.description or ()]
    found = native.fetchall()
    assert found
    same(found, oracle.fetchall(), "ORDER BY" in sql)


def test_groups_and_orders_call_a_function_once_for_all_rows(db: tarsdb.Connection) -> None:
    rows = db.table("t").count()
    for sql, name in (
        ("SELECT odd(n), count(*), odd(n) FROM t GROUP BY odd(n)", "odd"),
        ("SELECT id, half(id) AS h FROM t ORDER BY h DESC LIMIT 3", "half"),
        ("SELECT n, sum(half(id)), avg(half(id)) FROM t GROUP BY n", "half"),
    ):
        assert counted(db, sql) == {name: (1, rows)}, sql
        oracle = counted(db, sql.replace("FROM t", "FROM (SELECT * FROM t) AS t"))
        assert oracle[name][0] > 1, sql


def test_a_function_sees_rows_that_the_rest_of_where_keeps(db: tarsdb.Connection) -> None:
    few = db.execute("SELECT count(*) FROM t WHERE n = 3 AND x > 100").fetchall()[0][0]
    sql = "SELECT id, half(x), half(x) + 1.0e0 FROM t WHERE half(x) > 1 AND n = 3 AND x > 100"
    assert counted(db, sql) == {"half": (1, few)}
    both = counted(db, "SELECT sum(half(x)) FROM t WHERE odd(n) AND half(x) > 100")
    assert both["odd"] == (1, db.table("t").count())
    assert 0 < both["half"][1] < both["odd"][1]
    assert counted(db, "SELECT id FROM t WHERE n >= 0 OR odd(n)") == {}


def test_a_branch_of_case_calls_a_function_for_its_rows(db: tarsdb.Connection) -> None:
    def rows(condition: str) -> int:
        return int(db.execute(f"SELECT count(*) FROM t WHERE {condition}").fetchall()[0][0])

    case = "SELECT sum(CASE WHEN x > {} THEN inverse(n + 1) ELSE half(id) END) FROM t"
    wanted = {"inverse": (1, rows("x > 9")), "half": (1, rows("x <= 9 OR x IS NULL"))}
    assert counted(db, case.format(9)) == counted(db, case.format("?"), 9) == wanted
    assert counted(db, "SELECT id, COALESCE(n, half(id)) FROM t") == {}
    nulls = counted(db, "SELECT id, COALESCE(x, half(id)) FROM t")
    assert nulls == {"half": (1, rows("x IS NULL"))}
    sql = "SELECT sum(CASE WHEN {} THEN inverse(n) END) FROM t"
    assert db.execute(sql.format("n <> 0")).fetchall()
    with pytest.raises(UdfTrapError, match="inverse"):
        db.execute(sql.format("n >= 0")).fetchall()


def test_null_in_a_cheaper_term_hides_a_row(db: tarsdb.Connection) -> None:
    zero = "n = 0 AND x IS NULL"
    assert db.execute(f"SELECT count(*) FROM t WHERE {zero}").fetchall()[0][0] > 0
    sql = "SELECT count(*) FROM t WHERE (n > 0 OR x IS NULL) AND x > 0 AND inverse(n) > 0"
    assert db.execute(sql).fetchall()[0][0] > 0
    with pytest.raises(UdfTrapError, match="inverse"):
        db.execute(sql.replace("x > 0", "id >= 0")).fetchall()


def test_volatile_functions_are_called_each_time(db: tarsdb.Connection) -> None:
    rows = db.table("t").count()
    kept = counted(db, "SELECT again(x) FROM t WHERE again(x) >= 0 AND x >= 0")["again"]
    once = counted(db, "SELECT half(x) FROM t WHERE half(x) >= 0 AND x >= 0")["half"]
    assert kept == (2 * once[0], 2 * once[1])
    assert once[1] < rows


def test_a_limit_ends_the_calls_early(db: tarsdb.Connection) -> None:
    rows = db.table("t").count()
    assert counted(db, "SELECT id FROM t WHERE half(x) > 1 LIMIT 5")["half"] == (1, 878)
    calls, seen = counted(db, "SELECT id FROM t WHERE half(x) > 100 LIMIT 5")["half"]
    assert calls == 2
    assert seen < rows
    assert counted(db, "SELECT half(x) FROM t LIMIT 5 OFFSET 2")["half"][1] <= 5
    assert counted(db, "SELECT half(x) FROM t LIMIT 0") == {}
    sql = "SELECT id FROM t WHERE inverse(id - 5000) < 1000 LIMIT 4"
    assert len(db.execute(sql).fetchall()) == 4  # the row that traps comes later
    with pytest.raises(UdfTrapError):
        db.execute(sql.replace("LIMIT 4", "LIMIT 5900")).fetchall()


def test_bound_values(db: tarsdb.Connection) -> None:
    sql = "SELECT id FROM {} WHERE half(x) > ? AND plus(x, ?) < :2 ORDER BY id".replace(":2", "?")
    for bound in ((100, 1.5, 300), (100.5, 2, 900.25), (None, 1, 1), (0, None, 1)):
        found = db.execute(sql.format("t"), bound).fetchall()
        assert found == db.execute(sql.format("(SELECT * FROM t) AS t"), bound).fetchall()
    total = "SELECT sum(plus(x, ?)) FROM t WHERE n = ?"
    wanted = db.execute("SELECT sum(x) + 2 * count(x) FROM t WHERE n = 3").fetchall()[0][0]
    assert math.isclose(db.execute(total, (2, 3)).fetchall()[0][0], wanted)


@pytest.mark.parametrize("value", [2.5, decimal.Decimal("2.5"), math.inf, np.float32(0.5)])
def test_a_bound_value_is_not_rounded(db: tarsdb.Connection, value: Any) -> None:
    with pytest.raises(BindError, match="quotient: argument 2 is BIGINT, the value is"):
        db.execute("SELECT id FROM t WHERE quotient(n, ?) = 1", (value,)).fetchall()
    with pytest.raises(BindError, match="argument 1"):
        db.execute("SELECT inverse(?)", (value,)).fetchall()
    assert db.execute("SELECT inverse(?)", (2.0,)).fetchall() == [(50,)]


def test_a_failure_leaves_the_transaction_usable(db: tarsdb.Connection) -> None:
    db.execute("BEGIN")
    db.execute("UPDATE t SET x = 4000 WHERE id = 2")
    for sql in ("SELECT id FROM t WHERE inverse(n) > 1", "SELECT sum(inverse(n)) FROM t",
                "SELECT inverse(n), count(*) FROM t GROUP BY 1",
                "SELECT id FROM t ORDER BY inverse(n)"):  # fmt: skip
        with pytest.raises(UdfTrapError, match="inverse"):
            db.execute(sql).fetchall()
    assert db.execute("SELECT id FROM t WHERE half(x) = 2000").fetchall() == [(2,)]
    db.execute("ROLLBACK")
    assert db.execute("SELECT id FROM t WHERE half(x) = 2000").fetchall() == []


def test_limits_hold_over_all_batches_of_a_statement(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "limits.tars") as db:
        db.execute("CREATE TABLE t (n INT)")
        for start in range(3):
            db.table("t").insert({"n": np.arange(70_000, dtype=np.int32) + start})
        code = MODULES["odd(n INT) RETURNS BOOLEAN"]
        for name, fuel in (("odd", 10_000), ("tight", 1)):
            db.execute(
                f"CREATE FUNCTION {name}(n INT) RETURNS BOOLEAN LANGUAGE wasm AS "
                f"'{code.replace('odd', name)}' WITH (fuel = 1500000, fuel_per_row = {fuel})"
            )
        assert db.execute("SELECT count(*) FROM t WHERE odd(n)").fetchall() == [(105_000,)]
        with pytest.raises(UdfLimitError) as caught:
            db.execute("SELECT count(*) FROM t WHERE tight(n)").fetchall()
        assert caught.value.kind == "fuel"
        assert db.execute("SELECT count(*) FROM t WHERE tight(n) AND n < 10").fetchall() == [(14,)]


def test_update_and_delete(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "dml.tars") as db:
        make(db)
        some = db.execute("SELECT count(*) FROM t WHERE half(x) > 300").fetchall()[0][0]
        assert plan(db, "DELETE FROM t WHERE half(x) > 300")[0] == "Delete t"
        before = db.table("t").count()
        assert db.execute("UPDATE t SET n = -1 WHERE half(x) > 300").rowcount == some
        assert db.execute("DELETE FROM t WHERE n = -1 AND half(x) > 300").rowcount == some
        assert db.table("t").count() == before - some > 0


def test_plans_as_text(db: tarsdb.Connection) -> None:
    lines = plan(db, "SELECT sum(half(x)) FROM t WHERE odd(n)")
    assert lines[:2] == ["Aggregate t: sum(half(x))", "  filter: odd(n)"]
    grouped = "\n".join(plan(db, "SELECT half(n), count(*) FROM t WHERE odd(n) GROUP BY half(n)"))
    assert "__r0: Scan t (rowid, __computed0)" in grouped
    assert "filter: odd(n)" in grouped
    assert "__computed0: half(n)" in grouped
    assert "__udf_half" not in grouped
