"""A second process searches an indexed table after every commit of the first."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import tarsdb

DIM, ROWS, QUERIES, K = 16, 1_500, 12, 10
SQL = f"SELECT id FROM t ORDER BY emb <-> ? LIMIT {K}"
CHILD = f"""
import json, sys, tarsdb
from tarsdb.kernels import graph, ivf
graph.wait(), ivf.wait()
with tarsdb.connect(sys.argv[1], read_only=True) as db:
    print("ready", flush=True)
    for line in sys.stdin:
        sent = json.loads(line)
        if isinstance(sent, str):
            db.execute(sent)
            print("null", flush=True)
            continue
        found = [[row[0] for row in db.execute({SQL!r}, (query,)).fetchall()] for query in sent]
        how = str(db.execute("EXPLAIN " + {SQL!r}, (sent[0],)).fetchall())
        print(json.dumps([found, "index tv" in how]), flush=True)
"""


@pytest.fixture
def ask(tmp_path: pathlib.Path) -> Iterator[Callable[[Any], Any]]:
    """Send a statement or queries to a process that keeps the file open; return its answer."""
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.execute(f"CREATE TABLE t (id INT PRIMARY KEY, emb VECTOR({DIM}))")
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "a.tars")], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        sending, answers = child.stdin, child.stdout
        assert answers.readline() == "ready\n"

        def ask(what: Any) -> Any:
            sending.write(json.dumps(what) + "\n")
            sending.flush()
            return json.loads(answers.readline())

        yield ask
        sending.close()


def lacking(found: list[list[int]], rows: dict[int, np.ndarray], queries: np.ndarray) -> float:
    """Return the share of the nearest rows that is not found; ended rows fail at once."""
    ids, base = np.array(list(rows)), np.stack(list(rows.values()))
    missed = 0
    for query, answer in zip(queries, found, strict=True):
        assert len(answer) == len(set(answer)) == K
        assert rows.keys() >= set(answer)
        near = ids[np.argsort(((base - query) ** 2).sum(axis=1))[:K]]
        missed += len(set(near.tolist()) - set(answer))
    return missed / (K * len(queries))


@pytest.mark.parametrize("method", ["hnsw", "ivf"])
def test_after_every_commit(tmp_path: pathlib.Path, ask: Callable[[Any], Any], method: str) -> None:
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((QUERIES, DIM)).astype(np.float32)
    base = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    rows = dict(enumerate(base))
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.table("t").insert({"id": np.arange(ROWS), "emb": base})

        def change(step: int) -> None:
            """Insert, change and delete some rows near the queries in one commit."""
            near = (queries[:6] + 0.01 * step).astype(np.float32)
            with db.transaction():
                fresh = list(range(ROWS + 6 * step, ROWS + 6 * step + 6))
                db.table("t").insert({"id": fresh, "emb": near})
                changed = [step * 40 + at for at in range(6)]
                db.executemany("UPDATE t SET emb = ? WHERE id = ?",
                               list(zip(near + 0.02, changed, strict=True)))  # fmt: skip
                db.execute(f"DELETE FROM t WHERE id BETWEEN {step * 40 + 10} AND {step * 40 + 30}")
            rows.update(zip(fresh, near, strict=True))
            rows.update(zip(changed, near + 0.02, strict=True))
            for ended in range(step * 40 + 10, step * 40 + 31):
                rows.pop(ended, None)

        build = f"CREATE INDEX tv ON t USING {method} (emb)"
        steps = itertools.count()
        for sql in (build, "OPTIMIZE t", "VACUUM", "REINDEX tv", None):
            if sql is not None:
                db.execute(sql)
            for _ in range(2):  # the process has the index in memory by then, and then it changes
                found, by_index = ask(queries.tolist())
                assert by_index
                assert lacking(found, rows, queries) <= 0.05
                here = [[row[0] for row in db.execute(SQL, (q,)).fetchall()] for q in queries]
                assert found == here
                change(next(steps))
        db.execute("DROP INDEX tv")
        found, by_index = ask(queries.tolist())
        assert not by_index
        assert lacking(found, rows, queries) == 0


def test_a_snapshot_of_before_is_seen_to_be_old(
    tmp_path: pathlib.Path, ask: Callable[[Any], Any]
) -> None:
    """The control: what a process reads within its transaction fails the comparison."""
    base = np.random.default_rng(3).standard_normal((ROWS, DIM)).astype(np.float32)
    queries, rows = base[:QUERIES], dict(enumerate(base))
    with tarsdb.connect(tmp_path / "a.tars") as db:
        db.table("t").insert({"id": np.arange(ROWS), "emb": base})
        db.execute("CREATE INDEX tv ON t USING hnsw (emb)")
        ask("BEGIN")
        assert lacking(ask(queries.tolist())[0], rows, queries) <= 0.05
        db.execute(f"DELETE FROM t WHERE id < {QUERIES}")
        kept = {number: row for number, row in rows.items() if number >= QUERIES}
        with pytest.raises(AssertionError):
            lacking(ask(queries.tolist())[0], kept, queries)
        ask("ROLLBACK")
        assert lacking(ask(queries.tolist())[0], kept, queries) <= 0.05
