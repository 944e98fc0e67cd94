"""Counters of sandboxed functions: tars_functions, tars_metrics, EXPLAIN ANALYZE."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

import tarsdb
from tarsdb.errors import UdfLimitError, UdfTrapError
from tarsdb.metrics import METRICS
from tests.sandbox.wasm_text import DEMO

TEXTKIT = (DEMO / "textkit.wat").read_text("utf-8")
ODD = """(module (func (export "odd") (param i64) (result i64)
  (if (i64.eq (local.get 0) (i64.const 0)) (then unreachable))
  (if (i64.lt_s (local.get 0) (i64.const 0)) (then (loop (br 0))))
  (i64.and (local.get 0) (i64.const 1))))"""
ROWS = 3_000


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "figures.tars") as connection:
        connection.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT)")
        connection.executemany(
            "INSERT INTO t VALUES (?, ?)", [(i + 1, "abcd") for i in range(ROWS)]
        )
        connection.execute(
            f"CREATE FUNCTION odd(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{ODD}' "
            "WITH (fuel = 100000)"
        )
        text = TEXTKIT.replace("'", "''")
        connection.execute(f"CREATE FUNCTION shout(s TEXT) RETURNS TEXT LANGUAGE wasm AS '{text}'")
        yield connection


def figures(db: tarsdb.Connection, name: str) -> dict[str, Any]:
    cursor = db.execute("SELECT * FROM tars_functions WHERE name = ?", [name])
    names = [column[0] for column in cursor.description or ()]
    return dict(zip(names, cursor.fetchall()[0], strict=True))


def metrics(db: tarsdb.Connection) -> dict[str, float]:
    return dict(db.execute("SELECT name, value FROM tars_metrics").fetchall())


def test_a_function_not_called_yet_has_zeros(db: tarsdb.Connection) -> None:
    found = figures(db, "odd")
    assert (found["calls"], found["rows"], found["seconds"]) == (0, 0, 0.0)
    assert (found["traps"], found["stopped"]) == (None, None)


def test_calls_are_counted(db: tarsdb.Connection) -> None:
    before, fuel_before = metrics(db), METRICS.snapshot().get("udf.fuel", 0)
    for _ in range(2):
        db.execute("SELECT odd(id) FROM t").fetchall()
    db.execute("SELECT shout(s) FROM t").fetchall()
    found = figures(db, "odd")
    assert (found["calls"], found["rows"], found["transitions"]) == (2, 2 * ROWS, 2)
    assert found["bytes_in"] == found["bytes_out"] == 2 * 8 * ROWS
    assert found["fuel"] > 2 * ROWS and found["seconds"] > 0 and found["memory_high"] > 8 * ROWS
    assert found["reused"] == 1
    shout = figures(db, "shout")
    assert shout["bytes_in"] == 4 * ROWS + 4 * (ROWS + 1) and shout["transitions"] == 3
    after = metrics(db)
    assert after["udf.calls"] - before.get("udf.calls", 0) == 3
    fuel = found["fuel"] + shout["fuel"]
    assert METRICS.snapshot()["udf.fuel"] - fuel_before == fuel  # whole numbers of any size


def test_traps_and_stops_are_counted_by_kind(db: tarsdb.Connection) -> None:
    before = metrics(db)
    db.execute("INSERT INTO t VALUES (0, ''), (-1, '')")
    for _ in range(2):
        with pytest.raises(UdfTrapError):
            db.execute("SELECT odd(id) FROM t WHERE id >= 0 AND id < 3").fetchall()
    with pytest.raises(UdfLimitError):
        db.execute("SELECT odd(id) FROM t WHERE id < 0").fetchall()
    found = figures(db, "odd")
    assert json.loads(found["traps"]) == {"UNREACHABLE": 2}
    assert json.loads(found["stopped"]) == {"fuel": 1}
    assert found["fuel"] >= 100_000
    after = metrics(db)
    assert after["udf.trap.UNREACHABLE"] - before.get("udf.trap.UNREACHABLE", 0) == 2
    assert after["udf.stopped.fuel"] - before.get("udf.stopped.fuel", 0) == 1


def test_another_definition_starts_anew(db: tarsdb.Connection) -> None:
    db.execute("SELECT odd(id) FROM t").fetchall()
    db.execute(f"CREATE OR REPLACE FUNCTION odd(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{ODD}'")
    assert figures(db, "odd")["calls"] == 0


@pytest.mark.parametrize("sql", ["SELECT odd(id), shout(s) FROM t", "SELECT sum(odd(id)) FROM t"])
def test_explain_analyze_tells_of_this_statement_only(db: tarsdb.Connection, sql: str) -> None:
    db.execute(sql).fetchall()
    lines = [line for (line,) in db.execute(f"EXPLAIN ANALYZE {sql}").fetchall()]
    told = {line.split(":")[0]: line for line in lines if line.startswith("function ")}
    wanted = {"function odd", "function shout"} if "shout" in sql else {"function odd"}
    assert set(told) == wanted
    assert f"of {ROWS} rows" in told["function odd"]
    assert f"{8 * ROWS} bytes copied in, {8 * ROWS} out" in told["function odd"]
    assert not any(line.startswith("function ") for (line,) in db.execute(f"EXPLAIN {sql}"))
    quiet = db.execute("EXPLAIN ANALYZE SELECT count(*) FROM t").fetchall()
    assert not any(line.startswith("function ") for (line,) in quiet)
