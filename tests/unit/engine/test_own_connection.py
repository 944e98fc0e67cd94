"""Edges of the Python interface: functions that use their own connection, names, wrong types."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors
from tarsdb.engine.search import vector_search
from tarsdb.index.flat import FlatIndex


@pytest.fixture
def db() -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE t (id INT PRIMARY KEY, s TEXT)")
        db.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        yield db


USES: list[Callable[[tarsdb.Connection], object]] = [
    lambda db: db.execute("SELECT count(*) FROM t").fetchone(),
    lambda db: db.execute("INSERT INTO t VALUES (3, 'c')"),
    lambda db: db.commit(),
    lambda db: db.rollback(),
    lambda db: db.transaction().__enter__(),
    lambda db: db.create_function("g", len, ["TEXT"], "INT"),
    lambda db: db.generate("m", "x"),
    lambda db: db.close(),
]


@pytest.mark.parametrize("use", USES)
def test_a_function_cannot_wait_for_its_own_statement(
    db: tarsdb.Connection, use: Callable[[tarsdb.Connection], object]
) -> None:
    db.create_function("f", lambda n: use(db) and n, ["INT"], "INT")
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            db.execute("SELECT f(id) FROM t").fetchall()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(raised[0], errors.ProgrammingError)
    assert "cannot use the connection that calls it" in str(raised[0])
    assert db.execute("SELECT count(*) FROM t").fetchall() == [(2,)]


def test_a_function_uses_another_connection(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    with tarsdb.connect(path) as db, tarsdb.connect(path) as other:
        db.execute("CREATE TABLE t (id INT)")
        db.execute("INSERT INTO t VALUES (1), (2)")

        def count(_: int) -> Any:
            return (other.execute("SELECT count(*) FROM t").fetchone() or [None])[0]

        db.create_function("f", count, ["INT"], "BIGINT")
        assert db.execute("SELECT f(id) FROM t").fetchall() == [(2,), (2,)]


def test_parameters_may_come_from_the_same_connection(db: tarsdb.Connection) -> None:
    sets = ((n + 2, str(db.execute("SELECT count(*) FROM t").fetchone())) for n in (1, 2))
    assert db.executemany("INSERT INTO t VALUES (?, ?)", sets).rowcount == 2


def test_names_that_stand_for_two_columns(db: tarsdb.Connection) -> None:
    for sql in ("SELECT 1 AS a, 2 AS a", "SELECT x.id, y.id FROM t x JOIN t y ON x.id = y.id"):
        cursor = db.execute(sql)
        for made in (cursor.numpy, cursor.pl):
            with pytest.raises(errors.ProgrammingError, match="two columns of the result are"):
                made()
        assert cursor.arrow().num_columns == 2
        assert cursor.df().shape[1] == 2
        assert len(cursor.fetchall()[0]) == 2


@pytest.mark.parametrize("size", ["x", 1.5, -1])
def test_fetchmany_takes_a_number(db: tarsdb.Connection, size: Any) -> None:
    cursor = db.execute("SELECT id FROM t")
    with pytest.raises(errors.InterfaceError, match="fetchmany"):
        cursor.fetchmany(size)
    cursor.arraysize = size
    with pytest.raises(errors.InterfaceError, match="fetchmany"):
        cursor.fetchmany()
    assert cursor.fetchmany(5) == [(1,), (2,)]


@pytest.mark.parametrize("sql", ["SELECT '\ud800'", 'SELECT 1 AS "\udfff"', "-- \ud800\nSELECT 1"])
def test_half_characters_are_no_sql(db: tarsdb.Connection, sql: str) -> None:
    with pytest.raises(errors.SQLSyntaxError, match="half of a character"):
        db.execute(sql)
    assert db.execute("SELECT '\U0001f600'").fetchall() == [("\U0001f600",)]


def test_paths_and_options(tmp_path: Path) -> None:
    with tarsdb.connect(bytes(tmp_path / "b.tars")) as db:  # type: ignore[arg-type]
        db.execute("CREATE TABLE t (x INT)")
    with tarsdb.connect(str(tmp_path / "b.tars")) as db:
        assert db.table("t").count() == 0
    with pytest.raises(errors.InterfaceError, match="path"):
        tarsdb.connect(5)  # type: ignore[arg-type]
    with pytest.raises(errors.InterfaceError, match="OpenOptions"):
        tarsdb.connect(":memory:", options={})  # type: ignore[arg-type]


def test_functions_that_cannot_be_registered(db: tarsdb.Connection) -> None:
    with pytest.raises(errors.InterfaceError, match="not 'f' and 5"):
        db.create_function("f", 5, ["INT"], "INT")  # type: ignore[arg-type]
    with pytest.raises(errors.InterfaceError, match="not None"):
        db.create_function(None, len, ["TEXT"], "INT")  # type: ignore[arg-type]
    with pytest.raises(errors.BindError, match="'lower' is built in"):
        db.create_function("lower", str.upper, ["TEXT"], "TEXT")


def test_a_column_stands_once_in_a_key(db: tarsdb.Connection) -> None:
    for sql in (
        "CREATE TABLE u (x INT, PRIMARY KEY (x, x))",
        "CREATE TABLE u (x INT, UNIQUE (x, X))",
        "CREATE INDEX u ON t (s, s)",
    ):
        with pytest.raises(errors.CatalogError, match="named twice"):
            db.execute(sql)


def test_errors_in_stored_expressions_name_no_place_in_another_text(db: tarsdb.Connection) -> None:
    for sql in ("CREATE TABLE u (x INT CHECK (y > 0))", "CREATE TABLE u (x INT DEFAULT y)",
                "CREATE TABLE u (x INT CHECK (SELECT true))"):  # fmt: skip
        with pytest.raises(errors.BindError) as caught:
            db.execute(sql)
        assert "line 1" not in str(caught.value)


def test_syntax_errors_are_in_plain_words(db: tarsdb.Connection) -> None:
    with pytest.raises(errors.SQLSyntaxError) as caught:
        db.execute("SELECT * FROM (INSERT INTO t VALUES (1) RETURNING id)")
    assert "Token" not in str(caught.value)
    assert (caught.value.line, caught.value.column) == (1, 16)


def test_a_batch_of_searches_is_interrupted_between_its_parts(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.execute("CREATE TABLE v (id INT PRIMARY KEY, emb VECTOR(3))")
    db.executemany("INSERT INTO v VALUES (?, ?)", [(n, [n, 1, -n]) for n in range(40)])
    sql = "SELECT id, emb <-> ? AS d FROM v WHERE id <> 4 ORDER BY d LIMIT 3"
    queries = [np.random.default_rng(5).standard_normal((11, 3)).astype(np.float32) * 20]
    whole = db.execute(sql, queries).fetchall()
    monkeypatch.setattr(vector_search, "MIN_QUERIES", 3)
    monkeypatch.setattr(vector_search, "REFERENCE_PRODUCTS", 39 * 3 * 3)
    monkeypatch.setattr(vector_search, "PRODUCTS_AT_ONCE", 1)
    asked: list[int] = []
    search = FlatIndex.search

    def counted(self: FlatIndex, part: np.ndarray, *args: Any, **named: Any) -> Any:
        asked.append(len(part))
        if stops:
            db.interrupt()
        return search(self, part, *args, **named)

    monkeypatch.setattr(FlatIndex, "search", counted)
    stops = False
    assert db.execute(sql, queries).fetchall() == whole
    assert asked == [3, 3, 3, 2]
    stops = True
    with pytest.raises(errors.InterruptError):
        db.execute(sql, queries)
    assert asked == [3, 3, 3, 2, 3]


def test_savepoints_made_after_the_one_that_is_gone_back_to_are_gone(db: tarsdb.Connection) -> None:
    db.execute("BEGIN; SAVEPOINT a; INSERT INTO t VALUES (3, 'c'); SAVEPOINT b; ROLLBACK TO a")
    for sql in ("ROLLBACK TO b", "RELEASE b"):
        with pytest.raises(errors.ProgrammingError, match="savepoint 'b' does not exist"):
            db.execute(sql)
    db.execute("ROLLBACK TO a; COMMIT")
    assert db.table("t").count() == 2


def test_what_ends_a_transaction_block_undoes_it(db: tarsdb.Connection) -> None:
    with pytest.raises(ZeroDivisionError), db.transaction():
        db.execute("INSERT INTO t VALUES (3, 'c')")
        raise ZeroDivisionError
    assert not db.in_transaction
    assert db.table("t").count() == 2
    with db.transaction(), pytest.raises(errors.ProgrammingError, match="open already"):
        db.execute("INSERT INTO t VALUES (3, 'c')")
        db.transaction().__enter__()
    assert db.table("t").count() == 3
