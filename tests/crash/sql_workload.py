"""A writer that is killed, and the check that nothing it acknowledged is gone.

One process imports the engine once and only ever forks: a writer child, killed with SIGKILL at a
random moment, then a verifier child that opens a copy of the file and compares it with what the
writer acknowledged: the next writer finds the file as the killed one left it. Run as a script:
``python sql_workload.py DIRECTORY KILLS SEED [ack-first]``; prints one JSON line. ``ack-first``
acknowledges before the commit: the check must then fail.

The transactions, each acknowledged after its commit:

- every one appends to ``log`` and counts in ``counter``: the two must agree;
- ``move`` shifts an amount between two ``accounts``: the total is constant;
- rows of ``docs`` come, change and go; a vector is a function of its row's ``id`` and ``rev``. A
  graph and inverted lists follow them, in the background and by REINDEX; what they find must be
  there.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np

import tarsdb
import tarsdb.engine.by_duckdb.relational
import tarsdb.engine.reading.scans
import tarsdb.engine.session
from tarsdb.engine.search import index_build
from tarsdb.kernels import graph, ivf
from tarsdb.sql import parse

DIM = 16
ACCOUNTS = 20
TOTAL = 100 * ACCOUNTS
OPTIONS = tarsdb.OpenOptions(delta_limit_rows=48, segment_rows=64)
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS counter (id INT PRIMARY KEY, n BIGINT);
CREATE TABLE IF NOT EXISTS log (n BIGINT PRIMARY KEY, what TEXT);
CREATE TABLE IF NOT EXISTS accounts (id INT PRIMARY KEY, amount BIGINT NOT NULL);
CREATE TABLE IF NOT EXISTS docs (id BIGINT PRIMARY KEY, rev INT, tag TEXT, emb VECTOR({DIM}));
CREATE INDEX IF NOT EXISTS docs_tag ON docs (tag);
CREATE INDEX IF NOT EXISTS docs_near ON docs USING hnsw (emb) WITH (m = 4, ef_construction = 16);
CREATE INDEX IF NOT EXISTS docs_lists ON docs USING ivf (emb) WITH (lists = 8);
"""


def vector(row: int, rev: int) -> np.ndarray:
    """Return the vector a row must have; float32 (DIM,)."""
    rng = np.random.default_rng((row, rev))
    return rng.standard_normal(DIM).astype(np.float32)


def prepare(path: str) -> None:
    """Create the schema and the rows every run starts from."""
    with tarsdb.connect(path, options=OPTIONS) as db:
        db.execute(SCHEMA)
        db.execute("INSERT INTO counter VALUES (1, 0)")
        rows = [(i, 100) for i in range(ACCOUNTS)]
        db.executemany("INSERT INTO accounts VALUES (?, ?)", rows)


def write(path: str, seed: int, acknowledge: int, ack_first: bool) -> None:
    """Commit transactions until killed, telling ``acknowledge`` the number of each."""
    rng = random.Random(seed)
    db = tarsdb.connect(path, options=OPTIONS)
    (n,) = db.execute("SELECT n FROM counter WHERE id = 1").fetchone() or (0,)
    while True:
        n += 1
        if ack_first:
            os.write(acknowledge, struct.pack("<q", n))
        with db.transaction():
            step(db, rng, n)
        if not ack_first:
            os.write(acknowledge, struct.pack("<q", n))


def step(db: tarsdb.Connection, rng: random.Random, n: int) -> None:
    """Do one transaction's statements."""
    what = rng.choice(["add", "add", "add", "bulk", "move", "edit", "drop", "tag", "reindex"])
    if what == "add":
        db.execute(
            "INSERT INTO docs VALUES (?, 0, ?, ?)", (n * 100, f"t{n % 7}", vector(n * 100, 0))
        )
    elif what == "bulk":
        ids = [n * 100 + i for i in range(80)]
        rows = [(i, 0, f"t{i % 7}", vector(i, 0)) for i in ids]
        db.executemany("INSERT INTO docs VALUES (?, ?, ?, ?)", rows)
    elif what == "move":
        source, target, amount = rng.randrange(ACCOUNTS), rng.randrange(ACCOUNTS), rng.randrange(9)
        db.execute("UPDATE accounts SET amount = amount - ? WHERE id = ?", (amount, source))
        db.execute("UPDATE accounts SET amount = amount + ? WHERE id = ?", (amount, target))
    elif what == "reindex":
        db.execute(f"REINDEX {rng.choice(['docs_near', 'docs_lists'])}")
    else:
        edit(db, rng, what)
    db.execute("INSERT INTO log VALUES (?, ?)", (n, what))
    db.execute("UPDATE counter SET n = ? WHERE id = 1", (n,))


def edit(db: tarsdb.Connection, rng: random.Random, what: str) -> None:
    """Change, retag or delete some row there is."""
    target = rng.randrange(1, 100_000)
    rows = db.execute(
        "SELECT id, rev FROM docs WHERE id >= ? ORDER BY id LIMIT 1", (target,)
    ).fetchall()
    for row, rev in rows:
        if what == "edit":
            db.execute(
                "UPDATE docs SET rev = ?, emb = ? WHERE id = ?",
                (rev + 1, vector(row, rev + 1), row),
            )
        elif what == "tag":
            db.execute("UPDATE docs SET tag = 'changed' WHERE id = ?", (row,))
        else:
            db.execute("DELETE FROM docs WHERE id = ?", (row,))


def verify(path: str, acknowledged: int) -> tuple[int, list[str]]:
    """Return the last number committed, and what is wrong with the file, given the last one
    acknowledged. Drops the file's vector indexes.
    """
    wrong: list[str] = []
    with tarsdb.connect(path, options=OPTIONS) as db:
        for (line,) in db.execute("PRAGMA integrity_check"):
            if line != "ok":
                wrong.append(f"integrity_check: {line}")
        (n,) = db.execute("SELECT n FROM counter WHERE id = 1").fetchone() or (-1,)
        if n < acknowledged:
            wrong.append(f"acknowledged {acknowledged}, found {n}")
        if n > acknowledged + 1:
            wrong.append(f"acknowledged {acknowledged}, found {n}: more than one beyond")
        (logged, last) = db.execute("SELECT count(*), max(n) FROM log").fetchone() or (0, 0)
        if logged != n or (last or 0) != n:
            wrong.append(f"counter says {n}, log holds {logged} rows up to {last}")
        (total,) = db.execute("SELECT sum(amount) FROM accounts").fetchone() or (0,)
        if total != TOTAL:
            wrong.append(f"accounts sum to {total}, not {TOTAL}")
        wrong += verify_docs(db)
    return n, wrong


def verify_docs(db: tarsdb.Connection) -> list[str]:
    """Compare every vector with what its row says, and search for the last one."""
    rows = db.execute("SELECT id, rev, emb FROM docs").fetchall()
    wrong = [
        f"docs {row}: its vector is not that of revision {rev}"
        for row, rev, emb in rows
        if emb is None or not np.array_equal(emb, vector(row, rev))
    ]
    for index in ("docs_near", "docs_lists", None):
        wrong += [f"{text} (index: {index})" for text in verify_search(db, rows, index is None)]
        if index is not None:
            db.execute(f"DROP INDEX {index}")
    return wrong


def verify_search(
    db: tarsdb.Connection, rows: list[tuple[int, int, np.ndarray]], is_exact: bool
) -> list[str]:
    """Search for the last rows; what is found must be rows there are, at their true distances."""
    known = {row: rev for row, rev, _ in rows}
    wrong = []
    for row, rev, _ in rows[-3:]:
        query = vector(row, rev)
        found = db.execute(
            "SELECT id, emb <-> ? AS d FROM docs ORDER BY d LIMIT 10", (query,)
        ).fetchall()
        if len(found) != min(10, len(rows)):
            wrong.append(f"{len(found)} rows found near docs {row}, of {len(rows)}")
        if is_exact and found[0][0] != row:
            wrong.append(f"nearest to docs {row} is {found[0]}")
        for other, distance in found:
            if other not in known:
                wrong.append(f"docs {other} was found and is not there")
            elif abs(np.linalg.norm(vector(other, known[other]) - query) - distance) > 1e-4:
                wrong.append(f"docs {other} was found at {distance}")
    return wrong


def kill_once(path: str, seed: int, ack_first: bool) -> int | None:
    """Run a writer and kill it; returns the last number it acknowledged (None for none)."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        try:
            write(path, seed, writable, ack_first)
        finally:
            os._exit(1)
    os.close(writable)
    select.select([readable], [], [], 20)  # the first acknowledgement, or the writer's end
    time.sleep(random.Random(seed).random() * 0.08)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(readable, "rb") as pipe:
        data = pipe.read()
    return struct.unpack("<q", data[-8:])[0] if len(data) >= 8 else None


def verify_in_child(path: str, acknowledged: int) -> tuple[int, list[str]]:
    """Run :func:`verify` on a copy, in a child of its own: this process never opens a file."""
    copy = f"{path}.copy"
    shutil.copyfile(path, copy)
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(readable)
        try:
            n, findings = verify(copy, acknowledged)
        except BaseException as error:
            n, findings = -1, [f"{type(error).__name__}: {error}"]
        os.write(writable, json.dumps([n, findings[:20]]).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0 or not data:
        return -1, [f"the verifier died with status {status}"]
    n, findings = json.loads(data)
    return int(n), [str(finding) for finding in findings]


def run(directory: Path, kills: int, seed: int, ack_first: bool) -> dict[str, object]:
    """Kill ``kills`` times, on a fresh file every 25 kills; returns counts and findings."""
    findings: list[str] = []
    committed = 0
    path = ""
    last = 0
    for number in range(kills):
        if number % 25 == 0:
            shutil.rmtree(directory / "db", ignore_errors=True)
            (directory / "db").mkdir(parents=True)
            path, last = str(directory / "db" / "kill.tars"), 0
            child = os.fork()
            if child == 0:
                prepare(path)
                os._exit(0)
            os.waitpid(child, 0)
        acknowledged = kill_once(path, seed + number, ack_first)
        if acknowledged is not None:
            committed += acknowledged - last
            last = acknowledged
        last, found = verify_in_child(path, last)  # an unacknowledged last commit may be there
        findings += [f"kill {number} (seed {seed + number}): {text}" for text in found]
        if found:
            break
    return {"kills": kills, "commits": committed, "findings": findings}


if __name__ == "__main__":
    parse("SELECT 1")  # load what every child needs, once
    graph.wait()
    ivf.wait()
    index_build.FRESH_ROWS = 60
    answer = run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "ack-first" in sys.argv)
    print(json.dumps(answer))
