"""Inverted lists beside faiss IVF-PQ with refinement: CPU time of a query at equal recall.

One query a call, one thread, every index at the fastest of its settings that reaches the recall
(lists, lists looked at, vectors compared, kind of code); then they take turns. faiss has plain
codes and those of its fast scan. Writes ``results/ivf.LEVEL.json``. Under a limit of memory:
``ivf_limited``.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import exact, inputs, processes  # noqa: E402
from benchmarks.adapters import lists  # noqa: E402

PACKAGES = ("numpy", "numba", "faiss-cpu")
K, RECALL = 10, 0.95
CODES = ("pq", "bits", "bits+2", "int8")
PLAIN, FAST = ("PQ48",), ("PQ96x4fs", "PQ64x4fs")
PER_ROOT = (2, 4)
"""Lists tried, times the square root of the rows; the product's default is the last."""


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    rows, plain = given.rows, not given.fast_only
    data = inputs.vectors(rows)
    truth = exact.nearest(data.base, data.queries, K)
    counts = [round(times * rows**0.5) for times in given.per_root]
    with inputs.scratch() as folder:
        best: dict[str, Any] = {}
        kinds = [(codes, lists.TarsdbLists, (codes,)) for codes in given.codes]
        kinds += [("faiss_pq", lists.Faiss, PLAIN if plain else ())]
        kinds += [("faiss_fast_scan", lists.Faiss, FAST)]
        for count, (kind, make, names) in itertools.product(counts, kinds):
            for code in names:
                _better(best, kind, functools.partial(make, data.base, count, code), data, truth)
        contenders = {f"tarsdb_{codes}": best.pop(codes) for codes in given.codes} | best
        for codes in given.codes:
            path = folder / f"{codes}.tars"
            made = lists.TarsdbListsSql(data.base, counts[-1], codes, path)
            contenders[f"tarsdb_sql_{codes}"] = made, *tuned(made, data, truth)
        figures = _in_turns(contenders, data, truth, given.repeats)
        for codes in given.codes:
            contenders[f"tarsdb_sql_{codes}"][0].close()
    return _record(data, figures)


def _record(data: inputs.Vectors, figures: dict[str, Any]) -> dict[str, Any]:
    rivals = [name for name in figures if name.startswith("faiss")]
    fastest = min(figures[name]["microseconds"] for name in rivals) if rivals else None
    rows, dim = data.base.shape
    return {
        "data": {"rows": rows, "dim": dim, "source": data.source, "k": K},
        "figures": figures,
        "share_of": {
            name: {r: f["microseconds"] / figures[r]["microseconds"] for r in rivals}
            for name, f in figures.items() if name not in rivals
        },
        "share_of_fastest": {
            name: fastest and f["microseconds"] / fastest
            for name, f in figures.items() if name not in rivals
        },
    }  # fmt: skip


def _better(
    best: dict[str, Any],
    kind: str,
    make: Callable[[], Any],
    data: inputs.Vectors,
    truth: np.ndarray,
) -> None:
    """Build an index and keep it where it is the fastest of its kind."""
    try:
        made = make()
    except ImportError as reason:
        print(f"without {kind}: {reason}")
        return
    try:
        setting, taken = tuned(made, data, truth)
    except LookupError as reason:
        print(reason)
        return
    print(
        f"  {made.name:<24} {setting} {taken:.1f} us, built in {made.build_seconds:.0f} s",
        flush=True,
    )
    if kind not in best or taken < best[kind][2]:
        best[kind] = made, setting, taken
    gc.collect()


def _pass(contender: Any, data: inputs.Vectors) -> tuple[float, list[np.ndarray]]:
    start = time.thread_time()
    found = [contender.search(query, K) for query in data.queries]
    return (time.thread_time() - start) / len(found) * 1e6, found


def tuned(contender: Any, data: inputs.Vectors, truth: np.ndarray) -> tuple[tuple[int, ...], float]:
    """Return the fastest setting that reaches the recall, and its microseconds."""
    best: list[tuple[float, tuple[int, ...]]] = []
    for series in contender.settings:
        for setting in series:
            contender.use(setting)
            if exact.recall(_pass(contender, data)[1], truth) >= RECALL:
                best.append((min(_pass(contender, data)[0] for _ in range(2)), setting))
                break
    if not best:
        raise LookupError(f"{contender.name} does not reach a recall of {RECALL}")
    taken, setting = min(best)
    return setting, taken


def _in_turns(
    contenders: dict[str, Any], data: inputs.Vectors, truth: np.ndarray, repeats: int
) -> dict[str, Any]:
    """Return the figures of all, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    recalls = {}
    for _ in range(repeats):
        for name, (contender, setting, _) in contenders.items():
            contender.use(setting)
            taken, found = _pass(contender, data)
            times[name].append(taken)
            recalls[name] = exact.recall(found, truth)
    return {
        name: {
            "index": made.name, "setting": setting, "recall": recalls[name],
            "microseconds": harness.summary(times[name])["median"],
            "spread": harness.summary(times[name]), "build_seconds": made.build_seconds,
            "bytes_per_vector": made.bytes_per_vector,
        }
        for name, (made, setting, _) in contenders.items()
    }  # fmt: skip


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=inputs.LIMIT)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fast-only", action="store_true", help="without faiss's plain codes")
    parser.add_argument("--codes", nargs="+", default=CODES, help="pq, bits, bits+2, int8")
    parser.add_argument(
        "--per-root", type=int, nargs="+", default=PER_ROOT,
        help="lists to try, times the root of the rows",
    )  # fmt: skip
    given = parser.parse_args()
    processes.pin()
    record = run(given)
    for name, f in record["figures"].items():
        print(f"  {name:<16} {f['microseconds']:8.1f} us, recall {f['recall']:.4f}, {f['index']} "
              f"{f['setting']}")  # fmt: skip
    for key in ("share_of", "share_of_fastest"):
        for name, value in record[key].items():
            print(f"  {key} {name}: {value}")
    harness.write("ivf", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
