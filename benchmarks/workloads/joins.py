"""Joins of a large table by keys, and the nearest rows of a join, beside SQLite and DuckDB.

100,000 chunks with 384-d vectors belong to 25,000 documents. Statements are executed with new
parameters and their rows fetched, the engines taking turns; time of the process's processors, as
DuckDB works in threads of its own. SQLite finds the nearest by sqlite-vec's vec0 table, as its
manual says: k rows first, then the join. Answers without an index of ours are compared; with one
their recall is stored.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

import tarsdb
from benchmarks import harness, inputs
from benchmarks.adapters import sqlite_vec
from tarsdb.kernels import dispatch

NAME = "joins"
PACKAGES = ("lmdb", "numpy", "duckdb", "pyarrow", "sqlite-vec")
ROWS, K = 100_000, 5
CHUNKS_OF_A_DOC = 4
NEAREST = (
    "SELECT c.id, d.title FROM chunks c JOIN docs d ON d.id = c.doc_id {where}"
    "ORDER BY {distance} LIMIT {k}"
)
BY_KEY = {
    "a row and its parent": "SELECT c.body, d.title FROM chunks c JOIN docs d ON d.id = c.doc_id"
                            " WHERE c.id = ?",
    "a parent's rows": "SELECT c.body, d.title FROM docs d JOIN chunks c ON c.doc_id = d.id"
                       " WHERE d.id = ?",
}  # fmt: skip
VEC0 = (
    "SELECT c.id, d.title FROM v JOIN chunks c ON c.id = v.rowid JOIN docs d ON d.id = c.doc_id "
    f"WHERE v.e MATCH ? AND k = {K} ORDER BY v.distance"
)


class Engines:
    """The same two tables in each."""

    def __init__(self, base: np.ndarray) -> None:
        rows, dim = base.shape
        docs = rows // CHUNKS_OF_A_DOC
        ids = np.arange(rows)
        doc_ids = np.random.default_rng(5).integers(0, docs, rows)
        bodies = [f"what was said in {i} " * 3 for i in range(rows)]
        titles, years = [f"title {i}" for i in range(docs)], np.arange(docs) % 100
        self.dim, self.docs = dim, docs
        self.ours = tarsdb.connect(":memory:")
        self.sqlite, self.duck = sqlite_vec.connect(), duckdb.connect()
        for db, vector in ((self.ours, f"VECTOR({dim})"), (self.duck, f"FLOAT[{dim}]")):
            db.execute("CREATE TABLE docs (id BIGINT PRIMARY KEY, title TEXT, year INT)")
            db.execute(
                f"CREATE TABLE chunks (id BIGINT PRIMARY KEY, doc_id BIGINT, body TEXT, e {vector})"
            )
            db.execute("CREATE INDEX of_doc ON chunks (doc_id)")
        self.sqlite.execute("CREATE TABLE docs (id INTEGER PRIMARY KEY, title TEXT, year INT)")
        self.sqlite.execute(
            "CREATE TABLE chunks (id INTEGER PRIMARY KEY, doc_id INTEGER, body TEXT)"
        )
        self.sqlite.execute("CREATE INDEX of_doc ON chunks (doc_id)")
        self.sqlite.execute(f"CREATE VIRTUAL TABLE v USING vec0(e float[{dim}])")

        self.ours.table("docs").insert({"id": np.arange(docs), "title": titles, "year": years})
        self.ours.table("chunks").insert({"id": ids, "doc_id": doc_ids, "body": bodies, "e": base})
        self._fill_duckdb("docs", {"id": np.arange(docs), "title": titles, "year": years})
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1)), dim)
        self._fill_duckdb("chunks", {"id": ids, "doc_id": doc_ids, "body": bodies, "e": vectors})
        self.sqlite.executemany(
            "INSERT INTO docs VALUES (?, ?, ?)",
            zip(range(docs), titles, years.tolist(), strict=True),
        )
        self.sqlite.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?)",
            zip(range(rows), doc_ids.tolist(), bodies, strict=True),
        )
        self.sqlite.executemany(
            "INSERT INTO v(rowid, e) VALUES (?, ?)",
            ((number, row.tobytes()) for number, row in enumerate(base)),
        )

    def _fill_duckdb(self, table: str, columns: dict[str, Any]) -> None:
        self.duck.register("given", pa.table(columns))
        self.duck.execute(f"INSERT INTO {table} SELECT * FROM given")
        self.duck.unregister("given")

    def nearest(self, query: np.ndarray, year: int | None = None) -> dict[str, Any]:
        """Return calls that give the nearest chunks and their documents, of a year's documents."""
        where, years = ("", ()) if year is None else ("WHERE d.year = ? ", (year,))
        ours = NEAREST.format(where=where, distance="c.e <-> ?", k=K)
        distance = f"array_distance(c.e, ?::FLOAT[{self.dim}])"
        theirs, given = NEAREST.format(where=where, distance=distance, k=K), query.tolist()
        calls = {
            "tarsdb": lambda: self.ours.execute(ours, (*years, query)).fetchall(),
            "duckdb": lambda: self.duck.execute(theirs, (*years, given)).fetchall(),
        }
        if year is None:  # vec0 knows no condition on a joined table
            raw = query.tobytes()
            calls["sqlite"] = lambda: self.sqlite.execute(VEC0, (raw,)).fetchall()
        return calls

    def by_key(self, sql: str, key: int) -> dict[str, Any]:
        """Return calls of a statement with one parameter."""
        engines = {"tarsdb": self.ours, "duckdb": self.duck, "sqlite": self.sqlite}
        return {
            name: lambda db=db: db.execute(sql, (key,)).fetchall() for name, db in engines.items()
        }


def run(rows: int, repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    data = inputs.vectors(rows)
    engines = Engines(data.base)
    dispatch.warmup()
    pick = random.Random(3)
    queries = data.queries[: repeats + 3]
    figures = {}
    for name, sql in BY_KEY.items():
        most = rows if sql.endswith("c.id = ?") else engines.docs
        calls = [engines.by_key(sql, pick.randrange(most)) for _ in range(repeats + 3)]
        figures[name] = _measured(calls, name)
    figures["nearest, exact"] = _measured([engines.nearest(q) for q in queries], "nearest")
    figures["nearest of a year's documents, exact"] = _measured(
        [engines.nearest(q, pick.randrange(100)) for q in queries], "nearest of a year"
    )
    engines.ours.execute("CREATE INDEX near ON chunks USING hnsw (e)")
    figures["nearest, by a graph"] = _measured([engines.nearest(q) for q in queries], None)
    return {
        "data": {"rows": rows, "docs": engines.docs, "k": K, "source": data.source},
        "repeats": repeats, "figures": figures,
    }  # fmt: skip


def _measured(calls: list[dict[str, Any]], compared: str | None) -> dict[str, Any]:
    """Return CPU microseconds of each engine, medians, without the first three turns."""
    took: dict[str, list[float]] = {name: [] for name in calls[0]}
    found = wanted = 0
    for turn, each in enumerate(calls):
        answers = {}
        for name, call in each.items():
            began = time.process_time()
            answers[name] = sorted(call())
            if turn >= 3:
                took[name].append((time.process_time() - began) * 1e6)
        if compared is not None and len({str(rows) for rows in answers.values()}) > 1:
            raise AssertionError(f"{compared}: {answers}")
        found += len(set(answers["tarsdb"]) & set(answers["duckdb"]))
        wanted += len(answers["duckdb"])
    medians = {name: statistics.median(values) for name, values in took.items()}
    return {
        "cpu_us": medians, "recall": found / max(wanted, 1),
        "share_of": {n: medians["tarsdb"] / v for n, v in medians.items() if n != "tarsdb"},
    }  # fmt: skip


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--store", default=NAME, help="name of the result, '' for none")
    given = parser.parse_args()
    record = run(given.rows, given.repeats)
    for name, figure in record["figures"].items():
        shares = ", ".join(f"{v:.3f} of {n}" for n, v in figure["share_of"].items())
        took = figure["cpu_us"]["tarsdb"]
        print(f"  {name:<38} {took:7.0f} us, {shares}, recall {figure['recall']:.3f}")
    if given.store:
        harness.write(given.store, {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
