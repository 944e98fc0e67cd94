"""Searches per second of two threads beside one: a connection each, one process, two cores.

Both ask by SQL for the ten nearest of 60,000 indexed rows in a file. One thread and two take turns;
figures are wall time, medians over turns. Single queries share the interpreter's lock between
their compiled calls; batches (``SET threads``) are a call for many queries each. Writes
``results/two_threads.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import statistics
import threading
import time
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import inputs  # noqa: E402
from benchmarks.adapters.served import tarsdb as ours  # noqa: E402
from benchmarks.served import rows  # noqa: E402

K, SIZE = 10, 64
PACKAGES = ("numpy", "numba", "lmdb")


def run(given: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    if given.source is not None:
        shutil.copyfile(given.source / ours.FILE, folder / ours.FILE)
    stores = [ours.Store(folder, inputs.DIM) for _ in range(2)]
    if given.source is None:
        stores[0].load(rows(given.rows))
    queries = inputs.vectors(1).queries
    for store in stores:
        store.tune(SIZE)
        _searches(store, queries, 0.5)
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.repeats):
        for threads, found in speeds.items():
            found.append(_together(stores[:threads], queries, given.seconds))
    batches = _batches(stores[0], queries, given)
    for store in stores:
        store.close()
    medians = {str(threads): statistics.median(found) for threads, found in speeds.items()}
    return {
        "data": {"rows": given.rows, "dim": inputs.DIM, "source": inputs.vectors(1).source, "k": K},
        "queries_per_second": medians, "two_over_one": medians["2"] / medians["1"],
        "batches_per_second": batches, "batches_two_over_one": batches["2"] / batches["1"],
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }  # fmt: skip


def _searches(store: ours.Store, queries: np.ndarray, seconds: float) -> int:
    stop, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < stop:
        store.search(queries[done % len(queries)], K, "unfiltered")
        done += 1
    return done


def _batches(store: ours.Store, queries: np.ndarray, given: argparse.Namespace) -> dict[str, float]:
    """Return queries per second of batches on one and on two threads, in turn."""
    sql = "SELECT id FROM docs ORDER BY emb <-> ? LIMIT 10"
    speeds: dict[str, list[float]] = {"1": [], "2": []}
    for _ in range(given.repeats + 1):
        for threads, found in speeds.items():
            store.db.execute(f"SET threads = {threads}")
            stop, done = (start := time.perf_counter()) + given.seconds, 0
            while time.perf_counter() < stop:
                store.db.execute(sql, (queries,)).numpy()
                done += len(queries)
            found.append(done / (time.perf_counter() - start))
    return {threads: statistics.median(found[1:]) for threads, found in speeds.items()}


def _together(stores: list[ours.Store], queries: np.ndarray, seconds: float) -> float:
    """Return searches per second of as many threads as there are stores."""
    counts = [0] * len(stores)

    def work(number: int) -> None:
        shifted = np.roll(queries, -500 * number, axis=0)
        counts[number] = _searches(stores[number], shifted, seconds)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(stores))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one turn")
    parser.add_argument("--source", type=pathlib.Path, help="folder of a loaded table to copy")
    given = parser.parse_args()
    with inputs.scratch() as folder:
        record = run(given, folder)
    print(f"  {record}")
    harness.write("two_threads", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
