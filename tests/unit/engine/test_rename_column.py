"""ALTER TABLE ... RENAME of tables and columns that CHECKs and generated columns name."""

from __future__ import annotations

import pathlib

import pytest

import tarsdb
from tarsdb import errors
from tarsdb.sql import rename_column


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a * 3", '"New one" * 3'),
        ("upper(A) || \"a\" || 'a' || ab /* a */", None),
        ("t.a > 0 AND a[1:2] = [a]", 't."New one" > 0 AND "New one"[1:2] = ["New one"]'),
        ("{'a': a}.a", "{'a': \"New one\"}.a"),
        ("list_transform(l, x -> x + a)[1]", 'list_transform(l, x -> x + "New one")[1]'),
        ("CASE a WHEN 1 THEN a END", 'CASE "New one" WHEN 1 THEN "New one" END'),
        ("'ü' || a", "'ü' || \"New one\""),
        ("b + 1", "b + 1"),
    ],
)
def test_only_the_column_is_renamed(text: str, expected: str | None) -> None:
    wanted = expected or 'upper("New one") || "New one" || \'a\' || ab /* a */'
    assert rename_column(text, "a", "New one") == wanted


@pytest.mark.parametrize("new", ["z", "Odd Name", "select", 'quo"ted', "A"])
def test_what_reads_a_renamed_column_goes_on(tmp_path: pathlib.Path, new: str) -> None:
    path = tmp_path / "a.tars"
    quoted = '"' + new.replace('"', '""') + '"'
    with tarsdb.connect(path) as db:
        db.execute(
            "CREATE TABLE t (id INT PRIMARY KEY, a INT CHECK (a > 0), b TEXT, "
            "g INT GENERATED ALWAYS AS (a * 3) STORED, "
            "h TEXT GENERATED ALWAYS AS (printf('%s-%d', b, a)) STORED, CHECK (length(b) < a + 9))"
        )
        db.execute("INSERT INTO t (id, a, b) VALUES (1, 1, 'x')")
        db.execute(f"ALTER TABLE t RENAME COLUMN a TO {quoted}")
        db.execute(f"INSERT INTO t (id, {quoted}, b) VALUES (2, 2, 'y')")
    with tarsdb.connect(path) as db:
        db.execute(f"UPDATE t SET {quoted} = 5 WHERE id = 1")
        found = db.execute(f"SELECT {quoted}, g, h FROM t ORDER BY id").fetchall()
        assert found == [(5, 15, "x-5"), (2, 6, "y-2")]
        for wrong in ("(3, 0, 'x')", "(3, 1, 'a long text of many letters')"):
            with pytest.raises(errors.IntegrityError, match="CHECK"):
                db.execute(f"INSERT INTO t (id, {quoted}, b) VALUES {wrong}")
        (text,) = db.execute("SELECT sql FROM tars_tables").fetchall()[0]
        db.execute("DROP TABLE t")
        db.execute(text)  # what is shown makes the same table
        db.execute(f"INSERT INTO t (id, {quoted}, b) VALUES (2, 2, 'y')")
        assert db.execute("SELECT g, h FROM t").fetchall() == [(6, "y-2")]
        db.execute(f"ALTER TABLE t RENAME COLUMN {quoted} TO a")
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_rename_that_is_rolled_back(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (a INT, g INT GENERATED ALWAYS AS (a * 3) STORED)")
        db.execute("BEGIN")
        db.execute("ALTER TABLE t RENAME COLUMN a TO z")
        db.execute("INSERT INTO t (z) VALUES (2)")
        assert db.execute("SELECT g FROM t").fetchall() == [(6,)]
        db.execute("ROLLBACK")
        db.execute("INSERT INTO t (a) VALUES (3)")
        assert db.execute("SELECT a, g FROM t").fetchall() == [(3, 9)]


@pytest.mark.parametrize(
    "generated",
    [
        "list_transform(l, x -> x + a)[1]", "[a for a in l][1] + a",
        "list_transform(l, lambda x: x + a)[1]",
    ],
)  # fmt: skip
def test_names_of_variables_are_not_taken(tmp_path: pathlib.Path, generated: str) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(
            f"CREATE TABLE t (a INT, l INT[], g INT GENERATED ALWAYS AS ({generated}) STORED)"
        )
        with pytest.raises(errors.CatalogError, match=r"generated column g.* has a variable"):
            db.execute("ALTER TABLE t RENAME COLUMN a TO x")
        db.execute("INSERT INTO t (a, l) VALUES (10, [1])")
        before = db.execute("SELECT g FROM t").fetchall()
        if "for a" not in generated:
            db.execute("ALTER TABLE t RENAME COLUMN a TO y")
            db.execute("INSERT INTO t (y, l) VALUES (10, [1])")
            assert db.execute("SELECT g FROM t").fetchall() == before * 2


@pytest.mark.parametrize("new", ["z", "Odd Name", "a", "T"])
def test_a_table_is_renamed_in_its_own_expressions(tmp_path: pathlib.Path, new: str) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(
            "CREATE TABLE t (a INT CHECK (t.a > 0), t TEXT, CHECK (T.t <> 't.t' AND a < 9), "
            "g INT GENERATED ALWAYS AS (t.a * 3) STORED)"
        )
        db.execute("INSERT INTO t (a, t) VALUES (1, 'x')")
        db.execute(f'ALTER TABLE t RENAME TO "{new}"')
        db.execute(f"INSERT INTO \"{new}\" (a, t) VALUES (2, 'y')")
        db.execute(f"UPDATE \"{new}\" SET a = 3 WHERE t = 'x'")
        assert db.execute(f'SELECT a, t, g FROM "{new}" ORDER BY a').fetchall() == [
            (2, "y", 6), (3, "x", 9),
        ]  # fmt: skip
        for wrong in ("(0, 'x')", "(1, 't.t')", "(9, 'x')"):
            with pytest.raises(errors.IntegrityError, match="CHECK"):
                db.execute(f'INSERT INTO "{new}" (a, t) VALUES {wrong}')
        (text,) = db.execute("SELECT sql FROM tars_tables").fetchall()[0]
        db.execute(f'DROP TABLE "{new}"')
        db.execute(text)  # what is shown makes the same table


def test_a_variable_of_the_name_of_a_renamed_table(tmp_path: pathlib.Path) -> None:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE t (a INT, CHECK (list_transform([{'b': 1}], x -> x.b)[1] < t.a))")
        with pytest.raises(errors.BindError, match="has a variable 'x'"):
            db.execute("ALTER TABLE t RENAME TO x")
        db.execute("INSERT INTO t VALUES (2)")
