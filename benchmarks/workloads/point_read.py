"""What SQL costs: point reads beside sqlite3, kNN beside its bare kernel, filtered kNN beside all.

Everything runs in one process on one core, contenders in turn, CPU time, medians. The filtered
search keeps one row in a hundred (``sel < 10``); the NumPy baselines get the filtered rows for
nothing, copied together beforehand: ``numpy_diff`` is ``((rows - q) ** 2).sum(1)``, ``numpy_gemv``
one matrix-vector product with norms computed beforehand, both with argpartition.
"""

from __future__ import annotations

import argparse
import pathlib
import sqlite3
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

import tarsdb  # noqa: E402
from benchmarks import inputs, processes  # noqa: E402
from benchmarks.adapters import filtered  # noqa: E402
from tarsdb.index.flat import FlatIndex  # noqa: E402
from tarsdb.kernels import dispatch  # noqa: E402
from tarsdb.storage import Snapshot  # noqa: E402
from tarsdb.types import parse_type  # noqa: E402

PACKAGES = ("numpy", "numba", "lmdb", "duckdb", "sqlite-vec")
K = 10
POINT = "SELECT sel, label, score FROM docs WHERE id = ?"
KNN = "SELECT id, emb <-> ? AS distance FROM {} ORDER BY distance LIMIT 10"
CALLS = 200
"""Point reads in one sample."""
IN_A_ROW = 10
"""Filtered searches of one sample where that is said, each with another query."""
TINY, SMALL = 500, 2000
"""Rows of the tables on which statement overhead is measured: scans short enough not to hide it.
The one of TINY rows leaves the caches alone, as sqlite3's point reads do."""


def run(rows: int, repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    dispatch.warmup()
    columns, data = inputs.scalars(rows), inputs.vectors(rows)
    with inputs.scratch() as folder:
        db = _tarsdb(folder / "bench.tars", columns, data.base)
        lite = _sqlite(folder / "bench.db", columns)
        record: dict[str, Any] = {
            "data": {"rows": rows, "dim": inputs.DIM, "source": data.source, "k": K},
            "point": _point(db, lite, rows, repeats),
        }
        point = record["point"]["seconds"]["sqlite3"]["median"]
        for table in ("tiny", "small", "docs"):
            record[f"overhead_{table}"] = _overhead(db, table, data.queries, repeats * 10, point)
        record |= _filtered(db, columns, data, repeats)
        db.close()
    return record


def _tarsdb(path: pathlib.Path, columns: dict[str, Any], base: np.ndarray) -> tarsdb.Connection:
    db = tarsdb.connect(path)
    sizes = {"docs": len(base), "small": min(SMALL, len(base)), "tiny": min(TINY, len(base))}
    for name, rows in sizes.items():
        db.execute(
            f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, sel INT, label TEXT, score DOUBLE, "
            f"body TEXT, emb VECTOR({base.shape[1]}))"
        )
        db.execute(f"CREATE INDEX {name}_sel ON {name} (sel)")
        part = {key: values[:rows] for key, values in columns.items()}
        db.table(name).insert({**part, "emb": base[:rows]})
    return db


def _sqlite(path: pathlib.Path, columns: dict[str, Any]) -> sqlite3.Connection:
    lite = sqlite3.connect(path)
    lite.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, sel INT, label TEXT, score REAL, "
                 "body TEXT)")  # fmt: skip
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    with lite:
        lite.executemany("INSERT INTO docs VALUES (?, ?, ?, ?, ?)", rows)
    return lite


def _point(
    db: tarsdb.Connection, lite: sqlite3.Connection, rows: int, repeats: int
) -> dict[str, Any]:
    asked = np.random.default_rng(5).integers(0, rows, CALLS).tolist()
    for number in asked[:20]:
        theirs = lite.execute(POINT, (number,)).fetchone()
        if db.execute(POINT, (number,)).fetchone() != theirs:
            raise AssertionError(f"row {number} differs")

    def reads(connection: Any) -> Callable[[], None]:
        def some() -> None:
            for number in asked:
                connection.execute(POINT, (number,)).fetchone()

        return some

    timed = harness.measure({"tarsdb": reads(db), "sqlite3": reads(lite)}, repeats=repeats * 3)
    seconds = {n: {k: v / CALLS for k, v in figure.items()} for n, figure in timed.items()}
    ratio = seconds["tarsdb"]["median"] / seconds["sqlite3"]["median"]
    return {"seconds": seconds, "times_of_sqlite3": ratio}


def _overhead(
    db: tarsdb.Connection, table: str, queries: np.ndarray, repeats: int, point: float
) -> dict[str, float]:
    """Time the statement and the kernel on the same blocks, in turn; report medians."""
    sql = KNN.format(table)
    session = db._session  # the bare kernel needs the very blocks the statement reads
    assert session is not None
    statement, kernel = [], []
    with Snapshot(session.env) as snapshot:
        definition = snapshot.catalog.table(table)
        column = next(c for c in definition.columns if c.name == "emb")
        index = FlatIndex(
            snapshot.table(definition).vectors(column.id),
            parse_type(f"VECTOR({inputs.DIM})"),
            session.env.caches.get("codes"),
        )
        for turn in range(repeats + 5):
            query = queries[turn % len(queries)]
            start = time.process_time()
            found = db.execute(sql, (query,)).fetchall()
            middle = time.process_time()
            bare = index.search(query[None], K, "<->")
            end = time.process_time()
            if not np.allclose([row[1] for row in found], bare[1][0], atol=1e-4):
                raise AssertionError("the statement and the kernel disagree")
            if turn >= 5:
                statement.append(middle - start)
                kernel.append(end - middle)
    pairs = [a - b for a, b in zip(statement, kernel, strict=True)]
    seconds = statistics.median(pairs)
    return {
        "statement_s": statistics.median(statement), "kernel_s": statistics.median(kernel),
        "overhead_s": seconds, "point_reads_of_sqlite3": seconds / point,
    }  # fmt: skip


def _filtered(
    db: tarsdb.Connection, columns: dict[str, Any], data: inputs.Vectors, repeats: int
) -> dict[str, Any]:
    contenders: dict[str, Any] = {"tarsdb": filtered.TarsdbFiltered(db)}
    for rival in filtered.RIVALS:
        try:
            contenders[rival.name] = rival(columns, data.base)
        except ImportError as reason:
            print(f"without {rival.name}: {reason}")
    truth = contenders["numpy_diff"]
    recall = {
        name: _recall(contender, truth, data.queries[:20]) for name, contender in contenders.items()
    }

    def several(contender: Any, calls: int) -> Callable[[], Any]:
        turn = [0]

        def searches() -> None:
            for _ in range(calls):
                contender.search(data.queries[turn[0] % len(data.queries)], K)
                turn[0] += 1

        return searches

    found: dict[str, Any] = {}
    for name, calls in (("filtered", 1), ("filtered_in_a_row", IN_A_ROW)):
        timed = harness.measure(
            {n: several(c, calls) for n, c in contenders.items()}, repeats=repeats
        )
        seconds = {n: {k: v / calls for k, v in f.items()} for n, f in timed.items()}
        own = seconds["tarsdb"]["median"]
        found[name] = {
            "selectivity": float((columns["sel"] < filtered.BELOW).mean()),
            "seconds": seconds, "recall": recall,
            "tarsdb_as_share_of": {
                n: own / f["median"] for n, f in seconds.items() if n != "tarsdb"
            },
        }  # fmt: skip
    return found


def _recall(contender: Any, truth: Any, queries: np.ndarray) -> float:
    hits = [len(set(contender.search(q, K)) & set(truth.search(q, K))) for q in queries]
    return sum(hits) / (K * len(queries))


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=inputs.LIMIT)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    processes.pin()
    record = run(given.rows, given.repeats)
    print(harness.table("point read, microseconds", record["point"]["seconds"], 1e-6))
    print("  times of sqlite3:", record["point"]["times_of_sqlite3"])
    for name in ("overhead_tiny", "overhead_small", "overhead_docs"):
        print(f"  {name}: {record[name]}")
    for name in ("filtered", "filtered_in_a_row"):
        print(harness.table(f"{name} kNN, milliseconds", record[name]["seconds"]))
        print("  tarsdb's share:", record[name]["tarsdb_as_share_of"])
        print("  recall:", record[name]["recall"])
    harness.write("point_read", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
