"""The catalog under the names that SQLite and the SQL standard give it."""

from __future__ import annotations

import pathlib
import sqlite3
from collections.abc import Iterator

import pytest

import tarsdb
from tarsdb.errors import BindError, CatalogError, NotSupportedError

ACCEPT = '(module (func (export "ok") (param i64) (result i32) i32.const 1))'
OBJECTS = (
    "CREATE TABLE users (id BIGINT PRIMARY KEY, name TEXT NOT NULL DEFAULT 'x',"
    " n BIGINT GENERATED ALWAYS AS (id * 2) STORED)",
    "CREATE TABLE tables (id INT)",  # a name that information_schema has too
    "CREATE INDEX by_name ON users (name)",
    "CREATE VIEW named AS SELECT name, count(*) AS n FROM users GROUP BY name",
    f"CREATE FUNCTION ok(id BIGINT) RETURNS BOOLEAN LANGUAGE wasm AS $${ACCEPT}$$",
    "CREATE TRIGGER guard BEFORE INSERT ON users CALL ok",
)


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "shop.tars") as connection:
        for sql in OBJECTS:
            connection.execute(sql)
        yield connection


def test_sqlite_master(db: tarsdb.Connection) -> None:
    kinds = db.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY 1, 2").fetchall()
    assert kinds == [
        ("index", "by_name", "users"), ("index", "users_pkey", "users"),
        ("table", "tables", "tables"), ("table", "users", "users"),
        ("trigger", "guard", "users"), ("view", "named", "named"),
    ]  # fmt: skip
    asked = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name=?;"  # pandas
    assert db.execute(asked, ("users",)).fetchall() == [("users",)]
    assert db.execute(asked, ("absent",)).fetchall() == []
    same = db.execute("SELECT * FROM sqlite_schema").fetchall()
    assert same == db.execute("SELECT * FROM sqlite_master").fetchall()


def test_columns_are_those_of_sqlite(db: tarsdb.Connection) -> None:
    theirs = sqlite3.connect(":memory:").execute("SELECT * FROM sqlite_master").description
    ours = db.execute("SELECT * FROM sqlite_master").description
    assert ours is not None
    assert [column[0] for column in ours] == [column[0] for column in theirs]


def test_its_statements_make_the_tables_again(db: tarsdb.Connection) -> None:
    asked = "SELECT sql FROM sqlite_master WHERE type = 'table' ORDER BY name"
    statements = [sql for (sql,) in db.execute(asked).fetchall()]
    with tarsdb.connect(":memory:") as other:
        for sql in statements:
            assert not sql.endswith(";")
            other.execute(sql)
        assert [sql for (sql,) in other.execute(asked).fetchall()] == statements


def test_information_schema(db: tarsdb.Connection) -> None:
    assert db.execute("SELECT * FROM information_schema.tables ORDER BY table_name").fetchall() == [
        ("shop", "main", "named", "VIEW"), ("shop", "main", "tables", "BASE TABLE"),
        ("shop", "main", "users", "BASE TABLE"),
    ]  # fmt: skip
    columns = db.execute(
        "SELECT column_name, ordinal_position, column_default, is_nullable, data_type,"
        " is_generated, generation_expression FROM INFORMATION_SCHEMA.COLUMNS"
        " WHERE table_name IN ('users', 'named') ORDER BY table_name DESC, ordinal_position"
    ).fetchall()
    assert columns == [
        ("id", 1, None, "NO", "BIGINT", "NEVER", None),
        ("name", 2, "'x'", "NO", "TEXT", "NEVER", None),
        ("n", 3, None, "YES", "BIGINT", "ALWAYS", "id * 2"),
        ("name", 1, None, "YES", "TEXT", "NEVER", None),
        ("n", 2, None, "YES", "BIGINT", "NEVER", None),
    ]


def test_a_query_and_a_view_may_use_them(db: tarsdb.Connection) -> None:
    joined = (
        "SELECT t.table_name FROM information_schema.tables t JOIN information_schema.columns c"
        " USING (table_name) WHERE c.column_name = 'id' ORDER BY 1"
    )
    assert db.execute(joined).fetchall() == [("tables",), ("users",)]
    db.execute("CREATE VIEW known AS SELECT table_name FROM information_schema.tables")
    assert ("known",) in db.execute("SELECT * FROM known").fetchall()
    assert db.execute("SELECT * FROM tables").fetchall() == []  # the user's own
    seen = db.execute("SELECT tables.table_name FROM information_schema.tables").fetchall()
    assert ("users",) in seen


def test_what_they_are_not(db: tarsdb.Connection) -> None:
    with pytest.raises(BindError, match=r"sqlite_master is a system table"):
        db.execute("INSERT INTO sqlite_master VALUES (1)")
    with pytest.raises(BindError, match=r"information_schema.tables is a system table"):
        db.execute("DELETE FROM information_schema.tables")
    with pytest.raises(NotSupportedError, match=r"information_schema.views is not supported"):
        db.execute("SELECT * FROM information_schema.views")
    with pytest.raises(CatalogError, match="cannot be called sqlite_master"):
        db.execute("CREATE TABLE sqlite_master (a INT)")
    with pytest.raises(CatalogError, match="does not exist"):
        db.execute("DROP TABLE sqlite_master")
