"""Durable inserts of one row beside SQLite, their flushes, and many threads sharing flushes.

The table has a primary key and two indexes. SQLite runs WAL with synchronous=FULL. Single inserts
of tarsdb and SQLite and bare writes with fdatasync take turns: a page at a file's end, and as
many pages as a commit writes, in a row and apart, within a file. Flushes are counted by strace
where it is installed; commits per sync of 16 threads by LMDB's own transaction numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import tarsdb
from benchmarks import harness, inputs, processes

MODULE = "benchmarks.workloads.one_row_insert"
PACKAGES = ("lmdb", "numpy")
CREATE = "CREATE TABLE events (id {key} PRIMARY KEY, kind INT, name TEXT, body TEXT)"
INDEXES = ("CREATE INDEX events_kind ON events (kind)", "CREATE INDEX events_name ON events (name)")
INSERT = "INSERT INTO events (id, kind, name, body) VALUES (?, ?, ?, ?)"
THREADS = 16
WARM = 20
PAGE, PAGES, FILE_PAGES = 4096, 11, 2_000


def row(number: int) -> tuple[int, int, str, str]:
    """Return a row of some 200 bytes."""
    return number, number % 97, f"name {number * 7919 % 10_007}", f"event {number} " * 12


def run(count: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    with inputs.scratch() as folder:
        seconds = _alternating(folder, count)
        record: dict[str, Any] = {
            "rows": count, "milliseconds": seconds,
            "times_of_sqlite": seconds["tarsdb"]["p50"] / seconds["sqlite"]["p50"],
            "flushes_per_commit": _flushes(folder),
            "group": _group(folder, count),
        }  # fmt: skip
    return record


def _alternating(folder: pathlib.Path, count: int) -> dict[str, dict[str, float]]:
    ours, theirs = _tarsdb(folder / "one.tars"), _sqlite(folder / "one.db")
    fd, within = (os.open(folder / name, os.O_CREAT | os.O_RDWR) for name in ("end", "within"))
    os.pwrite(within, bytes(PAGE * FILE_PAGES), 0)
    os.fsync(within)
    pick = random.Random(3)

    def bare(number: int) -> None:
        os.pwrite(fd, b"x" * PAGE, number * PAGE)
        os.fdatasync(fd)

    def in_a_row(_: int) -> None:
        os.pwrite(within, b"x" * PAGE * PAGES, pick.randrange(FILE_PAGES - PAGES) * PAGE)
        os.fdatasync(within)

    def apart(_: int) -> None:
        for page in pick.sample(range(FILE_PAGES), PAGES):
            os.pwrite(within, b"x" * PAGE, page * PAGE)
        os.fdatasync(within)

    contenders = {
        "tarsdb": ours, "sqlite": theirs, "write_and_fdatasync": bare,
        "pages_in_a_row": in_a_row, "pages_apart": apart,
    }  # fmt: skip
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(count + WARM):
        for name, insert in contenders.items():
            start = time.perf_counter()
            insert(number)
            samples[name].append((time.perf_counter() - start) * 1e3)
    os.close(fd)
    os.close(within)
    return {name: _percentiles(values[WARM:]) for name, values in samples.items()}


def _percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50": statistics.median(ordered), "p99": ordered[int(len(ordered) * 0.99)],
        "mean": statistics.fmean(ordered),
    }  # fmt: skip


def _tarsdb(path: pathlib.Path) -> Callable[[int], Any]:
    db = tarsdb.connect(path)
    for sql in (CREATE.format(key="BIGINT"), *INDEXES):
        db.execute(sql)
    return lambda number: db.execute(INSERT, row(number))


def _sqlite(path: pathlib.Path) -> Callable[[int], Any]:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    for sql in (CREATE.format(key="INTEGER"), *INDEXES):
        db.execute(sql)
    return lambda number: db.execute(INSERT, row(number))


def _flushes(folder: pathlib.Path, commits: int = 100) -> dict[str, Any]:
    """Count flushes of a child with and without its inserts; the difference is the commits'."""
    found: dict[str, Any] = {}
    for name in ("tarsdb", "sqlite"):
        try:
            counts = [
                processes.flushes(
                    MODULE, "--child", name, "--rows", rows, "--file", folder / f"{name}-{rows}",
                    log=folder / "trace",
                )
                for rows in (WARM, WARM + commits)
            ]  # fmt: skip
        except processes.ChildError as reason:
            found["absent"] = str(reason)
            continue
        kinds = {kind: (counts[1][kind] - counts[0][kind]) / commits for kind in counts[0]}
        found[name] = {"all": sum(kinds.values()), **{k: v for k, v in kinds.items() if v}}
    return found


def child(name: str, path: pathlib.Path, count: int) -> dict[str, Any]:
    """Insert rows one by one."""
    insert = _tarsdb(path) if name == "tarsdb" else _sqlite(path)
    for number in range(count):
        insert(number)
    return {"rows": count}


def _group(folder: pathlib.Path, count: int) -> dict[str, Any]:
    """Compare 16 threads with durability ``group`` with one thread."""
    path = folder / "group.tars"
    with tarsdb.connect(path) as db:
        for sql in (CREATE.format(key="BIGINT"), *INDEXES):
            db.execute(sql)
    each = max(10, count // 4)
    one = _threads(path, 1, each * 4, 0)
    many = _threads(path, THREADS, each, 10_000_000)
    return {
        "threads": THREADS, "one_thread": one, "many_threads": many,
        "times_commits_per_second": many["commits_per_second"] / one["commits_per_second"],
        "commits_per_sync": many["commits_per_sync"],
    }  # fmt: skip


def _threads(path: pathlib.Path, threads: int, each: int, first: int) -> dict[str, float]:
    ready, go = threading.Barrier(threads + 1), threading.Event()
    latencies: list[float] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with tarsdb.connect(path, durability="group") as db:
                base = first + number * 100_000
                db.execute(INSERT, row(base))
                ready.wait()
                go.wait()
                for i in range(1, each + 1):
                    start = time.perf_counter()
                    db.execute(INSERT, row(base + i))
                    latencies.append((time.perf_counter() - start) * 1e3)
        except BaseException as error:
            failures.append(error)
            ready.abort()

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    before = processes.last_transaction(path)
    start = time.perf_counter()
    go.set()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    syncs = processes.last_transaction(path) - before
    if failures:
        raise failures[0]
    commits = threads * each
    return {
        "commits": commits, "commits_per_second": commits / seconds,
        "commits_per_sync": commits / syncs, **_percentiles(latencies),
    }  # fmt: skip


def main() -> None:
    """Measure and store, or be the child whose flushes are counted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--child")
    parser.add_argument("--file", type=pathlib.Path)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.file, given.rows)))
        return
    record = run(given.rows)
    for name, figure in record["milliseconds"].items():
        print(f"  {name:<20} p50 {figure['p50']:.3f} ms  p99 {figure['p99']:.3f} ms")
    for key in ("times_of_sqlite", "flushes_per_commit", "group"):
        print(f"  {key}: {record[key]}")
    versions = harness.environment(PACKAGES)
    versions["versions"]["sqlite"] = sqlite3.sqlite_version
    harness.write("one_row_insert", {**record, **versions})


if __name__ == "__main__":
    main()
