"""The first call of a sandboxed function in a new process: what opening and the call take.

The file holds some functions, whose compiled code is in the cache of an earlier process.
``preloaded`` loads it at opening, ``plain`` at the first call, which comes behind another
statement; ``second`` is the call after it. Every sample is a fresh process, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

from benchmarks import harness, inputs, processes

MODULE = "benchmarks.workloads.first_function"
PACKAGES = ("numpy", "wasmtime")
FUNCTIONS = 10
TIMES = """(module (func (export "f{factor}") (param i64) (result i64)
  (i64.mul (local.get 0) (i64.const {factor}))))"""
CALLS = "SELECT " + ", ".join(f"f{number}(7)" for number in range(FUNCTIONS))


def child(kind: str, folder: pathlib.Path) -> dict[str, Any]:
    """Make the file, or be one sample: open, call, call again."""
    import tarsdb

    options = tarsdb.OpenOptions(preload_functions=kind == "preloaded")
    start = time.perf_counter()
    with tarsdb.connect(folder / "bench.tars", options=options) as db:
        opened = time.perf_counter()
        if kind == "make":
            for number in range(FUNCTIONS):
                db.execute(
                    f"CREATE FUNCTION f{number}(n BIGINT) RETURNS BIGINT LANGUAGE wasm AS "
                    f"'{TIMES.format(factor=number)}'"
                )
        db.execute("SELECT 7").fetchone()
        ready = time.perf_counter()
        found = db.execute(CALLS).fetchone()
        answered = time.perf_counter()
        db.execute(CALLS).fetchone()
        again = time.perf_counter()
    assert found == tuple(7 * number for number in range(FUNCTIONS))
    return {"open": opened - start, "first": answered - ready, "second": again - answered}


def run(repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    samples: dict[str, list[dict[str, Any]]] = {"plain": [], "preloaded": []}
    with inputs.scratch() as folder:
        processes.call(MODULE, "--child", "make", "--folder", folder)
        for _ in range(repeats):
            for name, found in samples.items():
                found.append(processes.call(MODULE, "--child", name, "--folder", folder))
    return {
        name: {key: harness.summary(sample[key] for sample in found) for key in found[0]}
        for name, found in samples.items()
    }


def main() -> None:
    """Measure and store, or be a child."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--child")
    parser.add_argument("--folder", type=pathlib.Path)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given.folder)))
        return
    record = run(given.repeats)
    for name, parts in record.items():
        print(f"  {name:<10} ms", {p: round(t["median"] * 1e3, 2) for p, t in parts.items()})
    harness.write("first_function", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
