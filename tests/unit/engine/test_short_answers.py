"""Short answers leave as rows: in every form they equal what arrays are made of."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb

ROWS, SHORT = 70, 9
TYPES = {
    "b": ("BOOLEAN", "true"), "s": ("SMALLINT", "-3"), "i": ("INT", "7"),
    "l": ("BIGINT", "1099511627776"),
    "r": ("REAL", "0.1"), "f": ("DOUBLE", "0.1"), "dc": ("DECIMAL(10, 2)", "1.25"),
    "dw": ("DECIMAL(30, 2)", "12345678901234567890.25"), "t": ("TEXT", "'é'"),
    "bl": ("BLOB", "'a'::BLOB"), "d": ("DATE", "DATE '2026-01-31'"),
    "ti": ("TIME", "TIME '01:02:03'"),
    "ts": ("TIMESTAMP", "TIMESTAMP '2026-01-31 01:02:03'"),
    "iv": ("INTERVAL", "INTERVAL '2 months 3 days'"),
    "u": ("UUID", "'12345678-1234-1234-1234-123456789abc'"),
    "j": ("JSON", """'{"a": 1, "b": [1.50]}'"""), "ar": ("INT[]", "[1, NULL, 3]"),
}  # fmt: skip
NAMES = ", ".join(TYPES)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarsdb.Connection]:
    path: pathlib.Path = tmp_path_factory.mktemp("short") / "a.tars"
    with tarsdb.connect(path) as db:
        columns = ", ".join(f"{name} {kind}" for name, (kind, _) in TYPES.items())
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, {columns}, emb VECTOR(2))")
        values = ", ".join(text for _, text in TYPES.values())
        nulls = ", ".join("NULL" for _ in TYPES)
        for row in range(ROWS):
            given = nulls if row % 4 == 3 else values
            db.execute(f"INSERT INTO t VALUES ({row}, {given}, '[{row}, 0]')")
        yield db


def search(db: tarsdb.Connection, limit: int) -> tarsdb.Cursor:
    sql = f"SELECT id, {NAMES}, emb <-> ? AS distance FROM t ORDER BY distance LIMIT {limit}"
    return db.execute(sql, (np.zeros(2, np.float32),))


def test_rows(db: tarsdb.Connection) -> None:
    assert search(db, SHORT).fetchall() == search(db, ROWS).fetchall()[:SHORT]


def test_arrow(db: tarsdb.Connection) -> None:
    short, long = search(db, SHORT).arrow(), search(db, ROWS).arrow()
    assert short.schema == long.schema
    assert short.equals(long.slice(0, SHORT))
    assert short.column("iv").to_pylist()[0].months == 2


def test_numpy(db: tarsdb.Connection) -> None:
    short, long = search(db, SHORT).numpy(), search(db, ROWS).numpy()
    assert list(short) == list(long)
    for name, values in short.items():
        assert values.dtype == long[name].dtype, name
        assert values.tolist() == long[name][:SHORT].tolist(), name


def test_rows_first_changes_nothing(db: tarsdb.Connection) -> None:
    cursor = search(db, SHORT)
    cursor.fetchall()
    assert cursor.arrow().equals(search(db, SHORT).arrow())


def test_point_reads(db: tarsdb.Connection) -> None:
    long = search(db, ROWS).arrow()
    for row in (0, 3):
        one = db.execute(f"SELECT id, {NAMES} FROM t WHERE id = ?", (row,)).arrow()
        assert one.to_pylist() == long.select(one.column_names).slice(row, 1).to_pylist()


SCANS = [
    ("", "WHERE id IN (5, 2, 3, 9)"),
    ("", "WHERE id IN (5, 2, 3, 9) AND i = 7 LIMIT 2 OFFSET 1"),
    ("ORDER BY id DESC", "WHERE id < 12 AND i IS NULL"),
    ("ORDER BY i DESC NULLS LAST, id LIMIT 5 OFFSET 1", "WHERE id IN (5, 2, 3, 9, 7, 8, 11)"),
    ("ORDER BY l LIMIT 4", ""),
    ("ORDER BY id DESC LIMIT 6", ""),
]


@pytest.mark.parametrize(("order", "where"), SCANS)
def test_scans(db: tarsdb.Connection, order: str, where: str) -> None:
    tail = f"FROM t {where} {order}"
    short = db.execute(f"SELECT id, {NAMES}, id AS again {tail}")
    # an output that is not a column keeps the answer in columns
    long = db.execute(f"SELECT id, {NAMES}, id AS again, id + 0 AS sum {tail}").arrow()
    long = long.drop_columns(["sum"])
    rows = short.fetchall()
    assert len(rows) > 1
    assert short.arrow().equals(long)
    assert short.arrow().schema == long.schema
    ids = db.execute(f"SELECT id + 0 {tail}").fetchall()
    assert [(row[0],) for row in rows] == ids
    with db.transaction():  # own rows are not short
        db.execute("UPDATE t SET s = s WHERE id = 5")
        changed = db.execute(f"SELECT id, {NAMES}, id AS again {tail}").fetchall()
        assert sorted(changed, key=str) == sorted(rows, key=str)
