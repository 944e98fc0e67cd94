"""INSERT, UPDATE, DELETE, ON CONFLICT, generated columns, ALTER TABLE, odd names."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb import errors


@pytest.fixture
def db() -> Iterator[tarsdb.Connection]:
    with tarsdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t (a INT, b INT, c TEXT DEFAULT 'd', n INT DEFAULT 5, "
            "at TIMESTAMP DEFAULT now(), u UUID DEFAULT uuid(), "
            "PRIMARY KEY (a, b), UNIQUE (c, n), CHECK (n > 0))"
        )
        connection.execute("INSERT INTO t (a, b, c) VALUES (1, 1, 'x'), (1, 2, 'y')")
        yield connection


def rows(db: tarsdb.Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, *parameters).fetchall()


CONFLICTS = [
    ("(1, 1, 'q') ON CONFLICT DO NOTHING", []),
    ("(9, 9, 'y') ON CONFLICT DO NOTHING", []),
    ("(1, 1, 'q'), (2, 1, 'z') ON CONFLICT (a, b) DO UPDATE SET c = excluded.c, n = t.n + 1",
     [(1, 1, "q", 6), (2, 1, "z", 5)]),
    ("(1, 1, 'k') ON CONFLICT (b, a) DO UPDATE SET c = 'w' WHERE t.n > 100", []),
    ("(1, 1, 'k') ON CONFLICT (a, b) DO UPDATE SET c = upper(excluded.c || t.c)",
     [(1, 1, "KX", 5)]),
    ("(3, 3, 'k'), (3, 3, 'l') ON CONFLICT (a, b) DO UPDATE SET c = excluded.c",
     [(3, 3, "k", 5), (3, 3, "l", 5)]),
    ("(3, 3, 'k'), (3, 3, 'l') ON CONFLICT DO NOTHING", [(3, 3, "k", 5)]),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), CONFLICTS)
def test_on_conflict(db: tarsdb.Connection, values: str, expected: list[Any]) -> None:
    sql = f"INSERT INTO t (a, b, c) VALUES {values} RETURNING a, b, c, n"
    assert rows(db, sql) == expected
    assert rows(db, "PRAGMA integrity_check") == [("ok",)]


def test_or_replace_and_or_ignore(db: tarsdb.Connection) -> None:
    replaced = "INSERT OR REPLACE INTO t (a, b, c) VALUES (1, 1, 'new') RETURNING c, n"
    assert rows(db, replaced) == [("new", 5)]
    cursor = db.execute("INSERT OR IGNORE INTO t (a, b, c) VALUES (1, 2, 'i'), (8, 8, 'k')")
    assert cursor.rowcount == 1
    assert rows(db, "SELECT c FROM t ORDER BY a, b") == [("new",), ("y",), ("k",)]


@pytest.mark.parametrize(
    ("sql", "kind", "words"),
    [
        ("INSERT INTO t (a, b, c) VALUES (9, 9, 'y')", errors.IntegrityError, "t_c_n_key"),
        ("INSERT INTO t (a, b, n) VALUES (9, 9, 0)", errors.IntegrityError, "n > 0"),
        ("INSERT INTO t (a, b) VALUES (NULL, 9)", errors.IntegrityError, "t.a"),
        ("INSERT INTO t (a, b, c) VALUES (4, 4, 's'), (4, 4, 'r')", errors.IntegrityError, "4, 4"),
        ("INSERT INTO t DEFAULT VALUES", errors.IntegrityError, "t.a"),
        ("INSERT INTO t (a, a) VALUES (1, 2)", errors.BindError, "twice"),
        ("INSERT INTO t (a, b) VALUES (1)", errors.BindError, "1 values"),
        ("INSERT INTO t (a, zz) VALUES (1, 2)", errors.BindError, "zz"),
        ("INSERT INTO t SELECT 5, 6", errors.DataError, "6 columns"),
        ("INSERT INTO t (a, b) SELECT 5, 'x'", errors.DataError, "column b"),
        ("UPDATE t SET a = NULL", errors.IntegrityError, "t.a"),
        ("UPDATE t SET n = n - 9", errors.IntegrityError, "CHECK"),
        ("UPDATE t SET a = 7, b = 7", errors.IntegrityError, "7, 7"),
        ("UPDATE t SET n = s.x FROM (VALUES (1), (2)) s(x)", errors.IntegrityError, "more than"),
        ("UPDATE t SET a = 2147483647 + b", errors.DataError, ""),
        ("DELETE FROM nope", errors.ProgrammingError, "nope"),
    ],
)
def test_a_refused_write_changes_nothing(
    db: tarsdb.Connection, sql: str, kind: type[Exception], words: str
) -> None:
    before = rows(db, "SELECT * FROM t ORDER BY a, b")
    for inside in (False, True):
        if inside:
            db.execute("BEGIN")
        with pytest.raises(kind) as caught:
            db.execute(sql)
        assert words in str(caught.value)
        assert rows(db, "SELECT * FROM t ORDER BY a, b") == before
    db.execute("COMMIT")
    assert rows(db, "PRAGMA integrity_check") == [("ok",)]


def test_update_forms(db: tarsdb.Connection) -> None:
    assert db.execute("UPDATE t SET b = b + 1").rowcount == 2  # keys move through each other
    assert rows(db, "SELECT b FROM t ORDER BY b") == [(2,), (3,)]
    sql = "UPDATE t SET n = s.m FROM (VALUES (2, 77)) s(b, m) WHERE t.b = s.b RETURNING t.b, t.n"
    assert rows(db, sql) == [(2, 77)]
    assert rows(db, "UPDATE t SET c = DEFAULT, n = 1 WHERE b = 2 RETURNING c, n") == [("d", 1)]
    assert rows(db, "UPDATE t AS q SET n = q.n + 1 WHERE q.b = 2 RETURNING q.n") == [(2,)]
    assert rows(db, "UPDATE t SET (n, c) = (3, 'z') WHERE b = 2 RETURNING n, c") == [(3, "z")]
    assert rows(db, "UPDATE t SET n = (SELECT max(n) FROM t) + ? RETURNING n", (1,)) == [(6,), (6,)]
    assert db.execute("UPDATE t SET n = 9 WHERE FALSE").rowcount == 0


def test_delete_forms(db: tarsdb.Connection) -> None:
    db.execute("INSERT INTO t (a, b, c) SELECT i, i, i::TEXT FROM range(10, 20) r(i)")
    gone = "DELETE FROM t USING (VALUES (10), (11)) s(a) WHERE t.a = s.a RETURNING t.a"
    assert sorted(rows(db, gone)) == [(10,), (11,)]
    assert rows(db, "DELETE FROM t WHERE a IN (SELECT max(a) FROM t) RETURNING a") == [(19,)]
    assert db.execute("DELETE FROM t WHERE a = ?", (12,)).rowcount == 1
    assert db.execute("DELETE FROM t").rowcount == 8
    assert rows(db, "SELECT count(*) FROM t") == [(0,)]


def test_insert_select_from_itself_sees_the_rows_before(db: tarsdb.Connection) -> None:
    for _ in range(3):
        db.execute("INSERT INTO t (a, b, c, n) SELECT a + 100, b, c || '!', n FROM t WHERE a < 100")
        db.execute("UPDATE t SET a = a + 1000 WHERE a >= 100 AND a < 1000")
        db.execute(
            "UPDATE t SET c = c || '.' WHERE a >= 1000; UPDATE t SET a = a + 1 WHERE a > 999"
        )
    assert rows(db, "SELECT count(*) FROM t") == [(8,)]


def test_defaults(db: tarsdb.Connection) -> None:
    found = rows(db, "SELECT at, u, n FROM t")
    assert len({u for _, u, _ in found}) == 2 and all(isinstance(u, uuid.UUID) for _, u, _ in found)
    assert all(isinstance(at, dt.datetime) for at, _, _ in found)
    db.execute("INSERT INTO t VALUES (5, 5, DEFAULT, 6, '2020-01-01', DEFAULT)")
    assert rows(db, "SELECT c, at FROM t WHERE a = 5") == [("d", dt.datetime(2020, 1, 1))]


@pytest.fixture
def made() -> Iterator[tarsdb.Connection]:
    """A table with generated columns, one of them by a sandboxed function."""
    body = "(i32.mul (local.get 0) (i32.const 2))"
    twice = f'(module (func (export "twice") (param i32) (result i32) {body}))'
    with tarsdb.connect() as db:
        db.execute(f"CREATE FUNCTION twice(n INT) RETURNS INT LANGUAGE wasm AS '{twice}'")
        db.execute(
            "CREATE TABLE g (a INT, b INT, s INT GENERATED ALWAYS AS (a + b) STORED, "
            "d INT GENERATED ALWAYS AS (twice(a)) STORED, x TEXT AS (upper('x' || a)) STORED, "
            "CHECK (s < 100))"
        )
        db.execute("INSERT INTO g (a, b) VALUES (1, 2), (3, NULL)")
        yield db


def calls(db: tarsdb.Connection) -> float:
    """Return how many rows sandboxed functions have computed in this process."""
    return float(rows(db, "SELECT value FROM tars_metrics WHERE name = 'udf_rows'")[0][0])


def test_generated_columns_follow_their_sources_only(made: tarsdb.Connection) -> None:
    db = made
    assert rows(db, "SELECT * FROM g ORDER BY a") == [(1, 2, 3, 2, "X1"), (3, None, None, 6, "X3")]
    before = calls(db)
    db.execute("UPDATE g SET b = 5 WHERE a = 1")
    assert calls(db) == before
    assert rows(db, "UPDATE g SET a = 10 WHERE a = 1 RETURNING *") == [(10, 5, 15, 20, "X10")]
    assert calls(db) == before + 1
    assert rows(db, "INSERT INTO g VALUES (4, 4) RETURNING s, d") == [(8, 8)]
    for sql in ("INSERT INTO g (a, s) VALUES (1, 2)", "UPDATE g SET s = 1"):
        with pytest.raises(errors.BindError, match="generated"):
            db.execute(sql)
    with pytest.raises(errors.IntegrityError, match="s < 100"):
        db.execute("UPDATE g SET b = 200")


@pytest.mark.parametrize(
    "columns",
    [
        "a INT GENERATED ALWAYS AS (b) STORED, b INT GENERATED ALWAYS AS (a) STORED",
        "a INT GENERATED ALWAYS AS (a) STORED", "a INT DEFAULT b, b INT",
        "a INT, b INT GENERATED ALWAYS AS (nope) STORED", "a INT CHECK (zz > 1)", "a INT, A INT",
        "rowid INT", "__no INT", "__R0 INT", "a INT PRIMARY KEY, b INT PRIMARY KEY", "a FOO",
        "a VECTOR",
        "a INT PRIMARY KEY, PRIMARY KEY (a)", "a INT, PRIMARY KEY (zz)", "v VECTOR(2) UNIQUE",
        "a DECIMAL(50, 2)", "v VECTOR(0)", "",
    ],
)  # fmt: skip
def test_tables_that_cannot_be(db: tarsdb.Connection, columns: str) -> None:
    with pytest.raises(errors.ProgrammingError):
        db.execute(f"CREATE TABLE bad ({columns})")
    assert [name for name, *_ in rows(db, "SHOW TABLES")] == ["t"]
    with pytest.raises(errors.CatalogError, match="tars_"):
        db.execute("CREATE TABLE tars_tables (a INT)")


def test_alter_table(made: tarsdb.Connection) -> None:
    db = made
    for refused in ("DROP COLUMN a", "RENAME COLUMN a TO b", "ADD COLUMN e INT NOT NULL",
                    "ADD COLUMN e INT DEFAULT 0 CHECK (e > 0)", "ADD COLUMN a INT",
                    "ADD COLUMN e INT UNIQUE", "DROP COLUMN nope", "RENAME TO tars_x"):  # fmt: skip
        with pytest.raises(errors.DatabaseError):
            db.execute(f"ALTER TABLE g {refused}")
    db.execute("ALTER TABLE g ADD COLUMN e INT NOT NULL DEFAULT 4 CHECK (e > 0)")
    db.execute("ALTER TABLE g ADD COLUMN h UUID DEFAULT uuid()")
    db.execute("ALTER TABLE g ADD COLUMN v VECTOR(2) DEFAULT '[1, 2]'")
    db.execute("ALTER TABLE g ADD COLUMN f INT GENERATED ALWAYS AS (a * 3) STORED")
    assert rows(db, "SELECT e, f FROM g ORDER BY a") == [(4, 3), (4, 9)]
    assert rows(db, "SELECT count(DISTINCT h) FROM g") == [(2,)]
    assert rows(db, "SELECT a FROM g ORDER BY v <-> '[1,2]', a LIMIT 1") == [(1,)]
    with pytest.raises(errors.IntegrityError):
        db.execute("UPDATE g SET e = 0")
    db.execute("ALTER TABLE g ADD COLUMN k INT; CREATE INDEX gk ON g (k); UPDATE g SET k = a")
    db.execute('ALTER TABLE g RENAME COLUMN k TO "K k"; ALTER TABLE g RENAME TO "G g"')
    db.execute('INSERT INTO "g G" (a, b, "k K") VALUES (7, 7, 9)')
    assert rows(db, 'SELECT a FROM "G g" WHERE "K K" = 9') == [(7,)]
    db.execute('ALTER TABLE "G g" RENAME TO "g g"; ALTER TABLE "g g" DROP COLUMN v')
    assert rows(db, 'SELECT count(*) FROM "G G"') == [(3,)]
    assert rows(db, "SELECT table_name, columns FROM tars_indexes") == [("g g", "K k")]
    with pytest.raises(errors.CatalogError, match="gk"):
        db.execute('ALTER TABLE "g g" DROP COLUMN "K k"')
    db.execute('DROP INDEX gk; ALTER TABLE "g g" DROP COLUMN "K k"; OPTIMIZE "g g"')
    assert rows(db, 'SELECT a, b, e, f FROM "g g" WHERE a = 7') == [(7, 7, 4, 21)]
    assert rows(db, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("name", ["select", "a b", 'q"q', "ünï", "x'y", "a.b", "1", "Table", "__x"])
def test_any_name_can_be_quoted(name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    with tarsdb.connect() as db:
        db.execute(f"CREATE TABLE {quoted} ({quoted} INT PRIMARY KEY, other INT)")
        db.execute(f"INSERT INTO {quoted} ({quoted}) VALUES (1), (2)")
        db.execute(f"UPDATE {quoted} SET {quoted} = {quoted} + 2 WHERE {quoted} = 1")
        db.execute(f"UPDATE {quoted} SET {quoted} = abs({quoted}) WHERE abs({quoted}) = 2")
        assert rows(db, f"SELECT {quoted} FROM {quoted} WHERE {quoted} = 3") == [(3,)]
        twice = f"SELECT x.{quoted} FROM {quoted} x JOIN {quoted} y USING ({quoted}) ORDER BY 1"
        assert rows(db, twice) == [(2,), (3,)]
        assert rows(db, f"SELECT {quoted}.{quoted} FROM {quoted} GROUP BY 1 ORDER BY 1") == [
            (2,),
            (3,),
        ]
        assert rows(db, f"DELETE FROM {quoted} WHERE {quoted} = 2 RETURNING {quoted}") == [(2,)]
        assert rows(db, f"DESCRIBE {quoted}")[0][0] == name
        db.execute(f"DROP TABLE {quoted}")


def test_names_ignore_case(db: tarsdb.Connection) -> None:
    assert rows(db, "select A, B from T where C = 'x'") == [(1, 1)]
    assert rows(db, 'SELECT "A" FROM "T" GROUP BY "A"') == [(1,)]
    with pytest.raises(errors.CatalogError):
        db.execute("CREATE TABLE T (a INT)")


def test_tables_from_queries(db: tarsdb.Connection) -> None:
    sql = (
        "CREATE TABLE n AS SELECT 1 AS a, 'x' AS b, [1, 2] AS c, 1.5 AS d, NULL AS e, {'k': 1} AS f"
    )
    assert db.execute(sql).rowcount == 1
    assert [kind for _, kind, *_ in rows(db, "DESCRIBE n")] == [
        "INT", "TEXT", "INT[]", "DECIMAL(2,1)", "TEXT", "JSON"]  # fmt: skip
    db.execute("CREATE OR REPLACE TABLE n AS SELECT count(*), 1 + 1 FROM t WHERE FALSE")
    assert rows(db, "SELECT * FROM n") == [(0, 2)]
    db.execute("CREATE TABLE IF NOT EXISTS n (z INT)")
    with pytest.raises(errors.CatalogError, match="twice"):
        db.execute("CREATE TABLE m AS SELECT 1 AS a, 2 AS a")


def test_executemany_forms(db: tarsdb.Connection) -> None:
    insert = "INSERT INTO t (a, b, c) VALUES (?, ?, ?)"
    assert db.executemany(insert, ((i, i, str(i)) for i in range(100, 5100))).rowcount == 5000
    assert db.executemany("UPDATE t SET n = ? WHERE a = ?", [(9, 100), (8, 101)]).rowcount == 2
    assert db.executemany("DELETE FROM t WHERE a = ?", iter([(100,), (101,)])).rowcount == 2
    named = [{"a": 1, "c": "p"}, {"c": "q", "a": 2}]
    db.executemany("INSERT INTO t (a, b, c) VALUES (:a, 77, :c)", named)
    assert rows(db, "SELECT a, c FROM t WHERE b = 77 ORDER BY a") == [(1, "p"), (2, "q")]
    assert db.executemany(insert, []).rowcount == 0
    arrays = np.arange(6000, 6006).reshape(3, 2)
    db.executemany("INSERT INTO t (a, b, c) VALUES (?, ?, uuid()::TEXT)", arrays.tolist())
    for wrong in (
        5,
        "ab",
        [(1, 2)],
        [(1, 2, "x", 4)],
        [(1, 2, "a"), (3,)],
        [5],
        [None],
        ["ab"],
        [{}],
    ):
        before = rows(db, "SELECT count(*) FROM t")
        with pytest.raises(errors.Error):
            db.executemany(insert, wrong)  # type: ignore[arg-type]
        assert rows(db, "SELECT count(*) FROM t") == before
    with pytest.raises(errors.ProgrammingError):
        db.executemany("SELECT ?", [(1,)])
    with pytest.raises(errors.ProgrammingError):
        db.executemany("SELECT 1; SELECT 2", [(1,)])


@pytest.mark.parametrize(
    "sql", ["SELECT ?", "SELECT a FROM t WHERE a = ?", "DELETE FROM t WHERE a = ?"]
)
@pytest.mark.parametrize("parameters", [(), (1, 2), {"x": 1}, "ab", 5, None])
def test_wrong_numbers_of_parameters(db: tarsdb.Connection, sql: str, parameters: Any) -> None:
    with pytest.raises(errors.Error):
        db.execute(sql, parameters)
    assert rows(db, "SELECT count(*) FROM t") == [(2,)]


def test_scripts_comments_and_empty_statements(db: tarsdb.Connection) -> None:
    script = "-- one;\nSELECT 1; /* two; */ SELECT ';' AS s;; \n SELECT 3 -- end;"
    assert rows(db, script) == [(3,)]
    for empty in ("", ";", " ;; ", "-- nothing", "/* nothing */"):
        with contextlib.suppress(errors.SQLSyntaxError):
            assert db.execute(empty).description is None
    with pytest.raises(errors.ProgrammingError):
        db.execute("SELECT ?; SELECT ?", (1,))
    with pytest.raises(errors.BindError):
        db.execute("INSERT INTO t (a, b, c) VALUES (3, 3, 's'); SELECT nope FROM t")
    assert rows(db, "SELECT count(*) FROM t") == [(3,)]  # each statement commits by itself


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("BIGINT", "'abc'", "'abc'"), ("INT", "3000000000", "3000000000"),
        ("INT", "-3000000000", "-3000000000"), ("DATE", "'x'", "'x'"), ("UUID", "'x'", "'x'"),
        ("BOOLEAN", "'maybe'", "'maybe'"), ("DECIMAL(5,2)", "12345.678", "12345.678"),
        ("TIMESTAMP", "'noon'", "'noon'"),
    ],
)  # fmt: skip
def test_a_constant_that_does_not_fit_names_its_column(column: str, value: str, shown: str) -> None:
    with tarsdb.connect(":memory:") as db:
        db.execute(f"CREATE TABLE u (a INT, b {column})")
        for rows_text in (f"(1, {value})", f"(1, NULL), (2, {value})"):
            words = re.escape(f"column b: {shown} is not a {column}")
            with pytest.raises(errors.DataError, match=words):
                db.execute(f"INSERT INTO u VALUES {rows_text}")
        assert rows(db, "SELECT count(*) FROM u") == [(0,)]


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("UPDATE r SET n = 1 WHERE id = 5 RETURNING id, n + 1 AS m", ["id", "m"]),
        ("UPDATE r SET n = 1 WHERE n = 5 RETURNING *", ["id", "n", "word"]),
        ("UPDATE r SET n = k FROM (SELECT 7 AS k) s WHERE r.id = s.k RETURNING r.id", ["id"]),
        ("UPDATE r SET n = 1 WHERE id = 5 RETURNING upper(word) AS w", ["w"]),
        ("DELETE FROM r WHERE id = 5 RETURNING id", ["id"]),
        ("DELETE FROM r WHERE n = 5 RETURNING *", ["id", "n", "word"]),
        ("INSERT INTO r SELECT 5, 5, 'a' WHERE false RETURNING word", ["word"]),
        ("INSERT INTO r VALUES (1, 1, 'a') ON CONFLICT DO NOTHING RETURNING id", ["id"]),
    ],
)
def test_returning_of_no_rows(sql: str, names: list[str]) -> None:
    """A statement that finds nothing answers with no rows, as one that finds some with rows."""
    with tarsdb.connect(":memory:") as db:
        db.execute("CREATE TABLE r (id INT PRIMARY KEY, n INT, word TEXT)")
        db.execute("INSERT INTO r VALUES (1, 2, 'x')")
        cursor = db.execute(sql)
        assert cursor.description is not None
        assert [column[0] for column in cursor.description] == names
        assert cursor.rowcount == 0
        assert cursor.fetchone() is None
        assert cursor.fetchall() == []
        with pytest.raises(tarsdb.InterfaceError, match="returned no rows"):
            db.execute(sql[: sql.index(" RETURNING")]).fetchone()
