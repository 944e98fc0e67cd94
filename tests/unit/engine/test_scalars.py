"""Functions of texts, COALESCE and CASE computed here, beside DuckDB's."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.columns import from_list
from tarsdb.engine.by_duckdb.letter_case import in_case
from tarsdb.engine.reading.scalar import text_function
from tarsdb.types import BIGINT, TEXT

TEXTS = [
    "",
    "a",
    "Ab",
    "\u00df",
    "\u0130",
    "\u03a3\u03a3",
    "e\u0301",
    "\U0001f468\u200d\U0001f469",
    "\0x",
    "x" * 300,
    None,
]
CREATE = (
    "CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT, r TEXT, n INT, b BIGINT, x DOUBLE, f BOOLEAN)"
)
OURS = [
      "length(s)", "s || r", "s || ' ' || r || '!'", "length(s || r || s)",
    "length(s) + b", "length(s || r) > 2", "s || r = 'ab'", "coalesce(s, r)", "coalesce(b, 0)",
    "coalesce(s, r, 'none')", "ifnull(n, 7)", "coalesce(x, 1)", "coalesce(f, false)",
    "coalesce(n, NULL)", "CASE WHEN n > 0 THEN 'hi' ELSE 'lo' END", "CASE WHEN x > 0 THEN s END",
    "CASE n WHEN 1 THEN r WHEN 2 THEN s ELSE NULL END", "CASE WHEN f THEN b ELSE 1 END",
    "CASE WHEN n > 0 THEN 1 WHEN n < 0 THEN -1 ELSE 0 END", "s || r IS NULL",
    "coalesce(s || r, r) = r",
    "CASE WHEN x > 0 THEN x ELSE 0 END", "CASE WHEN f THEN NULL ELSE n END",
    "1", "'it''s'", "true", "-7", "''",
    "lower(s)", "upper(r)", "lower(s) || upper(r)", "lower(s) = 'ab'", "upper(s || '\u00e9')",
    "length(upper(s)) > 1", "coalesce(upper(s), lower(r), '-')",
    "n::BIGINT", "CAST(n AS DOUBLE)", "b::DOUBLE", "b::REAL", "n::REAL::DOUBLE", "n::BIGINT * 4",
    "n::DOUBLE + x", "CAST(n * 1 AS DOUBLE)", "length(s)::DOUBLE", "coalesce(n::BIGINT, b)",
    "s ILIKE 'a%'", "s NOT ILIKE '_B'", "s ILIKE '%\u03c3%'", "s ILIKE '\u0130'",
    "s || r ILIKE 'AB%'", "lower(s) LIKE 'a%'", "upper(r) LIKE '%B%'", "s ILIKE ''",
]  # fmt: skip
THEIRS = [
    "s || n", "length(n)", "coalesce(n, b)", "coalesce(n, 3000000000)", "coalesce(x, 1.5)",
    "CASE WHEN n > 0 THEN n + 2147483647 ELSE 0 END", "CASE WHEN f THEN s ELSE n END",
    "CASE WHEN f THEN NULL END", "CASE WHEN f THEN 1 ELSE 1.5 END", "length('A')", "lower('A')",
    "b::INT", "x::REAL", "x::BIGINT", "n::SMALLINT", "n::TEXT", "f::INT", "n::DECIMAL(18, 2)",
    "TRY_CAST(n AS DOUBLE)", "1::DOUBLE", "lower(n)", "reverse(s)", "1.5", "NULL", "3000000000",
    "1e0", "DATE '2024-01-01'",
]  # fmt: skip
"""Whose types or errors are DuckDB's to find."""


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    source = random.Random(7)
    numbers = [None, 0, 1, 2, -1, 2**31 - 1]
    rows = [
        (
            i, source.choice(TEXTS), source.choice(TEXTS), source.choice(numbers),
            source.choice([*numbers[:5], 2**62]), source.choice([None, 0.0, float("nan"), -1.5]),
            source.choice([None, True, False]),
        )
        for i in range(400)
    ]  # fmt: skip
    with tarsdb.connect(tmp_path_factory.mktemp("scalars") / "s.tars") as db:
        db.execute(CREATE)
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)", rows[:300])
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)", rows[300:])
        yield db


def is_duckdbs(db: tarsdb.Connection, sql: str) -> bool:
    return str(db.execute(f"EXPLAIN {sql}").fetchall()[0][0]).startswith("Relational")


def both(db: tarsdb.Connection, sql: str, parameters: Any = ()) -> list[Any]:
    """Return names, types and rows of a query of ``t``, and of DuckDB for the same."""
    found = []
    for origin in ("t", "(SELECT * FROM t) AS t"):
        cursor = db.execute(sql.format(origin), parameters)
        types = [column[1] for column in cursor.description or ()]
        found.append((types, sorted(map(repr, cursor.fetchall()))))
    return found


@pytest.mark.parametrize("expression", OURS)
def test_beside_duckdb(db: tarsdb.Connection, expression: str) -> None:
    for sql in (
        f"SELECT id, {expression} AS v FROM {{}}",
        f"SELECT {expression} AS v FROM {{}} WHERE id < 7",
    ):
        assert not is_duckdbs(db, sql.format("t"))
        assert is_duckdbs(db, sql.format("(SELECT * FROM t) AS t"))
        ours, theirs = both(db, sql)
        assert ours == theirs


@pytest.mark.parametrize("expression", THEIRS)
def test_left_to_duckdb(db: tarsdb.Connection, expression: str) -> None:
    assert is_duckdbs(db, f"SELECT id, {expression} AS v FROM t")


@pytest.mark.parametrize(
    ("condition", "value"),
    [("s || r = ?", "aAb"), ("length(s) > ?", 1), ("coalesce(s, r) <> ?", ""),
     ("s || r = ?", None), ("s ILIKE ?", "%A%"), ("s ILIKE ?", "\u03c3%"), ("r ILIKE ?", None),
     ("n::DOUBLE > ?", 0.5), ("lower(s) LIKE ?", "a%"),
     ("CASE WHEN n > 0 THEN b ELSE 0 END >= ?", 1)],
)  # fmt: skip
def test_conditions(db: tarsdb.Connection, condition: str, value: Any) -> None:
    ours, theirs = both(db, f"SELECT id FROM {{}} WHERE {condition}", (value,))
    assert ours == theirs
    assert bool(ours[1]) == (value is not None)


def test_no_rows_and_one_row(db: tarsdb.Connection) -> None:
    for where in ("id < 0", "id = 3"):
        ours, theirs = both(db, f"SELECT length(s), s || r, coalesce(n, 1) FROM {{}} WHERE {where}")
        assert ours == theirs


def test_aggregates_of_them(db: tarsdb.Connection) -> None:
    ours, theirs = both(db, "SELECT sum(length(s)), max(length(r)), count(s || r) FROM {}")
    assert ours == theirs


def test_errors_of_rows_not_reached(db: tarsdb.Connection) -> None:
    """A branch that would overflow is not evaluated for the rows of another."""
    sql = "SELECT CASE WHEN b > 2000000000 THEN 0 ELSE b * 4 END FROM t"
    assert len(db.execute(sql).fetchall()) == 400
    with pytest.raises(errors.DataError):
        db.execute("SELECT b * 4 FROM t").fetchall()


def test_no_letters_but_asciis(db: tarsdb.Connection) -> None:
    """Where all letters are ASCII's they change here, the others as DuckDB does it."""
    for function in ("lower", "upper"):
        sql = f"SELECT id, {function}(s), {function}(r || 'zZ@[`{{{{') FROM {{}}"
        ours, theirs = both(
            db, sql + " WHERE length(s) < 3 AND s <> '\u00df' AND s <> '\u0130' AND r < '~'"
        )
        assert ours == theirs
        assert len(ours[1]) > 5


@pytest.mark.parametrize("name", ["lower", "upper"])
def test_case_of_every_code_point(name: str) -> None:
    every = [chr(i) for i in range(1, sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    sql = f"SELECT list({name}(c)) FROM (SELECT unnest($1::VARCHAR[]) AS c)"
    for texts in (every[:127], [None, *every[:127], None], every, []):
        ours = text_function(name, [from_list(TEXT, texts)], TEXT, in_case).to_list()
        assert ours == (duckdb.execute(sql, [texts]).fetchall()[0][0] or [])


def test_length_of_every_code_point() -> None:
    every = [chr(i) for i in range(1, sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    plain = text_function("length", [from_list(TEXT, ["", "ab", None, "c" * 300])], BIGINT, in_case)
    assert plain.to_list() == [0, 2, None, 300]
    ours = text_function("length", [from_list(TEXT, [*every, *TEXTS])], BIGINT, in_case).to_list()
    sql = "SELECT list(length(c)) FROM (SELECT unnest($1::VARCHAR[]) AS c)"
    assert ours == duckdb.execute(sql, [[*every, *TEXTS]]).fetchall()[0][0]
