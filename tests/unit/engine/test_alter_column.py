"""ALTER TABLE ... ALTER COLUMN, and what is made of all rows while others change some."""

from __future__ import annotations

import datetime as dt
import pathlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.writing import derive
from tarsdb.errors import (
    BindError,
    CatalogError,
    ConflictError,
    DataError,
    DimensionMismatchError,
    Error,
    IntegrityError,
    InterruptError,
    SQLSyntaxError,
)

CREATE = (
    "CREATE TABLE t (id BIGINT PRIMARY KEY, a TEXT DEFAULT '5', b INT, v VECTOR(2), UNIQUE (a, b));"
    "CREATE INDEX by_a ON t (a)"
)
ROWS = "INSERT INTO t VALUES (1, '1', 1, '[1, 2]'), (2, '20', NULL, NULL), (3, NULL, 3, '[0.5, 0]')"


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "t.tars"


@pytest.fixture
def db(path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path, durability="relaxed") as connection:
        connection.execute(CREATE)
        connection.execute(ROWS)
        yield connection


def answer(db: tarsdb.Connection, sql: str) -> list[tuple[object, ...]]:
    return db.execute(sql).fetchall()


def columns(db: tarsdb.Connection) -> list[tuple[object, ...]]:
    return answer(db, "SELECT name, type FROM tars_columns WHERE table_name = 't'")


def plan(db: tarsdb.Connection, sql: str) -> str:
    return "\n".join(line for (line,) in db.execute(f"EXPLAIN {sql}").fetchall())


def test_a_default_is_for_rows_to_come(db: tarsdb.Connection) -> None:
    db.execute("ALTER TABLE t ALTER COLUMN a SET DEFAULT 'six' || 6")
    db.execute("INSERT INTO t (id) VALUES (4)")
    db.execute("ALTER TABLE t ALTER a DROP DEFAULT")
    db.execute("INSERT INTO t (id) VALUES (5)")
    assert answer(db, "SELECT a FROM t WHERE id > 3 ORDER BY id") == [("six6",), (None,)]
    assert answer(db, "SELECT a FROM t WHERE id = 3") == [(None,)]
    with pytest.raises(DataError, match="column b"):
        db.execute("ALTER TABLE t ALTER b SET DEFAULT 'no number'")
    with pytest.raises(CatalogError, match="reads a column"):
        db.execute("ALTER TABLE t ALTER b SET DEFAULT id + 1")
    db.execute("ALTER TABLE t ADD COLUMN g INT GENERATED ALWAYS AS (b * 2) STORED")
    with pytest.raises(CatalogError, match=r"t\.g is computed"):
        db.execute("ALTER TABLE t ALTER g SET DEFAULT 1")


def test_not_null_is_set_where_it_holds(db: tarsdb.Connection, path: pathlib.Path) -> None:
    with pytest.raises(IntegrityError, match=r"t.b is NULL in 1 of 3 rows") as caught:
        db.execute("ALTER TABLE t ALTER b SET NOT NULL")
    assert caught.value.hint == "UPDATE t SET b = ... WHERE b IS NULL"
    db.execute("INSERT INTO t (id) VALUES (4)")  # it is not set
    db.execute("UPDATE t SET b = id WHERE b IS NULL; ALTER TABLE t ALTER b SET NOT NULL")
    with pytest.raises(IntegrityError, match=r"NOT NULL constraint failed: t.b"):
        db.execute("INSERT INTO t (id) VALUES (5)")
    with tarsdb.connect(path) as other, pytest.raises(IntegrityError):
        other.execute("UPDATE t SET b = NULL WHERE id = 1")
    db.execute("ALTER TABLE t ALTER b DROP NOT NULL; INSERT INTO t (id) VALUES (5)")
    with pytest.raises(CatalogError, match=r"t\.id is part of the PRIMARY KEY"):
        db.execute("ALTER TABLE t ALTER id DROP NOT NULL")


def test_a_type_changes_with_values_default_and_indexes(
    db: tarsdb.Connection, path: pathlib.Path
) -> None:
    db.execute("ALTER TABLE t ALTER COLUMN a TYPE INT; INSERT INTO t (id, b) VALUES (4, 4)")
    expected: list[tuple[object, ...]] = [(1, 1), (4, 5), (2, 20), (3, None)]
    assert columns(db)[1] == ("a", "INT")
    for connection in (db, tarsdb.connect(path)):
        assert answer(connection, "SELECT id, a FROM t ORDER BY a NULLS LAST") == expected
        assert answer(connection, "SELECT id FROM t WHERE a > 4 ORDER BY a") == [(4,), (2,)]
        assert "index by_a (range)" in plan(connection, "SELECT id FROM t WHERE a > 4")
        assert answer(connection, "PRAGMA integrity_check") == [("ok",)]
    with pytest.raises(IntegrityError, match="t_a_b_key"):
        db.execute("INSERT INTO t VALUES (9, 1, 1, NULL)")
    db.execute("VACUUM; OPTIMIZE")
    assert answer(db, "SELECT id, a FROM t ORDER BY a NULLS LAST") == expected


def test_the_type_of_a_key_changes(db: tarsdb.Connection) -> None:
    db.execute("ALTER TABLE t ALTER id TYPE TEXT USING 'row ' || id")
    assert answer(db, "SELECT b FROM t WHERE id = 'row 3'") == [(3,)]
    assert "t_pkey" in plan(db, "SELECT b FROM t WHERE id = 'row 3'")
    with pytest.raises(IntegrityError, match="t_pkey"):
        db.execute("INSERT INTO t (id) VALUES ('row 1')")
    with pytest.raises(IntegrityError, match=r"NOT NULL constraint failed: t.id"):
        db.execute("ALTER TABLE t ALTER id TYPE INT USING NULL")
    assert len(answer(db, "SELECT * FROM t WHERE id LIKE 'row%'")) == 3


def test_vectors_change_their_elements_and_become_text(db: tarsdb.Connection) -> None:
    db.execute("ALTER TABLE t ALTER v TYPE HALFVEC(2)")
    nearest = "SELECT id FROM t ORDER BY v <-> '[1, 2]' LIMIT 2"
    assert columns(db)[3] == ("v", "HALFVEC(2)")
    assert answer(db, nearest) == [(1,), (3,)]
    with pytest.raises(DimensionMismatchError, match=r"column v is VECTOR\(3\)"):
        db.execute("ALTER TABLE t ALTER v TYPE VECTOR(3)")
    db.execute("ALTER TABLE t ALTER v TYPE TEXT")
    assert answer(db, "SELECT v FROM t WHERE id < 3 ORDER BY id") == [("[1.0, 2.0]",), (None,)]
    db.execute("ALTER TABLE t ALTER v TYPE VECTOR(2)")
    assert answer(db, nearest) == [(1,), (3,)]
    db.execute("CREATE INDEX near ON t USING hnsw (v)")
    with pytest.raises(CatalogError, match=r"index near uses it") as caught:
        db.execute("ALTER TABLE t ALTER v TYPE HALFVEC(2)")
    assert caught.value.hint == "DROP INDEX near first"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ("a TYPE INT", DataError, "no number"),
        ("a TYPE BIGINT USING length(a)", IntegrityError, "t_a_b_key"),
        ("zz TYPE INT", CatalogError, "no column 'zz'"),
        ("a TYPE FOO", BindError, "'FOO' is not known"),
        ("a TYPE INT USING nothing", BindError, "nothing"),
        ("a FOO", SQLSyntaxError, "expected TYPE"),
        ("a DROP FOO", SQLSyntaxError, "expected DEFAULT or NOT NULL"),
        ("b TYPE VECTOR(2)", CatalogError, "cannot hold a VECTOR"),
    ],
)
def test_what_fails_leaves_all_as_it_was(
    db: tarsdb.Connection, change: str, error: type[Error], match: str
) -> None:
    db.execute("INSERT INTO t VALUES (4, 'no number', 7, NULL), (5, 'a number', 8, NULL)")
    db.execute("INSERT INTO t VALUES (6, 'x number', 8, NULL)")
    before = columns(db), answer(db, "SELECT id, a, b FROM t ORDER BY id")
    with pytest.raises(error, match=match):
        db.execute(f"ALTER TABLE t ALTER {change}")
    assert (columns(db), answer(db, "SELECT id, a, b FROM t ORDER BY id")) == before
    assert answer(db, "SELECT id FROM t WHERE a = 'no number'") == [(4,)]
    assert answer(db, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(
    "user",
    [
        "ALTER TABLE t ADD COLUMN g INT GENERATED ALWAYS AS (b + 1) STORED",
        "ALTER TABLE t ADD COLUMN c INT CHECK (c > b)",
    ],
)
def test_a_column_that_others_read_keeps_its_type(db: tarsdb.Connection, user: str) -> None:
    db.execute(user)
    with pytest.raises(CatalogError, match=r"cannot change the type of t.b: .* uses it"):
        db.execute("ALTER TABLE t ALTER b TYPE TEXT")
    db.execute("ALTER TABLE t ALTER a TYPE INT")


def test_it_can_be_rolled_back(db: tarsdb.Connection) -> None:
    before = columns(db), answer(db, "SELECT id, a, b FROM t ORDER BY id")
    db.execute("BEGIN; INSERT INTO t VALUES (4, '7', 4, NULL); SAVEPOINT s")
    db.execute("ALTER TABLE t ALTER a TYPE INT; UPDATE t SET a = a + 1 WHERE id = 4")
    assert answer(db, "SELECT a FROM t WHERE id IN (2, 4) ORDER BY id") == [(20,), (8,)]
    db.execute("ROLLBACK TO s")
    assert answer(db, "SELECT a FROM t WHERE id = 4") == [("7",)]
    db.execute("ROLLBACK")
    assert (columns(db), answer(db, "SELECT id, a, b FROM t ORDER BY id")) == before


VALUES = {
    "SMALLINT": [0, -3, 77, None], "BIGINT": [0, -3, 1 << 14, None], "DOUBLE": [0.5, -3.0, None],
    "TEXT": ["12", "-7", None], "DECIMAL(8, 2)": ["3.25", "-1", None],
    "DATE": [dt.date(2020, 2, 29), None], "TIMESTAMP": [dt.datetime(2020, 2, 29, 1), None],
}  # fmt: skip
NUMBERS = [name for name in VALUES if not name.startswith(("DATE", "TIMES"))]
PAIRS = [(a, b) for a in NUMBERS for b in NUMBERS]
PAIRS += [("DATE", "TIMESTAMP"), ("TIMESTAMP", "DATE"), ("DATE", "TEXT"), ("TIMESTAMP", "TEXT")]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_values_are_those_of_a_cast(db: tarsdb.Connection, old: str, new: str) -> None:
    """In blocks, in the delta and of the same transaction, an index beside them."""
    pick = random.Random(old + new)
    db.execute(f"CREATE TABLE c (id INT PRIMARY KEY, x {old}); CREATE INDEX cx ON c (x)")

    def add(first: int) -> None:
        rows = [(first + i, pick.choice(VALUES[old])) for i in range(20)]
        db.executemany("INSERT INTO c VALUES (?, ?)", rows)

    add(0)
    db.execute("OPTIMIZE c")
    add(20)
    db.execute("BEGIN")
    add(40)
    expected = answer(db, f"SELECT id, CAST(x AS {new}) AS x FROM c ORDER BY id")
    db.execute(f"ALTER TABLE c ALTER x TYPE {new}")
    for _ in range(2):
        assert answer(db, "SELECT id, x FROM c ORDER BY id") == expected
        ordered = [x for _, x in expected if x is not None]
        found = answer(db, "SELECT x FROM c WHERE x IS NOT NULL ORDER BY x")
        assert [x for (x,) in found] == sorted(ordered)  # type: ignore[type-var]
        if db.in_transaction:
            db.execute("COMMIT")
    assert answer(db, "PRAGMA integrity_check") == [("ok",)]


CHANGES = [
    "ALTER TABLE t ADD COLUMN g INT GENERATED ALWAYS AS (b * 3) STORED",
    "ALTER TABLE t ADD COLUMN g INT CHECK (g > 0)",
    "ALTER TABLE t ALTER a SET NOT NULL",
    "ALTER TABLE t ALTER a TYPE INT",
    "CREATE INDEX other ON t (b)",
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_made_of_all_rows_conflicts_with_other_rows(
    db: tarsdb.Connection, path: pathlib.Path, change: str
) -> None:
    db.execute("UPDATE t SET a = '8' WHERE a IS NULL")
    with tarsdb.connect(path) as other:
        db.execute(f"BEGIN; {change}")
        other.execute("INSERT INTO t (id, b) VALUES (7, 7)")
        with pytest.raises(ConflictError, match=r"commit .* changed rows while"):
            db.execute("COMMIT")
        db.execute(f"BEGIN; {change}; COMMIT")  # again, with that row
        assert len(answer(db, "SELECT * FROM t WHERE a IS NOT NULL")) == 4
        other.execute("CREATE TABLE apart (x INT)")
        db.execute("BEGIN; ALTER TABLE t ADD COLUMN h INT GENERATED ALWAYS AS (b) STORED")
        other.execute("INSERT INTO apart VALUES (1)")  # not a row of it: no conflict
        db.execute("COMMIT")
        assert answer(db, "SELECT h FROM t WHERE id = 7") == [(7,)]


def test_one_that_needs_no_row_does_not_conflict(db: tarsdb.Connection, path: pathlib.Path) -> None:
    with tarsdb.connect(path) as other:
        db.execute("BEGIN; ALTER TABLE t ADD COLUMN g INT DEFAULT 3")
        other.execute("INSERT INTO t (id, b) VALUES (7, 7)")
        db.execute("COMMIT")
    assert answer(db, "SELECT g FROM t WHERE id = 7") == [(3,)]


def test_many_rows(db: tarsdb.Connection) -> None:
    """More than are written one by one, and more than a block holds."""
    ids = np.arange(10, 20_010)
    db.table("t").insert({"id": ids, "a": [str(i) for i in ids], "b": ids.astype(np.int32)})
    db.execute("ALTER TABLE t ALTER a TYPE BIGINT")
    total = int(ids.sum()) + 21
    assert answer(db, "SELECT sum(a) FROM t") == [(total,)]
    assert answer(db, "SELECT id FROM t WHERE a = 15000") == [(15_000,)]


def test_a_table_has_room_for_so_many_columns(
    db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ", ".join(f"c{i} INT" for i in range(32_768))
    with pytest.raises(CatalogError, match="wide: 32768 columns, the most is 32767"):
        db.execute(f"CREATE TABLE wide ({many})")
    monkeypatch.setattr("tarsdb.engine.tables.MOST_COLUMNS", 5)
    db.execute("ALTER TABLE t ADD COLUMN fifth INT")
    with pytest.raises(CatalogError, match="t: 6 columns, the most is 5"):
        db.execute("ALTER TABLE t ADD COLUMN sixth INT")


def test_it_can_be_interrupted(db: tarsdb.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(10, 10_010)
    db.table("t").insert({"id": ids, "a": [str(i) for i in ids], "b": ids.astype(np.int32)})
    db.execute("OPTIMIZE t")
    before = columns(db), answer(db, "SELECT count(*), min(a), max(a) FROM t")
    check, checked = derive.check, []

    def interrupting(*given: Any) -> None:
        checked.append(given[3])
        db.interrupt()
        check(*given)

    monkeypatch.setattr(derive, "check", interrupting)
    with pytest.raises(InterruptError):
        db.execute("ALTER TABLE t ALTER a TYPE BIGINT")
    assert len(checked) == 1  # of the first of several chunks
    monkeypatch.undo()
    assert (columns(db), answer(db, "SELECT count(*), min(a), max(a) FROM t")) == before
    db.execute("ALTER TABLE t ALTER a TYPE BIGINT")
    assert len(list(answer(db, "SELECT a FROM t"))) == 10_003
    assert answer(db, "PRAGMA integrity_check") == [("ok",)]
