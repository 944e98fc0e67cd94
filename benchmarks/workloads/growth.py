"""Graph search as the data grows: from 10,000 to 1,000,000 rows, at a recall of 0.95; one thread.

At each size the graph at its Python interface, a whole SQL statement on a durable file and, where
building one is affordable, hnswlib, one query a call in turns, each with the smallest list size
that reaches the recall. ``fit`` is how CPU time grows with the logarithm of the rows. Beyond the
100,000 real vectors they are drawn around these (``inputs.Expansion``); ``shape`` compares the
two. ``private_bytes`` is anonymous memory a vector, in a process of its own that opens the file and
searches it. Writes ``results/growth.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import exact, inputs, processes  # noqa: E402
from benchmarks.adapters import graphs  # noqa: E402
from benchmarks.adapters.served import tarsdb as ours  # noqa: E402
from benchmarks.served import rows  # noqa: E402
from benchmarks.workloads.graph_index import TarsdbSql  # noqa: E402

MODULE = "benchmarks.workloads.growth"
PACKAGES = ("numpy", "numba", "lmdb", "hnswlib")
SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
RIVAL_ROWS = 300_000
"""Rows up to which hnswlib is built: it takes four times as long as everything else."""
K, TARGET = 10, 0.95
MOST_EF = 1024
SAMPLE = 2000
"""Rows whose neighbours describe the shape of a set of vectors."""


def run(most: int, repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    data = inputs.vectors(most)
    sizes = [size for size in SIZES if size <= most] or [most]
    figures: dict[str, Any] = {}
    for size in sizes:
        figures[str(size)] = _size(data, size, repeats)
        print(f"  {size}: {json.dumps(figures[str(size)])}", flush=True)
    fits = {name: _fit(figures, name) for name in ("tarsdb", "tarsdb_sql", "hnswlib")}
    return {
        "data": {"rows": sizes[-1], "dim": inputs.DIM, "source": data.source, "k": K,
                 "target_recall": TARGET},
        "figures": figures, "fit": {name: fit for name, fit in fits.items() if fit},
        "tarsdb_times": _ratios(figures), "shape": _shapes(data),
    }  # fmt: skip


def _size(data: inputs.Vectors, size: int, repeats: int) -> dict[str, Any]:
    """Build everything over the first rows, and measure in turns."""
    base, queries = data.base[:size], data.queries
    right = exact.nearest(base, queries, K)
    with inputs.scratch() as folder:
        path = folder / ours.FILE
        contenders: list[Any] = [graphs.TarsdbGraph(base), TarsdbSql(base, path)]
        if size <= RIVAL_ROWS:
            try:
                contenders.append(graphs.Hnswlib(base))
            except ImportError as reason:
                print(f"without hnswlib: {reason}")
        found = {c.name: _tuned(c, queries, right) for c in contenders}
        timed = _timed(contenders, queries, {n: f["ef"] for n, f in found.items()}, repeats)
        for c in contenders:
            found[c.name] |= {"cpu_us": timed[c.name], "build_cpu_seconds": c.build_seconds}
        found["tarsdb"]["graph_bytes"] = contenders[0].bytes_per_vector
        contenders[1].close()
        served = processes.call(MODULE, "--serve", path, "--ef", found["tarsdb_sql"]["ef"])
    found["tarsdb_sql"]["private_bytes"] = served["private_bytes"] / size
    return found


def _tuned(contender: Any, queries: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return the smallest list size that reaches the target recall, the largest where none does."""

    def recall(ef: int) -> float:
        return exact.recall((contender.search(query, K, ef) for query in queries), right)

    low, high = K, K
    while high < MOST_EF and recall(high) < TARGET:
        low, high = high + 1, 2 * high
    while low < high:
        middle = (low + high) // 2
        if recall(middle) >= TARGET:
            high = middle
        else:
            low = middle + 1
    return {"ef": high, "recall": recall(high)}


def _timed(
    contenders: list[Any], queries: np.ndarray, sizes: dict[str, int], repeats: int
) -> dict[str, dict[str, float]]:
    """Return CPU microseconds of a query."""

    def asking(contender: Any) -> Any:
        def ask() -> None:
            for query in queries:
                contender.search(query, K, sizes[contender.name])

        return ask

    seconds = harness.measure(
        {c.name: asking(c) for c in contenders}, repeats=repeats, clock=time.thread_time
    )
    return {
        name: {key: 1e6 * value / len(queries) for key, value in figure.items()}
        for name, figure in seconds.items()
    }


def _fit(figures: dict[str, Any], name: str) -> dict[str, float] | None:
    """Fit time and its logarithm by the logarithm of the rows; None for fewer than three sizes.

    ``us_per_doubling`` is the slope of the first and ``r_squared`` how much of the differences it
    explains; ``times_per_doubling`` is what the second says twice the rows cost: 2 for a scan.
    """
    points = [(int(n), f[name]["cpu_us"]["median"]) for n, f in figures.items() if name in f]
    if len(points) < 3:
        return None
    doublings, us = np.log2([n for n, _ in points]), np.array([us for _, us in points])
    slope, start = np.polyfit(doublings, us, 1)
    error = us - (start + slope * doublings)
    return {
        "us_per_doubling": float(slope), "us_at_one_row": float(start),
        "r_squared": float(1 - (error**2).sum() / ((us - us.mean()) ** 2).sum()),
        "times_per_doubling": float(2 ** np.polyfit(doublings, np.log2(us), 1)[0]),
    }  # fmt: skip


def _ratios(figures: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return a rival's time over that of the graph, by size."""
    ratios = {
        n: f["hnswlib"]["cpu_us"]["median"] / f["tarsdb"]["cpu_us"]["median"]
        for n, f in figures.items() if "hnswlib" in f
    }  # fmt: skip
    return {"hnswlib": ratios}


# --- what drawn vectors are like ---


def _shapes(data: inputs.Vectors) -> dict[str, dict[str, float]]:
    """Compare real vectors with as many drawn around a tenth of them, and with all there are."""
    real = data.base[: inputs.LIMIT]
    tenth = np.random.default_rng(19).permutation(len(real))[: len(real) // 10]
    drawn = inputs.Expansion(real[tenth]).draw(len(real) - len(tenth))
    shapes = {
        "real": _shape(real), "a_tenth_expanded": _shape(np.concatenate([real[tenth], drawn])),
    }  # fmt: skip
    if len(data.base) > len(real):
        shapes["all"] = _shape(data.base)
    return shapes


def _shape(base: np.ndarray) -> dict[str, float]:
    """Describe a set of vectors by the 100 nearest of some of them.

    Quantiles of the distance to the k-th neighbour, the median of the local intrinsic dimension
    (Levina and Bickel, NIPS 2004, maximum likelihood) and hubness: the skewness of how often a row
    is among the ten nearest (Radovanovic et al., JMLR 2010), which compares at equal rows only.
    """
    picks = np.random.default_rng(23).choice(len(base), min(SAMPLE, len(base)), replace=False)
    near = exact.nearest(base, base[picks], 101)[:, 1:]
    pairs = zip(picks, near, strict=True)
    squares = np.stack([((base[n] - base[p]) ** 2).sum(axis=1) for p, n in pairs])
    distances = np.maximum(np.sqrt(squares), 1e-6)
    shape: dict[str, float] = {"rows": len(base)}
    for k in (1, 10, 100):
        for share in (0.05, 0.5, 0.95):
            name = f"distance_{k}_at_{share:.2f}"
            shape[name] = float(np.quantile(distances[:, k - 1], share))
    ratio = np.log(distances[:, -1:] / distances[:, :-1]).mean(axis=1)
    shape["intrinsic_dimension"] = float(np.median(1 / np.maximum(ratio, 1e-6)))
    times = np.bincount(near[:, :K].ravel(), minlength=len(base))
    shape["hubness"] = float(((times - times.mean()) ** 3).mean() / times.std() ** 3)
    return shape


# --- the process that opens a file and searches it ---


def _serve(path: pathlib.Path, ef: int) -> None:
    """Print the memory that opening a file and searching it takes, beyond that of a small one."""
    queries = inputs.vectors(1).queries
    with inputs.scratch() as folder:
        small = ours.Store(folder, inputs.DIM)
        small.load(rows(1000))
        small.search(queries[0], K, "ids")
        small.close()
    before = processes.private_bytes()
    store = ours.Store(path.parent, inputs.DIM)
    store.tune(ef)
    for query in queries:
        store.search(query, K, "ids")
    print(json.dumps({"private_bytes": processes.private_bytes() - before}))
    store.close()


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=SIZES[-1], help="of the largest size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--store", default="growth", help="name of the result, '' for none")
    parser.add_argument("--serve", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--ef", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        _serve(given.serve, given.ef)
        return
    processes.pin()
    record = run(given.rows, given.repeats)
    for key in ("fit", "tarsdb_times", "shape"):
        print(f"  {key}: {json.dumps(record[key])}")
    if given.store:
        harness.write(given.store, {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
