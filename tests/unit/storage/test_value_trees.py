"""Index keys with so many rows that LMDB keeps their row ids in a tree of their own.

LMDB 0.9 has two faults there: deleting from such a key leaves a count of pages wrong, so that a
healthy file looks damaged to lmdb's verifier, and a compacting copy of such a file crashes the
process. tarsdb disregards that count, and never copies that way.
"""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest
from lmdb.verify import verify

import tarsdb
from tarsdb.storage import verify as checks
from tarsdb.storage.page_check import Verdict, check_pages

ROWS = 3000  # over 3 keys: about 1,000 row ids each, two levels of pages


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute("CREATE TABLE keep (a INT); INSERT INTO keep VALUES (1)")
        db.execute("CREATE TABLE t (id INT, k INT); CREATE INDEX tk ON t (k)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(i, i % 3) for i in range(ROWS)])
    return tmp_path / "a.tars"


def require_sound(path: Path) -> None:
    problems, finished = checks.find_problems(str(path), None)
    assert finished
    assert checks.without_false_alarms(problems) == []
    assert check_pages(str(path), None) is Verdict.CLEAN


@pytest.mark.parametrize(
    "statements",
    [
        "DROP TABLE t",
        "DROP INDEX tk",
        "DROP TABLE t; VACUUM",
        "DROP INDEX tk; VACUUM; CREATE INDEX tk ON t (k)",
        "REINDEX tk",
        "DELETE FROM t WHERE k = 1",
        "DELETE FROM t; VACUUM",
        "UPDATE t SET k = 7 WHERE k = 1; VACUUM; DELETE FROM t WHERE k = 7; VACUUM",
        "DELETE FROM t WHERE k < 2; DROP TABLE t; VACUUM",
    ],
)
def test_a_file_stays_sound_when_large_keys_go(path: Path, statements: str) -> None:
    for _ in range(2):  # a wrong counter may also build up
        with tarsdb.connect(path) as db:
            db.execute(statements.replace("DROP TABLE t", "DROP TABLE IF EXISTS t")
                       .replace("DROP INDEX tk", "DROP INDEX IF EXISTS tk"))  # fmt: skip
        require_sound(path)
        with tarsdb.connect(path) as db:
            assert db.execute("SELECT a FROM keep").fetchall() == [(1,)]
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            db.execute("DROP TABLE IF EXISTS t")
            db.execute("CREATE TABLE t (id INT, k INT); CREATE INDEX tk ON t (k)")
            db.executemany("INSERT INTO t VALUES (?, ?)", [(i, i % 3) for i in range(ROWS)])
        require_sound(path)


def test_a_copy_holds_large_keys(path: Path, tmp_path: Path) -> None:
    with tarsdb.connect(path) as db:
        db._require_session().env.copy(tmp_path / "b.tars")
    with tarsdb.connect(tmp_path / "b.tars") as db:
        assert db.execute("SELECT count(*) FROM t WHERE k = 1").fetchall() == [(ROWS // 3,)]
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_lmdb_still_has_the_counting_fault(tmp_path: Path) -> None:
    """Control: without it there would be nothing to disregard."""
    env = lmdb.open(str(tmp_path / "plain"), max_dbs=1, subdir=False)
    index = env.open_db(b"index", dupsort=True, dupfixed=True)
    with env.begin(write=True) as txn:
        for value in range(1000):
            txn.put(b"key", value.to_bytes(8, "big"), db=index)
    with env.begin(write=True) as txn:
        txn.delete(b"key", db=index)
    env.close()
    problems = verify(str(tmp_path / "plain"))
    assert problems != []
    assert checks.without_false_alarms(problems) == []
    assert checks.without_false_alarms([*problems, "page 3 is bad"]) == ["page 3 is bad"]
