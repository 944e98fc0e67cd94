"""Statements that users try: each is done, or refused in words that say what is wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

import tarsdb
from tarsdb import errors


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "a.tars") as opened:
        opened.execute("CREATE TABLE t (id INT PRIMARY KEY, s TEXT)")
        opened.execute("INSERT INTO t VALUES (1, 'a'), (2, NULL)")
        yield opened


REFUSED: list[tuple[str, type[errors.Error], str]] = [
    ("SELECT * FROM t FOR SYSTEM_TIME AS OF VERSION 1", errors.NotSupportedError, "SYSTEM_TIME"),
    ("SELECT * FROM t FOR SYSTEM_TIME AS OF TIMESTAMP '2020-01-01'", errors.NotSupportedError,
     "SYSTEM_TIME"),
    ("DESCRIBE FUNCTION f", errors.NotSupportedError, "tars_functions WHERE name = 'f'"),
    ("DESCRIBE MODULE f", errors.NotSupportedError, "tars_modules WHERE name = 'f'"),
    ("SELECT * FROM chunk(s, 2, 1)", errors.BindError, "unnest(chunk(...))"),
    ("SELECT * FROM t, generate('m', s)", errors.BindError, "cannot stand in FROM"),
    ("SET ef_search = 1.5", errors.DataError, "1.5 is not a whole number"),
    ("SET LOCAL threads = 1", errors.NotSupportedError, "SET LOCAL is not supported"),
    ("SET statement_timeout = 1e400", errors.DataError, "inf is not a duration"),
    ("SET lock_timeout = 99999999999999999999", errors.DataError, "is not a duration"),
    ("SET target_recall = 0", errors.DataError, "0.0 is not above 0 and at most 1"),
    ("CREATE FUNCTION f(n INT) RETURNS INT LANGUAGE wasm IMMUTABLE VOLATILE AS '(module)'",
     errors.SQLSyntaxError, "IMMUTABLE already"),
    ("CREATE FUNCTION f(n INT) RETURNS INT LANGUAGE wasm AS '(module)' WITH (rle = 'metric')",
     errors.BindError, "role"),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "kind", "words"), REFUSED)
def test_what_is_refused_is_named(
    db: tarsdb.Connection, sql: str, kind: type[errors.Error], words: str
) -> None:
    with pytest.raises(kind) as caught:
        db.execute(sql)
    assert words in str(caught.value)


@pytest.mark.parametrize("sql", ["SELECT ?", "SELECT s FROM t WHERE id = ?"])
def test_executemany_of_a_query_says_what_it_runs(db: tarsdb.Connection, sql: str) -> None:
    with pytest.raises(errors.ProgrammingError, match="INSERT, UPDATE and DELETE only"):
        db.executemany(sql, [(1,), (2,)])


def test_a_file_that_is_not_there_is_not_made_to_be_read(tmp_path: pathlib.Path) -> None:
    for how in ({"read_only": True}, {"options": tarsdb.OpenOptions(create=False)}):
        options: dict[str, Any] = how
        with pytest.raises(errors.OperationalError, match=r"no such database file.*check the path"):
            tarsdb.connect(tmp_path / "none.tars", **options)
    assert list(tmp_path.iterdir()) == []


def test_copy_takes_the_word_null(db: tarsdb.Connection, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "t.csv"
    db.execute(f"COPY t TO '{path}' (HEADER, DELIMITER '|', NULL 'NA')")
    assert path.read_text() == "id|s\n1|a\n2|NA\n"
    rows = db.execute("SELECT * FROM t").fetchall()
    db.execute("TRUNCATE t")
    db.execute(f"COPY t FROM '{path}' (DELIMITER '|', NULL 'NA')")
    assert db.execute("SELECT * FROM t").fetchall() == rows


def test_switches_are_shown_as_they_are_set(db: tarsdb.Connection) -> None:
    for value in ("on", "off"):
        db.execute(f"SET result_cache = {value}")
        assert db.execute("SHOW result_cache").fetchall() == [(value,)]
        shown = {row[0]: row[1] for row in db.execute("SHOW ALL").fetchall()}
        assert shown["result_cache"] == value
        for name, text in shown.items():
            if name != "isa":
                db.execute(f"SET {name} = '{text}'")
    db.execute("SET statement_timeout = 1000000000000")
    assert db.execute("SELECT count(*) FROM t").fetchall() == [(2,)]
    db.execute("SET ef_search = 2.0")
    assert db.execute("SHOW ef_search").fetchall() == [("2",)]


def test_triggers_are_shown(db: tarsdb.Connection) -> None:
    shown = db.execute("SHOW TRIGGERS")
    read = db.execute("SELECT * EXCLUDE (sql) FROM tars_triggers")
    assert [column[0] for column in shown.description or ()] == [
        column[0] for column in read.description or ()
    ]


def test_a_text_is_the_same_bytes_wherever_it_stands(db: tarsdb.Connection) -> None:
    r"""``\x41`` is one byte, as in DuckDB's casts, which compare a BLOB with a text."""
    db.execute("CREATE TABLE b (n INT PRIMARY KEY, x BLOB)")
    text, whole = r"\x01\x41-\y", pa.table({"n": [5, 6], "x": [r"\x01\x41-", None]})
    db.execute(r"INSERT INTO b VALUES (1, '\x01\x41-')")
    db.execute(r"INSERT INTO b SELECT 2, '\x01\x41-'")
    db.execute("INSERT INTO b VALUES (3, ?)", [r"\x01\x41-"])
    db.execute("INSERT INTO b VALUES (4, X'01412D')")
    db.execute("INSERT INTO b SELECT * FROM whole")
    db.executemany("INSERT INTO b VALUES (?, ?)", [(n, r"\x01\x41-") for n in range(7, 50)])
    db.execute(r"UPDATE b SET x = '\x01\x41-' WHERE n = 6")
    for sql in ("SELECT count(*) FROM b WHERE x = {0}", "SELECT count(*) FROM b WHERE x IN ({0})",
                "SELECT count(*) FROM b, range(1) WHERE x = {0}"):  # fmt: skip
        assert db.execute(sql.format(r"'\x01\x41-'")).fetchone() == (49,)
        assert db.execute(sql.format("X'01412D'")).fetchone() == (49,)
    assert {row[0] for row in db.execute("SELECT x FROM b").fetchall()} == {b"\x01A-"}
    db.execute("INSERT INTO b VALUES (50, ?), (51, ?)", [text, "é"])
    kept = [row[0] for row in db.execute("SELECT x FROM b WHERE n >= 50 ORDER BY n").fetchall()]
    assert kept == [b"\x01A-\\y", "é".encode()]
    del whole


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["'text'", "X'01'"], [b"text", b"\x01"]),
        (["X'01'", "'text'", "NULL"], [b"\x01", b"text", None]),
        ([r"'\x41é'", "X'71'"], ["Aé".encode(), b"q"]),
        ([r"'\x41\y'", "X''"], [rb"A\y", b""]),
        (["'text'", "repeat('ab', 2)"], [b"text", b"abab"]),
    ],
)
@pytest.mark.parametrize("number", ["1", "sqrt(1)"])  # ours, and DuckDB's
def test_texts_and_bytes_in_one_list_of_values(
    db: tarsdb.Connection, cells: list[str], expected: list[bytes | None], number: str
) -> None:
    db.execute("CREATE TABLE b (x BLOB, n INT)")
    values = ", ".join(f"({cell}, {number})" for cell in cells)
    db.execute(f"INSERT INTO b VALUES {values}")
    assert [row[0] for row in db.execute("SELECT x FROM b").fetchall()] == expected
    db.execute("INSERT INTO b VALUES ('text', 2), (?, 2)", [b"q"])
    found = db.execute("SELECT x FROM b WHERE n = 2").fetchall()
    assert found == [(b"text",), (b"q",)]


@pytest.mark.parametrize("bad", [1, 2, 777, 30_000, 60_001])
def test_a_value_that_does_not_fit_is_named_with_its_row(
    db: tarsdb.Connection, tmp_path: pathlib.Path, bad: int
) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{'x' if n in (bad, 60_001) else n + 10},text" for n in range(1, 60_002)]
    path.write_text("id,s\n" + "\n".join(rows) + "\n")
    with pytest.raises(errors.DataError) as caught:
        db.execute(f"COPY t FROM '{path}'")
    assert f"t.csv, row {bad}: column id: 'x' (str) is not a INT" in str(caught.value)
    assert db.execute("SELECT count(*) FROM t").fetchone() == (2,)
