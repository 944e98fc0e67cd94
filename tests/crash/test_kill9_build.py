"""kill -9 while an index is built: the file is as it was, and the next build goes through."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tarsdb
from tarsdb.engine.search.index_methods import METHODS
from tarsdb.storage import Snapshot, read_parts

ROWS, DIM = 5_000, 32
ROOT = Path(__file__).parents[2]
CHILD = """
import os, signal, sys
import tarsdb
path, sql, share = sys.argv[1], sys.argv[2], float(sys.argv[3])
def report(done, total):
    if done >= share * total:
        os.kill(os.getpid(), signal.SIGKILL)
with tarsdb.connect(path) as db:
    db.on_progress(report)
    db.execute(sql)
print("built")
"""
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")


def build(path: Path, sql: str, share: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(path), sql, str(share)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_a_build_that_is_killed_leaves_nothing(tmp_path: Path, method: str, share: float) -> None:
    path = tmp_path / "a.tars"
    rows = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(ROWS), "emb": rows})
    sql = f"CREATE INDEX tv ON t USING {method} (emb)"
    killed = build(path, sql, share)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with tarsdb.connect(path) as db:
        assert db.execute("SELECT name FROM tars_indexes WHERE name = 'tv'").fetchall() == []
        assert db.execute("SELECT count(*) FROM t").fetchone() == (ROWS,)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.execute("VACUUM")
    done = build(path, sql, 2.0)
    assert done.stdout == "built\n", done.stderr
    with tarsdb.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with Snapshot(db._require_session().env) as snapshot:
            table = snapshot.catalog.table("t")
            assert table is not None
            index = next(i for i in table.indexes if i.name == "tv")
            assert [part.rows for part in read_parts(snapshot.txn, index.id)] == [ROWS]


@pytest.mark.parametrize("method", METHODS)
def test_a_rebuild_that_is_killed_leaves_the_index_as_it_was(tmp_path: Path, method: str) -> None:
    path = tmp_path / "a.tars"
    rows = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    query = "SELECT id FROM t ORDER BY emb <-> ? LIMIT 10"
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(ROWS), "emb": rows})
        db.execute(f"CREATE INDEX tv ON t USING {method} (emb)")
        db.execute("DELETE FROM t WHERE id < 100")
        before = db.execute(query, (rows[500],)).fetchall()
    for sql in ("REINDEX tv", "OPTIMIZE t"):
        killed = build(path, sql, 0.5)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with tarsdb.connect(path) as db:
            assert f"({method})" in str(db.execute("EXPLAIN " + query, (rows[500],)).fetchall())
            assert db.execute(query, (rows[500],)).fetchall() == before
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


RESUMING = """
import tarsdb.engine.search.unfinished as unfinished
unfinished.EVERY_SECONDS, unfinished.SHARE = 0.0, 1e9
"""
TOLD = """
import sys
import tarsdb
from tarsdb.metrics import METRICS
first = []
with tarsdb.connect(sys.argv[1]) as db:
    db.on_progress(lambda done, total: first.append(done / total) if done else None)
    db.execute(sys.argv[2])
    print(METRICS.snapshot().get("index.builds_resumed", 0), first[0])
"""


def tell(code: str, path: Path, sql: str) -> tuple[int, float]:
    command = [sys.executable, "-c", code, str(path), sql]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    resumed, first = ran.stdout.split()
    return int(resumed), float(first)


def digests(path: Path) -> list[str]:
    with tarsdb.connect(path) as db, Snapshot(db._require_session().env) as snapshot:
        table = snapshot.catalog.table("t")
        assert table is not None
        index = next(i for i in table.indexes if i.name == "tv")
        return [part.digest for part in read_parts(snapshot.txn, index.id)]


def unfinished_keys(path: Path) -> int:
    with tarsdb.connect(path) as db, db._require_session().env.read() as txn:
        return len(list(txn.range("meta", b"unfinished/", b"unfinished0")))


@pytest.mark.parametrize("method", METHODS)
def test_a_build_goes_on_where_it_was_killed(tmp_path: Path, method: str) -> None:
    rows = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    paths = [tmp_path / "killed.tars", tmp_path / "whole.tars"]
    for path in paths:
        with tarsdb.connect(path) as db:
            db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
            db.table("t").insert({"id": np.arange(ROWS), "emb": rows})
    sql = f"CREATE INDEX tv ON t USING {method} (emb)"
    command = [sys.executable, "-c", RESUMING + CHILD, str(paths[0]), sql, "0.9"]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert unfinished_keys(paths[0]) > 0
    with tarsdb.connect(paths[0]) as db:
        db.execute("VACUUM")  # leaves what is younger than a week
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    resumed, first = tell(TOLD, paths[0], sql)
    assert resumed == 1
    assert first > 0.5
    assert unfinished_keys(paths[0]) == 0
    anew, first = tell(TOLD, paths[1], sql)  # the same build, uninterrupted: the control
    assert anew == 0
    assert first < 0.5
    assert digests(paths[0]) == digests(paths[1])


def test_a_build_of_other_rows_or_options_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.tars"
    rows = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    with tarsdb.connect(path) as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
        db.table("t").insert({"id": np.arange(ROWS), "emb": rows})
    sql = "CREATE INDEX tv ON t USING hnsw (emb)"
    command = [sys.executable, "-c", RESUMING + CHILD, str(path), sql, "0.8"]
    killed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert tell(TOLD, path, "CREATE INDEX tw ON t USING hnsw (emb) WITH (m = 8)")[0] == 0
    with tarsdb.connect(path) as db:
        db.execute("DELETE FROM t WHERE id = 7")
    assert tell(TOLD, path, sql)[0] == 0
    assert unfinished_keys(path) > 0  # of the build that was killed, for a week
