"""Native predicates and expressions give what DuckDB gives for the same SQL.

Each statement runs twice on the same rows: as written, which takes the native path, and with a
condition or an output only the relational engine has. An error must meet an error.
"""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import math
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb

D = decimal.Decimal
nan, inf = math.nan, math.inf
ONE = uuid.UUID(int=1)
NOON = dt.datetime(2020, 1, 1, 12)

COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "b": ("BOOLEAN", [True, False, None]),
    "s": ("SMALLINT", [-(2**15), -1, 0, 1, 2, 2**15 - 1, None]),
    "i": ("INT", [-(2**31), -1, 0, 1, 2, 3, 2**31 - 1, None]),
    "l": ("BIGINT", [-(2**63), -(2**53) - 1, 0, 1, 2, 2**53, 2**53 + 1, 2**63 - 1, None]),
    "f": ("REAL", [-inf, -1.5, 0.0, -0.0, 0.1, 1.0, 1e-40, 3.4e38, 2.0**24, inf, nan, None]),
    "d": ("DOUBLE", [-inf, -1e300, -0.0, 0.1, 0.5, 1.0, 2.0**53, 1e300, inf, nan, None]),
    "n": ("DECIMAL(10,2)", [D("-99999999.99"), D("-0.01"), D(0), D("0.10"), D("1.5"), None]),
    "w": ("DECIMAL(38,4)", [D("-9.5"), D(0), D("0.1"), D("1.5"), D("9" * 34), None]),
    "t": ("TEXT", ["", "a", "A", "ä", "ab", "1", "true", "2020-01-01",
                    "\U0001f600", "\uffff", None]),
    "y": ("BLOB", [b"", b"a", b"\xff", None]),
    "da": ("DATE", [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(2020, 1, 1), None]),
    "ti": ("TIME", [dt.time(0), dt.time(1, 2, 3), dt.time(23, 59, 59, 999999), None]),
    "ts": ("TIMESTAMP", [dt.datetime(1, 1, 1), dt.datetime(2020, 1, 1), NOON, None]),
    "tz": ("TIMESTAMPTZ", [dt.datetime(2020, 1, 1, tzinfo=dt.UTC), None]),
    "iv": ("INTERVAL", [dt.timedelta(0), dt.timedelta(1), dt.timedelta(hours=24), None]),
    "u": ("UUID", [ONE, uuid.UUID(int=2**127 + 5), None]),
    "j": ("JSON", ['{"a":1}', "1", '"x"', None]),
}  # fmt: skip
LITERALS = [
    "NULL", "TRUE", "FALSE", "0", "1", "-1", "1.0", "0.1", "-0.01", "1.5", "1e0", "1e300", "1e-1",
    "-1e300", "9007199254740993", "9007199254740992e0", "9223372036854775807", "16777217",
    "9223372036854775808", "-9223372036854775808", "3.4e38", "99999999999999999999999999",
    "''", "'a'", "'1'", "'1.5'", "'true'", "'2020-01-01'", "'2020-1-1'", "'2020-02-30'", "'nan'",
    "'2020-01-01 12:00:00'", "'00000000-0000-0000-0000-000000000001'", "X'61'", "' 1 '",
    "DATE '2020-01-01'", "TIMESTAMP '2020-01-01 12:00:00'", "'01:02:03'", "'1 day'",
]  # fmt: skip
PARAMETERS = [
    None, True, False, 0, 1, -1, 2**31, 2**24 + 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1,
    2**100,
    0.1, 1.0, 1.5, -0.0, nan, inf, -inf, 1e300, 2.0**53, np.float32(0.1), np.int64(1),
    np.bool_(True),
    D("0.1"), D("1.50"), D("0.123456"), D("NaN"), D("-Infinity"), D("1e30"),
    "", "a", "1", "1.5", "2.5", "1.0", "true", "on", " 1 ", "nan", "2020-01-01", "2020-1-1",
    "2020-02-30", "2020-01-01 12:00:00", "2020-01-01T12:00", "20200101", str(ONE), "a\0b",
    b"a", b"", dt.date(2020, 1, 1), dt.datetime(2020, 1, 1), NOON, dt.time(1, 2, 3),
    NOON.replace(tzinfo=dt.UTC), dt.timedelta(days=1), ONE, np.datetime64("2020-01-01"),
    "\U0001f600",
]  # fmt: skip


@pytest.fixture(scope="module")
def db() -> Iterator[tarsdb.Connection]:
    with tarsdb.connect() as connection:
        for name, (sql_type, values) in COLUMNS.items():
            connection.execute(f"CREATE TABLE t_{name} (id INT, c {sql_type})")
            rows = list(enumerate(values))
            connection.executemany(f"INSERT INTO t_{name} VALUES (?, ?)", rows)
        yield connection


def answer(db: tarsdb.Connection, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
    """Return the rows, comparable and sorted, or the word for any error of ours."""
    try:
        rows = db.execute(sql, parameters).fetchall()
    except tarsdb.DatabaseError:
        return "error"
    return sorted([tuple("0.0" if item == 0.0 else repr(item) for item in row) for row in rows])


def both(
    db: tarsdb.Connection, name: str, predicate: str, parameters: tuple[Any, ...] = ()
) -> list[str]:
    """Return what differs between the native and the relational reading of a predicate."""
    sql = f"SELECT id FROM t_{name} WHERE {predicate}"
    native = answer(db, sql, parameters)
    relational = answer(db, f"{sql.replace('WHERE ', 'WHERE (')}) AND abs(1) = 1", parameters)
    if native == relational:
        return []
    return [f"{sql} {parameters!r}: native {native}, relational {relational}"]


@pytest.mark.parametrize("name", COLUMNS)
def test_literals_compare_as_in_duckdb(db: tarsdb.Connection, name: str) -> None:
    wrong: list[str] = []
    for literal in LITERALS:
        for form in ("c = {}", "c < {}", "{} <= c", "c IN ({}, NULL)"):
            wrong += both(db, name, form.format(literal))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", COLUMNS)
def test_parameters_compare_as_in_duckdb(db: tarsdb.Connection, name: str) -> None:
    wrong: list[str] = []
    for value in PARAMETERS:
        for form in ("c = ?", "NOT (c > ?)", "c IN (?)", "c BETWEEN ? AND ?"):
            wrong += both(db, name, form, (value,) * form.count("?"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["b", "i", "l", "f", "d", "n", "t", "da", "ts", "u"])
def test_indexes_find_what_a_scan_finds(name: str) -> None:
    sql_type, values = COLUMNS[name]
    with tarsdb.connect() as db:
        for table in ("plain", "indexed"):
            db.execute(f"CREATE TABLE {table} (id INT, c {sql_type})")
            db.executemany(f"INSERT INTO {table} VALUES (?, ?)", list(enumerate(values)))
        db.execute("CREATE INDEX i ON indexed (c)")
        for value, form in itertools.product(PARAMETERS, ("c = ?", "c >= ?", "c < ?", "c IN (?)")):
            expected = answer(db, f"SELECT id FROM plain WHERE {form}", (value,))
            found = answer(db, f"SELECT id FROM indexed WHERE {form}", (value,))
            assert found == expected, (name, form, value)


def test_columns_compare_as_in_duckdb(db: tarsdb.Connection) -> None:
    values = {
        "s": [None, -1, 0, 2**15 - 1], "i": [None, 0, 2**24 + 1, -1],
        "l": [None, 0, 2**53 + 1, -1], "f": [nan, 0.0, 2.0**24, -1.0],
        "d": [nan, -0.0, 2.0**53, -1.0], "n": [None, D("0.00"), D("-1"), D("1.5")],
        "t": ["a", None, "", "\U0001f600"], "x": ["\uffff", "a", "", "\uffff"],
    }  # fmt: skip
    types = {"s": "SMALLINT", "i": "INT", "l": "BIGINT", "f": "REAL", "d": "DOUBLE",
             "n": "DECIMAL(10,2)", "t": "TEXT", "x": "TEXT"}  # fmt: skip
    listed = ", ".join(f"{name} {types[name]}" for name in values)
    db.execute(f"CREATE OR REPLACE TABLE t_pairs (id INT, {listed})")
    rows = [(k, *row) for k, row in enumerate(itertools.product(*values.values())) if k % 7 == 0]
    db.executemany(f"INSERT INTO t_pairs VALUES ({', '.join('?' * 9)})", rows)
    wrong: list[str] = []
    for left, right in itertools.permutations(values, 2):
        for op in ("=", "<", ">="):
            wrong += both(db, "pairs", f"{left} {op} {right}")
    assert not wrong, "\n".join(w[:300] for w in wrong)


OUTPUTS = [
    "c + 1", "c - 1", "c * 2", "1 - c", "-c", "c + c", "c * c", "c + 3000000000", "c + 1e0",
    "c + 0.1", "c < 1", "c = 1 AND c IS NOT NULL", "c = 1 OR c IS NULL", "NOT (c = 1)", "c IS NULL",
    "c IN (1, 2)", "c IN (1, NULL)", "c BETWEEN 0 AND 2", "c + NULL", "c = NULL",
]  # fmt: skip


@pytest.mark.parametrize("name", ["b", "s", "i", "l", "f", "d", "n"])
@pytest.mark.parametrize("low", ["", " WHERE c > -100 AND c < 100"])
def test_outputs_are_computed_as_in_duckdb(db: tarsdb.Connection, name: str, low: str) -> None:
    for output in OUTPUTS:
        sql = f"SELECT id, {output} AS x FROM t_{name}{low}"
        native, relational = answer(db, sql), answer(db, sql.replace(" AS x", " AS x, abs(1)"))
        if relational != "error":
            relational = [row[:2] for row in relational]
            types = [
                [t[1] for t in db.execute(text).description or []][:2]
                for text in (sql, sql.replace(" AS x", " AS x, abs(1)"))
            ]
            assert types[0] == types[1], sql
        assert native == relational, sql


@pytest.mark.parametrize("name", ["s", "i", "l", "d", "n"])
def test_arithmetic_with_parameters_in_predicates(db: tarsdb.Connection, name: str) -> None:
    wrong: list[str] = []
    for value in (None, 0, 1, 2**31, -1, 0.5, nan, D("0.1"), D("-1.5"), np.int64(2), True, "x"):
        for form in ("c + ? > 1", "c * ? = 2", "? - c <= 0.5", "c + ? = 1.1"):
            sql = f"SELECT id FROM t_{name} WHERE {form} AND c > -100 AND c < 100"
            relational = answer(db, sql + " AND abs(1) = 1", (value,))
            native = answer(db, sql, (value,))
            if relational not in (native, "error"):  # DuckDB may compute c first
                wrong.append(f"{sql} {value!r}: native {native}, relational {relational}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("low", ["", " WHERE id > 0 AND id < 4", " WHERE id < 0"])
def test_aggregates_agree_with_duckdb(db: tarsdb.Connection, name: str, low: str) -> None:
    for call in ("count(*)", "count(c)", "sum(c)", "avg(c)", "min(c)", "max(c)"):
        sql = f"SELECT {call} AS x FROM t_{name}{low}"
        wrapped = f"SELECT {call} AS x, any_value(abs(1)) FROM t_{name}{low}"
        native, relational = answer(db, sql), answer(db, wrapped)
        if relational != "error":
            relational = [row[:1] for row in relational]
            types = [(db.execute(text).description or [])[0][1] for text in (sql, wrapped)]
            assert types[0] == types[1], sql
        assert native == relational, sql


def test_three_valued_logic(db: tarsdb.Connection) -> None:
    db.execute("CREATE OR REPLACE TABLE t_logic (id INT, a BOOLEAN, c BOOLEAN)")
    pairs = list(itertools.product([True, False, None], repeat=2))
    db.executemany("INSERT INTO t_logic VALUES (?, ?, ?)", [(k, *p) for k, p in enumerate(pairs)])
    terms = ["a", "NOT a", "a AND c", "a OR c", "NOT (a AND c)", "NOT (a OR NOT c)", "a = c",
             "a <> c", "a IS NULL OR c", "(a AND c) IS NULL", "NOT (a = c) OR a IS NULL",
             "a AND NULL", "a OR NULL", "NULL", "TRUE", "NOT FALSE", "a IN (c)"]  # fmt: skip
    for term in terms:
        assert both(db, "logic", term) == []
