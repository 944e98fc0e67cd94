"""Full disks and quotas through `tarsdb.connect`: a typed error, nothing lost, and a way out."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import lmdb
import numpy as np
import pytest

import tarsdb
from tarsdb.errors import StorageFullError
from tarsdb.options import OpenOptions
from tarsdb.storage.transaction import EngineFailure, WriteTxn

ROOT = pathlib.Path(__file__).resolve().parents[3]
QUOTA = 4 << 20
ONE = np.ones(64, dtype=np.float32)


def rows(keys: Iterable[int]) -> list[tuple[Any, ...]]:
    return [(key, f"text {key}" * 10, ONE) for key in keys]


class Filled:
    """A table in a database with a quota, and the keys it should hold."""

    def __init__(self, path: pathlib.Path, background_merge: bool = True) -> None:
        self.path = path
        options = OpenOptions(max_size_bytes=QUOTA, background_merge=background_merge)
        self.connection = tarsdb.connect(path, durability="relaxed", options=options)
        self.connection.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT, v VECTOR(64))")
        self.keys: set[int] = set()
        self.next = 0

    def fill(self, batch: int) -> StorageFullError:
        """Insert until the space is used up."""
        while True:
            keys = range(self.next, self.next + batch)
            try:
                self.connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows(keys))
            except StorageFullError as error:
                return error
            self.keys.update(keys)
            self.next += batch

    def delete_below(self, key: int) -> None:
        self.connection.execute("DELETE FROM t WHERE id < ?", (key,))
        self.keys = {k for k in self.keys if k >= key}

    def check(self) -> None:
        found = self.connection.execute("SELECT id FROM t ORDER BY id").fetchall()
        assert [key for (key,) in found] == sorted(self.keys)
        assert self.connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert os.path.getsize(self.path) <= QUOTA


def test_a_quota_can_be_lived_with(tmp_path: pathlib.Path) -> None:
    table = Filled(tmp_path / "t.tars")
    error = table.fill(500)
    assert "size limit" in error.message
    assert "VACUUM" in str(error.hint)
    table.fill(20)
    table.fill(1)
    table.check()
    for _ in range(4):  # the way out must not get narrower
        before = len(table.keys)
        table.delete_below(min(table.keys) + 800)
        table.connection.execute("VACUUM")
        table.fill(10)
        if len(table.keys) < before - 500:  # rows that wait for a merge take more room
            table.connection.execute("VACUUM")
            table.fill(10)
        table.check()
        assert len(table.keys) >= before - 500
    assert len(table.keys) > 2000
    table.connection.close()


def test_vacuum_needs_few_pages_in_a_row(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where free pages are many but scattered, LMDB has no place for a large block.

    Rows waiting for a merge take more room than merged ones, so nothing merges by itself here: how
    many rows fit must not depend on how far a merge got.
    """
    table = Filled(tmp_path / "t.tars", background_merge=False)
    table.fill(500)
    table.delete_below(800)
    put, refused = WriteTxn.put, []

    def scattered(self: WriteTxn, db: str, key: bytes, value: Any, append: bool = False) -> None:
        if db == "blocks" and len(value) > 10_000:
            refused.append(len(value))
            raise EngineFailure(lmdb.MapFullError("no pages in a row"))
        put(self, db, key, value, append)

    monkeypatch.setattr(WriteTxn, "put", scattered)
    table.connection.execute("VACUUM")
    assert max(refused) > 100_000  # what it writes where nothing is in its way
    monkeypatch.undo()
    table.check()
    before = len(table.keys)
    table.connection.execute("VACUUM")  # combines what became small
    table.fill(10)
    table.check()
    assert len(table.keys) >= before + 300


def test_a_load_beyond_the_quota_leaves_nothing_behind(tmp_path: pathlib.Path) -> None:
    table = Filled(tmp_path / "t.tars")
    table.connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows(range(100)))
    table.keys, table.next = set(range(100)), 100
    many = np.arange(1000, 101_000)
    big = {"id": many, "s": ["x" * 50] * len(many), "v": np.ones((len(many), 64), np.float32)}
    with pytest.raises(StorageFullError):
        table.connection.table("t").insert(big)
    table.check()
    table.connection.execute("VACUUM")
    for _ in range(3):
        table.connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows([table.next]))
        table.keys.add(table.next)
        table.next += 1
    table.check()
    table.connection.close()


def test_a_transaction_beyond_the_quota_is_rolled_back(tmp_path: pathlib.Path) -> None:
    table = Filled(tmp_path / "t.tars")
    table.fill(500)
    kept = len(table.keys)
    connection = table.connection
    connection.execute("BEGIN")
    connection.execute("DELETE FROM t WHERE id < 10")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows(range(90_000, 92_000)))
    with pytest.raises(StorageFullError):
        connection.execute("COMMIT")
    assert not connection.in_transaction
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(kept,)]
    table.check()
    connection.close()


LIMITED = """
import resource, sys
import numpy as np
import tarsdb
from tarsdb.errors import StorageFullError
connection = tarsdb.connect(sys.argv[1], durability=sys.argv[2])
connection.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT, v VECTOR(64))")
one = np.ones(64, dtype=np.float32)
resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, -1))
keys = []
def fill(batch):
    while True:
        first = keys[-1] + 1 if keys else 0
        rows = [(first + i, "text" * 20, one) for i in range(batch)]
        try: connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        except StorageFullError as error: return error
        keys.extend(row[0] for row in rows)
for batch in (300, 20): error = fill(batch)
print("full:", error.hint)
assert connection.execute("SELECT count(*) FROM t").fetchone() == (len(keys),)
while len(keys) > 400:
    connection.execute("DELETE FROM t WHERE id < ?", (keys[50],))
    del keys[:50]
    try: connection.execute("VACUUM")
    except StorageFullError: pass
connection.execute("VACUUM")
before = len(keys)
fill(20)
print("more:", len(keys) - before)
found = connection.execute("SELECT id FROM t ORDER BY id").fetchall()
assert [key for key, in found] == keys
print(connection.execute("PRAGMA integrity_check").fetchone()[0])
"""


def test_a_file_size_limit_stands_for_a_full_disk(tmp_path: pathlib.Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse to extend the file, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "t.tars"), "relaxed"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    full, more, check = done.stdout.splitlines()
    assert "free disk space" in full
    assert int(more.split()[1]) > 200
    assert check == "ok"
