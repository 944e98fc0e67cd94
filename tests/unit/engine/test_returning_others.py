"""RETURNING of UPDATE ... FROM and DELETE ... USING: what it reads of the other tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import BindError


@pytest.fixture
def db() -> Iterator[tarsdb.Connection]:
    with tarsdb.connect() as db:
        db.execute("CREATE TABLE t (a INT PRIMARY KEY, n INT, s TEXT)")
        db.execute("CREATE TABLE o (k INT PRIMARY KEY, b INT, word TEXT, v VECTOR(2), j JSON)")
        db.execute("CREATE TABLE p (k INT PRIMARY KEY, d DATE, x BLOB, f DOUBLE)")
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(i, i, f"s{i}") for i in range(9000)])
        db.executemany(
            "INSERT INTO o VALUES (?, ?, ?, ?, ?)",
            [(i, 10 * i, f"w{i}", [i, 1], f'{{"i": {i}}}') for i in range(0, 9000, 2)],
        )
        db.execute(
            "INSERT INTO p SELECT k, DATE '2020-01-01' + k, encode(word), k / 8.0 FROM o "
            "WHERE k > 90"
        )
        yield db


LISTS = [
    "a, b, n", "o.*, a", "j, v, word, o.k", "upper(word) || s, n + b AS total, o.b * 2",
    "p.d, x, f, p.k + o.k + a", "repeat(word, 2), j, v", "t.a, n, s, d, (SELECT 7) + b",
    "CASE WHEN b > 500 THEN word ELSE s END, word, word", 'b AS "odd name", "word"',
]  # fmt: skip


def plain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(
        (tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in row) for row in rows),
        key=repr,
    )


@pytest.mark.parametrize("items", LISTS)
@pytest.mark.parametrize("where", ["a < 300", "true", "a < 0"])
def test_an_update_returns_what_a_join_shows_afterwards(
    db: tarsdb.Connection, items: str, where: str
) -> None:
    condition = f"WHERE o.k = a AND p.k = a AND {where}"
    changed = db.execute(f"UPDATE t SET n = n + b FROM o, p {condition} RETURNING {items}")
    joined = db.execute(f"SELECT {items} FROM t, o, p {condition}")
    names = [column[0] for column in changed.description or ()]
    assert names == [column[0] for column in joined.description or ()]
    found, expected = plain(changed.fetchall()), plain(joined.fetchall())
    assert found == expected
    assert len(found) == {"a < 300": 104, "true": 4454, "a < 0": 0}[where]


@pytest.mark.parametrize("items", LISTS)
def test_a_delete_returns_what_a_join_showed_before(db: tarsdb.Connection, items: str) -> None:
    condition = "WHERE o.k = a AND p.k = a AND b < 3000"
    expected = plain(db.execute(f"SELECT {items} FROM t, o, p {condition}").fetchall())
    gone = db.execute(f"DELETE FROM t USING o, p {condition} RETURNING {items}")
    assert plain(gone.fetchall()) == expected
    assert len(expected) == 104


@pytest.mark.parametrize(
    "source", ["(SELECT k, b + 1 AS c FROM o) q", "(VALUES (2, 21), (4, 41)) q(k, c)", "q"]
)
def test_columns_of_queries(db: tarsdb.Connection, source: str) -> None:
    start = "WITH q AS (SELECT k, b + 1 AS c FROM o) " if source == "q" else ""
    sql = f"{start}UPDATE t AS y SET n = c FROM {source} WHERE q.k = a AND a IN (2, 4)"
    returned = db.execute(f"{sql} RETURNING y.a, c, q.c * 2 AS d, y.n, upper(y.s)").fetchall()
    assert sorted(returned) == [(2, 21, 42, 21, "S2"), (4, 41, 82, 41, "S4")]


def test_a_row_that_several_name_goes_once(db: tarsdb.Connection) -> None:
    sql = "DELETE FROM t USING (VALUES (2, 'x'), (2, 'x'), (3, 'y')) q(k, w) WHERE k = a"
    assert sorted(db.execute(f"{sql} RETURNING a, w").fetchall()) == [(2, "x"), (3, "y")]


def test_a_star_is_the_changed_table(db: tarsdb.Connection) -> None:
    sql = "UPDATE t SET n = b FROM o WHERE k = a AND a = 4"
    assert db.execute(f"{sql} RETURNING *").fetchall() == [(4, 40, "s4")]
    assert db.execute(f"{sql} RETURNING t.*, word").fetchall() == [(4, 40, "s4", "w4")]
    assert db.execute(f"{sql} RETURNING word, o.k, *").fetchall() == [("w4", 4, 4, 40, "s4")]
    assert db.execute(f"{sql} RETURNING * EXCLUDE (n), word").fetchall() == [(4, "s4", "w4")]
    assert db.execute(f"{sql} RETURNING o.* EXCLUDE (v, J)").fetchall() == [(4, 40, "w4")]
    assert db.execute(f"{sql} RETURNING *, o.* EXCLUDE (v, j, k)").fetchall() == [
        (4, 40, "s4", 40, "w4")
    ]


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("count(*) OVER ()", 1),
        ("(SELECT count(*) FROM o)", 4500),
        ("(SELECT max(k) FROM (SELECT * FROM o) q)", 8998),
        ("(SELECT count(*) FROM (SELECT o.* FROM o))", 4500),
    ],
)
def test_other_stars_are_left_alone(db: tarsdb.Connection, item: str, value: int) -> None:
    sql = "UPDATE t SET n = b FROM o WHERE k = a AND a = 4"
    assert db.execute(f"{sql} RETURNING {item}, word").fetchall() == [(value, "w4")]
    rest = db.execute(f"{sql} RETURNING {item}, word, * EXCLUDE (n)").fetchall()
    assert rest == [(value, "w4", 4, "s4")]


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ("nope", "column 'nope' does not exist in table t at line 1"),
        ("o.nope", "column 'nope' does not exist in table o at line 1"),
        ("q.k", "table 'q' is not in FROM at line 1"),
        ("k", "column 'k' is in o and p at line 1"),
    ],
)
def test_wrong_names(db: tarsdb.Connection, items: str, says: str) -> None:
    for sql in (
        "UPDATE t SET n = 1 FROM o, p WHERE o.k = a",
        "DELETE FROM t USING o, p WHERE true",
    ):
        with pytest.raises(BindError, match=says):
            db.execute(f"{sql} RETURNING {items}")
    assert db.execute("SELECT count(*), sum(n) - sum(a) FROM t").fetchall() == [(9000, 0)]


def test_an_alias_in_any_expression(db: tarsdb.Connection) -> None:
    sql = "UPDATE t AS y SET n = 5 WHERE a = 1 RETURNING repeat(y.s, 2), y.n"
    assert db.execute(sql).fetchall() == [("s1s1", 5)]


@pytest.mark.parametrize("more", ["", " FROM o WHERE k = a RETURNING word"])
def test_a_value_of_several_columns(db: tarsdb.Connection, more: str) -> None:
    with pytest.raises(BindError, match=r"UPDATE t: 1 columns are set, to [0-9] values"):
        db.execute(f"UPDATE t SET n = COLUMNS('a|n') + 1{more}")
    assert db.execute("SELECT sum(n) - sum(a) FROM t").fetchall() == [(0,)]
