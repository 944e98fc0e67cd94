"""ORDER BY of columns: read from an index or sorted, the rows are DuckDB's."""

from __future__ import annotations

import datetime as dt
import itertools
import pathlib
import random
from typing import Any

import duckdb
import pytest

import tarsdb

COLUMNS = {
    "id": "INT PRIMARY KEY", "a": "INT", "b": "BIGINT NOT NULL", "c": "SMALLINT", "f": "REAL",
    "g": "DOUBLE", "d": "DATE", "ts": "TIMESTAMP", "flag": "BOOLEAN", "s": "TEXT",
}  # fmt: skip
INDEXES = (
    "CREATE INDEX of_a ON t (a)", "CREATE INDEX of_b ON t (b)", "CREATE INDEX of_ts ON t (ts)",
    "CREATE INDEX of_g ON t (g)", "CREATE INDEX of_s_a ON t (s, a)",
    "CREATE INDEX of_c_s_ts ON t (c, s, ts)",
)  # fmt: skip
ROWS = 1500
TAILS = ("", " LIMIT 7", " LIMIT 5 OFFSET 3", " LIMIT 1200", " OFFSET 1350", " LIMIT 0")
CONDITIONS = (
    "", "b > 900", "a BETWEEN 3 AND 9", "s = 'w3'", "s = 'w3' AND a > 4", "c = 4 AND s = 'w1'",
    "c = 4 AND s = 'w1' AND ts > '2020-06-01'", "g < 0.2", "a IS NULL", "s = 'nobody'", "a = 4",
    "b < 500 AND flag",
)  # fmt: skip


def rows(count: int, seed: int) -> list[tuple[Any, ...]]:
    chance = random.Random(seed)

    def perhaps(value: Any) -> Any:
        return None if chance.random() < 0.1 else value

    numbers = (float("nan"), float("inf"), -0.0, 0.0, -1.5, 2.5, float("-inf"))
    start = dt.datetime(2020, 1, 1)
    return [
        (
            i, perhaps(chance.randrange(-5, 20)), chance.randrange(1000),
            perhaps(chance.randrange(-6, 6)), perhaps(chance.choice(numbers)),
            perhaps(chance.random() if chance.random() < 0.9 else chance.choice(numbers)),
            perhaps((start + dt.timedelta(chance.randrange(-4000, 400))).date()),
            perhaps(start + dt.timedelta(seconds=chance.randrange(30_000_000))),
            perhaps(chance.random() < 0.5), perhaps(f"w{chance.randrange(8)}"),
        )
        for i in chance.sample(range(count * 2), count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Any:
    create = f"CREATE TABLE t ({', '.join(f'{n} {kind}' for n, kind in COLUMNS.items())})"
    insert = f"INSERT INTO t VALUES ({', '.join('?' * len(COLUMNS))})"
    with tarsdb.connect(tmp_path_factory.mktemp("o") / "t.tars") as db, duckdb.connect() as other:
        for connection in (db, other):
            connection.execute(create)
            connection.executemany(insert, rows(ROWS, 1))
        for sql in INDEXES:
            db.execute(sql)
        db.execute("DELETE FROM t WHERE id % 11 = 0")
        other.execute("DELETE FROM t WHERE id % 11 = 0")
        yield db, other


def agree(both: tuple[Any, Any], sql: str, is_native: bool = True) -> None:
    ours, theirs = (repr(connection.execute(sql).fetchall()) for connection in both)
    assert ours.replace("-0.0", "0.0") == theirs.replace("-0.0", "0.0"), sql  # they are equal
    plan = both[0].execute(f"EXPLAIN {sql}").fetchall()[0][0]
    assert plan.startswith("Scan t") == is_native, sql


@pytest.mark.parametrize("column", [name for name in COLUMNS if name != "s"])
def test_every_type_in_both_directions(both: tuple[Any, Any], column: str) -> None:
    """What is compared is the order's column: rows of one value may come in any order."""
    directions = ("", " DESC", " NULLS FIRST", " DESC NULLS FIRST", " ASC NULLS LAST")
    every = list(itertools.product(directions, TAILS, CONDITIONS))
    for direction, tail, condition in random.Random(column).sample(every, 120):
        where = f" WHERE {condition}" if condition else ""
        agree(both, f"SELECT {column} FROM t{where} ORDER BY {column}{direction}{tail}")


@pytest.mark.parametrize(
    "first", ["a", "f", "flag", "d DESC", "g DESC NULLS FIRST", "c NULLS FIRST"]
)
def test_ties_are_for_the_next_column(both: tuple[Any, Any], first: str) -> None:
    every = list(itertools.product(TAILS, CONDITIONS))
    for tail, condition in random.Random(first).sample(every, 30):
        where = f" WHERE {condition}" if condition else ""
        agree(both, f"SELECT * EXCLUDE (s) FROM t{where} ORDER BY {first}, id DESC{tail}", False)
        agree(both, f"SELECT id, ts, s FROM t{where} ORDER BY {first}, b, id{tail}")


def test_names_are_aliases_before_columns_and_numbers_are_places(both: tuple[Any, Any]) -> None:
    for order in ("a", "2 DESC", "x", "t.a", "1, 2", "b DESC, 1"):
        agree(both, f"SELECT id AS a, b, a + 1 AS x FROM t ORDER BY {order}, t.id LIMIT 9",
              is_native=order != "x")  # fmt: skip
    agree(both, "SELECT id FROM t ORDER BY s, id LIMIT 5", is_native=False)
    agree(both, "SELECT id FROM t ORDER BY a + b, id LIMIT 5", is_native=False)
    with pytest.raises(tarsdb.Error):
        both[0].execute("SELECT id FROM t ORDER BY 2")


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        ("ORDER BY id DESC LIMIT 5", "t_pkey"),
        ("ORDER BY b LIMIT 5", "of_b"),
        ("WHERE s = 'w3' ORDER BY a DESC LIMIT 5", "of_s_a"),
        ("WHERE c = 4 AND s = 'w1' AND ts > '2020-06-01' ORDER BY ts DESC", "of_c_s_ts"),
        ("WHERE ts > '2020-06-01' ORDER BY ts LIMIT 20", "of_ts"),
    ],
)
def test_an_index_gives_the_order(both: tuple[Any, Any], sql: str, index: str) -> None:
    lines = [line for (line,) in both[0].execute(f"EXPLAIN SELECT id FROM t {sql}").fetchall()]
    assert lines[-1] == f"access: index {index} (order)"


@pytest.mark.parametrize(
    "sql",
    ["ORDER BY d LIMIT 5", "WHERE flag ORDER BY b LIMIT 5", "WHERE a = 3 ORDER BY b LIMIT 5",
     "ORDER BY b, id LIMIT 5"],
)  # fmt: skip
def test_where_none_has_it_rows_are_sorted(both: tuple[Any, Any], sql: str) -> None:
    lines = [line for (line,) in both[0].execute(f"EXPLAIN SELECT id FROM t {sql}").fetchall()]
    assert "(order)" not in lines[-1]


def test_a_transaction_sees_its_own_rows_in_order(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT)")
        db.execute("CREATE INDEX of_n ON t (n)")
        db.execute("INSERT INTO t (n) SELECT i % 50 FROM range(2000) r(i)")
        newest = "SELECT id FROM t ORDER BY id DESC LIMIT 2"
        largest = "SELECT n FROM t ORDER BY n DESC LIMIT 2"
        with db.transaction():
            db.execute("INSERT INTO t VALUES (5000, 777)")
            db.execute("DELETE FROM t WHERE id = 2000")
            db.execute("UPDATE t SET n = 888 WHERE id = 3")
            assert db.execute(newest).fetchall() == [(5000,), (1999,)]
            assert db.execute(largest).fetchall() == [(888,), (777,)]
        assert db.execute(newest).fetchall() == [(5000,), (1999,)]
        assert db.execute(largest).fetchall() == [(888,), (777,)]


def test_ties_are_the_same_by_index_and_by_sorting(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INT NOT NULL)")
        db.execute("INSERT INTO t (n) SELECT i % 3 FROM range(5000) r(i)")
        for direction in ("", " DESC"):
            sql = f"SELECT id FROM t ORDER BY n{direction} LIMIT 9 OFFSET 4"
            sorted_rows = db.execute(sql).fetchall()
            db.execute("CREATE INDEX of_n ON t (n)")
            assert "(order)" in str(db.execute(f"EXPLAIN {sql}").fetchall())
            assert db.execute(sql).fetchall() == sorted_rows
            db.execute("DROP INDEX of_n")


def test_null_order_of_the_connection_holds(both: tuple[Any, Any]) -> None:
    db, _ = both
    db.execute("SET default_null_order = 'nulls_first'")
    try:
        assert db.execute("SELECT a FROM t ORDER BY a LIMIT 1").fetchall() == [(None,)]
    finally:
        db.execute("RESET default_null_order")
    assert db.execute("SELECT a FROM t ORDER BY a LIMIT 1").fetchall() == [(-5,)]


def test_aggregates_of_what_an_index_finds(both: tuple[Any, Any]) -> None:
    for condition in CONDITIONS:
        where = f" WHERE {condition}" if condition else ""
        for column in COLUMNS:
            sql = f"SELECT min({column}), max({column}), count(*), count({column}) FROM t{where}"
            ours, theirs = (repr(connection.execute(sql).fetchall()) for connection in both)
            assert ours.replace("-0.0", "0.0") == theirs.replace("-0.0", "0.0"), sql
            for function in ("min", "max"):
                one = f"SELECT {function}({column}) FROM t{where}"
                ours, theirs = (repr(connection.execute(one).fetchall()) for connection in both)
                assert ours.replace("-0.0", "0.0") == theirs.replace("-0.0", "0.0"), one
        one = f"SELECT count(*), count(*) AS again FROM t{where}"
        assert both[0].execute(one).fetchall() == both[1].execute(one).fetchall()


def test_a_limit_reads_no_more_than_it_needs(both: tuple[Any, Any]) -> None:
    for sql in (
        "a = 4 LIMIT 3",
        "a = 4 LIMIT 3 OFFSET 2",
        "b > 990 LIMIT 4",
        "a IN (3, 4) LIMIT 5",
    ):
        found = both[0].execute(f"SELECT id, a FROM t WHERE {sql}").fetchall()
        every = both[0].execute(f"SELECT id, a FROM t WHERE {sql.split(' LIMIT')[0]}").fetchall()
        skip = int(sql.split("OFFSET")[1]) if "OFFSET" in sql else 0
        assert found == every[skip : skip + len(found)]
        assert len(found) == int(sql.split("LIMIT")[1].split()[0])


def test_long_keys_are_whole_or_not_used(tmp_path: pathlib.Path) -> None:
    """The index shortens keys by bytes; what it then cannot tell is told by the rows."""
    texts = ["\U0001f600" * 150, "\0" * 190, "\0" * 191, "x" * 190, "x" * 500]
    with tarsdb.connect(tmp_path / "t.tars") as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, s TEXT, u TEXT, n INT)")
        db.execute("CREATE INDEX by_s ON t (s)")
        db.execute("CREATE INDEX by_s_n ON t (s, n)")
        db.execute("CREATE INDEX by_s_u_n ON t (s, u, n)")
        rows = [(s, u, i) for s in texts for u in texts for i in range(3)]
        db.executemany("INSERT INTO t (s, u, n) VALUES (?, ?, ?)", rows)
        newest = "SELECT n FROM t WHERE s = ? AND u = ? ORDER BY n DESC LIMIT 2"
        for s in texts:
            assert db.execute("SELECT max(n) FROM t WHERE s = ?", (s,)).fetchall() == [(2,)]
            for u in texts:
                assert db.execute(newest, (s, u)).fetchall() == [(2,), (1,)]
            for op in ("<", "<=", ">", ">="):
                keep = {"<": str.__lt__, "<=": str.__le__, ">": str.__gt__, ">=": str.__ge__}[op]
                expected = 15 * sum(keep(other, s) for other in texts)
                sql = f"SELECT count(*) FROM t WHERE s {op} ?"
                assert db.execute(sql, (s,)).fetchall() == [(expected,)], (op, s[:3])
