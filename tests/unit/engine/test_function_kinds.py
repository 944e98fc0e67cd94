"""Aggregate and table functions in SQL, beside what DuckDB's own give."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tests.sandbox.kinds_text import LETTERS, MID, SUM, WEIGHT, aggregate
from tests.sandbox.wasm_text import columnar

ROWS = 5000
TRAPS = columnar("(unreachable)")
BOOM = aggregate("boom", "(unreachable)", SUM)


def create(name: str, arguments: str, text: str, *, options: str = "") -> str:
    return (
        f"CREATE AGGREGATE FUNCTION {name}({arguments}) RETURNS DOUBLE LANGUAGE wasm {options} "
        f"AS '{text}'"
    )


TABLE = "CREATE FUNCTION letters(t TEXT) RETURNS TABLE (letter TEXT, at INT) LANGUAGE wasm AS "


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("kinds") / "a.tars"


@pytest.fixture(scope="module")
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    rng = np.random.default_rng(5)
    with tarsdb.connect(path) as opened:
        opened.execute(create("mid", "x DOUBLE", MID))
        opened.execute(create("weight", "t TEXT, w DOUBLE", WEIGHT))
        opened.execute(create("boom", "x DOUBLE", BOOM))
        opened.execute(f"{TABLE}'{LETTERS}'")
        opened.execute(f"{TABLE.replace('letters', 'f')}'{TRAPS}'")
        opened.execute(
            "CREATE TABLE t (id BIGINT PRIMARY KEY, g INT, n INT, x DOUBLE, word TEXT, v VECTOR(2))"
        )
        opened.table("t").insert({
            "id": np.arange(ROWS), "g": rng.integers(0, 40, ROWS), "n": rng.integers(0, 9, ROWS),
            "x": rng.integers(-99, 99, ROWS).astype(float),
            "word": [None if i % 7 == 0 else "abcdef"[: i % 6] for i in range(ROWS)],
            "v": rng.random((ROWS, 2)).astype(np.float32),
        })  # fmt: skip
        opened.execute("UPDATE t SET x = NULL WHERE id % 11 = 0")
        opened.execute("UPDATE t SET x = NULL WHERE g = 3")
        yield opened


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, parameters).fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT g, mid(x) FROM t GROUP BY g ORDER BY g",
        "SELECT mid(x) FROM t",
        "SELECT mid(x), count(*), sum(n) FROM t WHERE id > 99999",
        "SELECT mid(n) FROM t",
        "SELECT g, mid(DISTINCT n), mid(x) FROM t GROUP BY g ORDER BY g",
        "SELECT g, mid(x) FILTER (WHERE n > 4) FROM t GROUP BY g ORDER BY g",
        "SELECT g, mid(DISTINCT x) FILTER (WHERE n > 7 AND id < 900) FROM t GROUP BY g ORDER BY g",
        "SELECT g FROM t GROUP BY g HAVING mid(x) > 2 ORDER BY g",
        "SELECT g, mid(x) AS m FROM t GROUP BY g ORDER BY m NULLS FIRST, g LIMIT 5",
        "SELECT mid(x ORDER BY id DESC) FROM t",
        "SELECT g, n, mid(x) FROM t GROUP BY ROLLUP (g, n) ORDER BY g, n",
        "SELECT a.id, (SELECT mid(x) FROM t b WHERE b.g = a.n) FROM t a WHERE id < 30 ORDER BY id",
        "SELECT id, mid(x) FROM t GROUP BY id ORDER BY id",
        "SELECT mid(x + n) - mid(n) FROM t WHERE x IS NOT NULL",
        "SELECT mid(m) FROM (SELECT mid(x) AS m FROM t GROUP BY g)",
        "SELECT round(mid(x), 3) FROM t WHERE word LIKE 'a%' GROUP BY n ORDER BY 1",
        "SELECT mid(d) FROM (SELECT x AS d FROM t ORDER BY v <-> '[0.5, 0.5]' LIMIT 20)",
        "SELECT mid(x) FROM t WHERE v <-> '[0.5, 0.5]' < 0.1",
    ],
)
def test_an_aggregate_function_does_what_avg_does(db: tarsdb.Connection, sql: str) -> None:
    found, expected = rows(db, sql), rows(db, sql.replace("mid(", "avg("))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == pytest.approx(b, rel=1e-12, abs=1e-12) if isinstance(b, float) else a == b


def test_several_arguments(db: tarsdb.Connection) -> None:
    sql = "SELECT g, {} FROM t GROUP BY g ORDER BY g"
    expected = rows(db, sql.format("sum(length(word) * n::DOUBLE)"))
    assert rows(db, sql.format("weight(word, n)")) == expected
    distinct = rows(
        db, "SELECT sum(length(word) * n::DOUBLE) FROM (SELECT DISTINCT word, n FROM t)"
    )
    assert rows(db, "SELECT weight(DISTINCT word, n) FROM t") == distinct
    assert rows(db, "SELECT weight(w => n, t => word) FROM t WHERE id < 3") == rows(
        db, "SELECT sum(length(word) * n::DOUBLE) FROM t WHERE id < 3"
    )


def test_a_hundred_thousand_groups(db: tarsdb.Connection) -> None:
    source = "(SELECT i % 100000 AS g, i::DOUBLE AS x FROM range(300000) r(i))"
    sql = f"SELECT count(*), sum(m) FROM (SELECT g, mid(x) AS m FROM {source} GROUP BY g)"
    before = udf_rows(db)
    assert rows(db, sql) == rows(db, sql.replace("mid(", "avg("))
    assert udf_rows(db) - before == 300_000


def udf_rows(db: tarsdb.Connection) -> float:
    return float(rows(db, "SELECT value FROM tars_metrics WHERE name = 'udf_rows'")[0][0])


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("SELECT mid(x) WITHIN GROUP (ORDER BY g) FROM t", errors.NotSupportedError, "mid with W"),
        ("SELECT mid(x, g) FROM t", errors.BindError, "takes 1 arguments, 2 are given"),
        ("SELECT mid(*) FROM t", errors.BindError, "mid does not take *"),
        ("SELECT mid(mid(x)) FROM t", errors.BindError, "nested"),
        ("SELECT id FROM t WHERE mid(x) > 2", errors.BindError, "aggregate"),
        ("SELECT mid(word) FROM t", errors.BindError, "mid"),
        ("SELECT * FROM mid(3)", errors.BindError, "mid returns DOUBLE, no table"),
        ("CREATE TABLE u (a DOUBLE CHECK (mid(a) > 2))", errors.BindError, "aggregates rows"),
        ("CREATE TABLE u (a DOUBLE CHECK (sum(a) > 2))", errors.BindError, "aggregates rows"),
        ("CREATE TABLE u (a INT, b DOUBLE AS (mid(a)) STORED)", errors.BindError, "aggregates"),
        ("CREATE TABLE u (a DOUBLE DEFAULT (mid(3)))", errors.BindError, "aggregates rows"),
        ("INSERT INTO t (id, x) VALUES (99999, mid(3))", errors.DatabaseError, ""),
        (create("z", "", MID), errors.SQLSyntaxError, "at least one argument"),
        (create("z", "x DOUBLE", MID), errors.UdfValidationError, "z_state_size"),
        ("SELECT letters(word) FROM t", errors.BindError, "letters returns rows"),
        ("SELECT id FROM t ORDER BY letters(word)", errors.BindError, "letters returns rows"),
        ("SELECT * FROM letters(word), t", errors.DatabaseError, "word"),
        ("SELECT * FROM letters('a', 'b')", errors.BindError, "takes 1 arguments"),
        ("SELECT nothing FROM letters('a')", errors.BindError, "nothing"),
        ("SELECT * FROM letters('é')", errors.UdfError, "inside a UTF-8"),
        ("CREATE TABLE u (a TEXT CHECK (letters(a) = 'a'))", errors.BindError, "returns rows"),
        (f"{TABLE.replace('t TEXT', '')}'{LETTERS}'".replace("letters", "z", 1),
         errors.NotSupportedError, "without arguments"),
        (f"{TABLE.replace('letter TEXT, at INT', '')}'{LETTERS}'", errors.SQLSyntaxError,
         "at least one column"),
        (f"{TABLE.replace('at INT', 'letter INT')}'{LETTERS}'", errors.SQLSyntaxError,
         "column letter is given twice"),
    ],
)  # fmt: skip
def test_what_is_refused(
    db: tarsdb.Connection, sql: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        db.execute(sql)
    assert message in str(caught.value)
    assert rows(db, "SELECT count(*) FROM t") == [(ROWS,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT boom(x) FROM t",
        "SELECT * FROM t, f(word)",
        "INSERT INTO t (id) SELECT at FROM f('abc')",
        "DELETE FROM t WHERE word IN (SELECT letter FROM f('abc'))",
        "SELECT g FROM t GROUP BY g HAVING boom(x) > 1",
        "INSERT INTO t (id, x) SELECT id + 10000, boom(x) FROM t GROUP BY id",
        "UPDATE t SET x = s.b FROM (SELECT g, boom(x) AS b FROM t GROUP BY g) s WHERE t.g = s.g",
    ],
)
def test_a_trap_rolls_back(db: tarsdb.Connection, sql: str) -> None:
    before = rows(db, "SELECT count(*), sum(x) FROM t")
    db.execute("BEGIN")
    with pytest.raises(errors.UdfTrapError, match=r"function (boom|f): trap UNREACHABLE"):
        db.execute(sql)
    db.execute("COMMIT")
    assert rows(db, "SELECT count(*), sum(x) FROM t") == before
    if sql.startswith("SELECT"):  # the same with functions that mean well
        assert rows(db, sql.replace("boom", "mid").replace("f(word)", "letters(word)"))


def test_functions_in_from(db: tarsdb.Connection) -> None:
    letters = [("a", 0), ("b", 1)]
    for sql in ("SELECT * FROM letters('ab')", "SELECT letter, at FROM letters(?)",
                "SELECT s.letter, s.at FROM letters('ab') AS s", "FROM letters(t => 'ab')",
                "SELECT w, p FROM letters('ab') s(w, p)", "SELECT letters.* FROM letters('ab')",
                "WITH c AS (SELECT * FROM letters('ab')) SELECT * FROM c"):  # fmt: skip
        assert rows(db, sql, *(["ab"] if "?" in sql else [])) == letters
    assert rows(db, "SELECT count(*) FROM letters(NULL)") == [(0,)]
    assert rows(
        db, "SELECT letter FROM letters('cab') WHERE at > 0 ORDER BY letter DESC LIMIT 1"
    ) == [("b",)]


LATERAL = [
    "SELECT id, letter, at FROM t, LATERAL letters(t.word) s ORDER BY id, at",
    "SELECT id, letter, at FROM t, letters(word) ORDER BY id, at",
    "SELECT id, s.letter, s.at FROM t CROSS JOIN LATERAL letters(t.word) AS s ORDER BY 1, 3",
    "SELECT id, w, p FROM t JOIN letters(word) s(w, p) ON true ORDER BY id, p",
    "SELECT id, letter, at FROM t, LATERAL (SELECT * FROM letters(t.word)) s ORDER BY id, at",
]


@pytest.mark.parametrize("sql", LATERAL)
def test_lateral(db: tarsdb.Connection, sql: str) -> None:
    expected = [
        (i, c, at)
        for i, word in rows(db, "SELECT id, word FROM t ORDER BY id")
        for at, c in enumerate(word or "")
    ]
    assert rows(db, sql) == expected


def test_left_join_lateral_keeps_rows_without_any(db: tarsdb.Connection) -> None:
    sql = "SELECT count(*), count(letter) FROM t LEFT JOIN LATERAL letters(word) s ON true"
    words = [word or "" for (word,) in rows(db, "SELECT word FROM t")]
    letters = sum(map(len, words))
    assert rows(db, sql) == [(letters + sum(not word for word in words), letters)]
    histogram = "SELECT letter, count(*) FROM t, letters(word) GROUP BY letter ORDER BY letter"
    assert rows(db, histogram)[0] == ("a", sum(bool(word) for word in words))
    joined = "SELECT count(*) FROM t JOIN letters('ab') s ON t.n = s.at"
    assert rows(db, joined) == rows(db, "SELECT count(*) FROM t WHERE n < 2")


def test_rows_of_a_function_are_stored(db: tarsdb.Connection) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("CREATE TABLE l AS SELECT id, letter FROM t, letters(word) WHERE id < 100")
        db.execute("INSERT INTO l SELECT 1000 + at, letter FROM letters('xyz')")
        assert rows(db, "SELECT letter FROM l WHERE id >= 1000 ORDER BY id") == [
            ("x",), ("y",), ("z",),
        ]  # fmt: skip
        raise ZeroDivisionError


def test_a_kind_may_be_replaced_by_another(db: tarsdb.Connection) -> None:
    with tarsdb.connect() as own:
        for _ in range(2):
            own.execute(create("f", "x DOUBLE", MID.replace('"mid_', '"f_')))
            assert rows(own, "SELECT f(x) FROM (VALUES (1.0), (2.0)) v(x)") == [(1.5,)]
            body = "(i32.store (i32.load offset=40 (local.get $d)) (i32.const 0)) (i32.const 0)"
            own.execute(
                "CREATE OR REPLACE FUNCTION f(x DOUBLE[]) RETURNS DOUBLE LANGUAGE wasm "
                f"AS '{columnar(body)}'"
            )
            assert rows(own, "SELECT f([1.0, 2.0])") == [(0.0,)]
            own.execute("DROP FUNCTION f")


def test_they_are_in_the_file(db: tarsdb.Connection, path: pathlib.Path) -> None:
    with tarsdb.connect(path) as other:
        assert rows(other, "SELECT mid(x) FROM t") == rows(db, "SELECT avg(x) FROM t")
        assert rows(other, "SELECT count(*) FROM letters('abc')") == [(3,)]
        listed = dict(rows(other, "SELECT name, returns FROM tars_functions"))
    assert listed["mid"] == "DOUBLE" and listed["letters"] == "TABLE (letter TEXT, at INT)"
