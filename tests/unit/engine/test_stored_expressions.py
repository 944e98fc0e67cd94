"""CHECK, DEFAULT and generated columns are bound when the table is made, by whatever runs them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb import errors
from tests.sandbox.wasm_text import columnar


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "a.tars") as opened:
        yield opened


WRONG = [
    ("x INT CHECK (nobody(x) > 0)", "table t: nobody(x) > 0: Scalar Function with name nobody"),
    ("x INT, CONSTRAINT c CHECK (nobody(x) IS NULL)", "nobody"),
    ("x INT, y INT GENERATED ALWAYS AS (nobody(x)) STORED", "nobody"),
    ("x INT DEFAULT (nobody(1))", "nobody"),
    ("x INT CHECK (length(x) > 0)", "length(INTEGER)"),
    ("x INT CHECK (missing > 0)", "missing"),
    ("x INT CHECK (x > random())", "another value each time"),
    ("x INT CHECK (date('now') > DATE '2020-01-01')", "another value each time"),
    ("x DATE CHECK (x < current_date)", "another value each time"),
    ("x DATE CHECK (age(x) < INTERVAL '1 day')", "another value each time"),
    ("x INT, y UUID GENERATED ALWAYS AS (gen_random_uuid()) STORED", "another value each time"),
    ("x INT, y TIMESTAMP GENERATED ALWAYS AS (now()) STORED", "another value each time"),
    ("x INT CHECK (EXISTS (SELECT 1))", "has a query"),
    ("x INT, y INT GENERATED ALWAYS AS (x + (SELECT 1)) STORED", "has a query"),
    ("x INT DEFAULT (SELECT 1)", "has a query"),
    ("x INT, y INT GENERATED ALWAYS AS (row_number() OVER ()) STORED", "has a window"),
    ("x INT, y INT GENERATED ALWAYS AS (unnest([1, 2])) STORED", "has unnest()"),
    ("x INT, y INT, CHECK (COLUMNS(*) > 0)", "has COLUMNS()"),
    ("x INT DEFAULT COLUMNS(*)", "has COLUMNS()"),
    ("x UUID CHECK (x)", "CHECK t_x_check of table t: x is UUID, neither true nor false"),
    ("x TEXT CHECK (upper(x))", "is TEXT, neither true nor false"),
    ("x TEXT CHECK (x || 'a')", "is TEXT, neither true nor false"),
    ("x INT CHECK ('x > 0')", "is TEXT, neither true nor false"),
]

WRONG_DEFAULTS = [
    ("INT", "'abc'"), ("SMALLINT", "70000"), ("DATE", "'nope'"), ("BOOLEAN", "'maybe'"),
    ("JSON", "'{'"), ("DECIMAL(3,1)", "99999"), ("VECTOR(3)", "'[1, 2]'"), ("BIT(3)", "'1011'"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "message"), WRONG)
def test_what_no_row_could_meet_is_refused(
    db: tarsdb.Connection, columns: str, message: str
) -> None:
    for transaction in (False, True):
        if transaction:
            db.execute("BEGIN")
        with pytest.raises(errors.BindError) as caught:
            db.execute(f"CREATE TABLE t ({columns})")
        assert message in str(caught.value)
        if transaction:
            db.execute("COMMIT")
        assert db.execute("SELECT count(*) FROM tars_tables WHERE name = 't'").fetchone() == (0,)


@pytest.mark.parametrize(("kind", "default"), WRONG_DEFAULTS)
def test_a_default_that_is_no_value_of_its_column_is_refused(
    db: tarsdb.Connection, kind: str, default: str
) -> None:
    with pytest.raises(errors.DataError, match="x"):
        db.execute(f"CREATE TABLE t (a INT, x {kind} DEFAULT {default})")
    assert db.execute("SELECT count(*) FROM tars_tables").fetchone() == (0,)


@pytest.mark.parametrize(
    "column", ["y INT DEFAULT (nobody(1))", "y INT GENERATED ALWAYS AS (nobody(x)) STORED"]
)
def test_a_column_is_bound_when_it_is_added(db: tarsdb.Connection, column: str) -> None:
    db.execute("CREATE TABLE t (x INT)")
    with pytest.raises(errors.BindError, match="nobody"):
        db.execute(f"ALTER TABLE t ADD COLUMN {column}")
    db.execute("INSERT INTO t VALUES (1)")
    assert db.execute("SELECT * FROM t").fetchall() == [(1,)]


def test_what_a_row_can_meet_is_taken(db: tarsdb.Connection) -> None:
    """The control: functions of DuckDB and of ours, none of which is called yet."""
    traps = columnar("(unreachable)")
    db.execute(f"CREATE FUNCTION f(x INT) RETURNS INT LANGUAGE wasm AS '{traps}'")
    db.execute(
        "CREATE TABLE t (x INT CHECK (f(x) + length('a') > 0), s TEXT CHECK (length(s) < 4), "
        "u TEXT GENERATED ALWAYS AS (upper(s)) STORED, d TIMESTAMP DEFAULT (now()), "
        "r DOUBLE DEFAULT (round(2.5)), i UUID DEFAULT gen_random_uuid(), y INT CHECK (y % 2), "
        "b DATE DEFAULT (date('now')), v VECTOR(2) DEFAULT '[1, 2]', "
        "CHECK (s IS NULL OR strlen(s) < 9))"
    )
    db.execute("INSERT INTO t (s) VALUES ('abc')")
    assert db.execute("SELECT u, r, d IS NULL FROM t").fetchall() == [("ABC", 3.0, False)]
    with pytest.raises(errors.UdfTrapError):
        db.execute("INSERT INTO t (x) VALUES (1)")
    with pytest.raises(errors.IntegrityError, match="CHECK"):
        db.execute("INSERT INTO t (s) VALUES ('abcd')")
