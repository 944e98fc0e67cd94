"""What it costs to run sandboxed functions in worker processes, and to compile in a child.

Calls in a worker beside the same calls in process, taking turns; how long after its deadline a
call to a worker that cannot answer ends; the start of a worker; loading kept native code beside
making it. Wall time, medians and the worst. Writes ``results/sandbox_worker.LEVEL.json``.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit
import wasmtime  # noqa: E402

from tarsdb.columns import Column, from_list  # noqa: E402
from tarsdb.errors import UdfLimitError  # noqa: E402
from tarsdb.options import SandboxLimits  # noqa: E402
from tarsdb.types import BIGINT, DOUBLE, REAL, TEXT, SqlType, parse_type  # noqa: E402
from tarsdb.udf_sandbox import Budget, ScalarFunction, settings, to_wasm  # noqa: E402
from tarsdb.udf_sandbox.limits import Call  # noqa: E402
from tarsdb.udf_sandbox.modules import compilation  # noqa: E402
from tarsdb.udf_sandbox.modules.artefacts import artefacts  # noqa: E402
from tarsdb.udf_sandbox.worker.pool import WorkerPool  # noqa: E402
from tarsdb.udf_sandbox.worker.process import WorkerProcess  # noqa: E402

PACKAGES = ("numpy", "wasmtime")
ROWS = 1_000
ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTKIT = ROOT / "tarsdb" / "demo" / "functions" / "textkit.wat"
POLYNOMIAL = """(module (func (export "f") (param f64) (result f64)
  (f64.add (f64.sub (f64.mul (f64.const 3) (f64.mul (local.get 0) (local.get 0)))
    (f64.mul (f64.const 2) (local.get 0))) (f64.const 1))))"""
FILL = """(module (memory 4096) (func (export "f") (param i64) (result i64)
  (if (i64.eqz (local.get 0)) (then (return (i64.const 7))))
  (loop (memory.fill (i32.const 0) (i32.const 1) (i32.const 268435456)) (br 0)) (local.get 0)))"""
SAME = '(module (func (export "f") (param i64) (result i64) (local.get 0)))'
TIMEOUT_MS = 100


def function(text: str, export: str, types: tuple[SqlType, SqlType], **limits: Any) -> Any:
    """Return a function of one argument."""
    return ScalarFunction(
        to_wasm(text), export, types[:1], types[1], limits=SandboxLimits(**limits)
    )


def calls(repeats: int) -> dict[str, Any]:
    """Measure calls of 1,000 rows in a worker and in process."""
    numbers = Column(DOUBLE, np.random.default_rng(1).random(ROWS))
    texts = from_list(TEXT, [f"row {i} of a thousand" for i in range(ROWS)])
    found = {}
    for name, text, export, sql_type, column in (
        ("polynomial", POLYNOMIAL, "f", DOUBLE, numbers),
        ("upper_case", TEXTKIT.read_text(), "shout", TEXT, texts),
    ):
        types = (sql_type, sql_type)
        own = function(text, export, types)
        worker = function(text, export, types, backend="worker")
        results = [f.call([column], ROWS).to_list() for f in (own, worker)]
        assert results[0] == results[1]
        seconds = harness.measure(
            {
                "wasmtime": lambda f=own, c=column: f.call([c], ROWS),
                "worker": lambda f=worker, c=column: f.call([c], ROWS),
            },
            repeats=repeats, clock=time.perf_counter,
        )  # fmt: skip
        more = seconds["worker"]["median"] - seconds["wasmtime"]["median"]
        found[name] = {"seconds": seconds, "worker_adds_ms": more * 1e3}
        worker.close()
    return found


def accesses(repeats: int) -> dict[str, Any]:
    """Measure code of many accesses to memory, whose bounds neither checks."""
    vector = parse_type("VECTOR(384)")
    source = np.random.default_rng(2)
    columns = [Column(vector, source.random((10_000, 384), dtype=np.float32)) for _ in range(2)]
    code = (ROOT / "benchmarks" / "guests" / "vectors.wasm").read_bytes()
    subjects = {
        backend: ScalarFunction(
            code, "dot", [vector, vector], REAL, limits=SandboxLimits(backend=backend)
        )
        for backend in ("wasmtime", "worker")
    }
    results = [f.call(columns, 10_000).values for f in subjects.values()]
    assert np.array_equal(*results)
    seconds = harness.measure(
        {name: partial(f.call, columns, 10_000) for name, f in subjects.items()},
        repeats=repeats, clock=time.perf_counter,
    )  # fmt: skip
    subjects["worker"].close()
    return {"seconds": seconds, "worker_times": harness.ratios(seconds, "wasmtime")["worker"]}


def instances(repeats: int) -> dict[str, float]:
    """Measure a new instance, in process and in a worker that has loaded the module."""
    found = {}
    for backend in ("wasmtime", "worker"):
        subject = function(TEXTKIT.read_text(), "shout", (TEXT, TEXT), backend=backend)

        def start(f: Any = subject) -> None:
            call = Call("f", f.limits, Budget(), 2**40, time.monotonic() + 60)
            guest = f._compiled.guest(call, True)
            guest.end(call)
            guest.close()

        measured = harness.measure({"x": start}, repeats=repeats, clock=time.perf_counter)
        found[f"{backend}_us"] = measured["x"]["median"] * 1e6
        subject.close()
    return found


def late(stuck: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return by how many milliseconds calls that cannot end by themselves miss the deadline."""
    samples = []
    for _ in range(repeats):
        call = stuck()
        began = time.perf_counter()
        try:
            call()
        except UdfLimitError:
            samples.append((time.perf_counter() - began) * 1e3 - TIMEOUT_MS)
    assert len(samples) == repeats
    return harness.summary(samples)


def kills(repeats: int) -> dict[str, Any]:
    """Measure the end of calls to a stopped process, and of one endless fill after another."""
    zero, one = (from_list(BIGINT, [n]) for n in (0, 1))
    limits = {"timeout_ms": TIMEOUT_MS, "fuel": 2**60, "max_memory_bytes": 256 << 20}
    same = function(SAME, "f", (BIGINT, BIGINT), backend="worker", **limits)
    fill = function(FILL, "f", (BIGINT, BIGINT), backend="worker", **limits)

    def stopped() -> Callable[[], Any]:
        same.call([zero], 1)
        os.kill(same._idle[True][0].instance._process.pid, signal.SIGSTOP)
        return lambda: same.call([zero], 1)

    def filling() -> Callable[[], Any]:
        fill.call([zero], 1)
        return lambda: fill.call([one], 1)

    found = {"stopped_late_ms": late(stopped, repeats), "filling_late_ms": late(filling, repeats)}
    same.close()
    fill.close()
    return found


def starts(repeats: int) -> dict[str, Any]:
    """Measure the start of a worker, and what it takes of memory once it is loaded."""
    pool = WorkerPool()

    def start() -> None:
        pool.take(refill=False).kill()

    seconds = harness.measure({"x": start}, repeats=repeats, clock=time.perf_counter)["x"]
    worker = function(TEXTKIT.read_text(), "shout", (TEXT, TEXT), backend="worker")
    worker.call([from_list(TEXT, ["a"])], 1)
    process: WorkerProcess = worker._idle[True][0].instance._process
    rollup = pathlib.Path(f"/proc/{process.pid}/smaps_rollup")
    own = sum(int(line.split()[1]) for line in rollup.read_text().splitlines() if "Private" in line)
    worker.close()
    pool.close()
    return {"start_ms": seconds["median"] * 1e3, "private_mb": own / 1024}


def code(repeats: int) -> dict[str, Any]:
    """Measure making native code in the child and here, and loading kept code."""
    sizes = {"textkit": TEXTKIT.read_text(), "thousand_functions": _many_functions(1_000)}
    found = {}
    engine = settings.engine("wasmtime")
    compiler = compilation.Compiler()
    for name, text in sizes.items():
        wasm = to_wasm(text)
        native = compiler.compile("wasmtime", wasm)
        entry = f"benchmark-{name}"
        artefacts().put(entry, native)

        def load(key: str = entry) -> None:
            kept = artefacts().get(key)
            assert kept is not None
            wasmtime.Module.deserialize(engine, kept)

        seconds = harness.measure(
            {
                "load": load,
                "child": partial(compiler.compile, "wasmtime", wasm),
                "here": partial(compilation._compiled_here, "wasmtime", wasm),
            },
            repeats=repeats, clock=time.perf_counter,
        )  # fmt: skip
        found[name] = {
            "wasm_bytes": len(wasm), "native_bytes": len(native),
            **{f"{key}_ms": figure["median"] * 1e3 for key, figure in seconds.items()},
        }  # fmt: skip
    compiler.close()
    return found


def _many_functions(count: int) -> str:
    body = "(i64.add (i64.mul (local.get 0) (i64.const {n})) (i64.const 1))"
    functions = "".join(
        f'(func (export "f{n}") (param i64) (result i64) {body.format(n=n)})' for n in range(count)
    )
    return f"(module {functions})"


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=201)
    given = parser.parse_args()
    few = max(given.repeats // 10, 3)
    record = {
        "data": {"rows": ROWS},
        "calls": calls(given.repeats),
        "accesses": accesses(few),
        "instances": instances(given.repeats),
        "kills": kills(few),
        "starts": starts(few),
        "code": code(few),
    }
    print(f"  {record}")
    harness.write("sandbox_worker", {**record, **harness.environment(PACKAGES)})


if __name__ == "__main__":
    main()
