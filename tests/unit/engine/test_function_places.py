"""Where a sandboxed function may stand, what pins it there, and what a trap leaves behind."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

import tarsdb
from tarsdb import errors

# tens(n) = n - n % 10; it traps (division by zero) for n = 13.
TENS = """(module (func (export "tens") (param i64) (result i64)
  (i64.sub (local.get 0) (i64.rem_s (local.get 0)
    (select (i64.const 0) (i64.const 10) (i64.eq (local.get 0) (i64.const 13)))))))"""
CREATE = f"CREATE FUNCTION tens(n BIGINT) RETURNS BIGINT LANGUAGE wasm IMMUTABLE AS '{TENS}'"


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "a.tars") as opened:
        opened.execute(CREATE)
        opened.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)")
        opened.execute("INSERT INTO t VALUES (1, 5), (2, 17), (3, 12), (4, NULL), (5, 25)")
        yield opened


def rows(db: tarsdb.Connection, sql: str) -> list[tuple[Any, ...]]:
    return db.execute(sql).fetchall()


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT tens(n) FROM t ORDER BY id", [(0,), (10,), (10,), (None,), (20,)]),
        ("SELECT id FROM t WHERE tens(n) = 10 ORDER BY id", [(2,), (3,)]),
        ("SELECT id FROM t ORDER BY tens(n) DESC NULLS LAST, id", [(5,), (2,), (3,), (1,), (4,)]),
        ("SELECT tens(n), count(*) FROM t GROUP BY tens(n) ORDER BY 1",
         [(0, 1), (10, 2), (20, 1), (None, 1)]),
        ("SELECT tens(n) AS d FROM t GROUP BY d HAVING count(*) > 1", [(10,)]),
        ("SELECT a.id, b.id FROM t a JOIN t b ON tens(a.n) = b.n - 5 ORDER BY 1",
         [(1, 1), (5, 5)]),
        ("SELECT sum(tens(n)) FROM t", [(40,)]),
        ("SELECT DISTINCT tens(n) FROM t WHERE n IS NOT NULL ORDER BY 1", [(0,), (10,), (20,)]),
        ("SELECT tens(n) FROM t WHERE id = 2 UNION ALL SELECT tens(99)", [(10,), (90,)]),
        ("SELECT id FROM t WHERE id IN (SELECT tens(n) / 5 FROM t)", [(2,), (4,)]),
        ("SELECT id, row_number() OVER (PARTITION BY tens(n) ORDER BY id) FROM t WHERE n > 10 "
         "ORDER BY id", [(2, 1), (3, 2), (5, 1)]),
        ("UPDATE t SET n = tens(n) WHERE tens(n) = 10 RETURNING id, n, tens(id)",
         [(2, 10, 0), (3, 10, 0)]),
        ("DELETE FROM t WHERE tens(n) = 10 RETURNING id", [(2,), (3,)]),
        ("INSERT INTO t VALUES (tens(61), tens(7)) RETURNING id, n", [(60, 0)]),
        ("INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = tens(excluded.n + 41) "
         "RETURNING n", [(40,)]),
    ],
)  # fmt: skip
def test_expressions(db: tarsdb.Connection, sql: str, expected: list[tuple[Any, ...]]) -> None:
    assert rows(db, sql) == expected


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT tens(n + 1) FROM t", "SELECT id FROM t WHERE tens(n + 1) > 0",
        "SELECT id FROM t ORDER BY tens(n + 1)", "SELECT count(*) FROM t GROUP BY tens(n + 1)",
        "SELECT a.id FROM t a JOIN t b ON tens(a.n + 1) = b.n",
        "UPDATE t SET n = tens(n + 1)", "UPDATE t SET n = 1 WHERE tens(n + 1) = 0",
        "DELETE FROM t WHERE tens(n + 1) < 100", "INSERT INTO t VALUES (9, 9), (10, tens(13))",
        "INSERT INTO t SELECT id + 100, tens(n + 1) FROM t",
        "INSERT INTO c (a) VALUES (1), (13)", "INSERT INTO g (a) VALUES (1), (13)",
        "UPDATE c SET a = 13", "UPDATE g SET a = 13",
        "ALTER TABLE t ADD COLUMN d BIGINT GENERATED ALWAYS AS (tens(n + 1)) STORED",
    ],
)  # fmt: skip
def test_a_trap_rolls_the_statement_back_in_every_place(db: tarsdb.Connection, sql: str) -> None:
    db.execute("CREATE TABLE c (a BIGINT CHECK (tens(a) >= 0))")
    db.execute("CREATE TABLE g (a BIGINT, d BIGINT GENERATED ALWAYS AS (tens(a)) STORED)")
    db.execute("INSERT INTO c VALUES (1)")
    db.execute("INSERT INTO g (a) VALUES (12)")
    assert rows(db, "SELECT tens(n) FROM t WHERE n = 12") == [(10,)]  # without the trap it works
    for transaction in (False, True):
        if transaction:
            db.execute("BEGIN")
            db.execute("INSERT INTO t VALUES (77, 1)")
        with pytest.raises(errors.UdfTrapError, match=r"tens.*INTEGER_DIVISION_BY_ZERO"):
            db.execute(sql)  # n = 12 is there
        if transaction:
            db.execute("COMMIT")
        assert rows(db, "SELECT count(*), sum(n) FROM t") == [(6, 60) if transaction else (5, 59)]
        assert rows(db, "SELECT * FROM c") == [(1,)]
        assert rows(db, "SELECT * FROM g") == [(12, 10)]


PLACES = {
    "CHECK": "CREATE TABLE u (a BIGINT CHECK (tens(a) > 3))",
    "CHECK in SQL": "CREATE TABLE u (a BIGINT, CHECK (tens(a) % 3 = 1 OR a::TEXT LIKE '%7'))",
    "generated": "CREATE TABLE u (a BIGINT, g BIGINT GENERATED ALWAYS AS (tens(a)) STORED)",
    "generated in SQL": "CREATE TABLE u (a BIGINT, g TEXT AS ('x' || tens(a)) STORED)",
    "DEFAULT": "CREATE TABLE u (a BIGINT DEFAULT (tens(42)))",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_definition_pins_its_functions(db: tarsdb.Connection, place: str) -> None:
    db.execute(PLACES[place])
    for sql in ("DROP FUNCTION tens", CREATE.replace("CREATE", "CREATE OR REPLACE", 1)):
        with pytest.raises(
            errors.CatalogError, match=r"cannot (drop|replace) function tens: table u"
        ):
            db.execute(sql)
    db.execute("DROP TABLE u")
    db.execute(CREATE.replace("CREATE", "CREATE OR REPLACE", 1))
    db.execute("DROP FUNCTION tens")
    with pytest.raises(errors.BindError):
        db.execute("SELECT tens(1)")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("first", ["table", "drop"])
def test_a_drop_beside_a_definition_conflicts(
    db: tarsdb.Connection, tmp_path: pathlib.Path, place: str, first: str
) -> None:
    """Whichever commits first, no table is left with a function that is gone."""
    with tarsdb.connect(tmp_path / "a.tars") as other:
        for one, sql in ((db, PLACES[place]), (other, "DROP FUNCTION tens")):
            one.execute("BEGIN")
            one.execute(sql)
        winner, loser = (db, other) if first == "table" else (other, db)
        winner.execute("COMMIT")
        with pytest.raises(errors.ConflictError):
            loser.execute("COMMIT")
        loser.rollback()
    left = [name for (name,) in rows(db, "SELECT name FROM tars_functions")]
    assert left == (["tens"] if first == "table" else [])


@pytest.mark.parametrize("volatility", ["STABLE", "VOLATILE"])
def test_what_is_stored_needs_an_immutable_function(db: tarsdb.Connection, volatility: str) -> None:
    db.execute("DROP FUNCTION tens")
    db.execute(CREATE.replace("IMMUTABLE", volatility))
    for place, sql in PLACES.items():
        if place == "DEFAULT":
            continue
        with pytest.raises(errors.CatalogError, match=f"tens, which is {volatility}"):
            db.execute(sql)
    db.execute(PLACES["DEFAULT"])
    db.execute("INSERT INTO u DEFAULT VALUES")
    assert rows(db, "SELECT a FROM u") == [(40,)]
