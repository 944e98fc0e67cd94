"""A trap and a loop in each role of a function: its statement is undone, what is around it stays.

Two tables differ in one row, which the functions take ill; with the other the statements succeed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import UdfError, UdfLimitError, UdfTrapError
from tarsdb.kernels import graph, ivf
from tarsdb.udf_sandbox.functions import aggregates
from tests.sandbox.kinds_text import ADD, CHEBYSHEV, COUNT, SUM, aggregate, at, metric
from tests.sandbox.wasm_text import columnar

DIM, ROWS, ILL = 8, 300, 200
HARMS = {"trap": "unreachable", "loop": "(loop $harm (br $harm))"}
TIMEOUT_S = 0.3
ATTEMPTS = 3  # at being in time, on a busy machine


def when(condition: str) -> str:
    """Return code that does harm where an i32 is true."""
    return f"(if {condition} (then {{harm}}))"


IS_13 = when("(i64.eq (local.get $n) (i64.const 13))")
ANY_TEXT = when("(i32.load offset=12 (local.get $d))")  # the others are empty
VALUE = f"(f64.load {at('(i32.load offset=8 (local.get $d))', 3)})"
NUMBER = f"""(module (func (export "f") (param $n i64) (result i64) {IS_13} (local.get $n)))"""
FLAG = f"""(module (func (export "f") (param $n i64) (result i32) {IS_13} (i32.const 1)))"""
SCORE = f"""(module (func (export "f") (param f64) (param $n i64) (result f64)
  {IS_13} (local.get 0)))"""
DISTANCE = metric(
    "f", DIM, "(block (result f32) "
    f"{when('(f32.eq (local.get $x) (f32.const 13))')} {CHEBYSHEV})"
)  # fmt: skip


def _mean(*, value: str = VALUE, final: str = SUM, merge: str = ADD) -> str:
    return aggregate("f", value, f"(f64.div {final} {COUNT})", merge=merge)


def _ill(value: str, number: str) -> str:
    return f"(block (result f64) {when(f'(f64.eq {value} (f64.const {number}))')} {value})"


@dataclass(frozen=True)
class Role:
    """A function in a role: ``AGGREGATE`` or nothing, its signature, code and options, and its use.

    ``use`` is a query of table {t} whose rows are stored; ``into`` another table that they go to.
    """

    signature: str
    code: str
    use: str
    options: str = ""
    kind: str = ""
    into: str = "kept"
    before: tuple[str, ...] = ()


METRIC = f"(a VECTOR({DIM}), b VECTOR({DIM})) RETURNS DOUBLE"
NEAREST = "SELECT id FROM {t} ORDER BY f(emb, (SELECT emb FROM bad WHERE id = 200)) LIMIT 5"
FILTERED = "SELECT id FROM {t} WHERE f(n) ORDER BY emb <-> (SELECT emb FROM bad WHERE id = 200) \
LIMIT 5"
ROLES = {
    "scalar": Role("(n BIGINT) RETURNS BIGINT", NUMBER, "SELECT f(n) FROM {t}"),
    "CHECK": Role("(n BIGINT) RETURNS BOOLEAN", FLAG, "SELECT n FROM {t}", into="checked",
                  before=("CREATE TABLE checked (n BIGINT CHECK (f(n)))",)),
    "generated column": Role(
        "(n BIGINT) RETURNS BIGINT", NUMBER, "SELECT n FROM {t}", into="made (n)",
        before=("CREATE TABLE made (n BIGINT, g BIGINT GENERATED ALWAYS AS (f(n)) STORED)",)),
    "trigger": Role("(n BIGINT) RETURNS BOOLEAN", FLAG, "SELECT n FROM {t}", into="guarded",
                    before=("CREATE TABLE guarded (n BIGINT)",
                            "CREATE TRIGGER guard BEFORE INSERT ON guarded CALL f")),
    "metric": Role(METRIC, DISTANCE, NEAREST, "role = 'metric'"),
    **{
        f"metric of {method}": Role(
            METRIC, DISTANCE, NEAREST, "role = 'metric'",
            before=tuple(f"CREATE INDEX near_{t} ON {t} USING {method} (emb) "
                         "WITH (metric = 'f')" for t in ("good", "bad")))
        for method in ("hnsw", "ivf")
    },
    "filter": Role("(n BIGINT) RETURNS BOOLEAN", FLAG, FILTERED, "role = 'filter'"),
    **{
        f"filter in {method}": Role(
            "(n BIGINT) RETURNS BOOLEAN", FLAG, FILTERED, "role = 'filter'",
            before=tuple(f"CREATE INDEX near_{t} ON {t} USING {method} (emb)"
                         for t in ("good", "bad")))
        for method in ("hnsw", "ivf")
    },
    "reranker": Role("(q DOUBLE, n BIGINT) RETURNS DOUBLE", SCORE,
                     "SELECT id FROM {t} ORDER BY rerank('f', 1.0, n) LIMIT 5",
                     "role = 'reranker'"),
    "tokenizer": Role("(body TEXT) RETURNS TABLE (first INT, behind INT)",
                      columnar(ANY_TEXT + "(i32.const 0)"),
                      "SELECT len(tokenize('f', body)) FROM {t}", "role = 'tokenizer'"),
    "table function": Role("(body TEXT) RETURNS TABLE (letter TEXT)",
                           columnar(ANY_TEXT + "(i32.const 0)"),
                           "SELECT letter FROM {t}, f(body)"),
    "aggregate's step": Role("(x DOUBLE) RETURNS DOUBLE", _mean(value=_ill(VALUE, "13")),
                             "SELECT f(x) FROM {t} GROUP BY id % 7", kind="AGGREGATE"),
    "aggregate's final": Role("(x DOUBLE) RETURNS DOUBLE", _mean(final=_ill(SUM, "13")),
                              "SELECT f(x) FROM {t} GROUP BY id", kind="AGGREGATE"),
    "aggregate's merge": Role(
        "(x DOUBLE) RETURNS DOUBLE",
        _mean(merge=ADD + when(f"(f64.eq (f64.load {at('(local.get $s)', 4)}) (f64.const 13))")),
        "SELECT f(x) FROM {t}", kind="AGGREGATE", before=("SET threads = 2",)),
    "window": Role("(x DOUBLE) RETURNS DOUBLE", _mean(value=_ill(VALUE, "13")),
                   "SELECT f(x) OVER (ORDER BY id ROWS 20 PRECEDING) FROM {t}",
                   kind="AGGREGATE"),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    graph.wait()
    ivf.wait()
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    with tarsdb.connect(tmp_path_factory.mktemp("roles") / "a.tars") as db:
        for name in ("good", "bad"):
            ids = np.arange(ROWS)
            numbers = np.zeros(ROWS, np.int64)
            texts, rows = [""] * ROWS, vectors.copy()
            if name == "bad":
                numbers[ILL], texts[ILL], rows[ILL, 0] = 13, "!", 13
            db.execute(f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, n BIGINT, x DOUBLE, "
                       f"body TEXT, emb VECTOR({DIM}))")  # fmt: skip
            db.table(name).insert({"id": ids, "n": numbers, "x": numbers.astype(np.float64),
                                   "body": texts, "emb": rows})  # fmt: skip
        db.execute("CREATE TABLE kept (n DOUBLE)")
        db.execute("CREATE TABLE log (name TEXT)")
        yield db


@pytest.fixture
def db(shared: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[tarsdb.Connection]:
    monkeypatch.setattr(aggregates, "PARALLEL_ROWS", 100)
    shared.execute("BEGIN")
    yield shared
    shared.rollback()
    shared.execute("SET threads = 1")


def prepare(db: tarsdb.Connection, role: Role, harm: str, backend: str) -> str:
    """Create the function and what stands around it; return the statement that uses it."""
    options = f"backend = '{backend}', fuel = 4000000000000, timeout_ms = {int(TIMEOUT_S * 1000)}"
    code = role.code.replace("{harm}", HARMS[harm])
    given = f"{options}, {role.options}" if role.options else options
    db.execute(f"CREATE {role.kind} FUNCTION f{role.signature} IMMUTABLE LANGUAGE wasm "
               f"AS '{code}' WITH ({given})")  # fmt: skip
    for sql in role.before:
        db.execute(sql)
    return f"INSERT INTO {role.into} {role.use}"


def failure(db: tarsdb.Connection, sql: str) -> tuple[UdfError | None, float]:
    """Run a statement; return what it raised of a function, and its seconds."""
    start = time.monotonic()
    try:
        db.execute(sql)
    except UdfError as error:
        return error, time.monotonic() - start
    return None, time.monotonic() - start


def stored(db: tarsdb.Connection, role: Role) -> int:
    table = role.into.partition(" ")[0]
    ((count,),) = db.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(count)


@pytest.mark.parametrize("backend", ["wasmtime", "worker"])
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ROLES)
def test_harm_in_a_role(db: tarsdb.Connection, name: str, harm: str, backend: str) -> None:
    role = ROLES[name]
    sql = prepare(db, role, harm, backend)
    db.execute("INSERT INTO log VALUES ('before')")
    before = stored(db, role)
    error, seconds = failure(db, sql.format(t="bad"))
    if harm == "trap":
        assert isinstance(error, UdfTrapError)
        assert error.code == "UNREACHABLE"
    else:
        assert isinstance(error, UdfLimitError)
        assert error.kind == "time"
        attempts = 1
        while seconds > TIMEOUT_S + 0.1 and attempts < ATTEMPTS:
            attempts += 1
            seconds = failure(db, sql.format(t="bad"))[1]
        assert seconds <= TIMEOUT_S + 0.1
    assert stored(db, role) == before
    assert failure(db, sql.format(t="good"))[0] is None  # the same statement without the ill row
    assert stored(db, role) > before or name == "table function"  # which gives no rows
    db.execute("INSERT INTO log VALUES ('after')")
    kept = db.execute("SELECT name FROM log ORDER BY name").fetchall()
    assert kept == [("after",), ("before",)]
