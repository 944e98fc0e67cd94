"""Two processes and one file: each sees the other's commits at once; two containers are refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import ReadOnlyError

ROOT = Path(__file__).parents[2]
READER = """
import json, sys
import tarsdb
connection = tarsdb.connect(sys.argv[1], read_only=sys.argv[2] == "read-only")
print("ready", flush=True)
for line in sys.stdin:
    try:
        answer = connection.execute(*json.loads(line)).fetchall()
    except tarsdb.Error as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
connection.close()
"""


class Other:
    """A connection in another process."""

    def __init__(self, path: Path, mode: str, prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", READER, str(path), mode],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.greeting = self.process.stdout.readline().strip()

    def execute(self, sql: str, *parameters: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        request = [sql, list(parameters)] if parameters else [sql]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return [tuple(row) for row in answer] if isinstance(answer, list) else answer

    def close(self) -> str:
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.tars"


@pytest.fixture
def connection(path: Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(path) as connection:
        connection.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT, v VECTOR(4))")
        yield connection


QUESTIONS = [
    ("SELECT count(*), sum(id), min(s), max(s) FROM t",),
    ("SELECT id, s FROM t ORDER BY id LIMIT 40",),
    ("SELECT id FROM t ORDER BY v <-> '[3, 1, 1, 1]' LIMIT 5",),
    ("SELECT s FROM t WHERE id = ?", 7),
    ("SELECT id FROM t WHERE s = ? ORDER BY id", "text 8"),
    ("SELECT s, count(*) FROM t WHERE id > 5 GROUP BY s ORDER BY s LIMIT 20",),
]
STEPS = [
    "INSERT INTO t VALUES (7, 'seven', '[7, 1, 1, 1]')",
    "bulk 100 3000",
    "UPDATE t SET s = 'changed' WHERE id % 3 = 0",
    "OPTIMIZE",
    "UPDATE t SET v = '[3, 1, 1, 1]' WHERE id = 150",
    "DELETE FROM t WHERE id BETWEEN 200 AND 1200",
    "VACUUM",
    "ALTER TABLE t ADD COLUMN extra INTEGER DEFAULT 5",
    "UPDATE t SET extra = 6 WHERE id = 7",
    "CREATE INDEX by_s ON t (s)",
    "bulk 5000 300",
    "ALTER TABLE t RENAME COLUMN extra TO more",
    "DROP INDEX by_s",
    "DELETE FROM t",
    "INSERT INTO t (id, s) VALUES (7, 'again')",
    "DROP TABLE t",
    "CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT, v VECTOR(4))",
    "INSERT INTO t VALUES (8, 'text 8', '[1, 2, 3, 4]')",
]


def take(connection: tarsdb.Connection, step: str) -> None:
    if not step.startswith("bulk"):
        connection.execute(step)
        return
    first, count = map(int, step.split()[1:])
    keys = range(first, first + count)
    rows = [(key, f"text {key % 9}", np.full(4, key, np.float32)) for key in keys]
    connection.executemany("INSERT INTO t (id, s, v) VALUES (?, ?, ?)", rows)


@pytest.mark.parametrize("mode", ["read-only", "writable"])
def test_another_process_sees_every_step(
    path: Path, connection: tarsdb.Connection, mode: str
) -> None:
    """The other process asks before and after each step, so that all its caches are warm."""
    other = Other(path, mode)
    assert other.greeting == "ready"
    for step in STEPS:
        take(connection, step)
        for question, *parameters in QUESTIONS:
            try:
                answer: Any = connection.execute(question, parameters).fetchall()
            except tarsdb.Error as error:
                answer = f"{type(error).__name__}: {error}"
            assert other.execute(question, *parameters) == answer, (step, question)
            assert isinstance(answer, list) or step.startswith("DROP TABLE")
    assert other.close() == ""


def test_a_transaction_keeps_its_snapshot_and_the_first_committer_wins(
    path: Path, connection: tarsdb.Connection
) -> None:
    take(connection, "bulk 0 600")
    other = Other(path, "writable")
    other.execute("BEGIN")
    count = "SELECT count(*) FROM t"
    assert other.execute(count) == [(600,)]
    for step in ("DELETE FROM t WHERE id < 100", "OPTIMIZE", "VACUUM"):
        take(connection, step)
        assert other.execute(count) == [(600,)], step
        assert len(other.execute("SELECT id FROM t ORDER BY v <-> '[1, 1, 1, 1]' LIMIT 3")) == 3
    other.execute("UPDATE t SET s = 'mine' WHERE id = 5")
    assert other.execute("COMMIT").startswith("ConflictError")
    assert other.execute(count) == [(500,)]
    other.execute("INSERT INTO t (id, s) VALUES (5, 'new')")
    assert connection.execute("SELECT s FROM t WHERE id = 5").fetchall() == [("new",)]
    assert other.close() == ""


def test_two_process_namespaces_are_refused(path: Path, connection: tarsdb.Connection) -> None:
    """As two containers that share the file: their process ids mean nothing to each other."""
    unshare = shutil.which("unshare")
    prefix = ("unshare", "--pid", "--fork", "--mount-proc")
    if unshare is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
        prefix = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
        if unshare is None or subprocess.run([*prefix, "true"], capture_output=True).returncode:
            pytest.skip("process namespaces cannot be made here")
    other = Other(path, "writable", prefix)
    error = other.close()
    assert other.process.returncode != 0
    assert "OperationalError" in error and "container" in error
    connection.close()
    other = Other(path, "writable", prefix)  # alone it may
    assert other.greeting == "ready"
    assert other.execute("SELECT count(*) FROM t") == [(0,)]
    assert other.close() == ""


def test_a_read_only_connection_beside_a_writing_one(
    path: Path, connection: tarsdb.Connection
) -> None:
    """In one process they share the open file, which can be written to."""
    with tarsdb.connect(path, read_only=True) as reader:
        connection.execute("INSERT INTO t (id) VALUES (1)")
        assert reader.execute("SELECT id FROM t").fetchall() == [(1,)]
        refused = ["DELETE FROM t", "CREATE TABLE u (i BIGINT)", "VACUUM", "BEGIN; DELETE FROM t"]
        for statement in refused:
            with pytest.raises(ReadOnlyError):
                reader.execute(statement)
