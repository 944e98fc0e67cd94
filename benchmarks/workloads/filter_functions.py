"""Searches by a graph whose filter is a sandboxed function.

``changing`` has another constant each time, so the function answers anew, asked by the search or
about all rows (``inside`` counts the former); ``repeated`` has the same, whose answer is known;
``column`` is a condition on a column that keeps as many rows. ``calls`` is what one call costs from
a compiled loop (docs/decisions/0012), beside a row of a batch and a call from Python. CPU time;
contenders take turns. Writes ``results/filter_functions.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import pathlib
from functools import partial
from typing import Any

from benchmarks import harness

harness.one_thread()

import numba  # noqa: E402  # after the thread limit
import numpy as np  # noqa: E402
import wasmtime  # noqa: E402

import tarsdb  # noqa: E402
from benchmarks import inputs  # noqa: E402
from tarsdb.columns import Column  # noqa: E402
from tarsdb.metrics import METRICS  # noqa: E402
from tarsdb.types import BIGINT, BOOLEAN  # noqa: E402
from tarsdb.udf_sandbox import ScalarFunction, settings, to_wasm  # noqa: E402

PACKAGES = ("numpy", "numba", "wasmtime")
DIM, CLUSTERS, K, SEARCHES = 64, 200, 10, 20
SHARES = (0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001)
THOUSANDTHS = 1000
KEEPS = """(module (func (export "keeps") (param i64 i64 i64) (result i32)
  (i64.lt_s (i64.rem_s (i64.add (local.get 0) (local.get 1)) (i64.const 1000)) (local.get 2))))"""
FUNCTION = "SELECT id FROM t WHERE keeps(n, ?, ?) ORDER BY emb <-> ? LIMIT 10"
COLUMN = "SELECT id FROM t WHERE n < ? ORDER BY emb <-> ? LIMIT 10"


def searches(folder: pathlib.Path, rows: int, repeats: int) -> dict[str, Any]:
    """Measure searches by the share of rows that pass; microseconds each."""
    source = np.random.default_rng(1)
    centres = source.standard_normal((CLUSTERS, DIM)).astype(np.float32)
    base, queries = (
        centres[source.integers(0, CLUSTERS, count)]
        + 0.5 * source.standard_normal((count, DIM)).astype(np.float32)
        for count in (rows, SEARCHES)
    )
    with tarsdb.connect(folder / "bench.tars") as db:
        db.execute(f"CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT, emb VECTOR({DIM}))")
        numbers = source.permutation(rows) % THOUSANDTHS
        db.table("t").insert({"id": np.arange(rows), "n": numbers, "emb": base})
        db.execute("OPTIMIZE t")
        db.execute("CREATE INDEX near ON t USING hnsw (emb)")
        db.execute(
            "CREATE FUNCTION keeps(n BIGINT, c BIGINT, k BIGINT) RETURNS BOOLEAN LANGUAGE wasm "
            f"AS '{KEEPS}' WITH (role = 'filter')"
        )
        constants = itertools.count(1)

        def run(kind: str, limit: int) -> list[Any]:
            found = []
            for query in queries:
                if kind == "column":
                    answer = db.execute(COLUMN, (limit, query))
                else:
                    constant = next(constants) if kind == "changing" else 0
                    answer = db.execute(FUNCTION, (constant * THOUSANDTHS, limit, query))
                found.append(answer.fetchall())
            return found

        figures = {}
        for share in SHARES:
            limit = round(share * THOUSANDTHS)
            kinds = {kind: partial(run, kind, limit) for kind in ("changing", "repeated", "column")}
            answers = [each() for each in kinds.values()]
            measured = harness.measure(kinds, repeats=repeats)
            same = [_same(answer, answers[-1]) for answer in answers]
            before = METRICS.snapshot().get("udf_filter_inside", 0)
            kinds["changing"]()
            inside = METRICS.snapshot().get("udf_filter_inside", 0) - before
            figures[str(share)] = {
                "us": {name: found["median"] / SEARCHES * 1e6 for name, found in measured.items()},
                "same_as_column": min(same),
                "inside": inside / SEARCHES,
            }
    return figures


def _same(found: list[Any], wanted: list[Any]) -> float:
    """Return the share of rows that two lists of answers have in common."""
    pairs = zip(found, wanted, strict=True)
    return sum(len({*a} & {*b}) for a, b in pairs) / sum(map(len, wanted))


def calls(rows: int, repeats: int) -> dict[str, float]:
    """Measure a call: from a compiled loop, of a row in a batch, and from Python; nanoseconds."""
    numbers = np.random.default_rng(2).integers(0, THOUSANDTHS, rows)
    function = ScalarFunction(to_wasm(KEEPS), "keeps", [BIGINT] * 3, BOOLEAN)
    columns = [Column(BIGINT, each) for each in (numbers, np.zeros_like(numbers))]
    columns.append(Column(BIGINT, np.full_like(numbers, 500)))
    one = [column.slice(0, 1) for column in columns]
    store = wasmtime.Store(settings.engine("wasmtime"))
    store.set_fuel(2**60)
    store.set_epoch_deadline(2**40)
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, to_wasm(KEEPS)), [])
    export: Any = instance.exports(store)["keeps"]
    target = ctypes.cast(wasmtime._ffi.dll.wasmtime_func_call_unchecked, ctypes.c_void_p).value
    pointer = ctypes.c_void_p
    invoke = ctypes.CFUNCTYPE(pointer, pointer, pointer, pointer, ctypes.c_size_t, pointer)(target)
    values, trap = np.zeros(6, np.int64), np.zeros(1, np.int64)  # three of 16 bytes
    context = ctypes.cast(store._context(), pointer).value
    address = ctypes.addressof(export._func)

    @numba.njit
    def loop(numbers: np.ndarray, values: np.ndarray, trap: np.ndarray) -> int:
        kept = 0
        for number in numbers:
            values[0], values[2], values[4] = number, 0, 500
            error = invoke(context, address, values.ctypes.data, 3, trap.ctypes.data)
            if error or trap[0]:
                return -1
            kept += values[0] & 1
        return kept

    kept = int((numbers < 500).sum())
    assert loop(numbers, values, trap) == kept == function.call(columns, rows).values.sum()
    found = harness.measure(
        {
            "compiled_loop": lambda: loop(numbers, values, trap),
            "batch": lambda: function.call(columns, rows),
            "python": lambda: [function.call(one, 1) for _ in range(100)],
        },
        repeats=repeats,
    )
    counts = {"compiled_loop": rows, "batch": rows, "python": 100}
    return {name: each["median"] / counts[name] * 1e9 for name, each in found.items()}


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    record: dict[str, Any] = {"calls_ns": calls(200_000, given.repeats)}
    print("  calls, ns:", {name: round(value, 1) for name, value in record["calls_ns"].items()})
    with inputs.scratch() as folder:
        record["searches"] = searches(folder, given.rows, given.repeats)
    for share, found in record["searches"].items():
        print(f"  {share:>6}", {name: round(each) for name, each in found["us"].items()},
              f"same {found['same_as_column']:.3f} inside {found['inside']:.2f}")  # fmt: skip
    record["data"] = {"rows": given.rows, "dim": DIM, "source": f"{CLUSTERS} clusters"}
    harness.write("filter_functions", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
