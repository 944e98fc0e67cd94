"""Calls alone in a SELECT: answered without the relational engine, as it would answer them."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import BindError, ProgrammingError
from tests.golden.models.tiny_heads import HEADS
from tests.golden.models.tiny_models import CONFIGS
from tests.unit.engine.test_model_functions import write_model

FIB = """CREATE FUNCTION twice(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS '
  (module (func (export "twice") (param i64) (result i64)
    (i64.mul (local.get 0) (i64.const 2))))'"""


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> str:
    write_model(tmp_path / "classes", HEADS["bert"])
    return write_model(tmp_path / "vectors", CONFIGS["bert"])


@pytest.fixture
def db(folder: str) -> Any:
    with tarsdb.connect() as connection:
        connection.execute(f"CREATE MODEL m FROM '{folder}'")
        connection.execute(f"CREATE MODEL c FROM '{pathlib.Path(folder).parent / 'classes'}'")
        connection.execute(FIB)
        connection.create_function("plus", lambda a, b: a + b, ["BIGINT", "BIGINT"], "BIGINT")
        yield connection


@pytest.mark.parametrize(
    ("sql", "parameters"),
    [
        ("embed('m', 'w5 w6')", ()), ("embed('m', $1)", ("w5",)), ("embed('m', NULL)", ()),
        ("classify('c', 'w8')", ()), ("twice(21)", ()), ("twice(NULL)", ()),
        ("twice($1)", (7,)), ("plus(1, 2)", ()), ("twice(twice(3))", ()),
        ("twice(3) AS x, embed('m', 'w5') AS y", ()), ("embed('m', 'w5 w6', dimensions => 8)", ()),
    ],
)  # fmt: skip
def test_as_the_relational_engine(db: Any, sql: str, parameters: tuple[Any, ...]) -> None:
    plan = "\n".join(row[0] for row in db.execute(f"EXPLAIN SELECT {sql}", parameters))
    assert plan.startswith("OneRow"), plan
    native = db.execute(f"SELECT {sql}", parameters)
    other = db.execute(f"SELECT {sql} FROM (SELECT 1 AS one)", parameters)
    assert [c[0] for c in native.description] == [c[0] for c in other.description]
    if "NULL" not in sql:  # of a NULL the relational engine knows no type
        assert [c[1] for c in native.description] == [c[1] for c in other.description]
    for own, theirs in zip(native.fetchone(), other.fetchone(), strict=True):
        assert type(own) is type(theirs)
        if isinstance(own, np.ndarray):
            np.testing.assert_array_equal(own, theirs)
        else:
            assert own == theirs


def test_what_stays_relational(db: Any) -> None:
    for sql in ("twice(3) + 1", "twice(3), 4", "twice(3) WHERE false", "twice(3) LIMIT 0",
                "DISTINCT twice(3)", "twice(3) UNION ALL SELECT 5", "lower('A')"):  # fmt: skip
        plan = db.execute(f"EXPLAIN SELECT {sql}").fetchone()[0]
        assert not plan.startswith("OneRow"), sql
    assert db.execute("SELECT twice(3) WHERE false").fetchall() == []
    assert db.execute("SELECT twice(3) + 1").fetchone() == (7,)


def test_wrong_calls_are_named(db: Any) -> None:
    with pytest.raises(BindError, match="takes 1 arguments, 2 are given"):
        db.execute("SELECT twice(1, 2)")
    with pytest.raises(ProgrammingError, match="parameter 1"):
        db.execute("SELECT twice($1)")
    with pytest.raises(BindError, match="nobody"):
        db.execute("SELECT nobody(1)")


def test_analyze_runs_it(db: Any) -> None:
    lines = [row[0] for row in db.execute("EXPLAIN ANALYZE SELECT embed('m', 'w5')")]
    assert any(line.startswith("actual: 1 rows") for line in lines)


def test_the_relational_engine_is_not_imported(folder: str, tmp_path: pathlib.Path) -> None:
    code = f"""if True:
        import sys, tarsdb
        with tarsdb.connect({str(tmp_path / "a.tarsdb")!r}) as db:
            db.execute("CREATE MODEL IF NOT EXISTS m FROM '{folder}'")
            db.execute("SELECT embed('m', 'w5')").fetchone()
            print([name for name in ("duckdb", "pyarrow", "pandas") if name in sys.modules])
            db.execute("SELECT lower('A')").fetchone()
            print("duckdb" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "True"]
