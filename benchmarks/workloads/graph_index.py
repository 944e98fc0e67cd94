"""Graph search beside its rivals: recall, queries per second, building; one thread, CPU time.

One query a call at each library's Python interface, all indexes in one process, in turns by list
size. ``tarsdb_sql`` is a whole SQL statement on a durable file. Speeds at a recall are interpolated
between list sizes. Writes ``results/graph_index.LEVEL.json``; with ``--dim 128 --metric ip``, other
vectors and another metric, ``results/graph_index_ip128.LEVEL.json``.
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

PACKAGES = ("numpy", "numba", "hnswlib", "scalable-vs", "faiss-cpu", "usearch", "scann")
K = 10
RIVALS = tuple(rival.name for rival in graphs.RIVALS)
TARGETS = (0.90, 0.95, 0.99)
FAST = graphs.TarsdbFastBuild.name


class TarsdbSql:
    """A table with an index in a file, asked by SQL."""

    name = "tarsdb_sql"
    sizes = graphs.TarsdbGraph.sizes
    bytes_per_vector = None

    def __init__(self, base: np.ndarray, path: Any, metric: str = "l2") -> None:
        self._sql = f"SELECT id FROM docs ORDER BY emb {graphs.OPERATORS[metric]} ? LIMIT 10"
        self._db = tarsdb.connect(path)
        self._db.execute(f"CREATE TABLE docs (id BIGINT PRIMARY KEY, emb VECTOR({base.shape[1]}))")
        start = time.process_time()
        self._db.table("docs").insert({"id": np.arange(len(base)), "emb": base})
        self._db.execute(f"CREATE INDEX docs_emb ON docs USING hnsw (emb {metric}_ops)")
        self.build_seconds = time.process_time() - start
        self._size = 0
        self.disk_bytes = path.stat().st_size

    def search(self, query: np.ndarray, k: int, size: int) -> np.ndarray:
        """Return ids."""
        if size != self._size:
            self._size = size
            self._db.execute(f"SET ef_search = {size}")
        return np.array([row[0] for row in self._db.execute(self._sql, (query,)).fetchall()])

    def close(self) -> None:
        """Close."""
        self._db.close()


def run(
    data: inputs.Vectors, repeats: int, rivals: Iterable[str] = RIVALS, metric: str = "l2"
) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    truth = exact.nearest(data.base, data.queries, K, metric)
    with inputs.scratch() as folder:
        contenders: list[Any] = [graphs.TarsdbGraph(data.base, metric)]
        contenders.append(TarsdbSql(data.base, folder / "bench.tars", metric))
        contenders.append(graphs.TarsdbFastBuild(data.base, metric))
        for rival in (each for each in graphs.RIVALS if each.name in rivals):
            try:
                contenders.append(rival(data.base, metric))
            except ImportError as reason:
                print(f"without {rival.name}: {reason}")
        curves: dict[str, list[dict[str, float]]] = {c.name: [] for c in contenders}
        for step in range(max(len(c.sizes) for c in contenders)):
            for contender in contenders:
                if step < len(contender.sizes):
                    size = contender.sizes[step]
                    curves[contender.name].append(_point(contender, data, truth, size, repeats))
        disk = contenders[1].disk_bytes / data.base.nbytes
    return {"metric": metric, **_record(contenders, curves, data, disk)}


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
    parser.add_argument("--dim", type=int, default=inputs.DIM,
                        help="less: the vectors along their first principal axes")  # fmt: skip
    parser.add_argument("--metric", choices=graphs.OPERATORS, default="l2")
    parser.add_argument("--store", help="name of the result")
    given = parser.parse_args()
    processes.pin()
    data = inputs.vectors(given.rows)
    if given.dim < inputs.DIM:
        data = inputs.main_axes(data, given.dim)
    record = run(data, given.repeats, given.rivals, given.metric)
    for name, curve in record["curves"].items():
        line = ", ".join(f"{p['recall']:.3f}: {p['microseconds']:.0f} us" for p in curve)
        print(f"  {name:<11} {line}")
    for key in ("queries_per_second", "tarsdb_times", "build_cpu_seconds", "build_share_of",
                "fast_build_share_of", "fast_build_times", "bytes_per_vector",
                "disk_of_raw"):  # fmt: skip
        print(f"  {key}: {record[key]}")
    is_usual = (given.dim, given.metric) == (inputs.DIM, "l2")
    name = "graph_index" if is_usual else f"graph_index_{given.metric}{given.dim}"
    harness.write(given.store or name, {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
