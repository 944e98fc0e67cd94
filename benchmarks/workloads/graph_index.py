"""Graph search beside hnswlib and SVS: recall, queries per second, building; one thread, CPU time.

One query a call at each library's Python interface, all indexes in one process, in turns by list
size. ``tarsdb_sql`` is a whole SQL statement on a durable file. Speeds at a recall are interpolated
between list sizes. Writes ``results/graph_index.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

import tarsdb  # noqa: E402
from benchmarks import exact, inputs, processes  # noqa: E402
from benchmarks.adapters import graphs  # noqa: E402

PACKAGES = ("numpy", "numba", "hnswlib", "scalable-vs")
K = 10
RIVALS = tuple(rival.name for rival in graphs.RIVALS)
TARGETS = (0.90, 0.95, 0.99)
FAST = graphs.TarsdbFastBuild.name
SQL = "SELECT id FROM docs ORDER BY emb <-> ? LIMIT 10"


class TarsdbSql:
    """A table with an index in a file, asked by SQL."""

    name = "tarsdb_sql"
    sizes = graphs.TarsdbGraph.sizes
    bytes_per_vector = None

    def __init__(self, base: np.ndarray, path: Any) -> None:
        self._db = tarsdb.connect(path)
        self._db.execute(f"CREATE TABLE docs (id BIGINT PRIMARY KEY, emb VECTOR({base.shape[1]}))")
        start = time.process_time()
        self._db.table("docs").insert({"id": np.arange(len(base)), "emb": base})
        self._db.execute("CREATE INDEX docs_emb ON docs USING hnsw (emb)")
        self.build_seconds = time.process_time() - start
        self._size = 0
        self.disk_bytes = path.stat().st_size

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return ids."""
        if size != self._size:
            self._size = size
            self._db.execute(f"SET ef_search = {size}")
        return np.array([row[0] for row in self._db.execute(SQL, (query,)).fetchall()])

    def close(self) -> None:
        """Close."""
        self._db.close()


def run(rows: int, repeats: int, rivals: Iterable[str] = RIVALS) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    data = inputs.vectors(rows)
    truth = exact.nearest(data.base, data.queries, K)
    with inputs.scratch() as folder:
        contenders: list[Any] = [graphs.TarsdbGraph(data.base)]
        contenders.append(TarsdbSql(data.base, folder / "bench.tars"))
        contenders.append(graphs.TarsdbFastBuild(data.base))
        for rival in (each for each in graphs.RIVALS if each.name in rivals):
            try:
                contenders.append(rival(data.base))
            except ImportError as reason:
                print(f"without {rival.name}: {reason}")
        curves: dict[str, list[dict[str, float]]] = {c.name: [] for c in contenders}
        for step in range(max(len(c.sizes) for c in contenders)):
            for contender in contenders:
                if step < len(contender.sizes):
                    size = contender.sizes[step]
                    curves[contender.name].append(_point(contender, data, truth, size, repeats))
        disk = contenders[1].disk_bytes / data.base.nbytes
    return _record(contenders, curves, data, disk)


def _point(
    contender: Any, data: inputs.Vectors, truth: np.ndarray, size: int, repeats: int
) -> dict[str, float]:
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        found = [contender.search(query, K, size) for query in data.queries]
        best = min(best, time.thread_time() - start)
    return {
        "size": size, "recall": exact.recall(found, truth), "microseconds": best / len(found) * 1e6
    }  # fmt: skip


def _record(
    contenders: list[Any], curves: dict[str, Any], data: inputs.Vectors, disk: float
) -> dict[str, Any]:
    speeds = {
        name: {f"{target:.2f}": _speed(curve, target) for target in TARGETS}
        for name, curve in curves.items()
    }
    ratios = {
        name: {target: _ratio(speeds["tarsdb"][target], speed) for target, speed in found.items()}
        for name, found in speeds.items()
    }
    build = {c.name: c.build_seconds for c in contenders}
    return {
        "data": {"rows": len(data.base), "dim": data.base.shape[1], "source": data.source, "k": K},
        "curves": curves, "queries_per_second": speeds,
        "tarsdb_times": ratios, "build_cpu_seconds": build,
        "build_share_of": {n: build["tarsdb"] / s for n, s in build.items() if n != "tarsdb"},
        "fast_build_share_of": {n: build[FAST] / s for n, s in build.items() if n != FAST},
        "fast_build_times": {
            name: {target: _ratio(speeds[FAST][target], speed) for target, speed in found.items()}
            for name, found in speeds.items()
        },
        "bytes_per_vector": contenders[0].bytes_per_vector, "disk_of_raw": disk,
    }  # fmt: skip


def _speed(curve: list[dict[str, float]], target: float) -> float | None:
    """Return queries per second at a recall, between the list sizes around it."""
    for low, high in itertools.pairwise(curve):
        if low["recall"] <= target <= high["recall"] and high["recall"] > low["recall"]:
            share = (target - low["recall"]) / (high["recall"] - low["recall"])
            time_us = low["microseconds"] + share * (high["microseconds"] - low["microseconds"])
            return 1e6 / time_us
    return None


def _ratio(own: float | None, other: float | None) -> float | None:
    return None if own is None or other is None else own / other


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=inputs.LIMIT)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=RIVALS)
    parser.add_argument("--store", default="graph_index", help="name of the result")
    given = parser.parse_args()
    processes.pin()
    record = run(given.rows, given.repeats, given.rivals)
    for name, curve in record["curves"].items():
        line = ", ".join(f"{p['recall']:.3f}: {p['microseconds']:.0f} us" for p in curve)
        print(f"  {name:<11} {line}")
    for key in ("queries_per_second", "tarsdb_times", "build_cpu_seconds", "build_share_of",
                "fast_build_share_of", "fast_build_times", "bytes_per_vector",
                "disk_of_raw"):  # fmt: skip
        print(f"  {key}: {record[key]}")
    harness.write(given.store, {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
