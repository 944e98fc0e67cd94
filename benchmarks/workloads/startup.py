"""Starting: importing beside NumPy, and the first nearest neighbours of an existing file.

Every sample is a fresh process. ``whole`` is from starting the process to having the answer,
``open`` from ``connect`` to the answer. ``warm`` has the kernel cache of an earlier process;
``no_cache`` starts with an empty one, so NumPy answers while the kernels compile behind.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks import harness, inputs, processes

MODULE = "benchmarks.workloads.startup"
PACKAGES = ("numpy", "numba", "lmdb")
KNN = "SELECT id, emb <-> ? AS distance FROM docs ORDER BY distance LIMIT 10"
CACHE_VARIABLE = "TARSDB_CACHE_DIR"
IMPORT = (
    "import time; start = time.perf_counter(); import {}; "
    "print('{{\"seconds\": ' + repr(time.perf_counter() - start) + '}}')"
)


def run(rows: int, repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    record: dict[str, Any] = {"import": _imports(repeats)}
    with inputs.scratch() as folder:
        made = processes.call(MODULE, "--child", "make", "--rows", rows, "--folder", folder)
        record["data"] = {"rows": rows, "dim": inputs.DIM, "source": made["source"]}
        record["warmup_s"] = _warmup(folder / "cache")
        samples: dict[str, list[dict[str, Any]]] = {"warm": [], "no_cache": []}
        for turn in range(repeats):
            for name, found in samples.items():
                cache = folder / ("cache" if name == "warm" else f"empty{turn}")
                found.append(_first_answer(folder, cache))
        for name, found in samples.items():
            record[name] = {
                key: harness.summary(sample[key] for sample in found)
                for key in ("whole", "open", "second")
            } | {"recall": min(sample["recall"] for sample in found)}
    return record


def _imports(repeats: int) -> dict[str, Any]:
    """Return seconds of each import statement in fresh processes, in turn."""
    samples: dict[str, list[float]] = {"numpy": [], "tarsdb": []}
    for turn in range(repeats + 1):
        for name, found in samples.items():
            command = [sys.executable, "-c", IMPORT.format(name)]
            ran = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=inputs.ROOT,
                env=processes.plain_environment(),
            )  # fmt: skip
            if turn:
                found.append(json.loads(ran.stdout)["seconds"])
    medians = {name: statistics.median(found) for name, found in samples.items()}
    return {
        "seconds": {name: harness.summary(found) for name, found in samples.items()},
        "times_of_numpy": medians["tarsdb"] / medians["numpy"],
    }


def _warmup(cache: pathlib.Path) -> float:
    """Return the seconds of ``tarsdb warmup`` with an empty cache."""
    start = time.perf_counter()
    command = "import sys; from tarsdb.cli import main; sys.exit(main(['warmup']))"
    subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, cwd=inputs.ROOT,
        env={**processes.plain_environment(), CACHE_VARIABLE: str(cache)},
    )  # fmt: skip
    return time.perf_counter() - start


def _first_answer(folder: pathlib.Path, cache: pathlib.Path) -> dict[str, Any]:
    begun = time.monotonic()  # one clock for all processes of a machine
    answer = processes.call(
        MODULE, "--child", "ask", "--folder", folder, environment={CACHE_VARIABLE: str(cache)}
    )
    return {**answer, "whole": answer.pop("answered") - begun}


def child(kind: str, folder: pathlib.Path, rows: int) -> dict[str, Any]:
    """Make the file, or answer one question from it."""
    import numpy as np

    import tarsdb

    path, asked = folder / "bench.tars", folder / "query.npy"
    if kind == "ask":
        query = np.load(asked)
        start = time.monotonic()
        db = tarsdb.connect(path)
        found = db.execute(KNN, (query,)).fetchall()
        answered = time.monotonic()
        again = time.perf_counter()
        db.execute(KNN, (query,)).fetchall()
        second = time.perf_counter() - again
        truth = set(np.load(folder / "truth.npy").tolist())
        recall = len(truth & {row[0] for row in found}) / len(truth)
        return {
            "answered": answered, "open": answered - start, "second": second, "recall": recall,
        }  # fmt: skip
    data = inputs.vectors(rows)
    np.save(asked, data.queries[0])
    distances = ((data.base - data.queries[0]) ** 2).sum(axis=1)
    np.save(folder / "truth.npy", np.argsort(distances, kind="stable")[:10])
    with tarsdb.connect(path) as db:
        db.execute(
            "CREATE TABLE docs (id BIGINT PRIMARY KEY, sel INT, label TEXT, score DOUBLE, "
            f"body TEXT, emb VECTOR({inputs.DIM}))"
        )
        db.table("docs").insert({**inputs.scalars(rows), "emb": data.base})
    return {"source": data.source}


def main() -> None:
    """Measure and store, or be a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=inputs.LIMIT)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--child", choices=("make", "ask"))
    parser.add_argument("--folder", type=pathlib.Path)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.folder, given.rows)))
        return
    record = run(given.rows, given.repeats)
    print(harness.table("import, milliseconds", record["import"]["seconds"]))
    print("  times of numpy:", record["import"]["times_of_numpy"])
    print(f"  warmup with an empty cache: {record['warmup_s']:.2f} s")
    for name in ("warm", "no_cache"):
        parts = {key: round(record[name][key]["median"], 4) for key in ("whole", "open", "second")}
        print(f"  first answer, {name}: {parts}, recall {record[name]['recall']}")
    harness.write("startup", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
