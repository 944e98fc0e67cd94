"""Some rows of one executemany, less than a segment, are stored as the same rows one by one."""

from __future__ import annotations

import pathlib

import numpy as np

import tarsdb

CREATE = """CREATE TABLE t (
    id BIGINT PRIMARY KEY, flag BOOLEAN, name TEXT, raw BLOB, key UUID, v VECTOR(3)
)"""
INSERT = "INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)"
READ = "SELECT id, flag, name, raw, key, v FROM t ORDER BY id"


def _rows() -> list[tuple[object, ...]]:
    return [
        (
            n,
            None if n % 5 == 0 else n % 2 == 0,
            None if n % 7 == 0 else f"name {n} é",
            None if n % 3 == 0 else bytes([n, 0, n]),
            None if n % 4 == 0 else f"00000000-0000-0000-0000-{n:012d}",
            None if n % 6 == 0 else np.array([n, n + 0.5, -n], dtype=np.float32),
        )
        for n in range(100)
    ]


def _read(path: pathlib.Path) -> list[list[object]]:
    with tarsdb.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [
            [value.tolist() if isinstance(value, np.ndarray) else value for value in row]
            for row in db.execute(READ).fetchall()
        ]


def test_rows_at_once_are_stored_like_rows_one_by_one(tmp_path: pathlib.Path) -> None:
    together, single = tmp_path / "together.tars", tmp_path / "single.tars"
    with tarsdb.connect(together) as db:
        db.execute(CREATE)
        db.execute("BEGIN")
        db.cursor().executemany(INSERT, _rows())
        db.execute("DELETE FROM t WHERE id % 9 = 1")  # the block keeps holes
        db.execute("COMMIT")
    with tarsdb.connect(single) as db:
        db.execute(CREATE)
        for row in _rows():
            if row[0] % 9 != 1:  # type: ignore[operator]
                db.execute(INSERT, row)
    found = _read(together)
    assert len(found) == 89
    assert found == _read(single)
