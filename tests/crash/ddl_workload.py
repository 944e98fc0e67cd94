"""Statements that rewrite or define much, killed at a random moment: done or not, never in between.

Run as a script: ``python ddl_workload.py DIRECTORY ROUNDS SEED [torn]``; prints one JSON line. Each
statement runs on a copy of one file in a forked child that is killed; another child then looks at
the file: it is sound, shows what it showed before or what the statement makes of it, and the
statement can be run again. ``torn`` does one change in two commits: that must be noticed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tarsdb
import tarsdb.engine.by_duckdb.relational
import tarsdb.engine.session
from tarsdb.errors import Error
from tarsdb.kernels import graph, ivf
from tarsdb.sql import parse

OPTIONS = tarsdb.OpenOptions(background_merge=False, segment_rows=256, delta_limit_rows=100_000)
ROWS = 2_000
STATEMENTS = (
    "VACUUM", "OPTIMIZE", "REINDEX t", "ALTER TABLE t ALTER COLUMN n TYPE DOUBLE",
    "ALTER TABLE t RENAME TO renamed", "COPY t (id, s) FROM '{folder}/rows.csv'",
    "CREATE TABLE made AS SELECT * FROM t", "CREATE INDEX more ON t (s)",
    "CREATE INDEX lists ON t USING ivf (v) WITH (lists = 8)", "DROP TABLE t", "TRUNCATE t",
    "UPDATE t SET n = n + 1, s = s || '!'",
)  # fmt: skip
TORN = ("DELETE FROM t WHERE id < 700; DELETE FROM t WHERE id >= 700",)


def build(path: Path) -> None:
    """Make the file every run starts from: segments, ends of rows, a delta, indexes."""
    vectors = np.random.default_rng(1).standard_normal((ROWS, 8)).astype(np.float32)
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, s TEXT, n INT, v VECTOR(8))")
        rows = [(i, f"text {i}", i % 50, vectors[i]) for i in range(ROWS)]
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows[: ROWS // 2])
        db.execute("OPTIMIZE")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows[ROWS // 2 :])
        db.execute("CREATE INDEX numbers ON t (n)")
        db.execute("CREATE INDEX near ON t USING hnsw (v) WITH (m = 4, ef_construction = 16)")
        db.execute("DELETE FROM t WHERE id % 3 = 0")
    lines = [f"{i + 100_000},{'x' * 40}" for i in range(4 * ROWS)]
    (path.parent / "rows.csv").write_text("\n".join(["id,s", *lines]), "utf-8")


def state(db: tarsdb.Connection) -> str:
    """Return all a user sees: tables, indexes, rows."""
    names = sorted(name for name, *_ in db.execute("SHOW TABLES").fetchall())
    seen: list[Any] = [sorted(name for name, *_ in db.execute("SHOW INDEXES").fetchall())]
    for name in names:
        columns = [(row[0], row[1]) for row in db.execute(f"DESCRIBE {name}").fetchall()]
        seen += [name, columns, db.execute(f"SELECT id, s, n FROM {name} ORDER BY id").fetchall()]
        nearest = f"SELECT id FROM {name} WHERE n < 9 ORDER BY v <-> '[1,0,0,0,0,0,0,0]' LIMIT 5"
        seen.append(len(db.execute(nearest).fetchall()))
    return repr(seen)


def in_child(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a forked child, as JSON carries it."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writable, "w", encoding="utf-8") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else {"error": "the child died"}


def run(path: Path, sql: str, ready: int | None = None) -> float:
    """Execute statements one by one; tell when they begin; return the seconds they took."""
    with tarsdb.connect(path, options=OPTIONS, file_access=True) as db:
        db.execute("SELECT count(*) FROM t").fetchall()
        if ready is not None:
            os.write(ready, b"r")
        start = time.perf_counter()
        for number, each in enumerate(sql.split("; ")):
            if number:
                time.sleep(0.3)
            db.execute(each)
        return time.perf_counter() - start


def look(path: Path, again: str = "") -> tuple[str, list[str]]:
    """Return the state of a file and what is wrong with it; also run a statement once more."""
    with tarsdb.connect(path, options=OPTIONS, check=True, file_access=True) as db:
        found = state(db)
        wrong = [line for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
        try:
            for each in again.split("; ") if again else ():
                db.execute(each)
        except Error as error:
            if "exist" not in str(error):  # it is done already
                wrong.append(f"again: {error}")
        db.execute("VACUUM")
        wrong += [line for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
    return found, wrong


def kill(path: Path, sql: str, delay: float) -> bool:
    """Run a statement in a child and kill it; return whether it was still running."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run(path, sql, writable)
        finally:
            os._exit(0)
    os.close(writable)
    os.read(readable, 1)
    os.close(readable)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main(folder: Path, rounds: int, rng: random.Random, torn: bool) -> dict[str, Any]:
    """Kill every statement ``rounds`` times; return counts and findings."""
    base, path = folder / "base.tars", folder / "work.tars"
    in_child(lambda: build(base))
    findings: list[str] = []
    killed = 0

    def fresh() -> None:
        shutil.copyfile(base, path)
        path.with_name(f"{path.name}-lock").unlink(missing_ok=True)

    for each in TORN if torn else STATEMENTS:
        sql = each.format(folder=folder)
        fresh()
        before = in_child(lambda: look(path))[0]
        fresh()
        seconds = in_child(lambda sql=sql: run(path, sql))
        after = in_child(lambda: look(path))[0]
        for _ in range(rounds):
            fresh()
            killed += kill(path, sql, rng.random() * seconds)
            answer = in_child(lambda sql=sql: look(path, sql))
            if isinstance(answer, dict):
                findings.append(f"{each}: {answer['error']}")
            elif answer[0] not in (before, after):
                findings.append(f"{each}: half done")
            else:
                findings += [f"{each}: {line}" for line in answer[1]]
    return {"killed": killed, "findings": findings}


if __name__ == "__main__":
    parse("SELECT 1")  # load what every child needs, once
    graph.wait()
    ivf.wait()
    chance = random.Random(int(sys.argv[3]))
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), chance, "torn" in sys.argv)))
