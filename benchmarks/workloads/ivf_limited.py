"""Inverted lists of a file under a limit of memory, beside faiss IVF-PQ with all of the memory.

A table in a file is searched through SQL by a process of its own whose memory, cached pages of the
file among it, is limited to a share of the vectors' bytes, where the system lets us set a limit:
warm, cold, and bytes read (see ``benchmarks.limited``). Lists are looked at until the recall is
reached. faiss compares refined candidates by vectors that it holds in memory, without a limit.
"""

from __future__ import annotations

import argparse
import gc
import pathlib
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from benchmarks import exact, inputs, processes  # noqa: E402
from benchmarks.adapters import lists  # noqa: E402
from benchmarks.workloads.ivf import K, tuned  # noqa: E402

NAME = "ivf_limited"
PACKAGES = ("numpy", "numba", "lmdb", "faiss-cpu")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    data = inputs.vectors(given.rows)
    data = inputs.Vectors(data.base, data.queries[: given.queries], data.source)
    truth = exact.nearest(data.base, data.queries, K)
    with inputs.scratch() as folder:
        figures = {codes: _under_limit(folder, data, truth, codes, given) for codes in given.codes}
    rows, dim = data.base.shape
    record: dict[str, Any] = {
        "data": {"rows": rows, "dim": dim, "source": data.source, "k": K,
                 "queries": len(data.queries)},
        "limit": given.limit, "figures": figures,
    }  # fmt: skip
    if given.faiss:
        record["faiss_pq"] = _faiss(data, truth)
        record["share_of_faiss_pq"] = {
            codes: figure["warm"]["cpu_us"] / record["faiss_pq"]["cpu_us"]
            for codes, figure in figures.items()
        }
    return record


def _under_limit(
    folder: pathlib.Path, data: inputs.Vectors, truth: np.ndarray, codes: str,
    given: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    path = folder / f"{codes}.tars"
    made = lists.TarsdbListsSql(data.base, round(given.per_root * given.rows**0.5), codes, path)
    setting, _ = tuned(made, data, truth)
    made.close()
    gc.collect()
    np.save(folder / "queries.npy", data.queries)
    np.save(folder / "truth.npy", truth)
    raw = data.base.nbytes
    figure = processes.call(
        "benchmarks.limited", path, folder, setting[0], int(given.limit * raw), raw
    )
    path.unlink()
    return {**figure, "setting": setting}


def _faiss(data: inputs.Vectors, truth: np.ndarray) -> dict[str, Any]:
    made = lists.Faiss(data.base, round(2 * len(data.base) ** 0.5), "PQ48")
    setting, taken = tuned(made, data, truth)
    return {"cpu_us": taken, "setting": setting, "index": made.name}


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--limit", type=float, default=0.25, help="memory, of the vectors' bytes")
    parser.add_argument("--codes", nargs="+", default=["bits", "bits+2"], help="pq, bits+2, ...")
    parser.add_argument("--per-root", type=int, default=4, help="lists, times the root of the rows")
    parser.add_argument("--no-faiss", dest="faiss", action="store_false")
    given = parser.parse_args()
    processes.pin()
    record = run(given)
    for codes, f in record["figures"].items():
        print(f"  {codes}: recall {f['recall']:.4f}, limit {f['limit']}, {f['setting']}")
        for state in ("warm", "cold"):
            print(f"    {state}: " + ", ".join(f"{k} {v:.0f}" for k, v in f[state].items()))
    print(record.get("faiss_pq"), record.get("share_of_faiss_pq"))
    harness.write(NAME, {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
