"""Entries of unique indexes whose bits changed: no statement that names a key takes another row."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

import tarsdb
from tarsdb.errors import CorruptionError
from tarsdb.storage import Environment, Snapshot
from tarsdb.storage.transaction import WriteTxn

OPTIONS = tarsdb.OpenOptions(background_merge=False)
STATEMENTS = (
    "SELECT n FROM t WHERE id = 7", "SELECT * FROM t WHERE id = ? AND n >= 0",
    "UPDATE t SET n = 1 WHERE id = 7", "UPDATE t SET n = n + 1 WHERE id = 7 RETURNING n",
    "DELETE FROM t WHERE id = 7",
    "INSERT INTO t VALUES (7, 1) ON CONFLICT (id) DO UPDATE SET n = 1",
    "INSERT INTO t SELECT i, 1 FROM range(1, 20) r(i) ON CONFLICT (id) DO UPDATE SET n = 1",
)  # fmt: skip


def make(path: pathlib.Path, in_segment: bool) -> None:
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(i, i) for i in range(100)])
        if in_segment:
            db.execute("OPTIMIZE t")
        db.execute("DELETE FROM t WHERE id = 50")


def redirect(path: pathlib.Path, change: Callable[[int], int]) -> None:
    """Change the row that an entry of key 7 leads to."""
    env = Environment.open(path, OPTIONS)
    with Snapshot(env) as snapshot:
        table = snapshot.catalog.tables()[0]
        view = snapshot.table(table)
        (rowid,) = view.find(table.indexes[0], (7,)).tolist()

    def work(txn: WriteTxn) -> None:
        old = rowid.to_bytes(8, "big")
        (key,) = [key for key, value in txn.range("index", b"", None) if bytes(value) == old]
        txn.delete("index", key, old)
        txn.put("index", key, change(rowid).to_bytes(8, "big"))

    env.stage(work)
    env.release()


@pytest.mark.parametrize("in_segment", [True, False])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rowid: rowid ^ 1 << 4, "leads to row 24, which has another key"),
        (lambda rowid: 51, "leads to row 51, which is not there"),
        (lambda rowid: rowid ^ 1 << 40, "which is not there"),
        (lambda rowid: rowid ^ 1 << 62, "which is not there"),
        (lambda rowid: rowid ^ 1 << 63, "which is not there"),
    ],
)
def test_a_key_leads_to_its_row_or_to_an_error(
    tmp_path: pathlib.Path, change: Callable[[int], int], says: str, in_segment: bool
) -> None:
    path = tmp_path / "t.tars"
    make(path, in_segment)
    redirect(path, change)
    with tarsdb.connect(path, options=OPTIONS) as db:
        for sql in STATEMENTS:
            for start in (False, True):
                if start:
                    db.execute("BEGIN")
                with pytest.raises(CorruptionError, match=f"index t_pkey: an entry .*{says}"):
                    db.execute(sql, [7] if "?" in sql else [])
                db.rollback()
        with pytest.raises(CorruptionError, match="index t_pkey: an entry"):
            db.executemany("UPDATE t SET n = ? WHERE id = ?", [(1, i) for i in range(20)])
        assert "index t_pkey" in str(db.execute("PRAGMA integrity_check").fetchall())
        db.execute("REINDEX t_pkey")
        assert db.execute("SELECT n FROM t WHERE id = 7").fetchall() == [(7,)]
        assert db.execute("SELECT sum(n), count(*) FROM t").fetchall() == [(4900, 99)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("bit", [20, 40, 62, 63])
def test_a_row_that_never_was_is_noticed_by_every_search(tmp_path: pathlib.Path, bit: int) -> None:
    path = tmp_path / "t.tars"
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, n INT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(i, i // 10) for i in range(3000)])
        db.execute("CREATE INDEX t_n ON t (n)")
    env = Environment.open(path, OPTIONS)

    def work(txn: WriteTxn) -> None:
        for key, value in [(k, bytes(v)) for k, v in txn.range("index", b"", None)]:
            rowid = int.from_bytes(value, "big")
            if rowid == 8:  # id 7, n 0
                txn.delete("index", key, value)
                txn.put("index", key, (rowid ^ 1 << bit).to_bytes(8, "big"))

    env.stage(work)
    env.release()
    with tarsdb.connect(path, options=OPTIONS) as db:
        for sql in (
            "SELECT n FROM t WHERE id BETWEEN 5 AND 9", "SELECT n FROM t WHERE id IN (6, 7)",
            "SELECT id FROM t WHERE n = 0", "SELECT id FROM t WHERE n < 2",
            "SELECT id FROM t ORDER BY n LIMIT 20", "UPDATE t SET n = 1 WHERE n = 0",
            "SELECT min(id) FROM t WHERE id >= 7", "DELETE FROM t WHERE n <= 0",
        ):  # fmt: skip
            with pytest.raises(CorruptionError, match=r"index t_.*leads to row .*is not there"):
                db.execute(sql)
        db.execute("REINDEX t")
        assert db.execute("SELECT count(*) FROM t WHERE n = 0").fetchall() == [(10,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("DOUBLE", [1.5, 0.0, float("nan"), float("inf")]),
        ("REAL", [0.5, 0.25]),
        ("DECIMAL(30, 2)", ["1.50", "-7.25"]),
        ("TEXT", ["", "a", "x" * 1000, "é\0b"]),
        ("BLOB", [b"", b"\0", b"\xff" * 900]),
        ("UUID", ["00000000-0000-0000-0000-00000000000a"]),
        ("DATE", ["2020-02-29"]),
        ("TIMESTAMP", ["2020-02-29 01:02:03"]),
        ("BOOLEAN", [True, False]),
    ],
)
def test_sound_keys_of_all_types_are_found(
    tmp_path: pathlib.Path, kind: str, values: list[Any]
) -> None:
    with tarsdb.connect(tmp_path / "t.tars", options=OPTIONS) as db:
        db.execute(f"CREATE TABLE t (k {kind}, m INT, n INT, PRIMARY KEY (k, m))")
        db.executemany("INSERT INTO t VALUES (?, 1, ?)", [(v, i) for i, v in enumerate(values)])
        for _ in range(2):
            for number, value in enumerate(values):
                sql = "SELECT n FROM t WHERE k = ? AND m = 1"
                assert db.execute(sql, [value]).fetchall() == [(number,)]
                db.execute("UPDATE t SET n = n WHERE k = ? AND m = 1", [value])
            db.execute("OPTIMIZE t")
        if kind == "DOUBLE":  # equal to what is stored
            assert db.execute("SELECT n FROM t WHERE k = -0.0 AND m = 1").fetchall() == [(1,)]
