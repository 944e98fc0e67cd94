"""Statements that change one row by its key, beside SQLite: CPU time of each kind.

A table of 50,000 rows with a primary key and an index, in a file. Every kind runs inside
transactions of 100 statements, without their BEGIN and COMMIT, and as commits of their own, taking
turns with the same statements in SQLite (WAL, synchronous=FULL). CPU time of the thread, so that
the disk does not count.
"""

from __future__ import annotations

import argparse
import pathlib
import sqlite3
import statistics
import time
from collections.abc import Callable
from typing import Any

import tarsdb
from benchmarks import harness, inputs

NAME = "one_row_changes"
PACKAGES = ("lmdb", "numpy")
CREATE = "CREATE TABLE t (id {key} PRIMARY KEY, a INT, b INT, name TEXT)"
INDEX = "CREATE INDEX t_a ON t (a)"
INSERT = "INSERT INTO t VALUES (?, ?, ?, ?)"
UPSERT = f"{INSERT} ON CONFLICT (id) DO UPDATE SET b = excluded.b"
KINDS: dict[str, tuple[str, Callable[[int, int], tuple[Any, ...]]]] = {
    "select": ("SELECT a, name FROM t WHERE id = ?", lambda old, _: (old,)),
    "insert": (INSERT, lambda _, new: (new, new % 97, new, "new")),
    "update": ("UPDATE t SET b = ? WHERE id = ?", lambda old, new: (new, old)),
    "update_indexed": ("UPDATE t SET a = ? WHERE id = ?", lambda old, new: (new % 997, old)),
    "update_computed": ("UPDATE t SET b = b + 1 WHERE id = ?", lambda old, _: (old,)),
    "upsert_old": (UPSERT, lambda old, new: (old, 1, new, "old")),
    "upsert_new": (UPSERT, lambda _, new: (new, 1, new, "new")),
    "replace": (INSERT.replace("INSERT", "INSERT OR REPLACE"),
                lambda old, new: (old, new % 97, new, "other")),
    "delete": ("DELETE FROM t WHERE id = ?", lambda old, _: (old,)),
}  # fmt: skip
STATEMENTS = 100
PRIME = 7919
"""Rows are taken in steps of it: each once, near none of those before."""


def run(rows: int, rounds: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    figures: dict[str, dict[str, Any]] = {name: {} for name in KINDS}
    with inputs.scratch() as folder:
        pair = _tarsdb(folder, rows), _sqlite(folder, rows)
        number = 0
        for name in KINDS:
            for mode, count in (("transaction", rounds), ("commit", max(rounds // 4, 2))):
                used = range(number, number + count * STATEMENTS)
                figures[name][mode] = _measured(pair, name, mode, rows, used)
                number = used.stop
        for db in pair:
            db.close()
    return {"rows": rows, "rounds": rounds, "figures": figures}


def _tarsdb(folder: pathlib.Path, rows: int) -> tarsdb.Connection:
    db = tarsdb.connect(folder / "ours.tars")
    _fill(db, "BIGINT", rows)
    return db


def _sqlite(folder: pathlib.Path, rows: int) -> sqlite3.Connection:
    db = sqlite3.connect(folder / "theirs.db", isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    _fill(db, "INTEGER", rows)
    return db


def _fill(db: Any, key: str, rows: int) -> None:
    db.execute(CREATE.format(key=key))
    db.execute(INDEX)
    db.execute("BEGIN")
    db.executemany(INSERT, [(i, i % 97, i, f"name {i}") for i in range(rows)])
    db.execute("COMMIT")


def _measured(
    pair: tuple[Any, Any], name: str, mode: str, rows: int, numbers: range
) -> dict[str, float]:
    """Return CPU microseconds of a statement of both, medians of rounds of them."""
    sql, make = KINDS[name]
    took: tuple[list[float], list[float]] = ([], [])
    for first in numbers[::STATEMENTS]:
        sets = [make(n * PRIME % rows, rows + n) for n in range(first, first + STATEMENTS)]
        for db, samples in zip(pair, took, strict=True):
            if mode == "transaction":
                db.execute("BEGIN")
            began = time.thread_time()
            for parameters in sets:
                db.execute(sql, parameters)
            samples.append((time.thread_time() - began) / STATEMENTS * 1e6)
            if mode == "transaction":
                db.execute("COMMIT")
    ours, theirs = map(statistics.median, took)
    return {"cpu_us": ours, "sqlite_cpu_us": theirs, "times_of_sqlite": ours / theirs}


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument(
        "--store", default="one_row_changes", help="name of the result, '' for none"
    )
    given = parser.parse_args()
    record = run(given.rows, given.rounds)
    for name, modes in record["figures"].items():
        for mode, figure in modes.items():
            times = f"{figure['cpu_us']:6.0f} us, {figure['times_of_sqlite']:.1f} times SQLite"
            print(f"  {name:<16} {mode:<12} {times}")
    if given.store:
        versions = harness.environment(PACKAGES)
        versions["versions"]["sqlite"] = sqlite3.sqlite_version
        harness.write(given.store, {**record, **versions})


if __name__ == "__main__":
    main()
