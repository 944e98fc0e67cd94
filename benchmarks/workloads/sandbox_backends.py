"""The three backends of sandboxed functions beside each other: time, memory, walls.

The same module runs in process, in a worker and in Hyperlight, contenders taking turns; every
result is compared. Where KVM runs Hyperlight, run it as any workload; elsewhere
``python -m tests.hyperlight.machine -m benchmarks.workloads.sandbox_backends`` runs it in an
emulated machine, and the record says so: then only counts, and ratios within it, mean anything.
Writes ``results/sandbox_backends.LEVEL.json``, or into ``$TARSDB_OUT``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from benchmarks import harness

harness.one_thread()

import numpy as np  # noqa: E402  # after the thread limit

from tarsdb.columns import Column, from_list  # noqa: E402
from tarsdb.errors import UdfError  # noqa: E402
from tarsdb.options import SandboxLimits  # noqa: E402
from tarsdb.types import DOUBLE, parse_type  # noqa: E402
from tarsdb.udf_sandbox import Budget, ScalarFunction, to_wasm  # noqa: E402
from tarsdb.udf_sandbox.backends import Program, backend  # noqa: E402
from tarsdb.udf_sandbox.hyperlight import modules, probe  # noqa: E402
from tarsdb.udf_sandbox.hyperlight.processes import SandboxProcess, SandboxSpec  # noqa: E402
from tarsdb.udf_sandbox.limits import Call  # noqa: E402

PACKAGES = ("numpy", "wasmtime", "extism", "hyperlight-sandbox-backend-wasm")
BACKENDS = ("wasmtime", "worker", "hyperlight")
ROWS = (1, 100, 1_000, 10_000)
MEMORY = 2 << 20
POLYNOMIAL = """(module {} (func (export "f") (param f64) (result f64)
  (f64.add (f64.sub (f64.mul (f64.const 3) (f64.mul (local.get 0) (local.get 0)))
    (f64.mul (f64.const 2) (local.get 0))) (f64.const 1))))"""
PLAIN = POLYNOMIAL.format("")
STATEFUL = POLYNOMIAL.format("(global $state (mut i32) (i32.const 0))")
"""The same function in a module that could keep state: every batch gets a fresh guest."""
EXITS = pathlib.Path("/sys/kernel/debug/kvm/exits")
HOSTILE = {
    "trap": "unreachable", "division by zero": "(i32.div_s (i32.const 1) (i32.const 0))",
    "endless recursion": "(call $f (local.get 0))",
    "endless loop": "(loop $l (br $l)) (i32.const 0)",
    "memory outside": "(i32.load (i32.const 0x40000000))",
    "memory bomb": "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) "
                   "(memory.fill (i32.const 0) (i32.const 1) (i32.shl (memory.size) "
                   "(i32.const 16))) unreachable",
    "jump through an empty table": "(call_indirect (param i32) (result i32) (local.get 0) "
                                   "(i32.const 1))",
}  # fmt: skip


def function(text: str, name: str, seconds: float = 600.0) -> ScalarFunction:
    """Return a function of one number in a backend."""
    limits = SandboxLimits(
        fuel=2**50, max_memory_bytes=MEMORY, timeout_ms=int(seconds * 1_000), backend=name
    )
    return ScalarFunction(to_wasm(text), "f", [DOUBLE], DOUBLE, limits=limits)


def batches(repeats: int) -> dict[str, Any]:
    """Measure batches of several sizes, results compared; count transitions."""
    kinds = {name: (PLAIN, name) for name in BACKENDS}
    kinds |= {f"{name}, fresh": (STATEFUL, name) for name in BACKENDS}
    functions = {kind: function(*made) for kind, made in kinds.items()}
    figures: dict[str, Any] = {}
    for rows in ROWS:
        data = np.random.default_rng(rows).normal(size=rows)
        column, wanted = Column(DOUBLE, data), 3 * (data * data) - 2 * data + 1
        contenders: dict[str, Callable[[], Any]] = {}
        counts = {}
        for kind, made in functions.items():
            budget = Budget()
            found = made.call([column], rows, budget).values
            if not np.array_equal(found, wanted):
                raise AssertionError(f"{kind}: another result than NumPy's")
            counts[kind] = budget.figures_of(made.name).transitions
            contenders[kind] = partial(made.call, [column], rows)
        with extism_call(data, wanted) as call:
            if call is not None:
                contenders["extism"] = call
            timed = harness.measure(contenders, repeats=repeats, clock=time.perf_counter)
        figures[str(rows)] = {
            "seconds": timed, "transitions": counts, "ratios": harness.ratios(timed, "wasmtime"),
        }  # fmt: skip
        print(harness.table(f"{rows} rows", timed), flush=True)
    figures["kvm exits of a batch of 1,000"] = exits(functions["hyperlight"])
    return figures


def exits(made: ScalarFunction) -> int | None:
    """Return how often the virtual machine left for the host's kernel during one batch."""
    if not EXITS.exists():
        return None
    column = Column(DOUBLE, np.ones(1_000))
    before = int(EXITS.read_text())
    made.call([column], 1_000)
    return int(EXITS.read_text()) - before


@contextmanager
def extism_call(data: np.ndarray, wanted: np.ndarray) -> Iterator[Callable[[], Any] | None]:
    """Give the same function as an Extism plugin, bytes in and bytes out, or None without it."""
    if importlib.util.find_spec("extism") is None:
        yield None
        return
    import extism  # type: ignore[import-not-found]  # measured where it is installed

    with extism.Plugin({"wasm": [{"data": to_wasm(EXTISM)}]}) as plugin:

        def call() -> np.ndarray:
            return np.frombuffer(plugin.call("f", data.tobytes(), bytes), np.float64)

        if not np.array_equal(call(), wanted):
            raise AssertionError("extism: another result than NumPy's")
        yield call


EXTISM = """(module
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u64" (func $load (param i64) (result i64)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store (param i64 i64)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (memory (export "memory") 1)
  (func (export "f") (result i32) (local $n i64) (local $i i64) (local $out i64) (local $x f64)
    (local.set $n (call $input_length))
    (local.set $out (call $alloc (local.get $n)))
    (block $done (loop $next
      (br_if $done (i64.ge_u (local.get $i) (local.get $n)))
      (local.set $x (f64.reinterpret_i64 (call $load (local.get $i))))
      (call $store (i64.add (local.get $out) (local.get $i)) (i64.reinterpret_f64
        (f64.add (f64.sub (f64.mul (f64.const 3) (f64.mul (local.get $x) (local.get $x)))
          (f64.mul (f64.const 2) (local.get $x))) (f64.const 1))))
      (local.set $i (i64.add (local.get $i) (i64.const 8)))
      (br $next)))
    (call $output (local.get $out) (local.get $n))
    (i32.const 0)))"""


def spec(text: str, memory: int, number: int = 0) -> SandboxSpec:
    """Return a sandbox; numbers make different ones of the same code."""
    limits = SandboxLimits(max_memory_bytes=memory, backend="hyperlight")
    program = Program(
        to_wasm(text), "", b"", "f", (DOUBLE,), DOUBLE, limits, reusable=False, resettable=False
    )
    made = modules.sandbox_spec(program)
    return SandboxSpec(f"{made.key}:{number}", made.artefact, "", made.heap, made.stack, made.first)


def call_of(seconds: float = 600.0) -> Call:
    """Return a call that may take its time."""
    limits = SandboxLimits(backend="hyperlight")
    return Call("f", limits, Budget(), 0, time.monotonic() + seconds)


def starts(repeats: int) -> dict[str, Any]:
    """Measure what a fresh guest costs: restored, further in a process, first of a process."""
    process, numbers = SandboxProcess(), iter(range(10**6))
    one, call = spec(STATEFUL, MEMORY), call_of()
    ready = process.ready(one, call)
    column = Column(DOUBLE, np.ones(1))

    def restored() -> None:
        process.run(ready, one.first, call)
        process.ready(one, call)

    def run_only() -> None:
        process.run(ready, one.first, call)

    def further() -> None:
        process.ready(spec(STATEFUL, MEMORY, next(numbers)), call)

    def first() -> None:
        fresh = SandboxProcess()
        fresh.ready(one, call_of())
        fresh.kill()

    def in_process() -> None:
        made["wasmtime"].call([column], 1)

    def worker() -> None:
        fresh = function(STATEFUL, "worker")
        fresh.call([column], 1)
        fresh.close()

    made = {"wasmtime": function(STATEFUL, "wasmtime")}
    contenders = {
        "run of a ready sandbox": run_only, "run and restore": restored,
        "further sandbox in a process": further, "first sandbox of a new process": first,
        "call with a new wasmtime instance": in_process, "new function in a worker": worker,
    }  # fmt: skip
    spec_cached(MEMORY)
    try:
        return harness.measure(contenders, repeats=repeats, clock=time.perf_counter)
    finally:
        process.kill()


def spec_cached(memory: int) -> None:
    """Compile ahead, so that starting is not compiling."""
    spec(STATEFUL, memory)


def restores(repeats: int) -> dict[str, Any]:
    """Measure snapshot-sized things: restoring by memory of the sandbox and by what was dirtied."""
    dirty = """(module (memory 1) (func (export "f") (param f64) (result f64) (local $n i32)
      (local.set $n (i32.trunc_f64_u (local.get 0)))
      (drop (memory.grow (local.get $n)))
      (memory.fill (i32.const 0) (i32.const 7) (i32.shl (local.get $n) (i32.const 16)))
      (f64.const 0)))"""
    figures: dict[str, Any] = {}
    for memory in (1 << 20, 4 << 20, 8 << 20):
        limits = SandboxLimits(max_memory_bytes=memory, timeout_ms=600_000, backend="hyperlight")
        made = ScalarFunction(to_wasm(dirty), "f", [DOUBLE], DOUBLE, limits=limits)
        for share in (0.0, 0.5):
            pages = from_list(DOUBLE, [float(int(share * memory) >> 16)])
            made.call([pages], 1)
            samples = []
            for _ in range(repeats):
                began = time.perf_counter()
                made.call([pages], 1)
                samples.append(time.perf_counter() - began)
            key = f"{memory >> 20} MiB, {share:.0%} dirty"
            figures[key] = harness.summary(samples)
            print(f"  {key}: {figures[key]['median'] * 1e3:.1f} ms", flush=True)
    return figures


def memory(sandboxes: int) -> dict[str, Any]:
    """Return resident memory (MiB) of processes: with sandboxes, and a worker's."""
    process, call, sizes = SandboxProcess(), call_of(), []
    for number in range(sandboxes):
        process.ready(spec(STATEFUL, MEMORY, number), call)
        sizes.append(resident(process.pid))
    process.kill()
    made = function(STATEFUL, "worker")
    made.call([Column(DOUBLE, np.ones(1))], 1)
    workers = [resident(pid) for pid in children("udf_sandbox/worker/main.py")]
    made.close()
    steps = np.diff(sizes)
    return {
        "hyperlight process by sandboxes": sizes,
        "further sandbox": float(np.median(steps)), "worker processes": workers,
    }  # fmt: skip


def children(program: str) -> list[int]:
    """Return the processes this one has started that run a program."""
    found = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "status").read_text().split("PPid:")[1].split()[0]
            if int(parent) == os.getpid() and program in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def resident(pid: int) -> float:
    """Return resident MiB of a process."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return round(int(text.split("VmRSS:")[1].split()[0]) / 1024, 1)


def containment() -> dict[str, Any]:
    """Run the hostile functions on each backend: a typed error, and a good call after it."""
    kind = parse_type("INT")
    one, results = from_list(kind, [1]), {}
    good = '(module (func (export "f") (param i32) (result i32) (local.get 0)))'
    for name in BACKENDS:
        patient, limits = (
            SandboxLimits(fuel=2**50, max_memory_bytes=MEMORY, timeout_ms=ms, backend=name)
            for ms in (600_000, 10_000)
        )
        contained = 0
        fine = ScalarFunction(to_wasm(good), "f", [kind], kind, limits=patient)
        for what, body in HOSTILE.items():
            text = f"""(module (memory 1) (table 2 funcref)
              (func $f (export "f") (param i32) (result i32) {body}))"""
            made = ScalarFunction(to_wasm(text), "f", [kind], kind, limits=limits)
            try:
                made.call([one], 1)
            except UdfError:
                contained += fine.call([one], 1).get(0) == 1
            print(f"  {name}: {what}", flush=True)
        results[name] = {"hostile": len(HOSTILE), "contained": contained}
    return results


def run(repeats: int) -> dict[str, Any]:
    """Measure and return the record that is stored."""
    for name in BACKENDS:
        backend(name)
    record: dict[str, Any] = {"emulated": bool(os.environ.get("TARSDB_EMULATED"))}
    record["containment"] = containment()
    print(json.dumps(record), flush=True)
    record["memory MiB"] = memory(6)
    print(json.dumps(record["memory MiB"]), flush=True)
    record["starts"] = starts(max(repeats // 2, 3))
    print(harness.table("fresh guests", record["starts"]), flush=True)
    record["restores"] = restores(max(repeats // 4, 3))
    record["batches"] = batches(repeats)
    return {**record, "repeats": repeats, **harness.environment(PACKAGES)}


def main() -> None:
    """Run and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    repeats = parser.parse_args().repeats
    reason = probe.unavailable()
    if reason:
        print(f"left out: {reason}; python -m tests.hyperlight.machine -m {__spec__.name}")
        return
    record = run(repeats)
    out = os.environ.get("TARSDB_OUT")
    if out:
        path = pathlib.Path(out, "sandbox_backends.json")
        path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    else:
        path = harness.write("sandbox_backends", record)
    print(path)


if __name__ == "__main__":
    main()
