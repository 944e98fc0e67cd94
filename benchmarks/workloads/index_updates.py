"""A vector index while its rows change: update rates, search during churn and merges, deletes.

One table of 60,000 rows with an index, in a file, changed through SQL. Vectors are updated in
durable transactions of 100 rows for as long as ``--seconds`` says, scalars in transactions of
1,000. Search is measured when one graph covers all, at steady churn (a delta, several parts), while
``OPTIMIZE`` runs in another thread, and after deletes, always with the list size that reached the
target recall at first. What churn and deletes lose is counted from the first rows (``fresh``);
beside it stands what is lost after that ``OPTIMIZE`` (``optimised``): updated vectors lie near
others, where neighbours are harder to tell apart. ``by_target`` is the same with the effort that
the index chooses for the target recall, measured whenever a part of it is built.
Writes ``results/index_updates.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import statistics
import threading
import time
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import exact, inputs  # noqa: E402
from benchmarks.adapters import served as adapters  # noqa: E402
from benchmarks.adapters.served import tarsdb as ours  # noqa: E402
from benchmarks.served import rows  # noqa: E402
from tarsdb.metrics import METRICS  # noqa: E402
from tarsdb.storage import Snapshot, table_stats, tables_of  # noqa: E402

K = 10
TARGET = 0.985
VECTOR_BATCH, SCALAR_BATCH, DELETE_BATCH = 100, 1000, 1000
CHURN = 500
"""Vectors changed last before search at churn is measured: they are fresh, in the delta."""
DELETED = (0.20, 0.95)
PACKAGES = ("numpy", "numba", "lmdb")


class Table:
    """The table, and what it holds by now: vectors by id, and which ids are live."""

    def __init__(
        self, given: adapters.Rows, folder: pathlib.Path, source: pathlib.Path | None
    ) -> None:
        self.folder = folder
        if source is not None:
            shutil.copyfile(source / ours.FILE, folder / ours.FILE)
        self.store = ours.Store(folder, given.vectors.shape[1])
        self.db = self.store.db
        if source is None:
            self.store.load(given)
        self.vectors = given.vectors.copy()
        self.live = np.ones(len(given.ids), dtype=bool)
        self._pool = given.vectors
        self._rng = np.random.default_rng(13)

    def update_vectors(self, count: int) -> None:
        """Give rows new vectors, near the ones of other rows, in one transaction."""
        ids = self._rng.choice(np.flatnonzero(self.live), count, replace=False)
        drawn = self._pool[self._rng.integers(0, len(self._pool), count)]
        drawn = drawn + 0.02 * self._rng.standard_normal(drawn.shape, dtype=np.float32)
        self.vectors[ids] = drawn
        pairs = list(zip(drawn, ids.tolist(), strict=True))
        self.db.executemany("UPDATE docs SET emb = ? WHERE id = ?", pairs)

    def update_scalars(self, count: int) -> None:
        """Change ``sel`` of rows in one transaction."""
        ids = self._rng.choice(np.flatnonzero(self.live), count, replace=False)
        values = self._rng.integers(0, 1000, count)
        pairs = list(zip(values.tolist(), ids.tolist(), strict=True))
        self.db.executemany("UPDATE docs SET sel = ? WHERE id = ?", pairs)

    def delete_until(self, share: float) -> None:
        """Delete random rows until that share of the first ones is gone."""
        left = int(len(self.live) * (1 - share))
        live = np.flatnonzero(self.live)
        gone = self._rng.choice(live, len(live) - left, replace=False)
        self.live[gone] = False
        for at in range(0, len(gone), DELETE_BATCH):
            ids = ", ".join(map(str, gone[at : at + DELETE_BATCH].tolist()))
            self.db.execute(f"DELETE FROM docs WHERE id IN ({ids})")

    def recall(self, queries: np.ndarray) -> float:
        """Return recall@10 against the vectors as they are now."""
        live = np.flatnonzero(self.live)
        right = live[exact.nearest(self.vectors[live], queries, K)]
        found = [self.store.search(query, K, "unfiltered") for query in queries]
        return exact.recall(found, right)

    def shape(self) -> str:
        """Return how a search is answered."""
        sql = f"EXPLAIN {ours.statement(K, 'unfiltered')}"
        lines = [row[0] for row in self.db.execute(sql, (self._pool[0],)).fetchall()]
        return next((line for line in lines if "docs_emb" in line), lines[-1]).strip()

    def delta_rows(self) -> int:
        """Return the row versions in the delta."""
        env = self.db._require_session().env
        with Snapshot(env) as snapshot:
            return table_stats(snapshot, tables_of(env)[0])["delta_rows"]


def run(given: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    data = rows(given.rows)
    queries = inputs.vectors(1).queries[: given.queries]
    table = Table(data, folder, given.source)
    size = _tune(table, queries)
    record: dict[str, Any] = {"ef_search": size, "recall": {"fresh": table.recall(queries)}}
    record["by_target"] = {"fresh": _by_target(table, queries, size)}
    record["idle"] = _searched(table, queries)
    print(f"  idle: {record['idle']}", flush=True)
    record["vector_updates"] = _updates(table, given.seconds)
    print(f"  vector updates: {record['vector_updates']}", flush=True)
    record["churn"] = _churn(table, queries)
    record["churn_over_idle"] = record["churn"]["cpu_us"] / record["idle"]["cpu_us"]
    record["recall"]["churn"] = table.recall(queries)
    record["by_target"]["churn"] = _by_target(table, queries, size)
    record["scalar_updates"] = _scalars(table, given.seconds / 4)
    record["merge"] = _during_merge(table, queries, size)
    record["recall"]["optimised"] = table.recall(queries)
    record["by_target"]["optimised"] = _by_target(table, queries, size)
    for name in ("churn", "scalar_updates", "merge", "by_target"):
        print(f"  {name}: {record[name]}", flush=True)
    for share in DELETED:
        table.delete_until(share)
        name = f"deleted_{round(share * 100)}"
        record["recall"][name] = table.recall(queries)
        record[name] = {**_searched(table, queries), "shape": table.shape()}
    fresh = record["recall"]["fresh"]
    record["recall_lost"] = {n: fresh - r for n, r in record["recall"].items() if n != "fresh"}
    table.store.close()
    record["data"] = {"rows": len(data.ids), "dim": inputs.DIM, "k": K,
                      "source": inputs.vectors(1).source}  # fmt: skip
    return record


def _tune(table: Table, queries: np.ndarray) -> int:
    for size in table.store.sizes:
        table.store.tune(size)
        if table.recall(queries) >= TARGET:
            return int(size)
    return int(table.store.sizes[-1])


def _searched(table: Table, queries: np.ndarray, repeats: int = 5) -> dict[str, float]:
    """Return CPU and p50 of wall microseconds of a query."""
    cpu, wall = [], []
    for _ in range(repeats):
        began = time.thread_time()
        for query in queries:
            start = time.perf_counter()
            table.store.search(query, K, "unfiltered")
            wall.append(time.perf_counter() - start)
        cpu.append((time.thread_time() - began) / len(queries))
    return {"cpu_us": 1e6 * statistics.median(cpu), "p50_us": 1e6 * statistics.median(wall)}


def _by_target(table: Table, queries: np.ndarray, size: int) -> dict[str, float]:
    """Return recall and CPU microseconds of a query with the effort chosen for the target."""
    table.db.execute("SET ef_search = 0")
    table.db.execute(f"SET target_recall = {TARGET}")
    found = {"recall": table.recall(queries), "cpu_us": _searched(table, queries)["cpu_us"]}
    table.store.tune(size)
    return found


def _updates(table: Table, seconds: float) -> dict[str, float]:
    """Update vectors for so long; the delta's length is looked at now and then."""
    took, deltas = [], []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        table.update_vectors(VECTOR_BATCH)
        took.append(time.perf_counter() - start)
        if len(took) % 50 == 0:
            deltas.append(table.delta_rows())
    half = len(took) // 2
    return {
        **_rate(took, VECTOR_BATCH), "most_delta_rows": max(deltas, default=table.delta_rows()),
        "second_half_rows_per_second": VECTOR_BATCH * (len(took) - half) / sum(took[half:]),
        "seconds": seconds,
    }  # fmt: skip


def _rate(took: list[float], batch: int) -> dict[str, float]:
    p50, p99 = np.quantile(took, (0.5, 0.99))
    return {
        "rows_per_second": batch * len(took) / sum(took), "batch_p50_ms": 1e3 * float(p50),
        "batch_p99_ms": 1e3 * float(p99), "batches": len(took),
    }  # fmt: skip


def _churn(table: Table, queries: np.ndarray) -> dict[str, Any]:
    """Search with fresh rows in the delta, once nothing works in the background."""
    table.store.settle()
    for _ in range(CHURN // VECTOR_BATCH):
        table.update_vectors(VECTOR_BATCH)
    found: dict[str, Any] = _searched(table, queries)
    return {**found, "shape": table.shape(), "delta_rows": table.delta_rows()}


def _scalars(table: Table, seconds: float) -> dict[str, float]:
    built, before = METRICS.snapshot().get("index.parts_built", 0), table.shape()
    took: list[float] = []
    while sum(took) < seconds:
        start = time.perf_counter()
        table.update_scalars(SCALAR_BATCH)
        took.append(time.perf_counter() - start)
    table.store.settle()
    parts = METRICS.snapshot().get("index.parts_built", 0) - built
    return {**_rate(took, SCALAR_BATCH), "parts_built": parts,
            "index_unchanged": int(table.shape() == before)}  # fmt: skip


def _during_merge(table: Table, queries: np.ndarray, size: int) -> dict[str, float]:
    """Search while another thread merges everything and builds one graph, then when it is done."""
    wall = []
    for _ in range(20):
        table.update_vectors(VECTOR_BATCH)
    merger = threading.Thread(target=lambda: table.db.cursor().execute("OPTIMIZE docs"))
    other = ours.Store(table.folder, inputs.DIM)
    other.tune(size)
    for query in queries:  # its own plan and settings are warm
        other.search(query, K, "unfiltered")
    merger.start()
    while merger.is_alive():
        for query in queries[:50]:
            start = time.perf_counter()
            other.search(query, K, "unfiltered")
            wall.append(time.perf_counter() - start)
    merger.join()
    other.close()
    return {"p50_us": 1e6 * statistics.median(wall), "searches": len(wall)}


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=600.0, help="of vector updates")
    parser.add_argument("--source", type=pathlib.Path, help="folder of a loaded table to copy")
    parser.add_argument("--store", default="index_updates", help="name of the result, '' for none")
    given = parser.parse_args()
    with inputs.scratch() as folder:
        record = run(given, folder)
    for key, value in record.items():
        print(f"  {key}: {value}")
    if given.store:
        harness.write(given.store, {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
