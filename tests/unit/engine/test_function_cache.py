"""Results of sandboxed functions from the file: equal to calling, only where it pays, erased."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.columns import from_list
from tarsdb.engine.inference import inference_cache
from tarsdb.engine.udf import function_cache
from tarsdb.errors import BindError, UdfTrapError
from tarsdb.metrics import METRICS
from tarsdb.schema import FunctionDef
from tarsdb.types import parse_type
from tests.sandbox.wasm_text import DEMO

TEXTKIT = (DEMO / "textkit.wat").read_text("utf-8").replace("'", "''")
LOOPS = """(module (func (export "slow") (param f64) (result f64) (local $i i32) (local $s f64)
  (local.set $s (local.get 0))
  (loop $l (local.set $s (f64.add (local.get $s) (f64.const {step})))
    (local.set $i (i32.add (local.get $i) (i32.const 1)))
    (br_if $l (i32.lt_u (local.get $i) (i32.const 100000))))
  (local.get $s)))"""
HALF = """(module (func (export "half") (param f64) (result f64)
  (f64.mul (local.get 0) (f64.const 0.5))))"""
WITH = "WITH (cache = true, fuel_per_row = 2000000, timeout_ms = 60000)"


def slow(step: float = 1, options: str = WITH, name: str = "slow") -> str:
    code = LOOPS.format(step=step)
    return (
        f"CREATE OR REPLACE FUNCTION {name}(x DOUBLE) RETURNS DOUBLE LANGUAGE wasm IMMUTABLE "
        f"AS '{code.replace('slow', name)}' {options}"
    )


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "kept.tars"
    with tarsdb.connect(path) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, x DOUBLE, s TEXT, v VECTOR(3))")
        db.executemany(
            "INSERT INTO t VALUES (?, ?, ?, ?)",
            [(i, None if i == 3 else i % 8, None if i == 5 else f"text {i % 4}", [i, 1, 2])
             for i in range(40)],
        )  # fmt: skip
        db.execute(slow())
    return path


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as connection:
        yield connection


def wait(db: tarsdb.Connection) -> None:
    inference_cache.queue_of(db._require_session().env).wait()


def kept(db: tarsdb.Connection) -> int:
    wait(db)
    return int(db.execute("PRAGMA inference_cache_size").fetchall()[0][2])


def figures(db: tarsdb.Connection, name: str = "slow") -> tuple[int, int]:
    sql = "SELECT rows, cache_hits FROM tars_functions WHERE name = ?"
    (found,) = db.execute(sql, (name,)).fetchall()
    return int(found[0]), int(found[1])


def test_known_rows_are_not_computed_again_and_are_equal(path: pathlib.Path) -> None:
    query = "SELECT id, slow(x) FROM t ORDER BY id"
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")
        expected = db.execute(query).fetchall()
        assert kept(db) == 0
        assert figures(db) == (39, 0)
        db.execute("SET inference_cache = on")
        assert db.execute(query).fetchall() == expected
        assert figures(db) == (39 + 8, 31)  # equal arguments are one; NULL asks for nothing
        assert kept(db) == 9
    with tarsdb.connect(path) as db:
        before = METRICS.snapshot().get("udf.cache.hits", 0)
        assert db.execute(query).fetchall() == expected
        assert figures(db) == (0, 40)
        assert METRICS.snapshot()["udf.cache.hits"] == before + 40
        lines = [line for (line,) in db.execute(f"EXPLAIN ANALYZE {query}").fetchall()]
        assert any(line.startswith("function slow: 0 calls") for line in lines)
        assert any(line.endswith(" 40 rows known") for line in lines)
        assert db.execute("SELECT sum(slow(x)) FROM t WHERE slow(x) > 100003").fetchall() == [
            (sum(y for _, y in expected if y is not None and y > 100003),)
        ]
        assert figures(db)[0] == 0


VALUES = {
    "TEXT": ["", "a", "\u00e9\U0001f600", None], "BLOB": [b"", b"\0\xff", None],
    "BOOLEAN": [True, False, None], "INT": [-1, 0, 2**31 - 1, None], "BIGINT": [-(2**63), 5, None],
    "REAL": [0.5, float("inf"), None], "DOUBLE": [0.1, -0.0, None], "DATE": [0, 19_000, None],
    "JSON": ['{"a": 1}', None], "UUID": [bytes(range(16)), None],
    "VECTOR(3)": [np.array([1, 2, 3], np.float32), None], "DECIMAL(9, 2)": [125, None],
    "HALFVEC(2)": [np.array([1, 2], np.float16), None], "INT8VEC(2)": [np.array([1, -2], np.int8)],
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_values_come_back_as_they_went(text: str) -> None:
    sql_type = parse_type(text)
    function = FunctionDef(1, "f", (("a", sql_type),), sql_type, "wasm", None, "f", "00")
    question = function_cache._Question(function)
    items = from_list(sql_type, VALUES[text]).to_list()
    stored = [question.encode((item,)) for item in items]
    again = from_list(sql_type, [(question.decode(raw) or ())[0] for raw in stored])
    before = from_list(sql_type, items)
    np.testing.assert_array_equal(again.values, before.values)
    for mine, theirs in ((again.offsets, before.offsets), (again.validity, before.validity)):
        np.testing.assert_equal(mine, theirs)
    assert len(set(question.names([(item,) for item in items]))) == len(items)
    assert question.decode(b"") is question.decode(b"\2x") is None
    if not sql_type.is_variable:
        assert question.decode(b"\1") is None


def test_texts_come_back_as_they_went(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function_cache, "LEAST_S", 0.0)
    create = f"CREATE OR REPLACE FUNCTION shout(s TEXT) RETURNS TEXT LANGUAGE wasm AS '{TEXTKIT}'"
    db.execute(create)
    query = "SELECT id, shout(s) AS y FROM t ORDER BY id"
    expected = db.execute(query).fetchall()
    db.execute(f"{create} {WITH}")
    for _ in range(2):
        assert db.execute(query).fetchall() == expected
        wait(db)
    assert figures(db, "shout")[1] >= 40


def test_another_module_or_declaration_has_results_of_its_own(db: tarsdb.Connection) -> None:
    query = "SELECT slow(x) FROM t WHERE id = 1"
    assert db.execute(query).fetchall() == [(100_001.0,)]
    assert kept(db) == 1
    db.execute(slow(2))
    assert db.execute(query).fetchall() == [(200_001.0,)]
    assert kept(db) == 1  # those of the module that is gone went with it
    db.execute(slow(2, WITH.replace("60000", "50000")))
    assert db.execute(query).fetchall() == [(200_001.0,)]
    assert figures(db) == (1, 0)
    db.execute("DROP FUNCTION slow")
    assert kept(db) == 0


def test_a_cheap_function_is_called(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_cache, "LEAST_S", 1.0)  # whatever the machine does meanwhile
    db.execute("CREATE TABLE many (x DOUBLE)")
    db.table("many").insert({"x": np.arange(200_000, dtype=np.float64)})
    db.execute(f"CREATE FUNCTION half(x DOUBLE) RETURNS DOUBLE LANGUAGE wasm AS '{HALF}' {WITH}")
    for _ in range(2):
        total = db.execute("SELECT sum(half(x)) FROM many").fetchall()[0][0]
        assert total == 199_999 * 200_000 / 4
        assert kept(db) == function_cache.PIECE_ROWS  # until it was judged
    assert figures(db, "half") == (400_000, 0)


def test_only_results_of_the_arguments_alone_can_be_kept(db: tarsdb.Connection) -> None:
    for options, volatility in (
        (WITH, "VOLATILE"), (WITH, "STABLE"), (WITH.replace("true", "'yes'"), "IMMUTABLE"),
        (WITH.replace("cache", "allow = 'log', cache"), "IMMUTABLE"),
    ):  # fmt: skip
        with pytest.raises(BindError, match="cache"):
            db.execute(slow(1, options).replace("IMMUTABLE", volatility))
    metric = "CREATE FUNCTION m(a VECTOR(3), b VECTOR(3)) RETURNS REAL LANGUAGE wasm AS '(module)' "
    with pytest.raises(BindError, match="metric"):
        db.execute(metric + "WITH (role = 'metric', cache = true)")
    db.execute(slow(1, WITH.replace("true", "false")))
    db.execute("SELECT slow(x) FROM t").fetchall()
    assert kept(db) == 0


def test_a_trap_is_not_kept(db: tarsdb.Connection) -> None:
    trap = """(module (func (export "inverse") (param i64) (result i64)
      (i64.div_s (i64.const 100) (local.get 0))))"""
    db.execute(f"CREATE FUNCTION inverse(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '{trap}' {WITH}")
    for _ in range(2):
        with pytest.raises(UdfTrapError, match="inverse"):
            db.execute("SELECT inverse(id) FROM t").fetchall()
        assert kept(db) == 0
    assert db.execute("SELECT inverse(id) FROM t WHERE id = 7").fetchall() == [(14,)]
    assert kept(db) == 1


def test_results_of_a_text_are_erased_with_it(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function_cache, "LEAST_S", 0.0)
    db.execute(f"CREATE FUNCTION shout(s TEXT) RETURNS TEXT LANGUAGE wasm AS '{TEXTKIT}' {WITH}")
    db.execute("SELECT shout(s) FROM t").fetchall()
    assert kept(db) == 5  # four texts and NULL
    assert db.execute("PRAGMA forget_inference('text 2')").fetchall() == [(1,)]
    assert kept(db) == 4
    assert db.execute("PRAGMA forget_inference('text 9')").fetchall() == [(0,)]


def test_results_are_kept_for_writes_too(db: tarsdb.Connection) -> None:
    db.execute("CREATE TABLE g (x DOUBLE, y DOUBLE GENERATED ALWAYS AS (slow(x)) STORED)")
    db.execute("INSERT INTO g (x) SELECT x FROM t")
    assert kept(db) == 9
    rows = figures(db)[0]
    db.execute("INSERT INTO g (x) SELECT x FROM t")
    assert figures(db)[0] == rows
    assert db.execute("SELECT count(*) FROM g WHERE y = x + 100000").fetchall() == [(78,)]
    db.execute("BEGIN")
    db.execute(slow(3, name="fresh"))
    assert db.execute("SELECT fresh(x) FROM t WHERE id = 1").fetchall() == [(300_001.0,)]
    db.execute("ROLLBACK")
    assert kept(db) == 9  # of a module that never was in the file nothing is
