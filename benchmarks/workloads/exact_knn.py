"""Exact k nearest neighbours beside faiss, sqlite-vec and NumPy; one thread, CPU time, recall 1.

Data: real MiniLM sentence vectors (100,000 x 384 float32) where ``../shared/data`` has them,
otherwise clustered random vectors of the same shape. Writes ``results/exact_knn.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks.adapters import faiss_flat, numpy_exact, sqlite_vec, tarsdb_flat  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "minilm384"
K = 10
IN_A_ROW = 10
"""Single queries of one sample where that is said; else each finds the caches full of a rival's
vectors."""
RIVALS = {
    "tarsdb": tarsdb_flat.TarsdbFlat, "faiss": faiss_flat.FaissFlat,
    "sqlite-vec": sqlite_vec.SqliteVec, "numpy": numpy_exact.NumpyExact,
}  # fmt: skip
# name, queries a call, calls a sample
_PLAN = (("batch1", 1, 1), ("batch1_in_a_row", 1, IN_A_ROW), ("batch128", 128, 1),
         ("batch1000", 1000, 1))  # fmt: skip
PACKAGES = ("numpy", "numba", "faiss-cpu", "sqlite-vec")


def run(repeats: int = 7) -> dict[str, Any]:
    """Measure, print, and store the result; returns the record."""
    base, queries, source = data()
    record = harness.environment(PACKAGES)
    record["data"] = {"source": source, "rows": len(base), "dim": base.shape[1], "k": K}
    record["figures"] = {}
    for metric in ("l2", "ip"):
        contenders = _contenders(base, metric)
        truth = _truth(base, queries[:100], metric)
        for kind, batch, calls in _PLAN:
            name = f"{metric}_{kind}"
            before = tarsdb_flat.TarsdbFlat.counted()
            record["figures"][name] = _figure(contenders, queries, (batch, calls), repeats, truth)
            counts = [b - a for a, b in zip(before, tarsdb_flat.TarsdbFlat.counted(), strict=True)]
            certified = counts[0] / max(1, sum(counts))
            record["figures"][name]["certified"] = certified
            print(harness.table(f"{name}, ms CPU per query", record["figures"][name]["seconds"]))
            print("  ratios", record["figures"][name]["ratios"])
            print("  recall", record["figures"][name]["recall"])
            print(f"  tarsdb: {certified:.2%} certified by codes, the others fell back")
    harness.write("exact_knn", record)
    return record


def _contenders(base: np.ndarray, metric: str) -> dict[str, Any]:
    found = {}
    for name, adapter in RIVALS.items():
        try:
            found[name] = adapter(base, metric)
        except (ImportError, ValueError) as reason:
            print(f"without {name} ({metric}): {reason}")
    return found


def _figure(
    contenders: dict[str, Any],
    queries: np.ndarray,
    sample: tuple[int, int],
    repeats: int,
    truth: np.ndarray,
) -> dict[str, Any]:
    batch, calls = sample
    if batch > 1:  # sqlite-vec has no batches
        contenders = {name: c for name, c in contenders.items() if name != "sqlite-vec"}

    def once(contender: Any) -> Callable[[], Any]:
        turn = [0]

        def search() -> None:
            for _ in range(calls):
                start = turn[0] % max(1, len(queries) - batch)
                contender.search(queries[start : start + batch], K)
                turn[0] += batch

        return search

    timed = harness.measure(
        {name: once(contender) for name, contender in contenders.items()},
        repeats=repeats, clock=time.process_time,
    )  # fmt: skip
    per_query = {
        name: {key: value / (batch * calls) for key, value in figure.items()}
        for name, figure in timed.items()
    }
    size = min(len(truth), 20 if batch == 1 else batch)
    recall = {name: _recall(c.search(queries[:size], K), truth) for name, c in contenders.items()}
    return {"seconds": per_query, "ratios": harness.ratios(per_query, "tarsdb"), "recall": recall}


def _recall(found: np.ndarray, truth: np.ndarray) -> float:
    hits = [len(set(a) & set(b)) for a, b in zip(found.tolist(), truth.tolist(), strict=False)]
    return sum(hits) / (K * len(found))


def _truth(base: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    wide, asked = base.astype(np.float64), queries.astype(np.float64)
    keys = -(asked @ wide.T)
    if metric == "l2":
        keys = (wide * wide).sum(1) + 2 * keys
    return np.argsort(keys, axis=1, kind="stable")[:, :K]


def data() -> tuple[np.ndarray, np.ndarray, str]:
    """Return rows, queries and where they come from."""
    if DATA.is_dir():
        base, queries = (np.load(DATA / f"{n}.f16.npy").astype(np.float32)
                         for n in ("base", "query"))  # fmt: skip
        return base, queries, "minilm384"
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((500, 384))
    drawn = centres[rng.integers(0, 500, 101_000)] + 0.7 * rng.standard_normal((101_000, 384))
    drawn = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return drawn[:100_000], drawn[100_000:], "synthetic, 500 clusters"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    run(parser.parse_args().repeats)
