"""Modules for Hyperlight without Hyperlight: the generated adapter runs in wasmtime instead.

What a virtual machine would be sent goes to the same component's parts as core modules, so
messages, adapter and loop are compared with the wasmtime backend wherever tests run.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import wasmtime
import wasmtime.component as wasmtime_component
from hypothesis import given

from tarsdb.columns import Column, from_list
from tarsdb.errors import InterruptError, UdfError, UdfLimitError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import parse_type
from tarsdb.udf_sandbox import ScalarFunction, stoppable, to_wasm
from tarsdb.udf_sandbox.hyperlight import aot, component, messages, modules, processes
from tarsdb.udf_sandbox.limits import Budget, Call
from tarsdb.udf_sandbox.modules.artefacts import ArtefactCache
from tarsdb.udf_sandbox.modules.sections import MAX_TABLE_ELEMENTS
from tests.sandbox.wasm_text import IDENTITY, IS_NULL, columnar

MEMORY = 1 << 20


class Adapted:
    """A component's core modules in wasmtime, with the interface of a sandbox process."""

    def __init__(self, text: str, code: bytes) -> None:
        self.store = wasmtime.Store()
        instance = self._instance(code, {})
        if "(core module $loop" in text:
            instance = self._instance(_core(text, "$loop"), instance)
        exports = self._instance(_core(text, "$adapter"), instance)
        self.memory, self.realloc, self.enter = (
            exports[name] for name in ("memory", "realloc", "run")
        )
        self.runs = 0

    def _instance(self, code: Any, user: Any) -> Any:
        module = wasmtime.Module(self.store.engine, code)
        needed = [user[item.name] for item in module.imports]
        return wasmtime.Instance(self.store, module, needed).exports(self.store)

    def ready(self, *_: object) -> int:
        return 1

    def spare(self, number: int) -> None:
        pass

    def run(self, _number: int, text: str, _call: Call) -> str:
        self.runs += 1
        raw = text.encode()
        at = self.realloc(self.store, 0, 0, 1, len(raw))
        self.memory.write(self.store, raw, at)
        record = self.enter(self.store, at, len(raw))
        place, size = np.frombuffer(self.memory.read(self.store, record, record + 8), "<u4")
        assert size <= messages.REPLY_TEXT + 8
        return bytes(self.memory.read(self.store, int(place), int(place + size))).decode()


def _core(text: str, name: str) -> str:
    """Return one core module of a component's text as a module."""
    start = text.index(f"(core module {name}")
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return "(module " + text[start + len(f"(core module {name}") : at + 1]
    raise AssertionError(name)


def adapted(function: ScalarFunction) -> tuple[modules.ModuleGuest, Adapted]:
    """Return the guest of a function's program as Hyperlight has it, and what stands for the VM."""
    program = function._program
    scalar = None if program.driver is None else (program.arguments, program.returns)
    text = component.component(program.export, resettable=program.resettable, scalar=scalar)
    compiled = modules.ModuleProgram.__new__(modules.ModuleProgram)
    compiled.program = program
    compiled.spec = processes.SandboxSpec("key", b"", "", 1, 1, "")
    code = component.capped(program.code, program.limits.max_memory_bytes >> 16)
    return modules.ModuleGuest(compiled), Adapted(text, code)


def both(text: str, arguments: str, returns: str, columns: Sequence[Column]) -> tuple[Any, int]:
    """Return a column by the adapter, after comparing it with wasmtime's, and the runs it took."""
    types = [parse_type(name) for name in arguments.split()]
    strict = text is not IS_NULL
    limits = SandboxLimits(max_memory_bytes=MEMORY)
    function = ScalarFunction(
        to_wasm(text), "f", types, parse_type(returns), strict=strict, limits=limits
    )
    rows = len(columns[0])
    wanted = function.call(columns, rows)
    guest, machine = adapted(function)
    call = Call("f", limits, Budget(), 0, 0.0)
    found = guest._parts(machine, columns, rows, call)  # type: ignore[arg-type]  # the stand-in
    values = found.values.astype(wanted.values.dtype) if found.offsets is None else found.values
    assert values.tobytes() == wanted.values.tobytes()
    for mine, theirs in ((found.offsets, wanted.offsets), (found.validity, wanted.validity)):
        assert (mine is None) == (theirs is None)
        assert mine is None or theirs is None or mine.tolist() == theirs.tolist()
    return found, machine.runs


def scalar(params: str, result: str, body: str) -> str:
    """Return a module with a bare scalar export."""
    return f'(module (func (export "f") (param {params}) (result {result}) {body}))'


def test_scalar_exports_of_every_type() -> None:
    rng = np.random.default_rng(1)
    floats = rng.normal(size=5_000).tolist()
    square = scalar("f64", "f64", "(f64.mul (local.get 0) (local.get 0))")
    _, runs = both(square, "DOUBLE", "DOUBLE", [from_list(parse_type("DOUBLE"), floats)])
    assert runs == 4  # 40 KB of output, 14 KB a reply, and the validity behind it
    both(scalar("i64 i32", "i64", "(i64.rotl (local.get 0) (i64.extend_i32_s (local.get 1)))"),
         "BIGINT SMALLINT", "BIGINT",
         [from_list(parse_type("BIGINT"), rng.integers(-2**63, 2**63 - 1, 99).tolist()),
          from_list(parse_type("SMALLINT"), list(range(-50, 49)))])  # fmt: skip
    both(scalar("f32 i32", "f32", "(select (local.get 0) (f32.const 0) (local.get 1))"),
         "REAL BOOLEAN", "REAL",
         [from_list(parse_type("REAL"), floats[:9]),
          from_list(parse_type("BOOLEAN"), [True, False, True] * 3)])  # fmt: skip


@given(st.lists(st.none() | st.text(max_size=30), min_size=1, max_size=40))
def test_any_text_passes_unchanged(items: list[str | None]) -> None:
    texts = [item if item is None else item.encode(errors="ignore").decode() for item in items]
    texts = [text or "" for text in texts]
    both(IDENTITY, "TEXT", "TEXT", [from_list(parse_type("TEXT"), texts)])


def test_nulls_vectors_and_long_values() -> None:
    integer = parse_type("INT")
    both(IS_NULL, "INT", "INT", [from_list(integer, [None if i % 3 else i for i in range(77)])])
    vector = parse_type("VECTOR(33)")
    rows = np.random.default_rng(2).normal(size=(300, 33)).astype(np.float32)
    both(IDENTITY, "VECTOR(33)", "VECTOR(33)", [Column(vector, rows)])
    blobs = [bytes([i % 251]) * (i * 37) for i in range(120)]
    both(IDENTITY, "BLOB", "BLOB", [from_list(parse_type("BLOB"), blobs)])


def test_a_batch_is_cut_until_its_image_fits() -> None:
    text = parse_type("TEXT")
    column = from_list(text, ["x" * 60_000] * 9)
    _, runs = both(IDENTITY, "TEXT", "TEXT", [column])
    assert runs > 40  # 540 KB of output in replies of 14 KB, of several calls


def test_refused_allocations_and_status() -> None:
    limits = SandboxLimits(max_memory_bytes=MEMORY)
    integer = parse_type("INT")
    for text, error in (
        (columnar("(i32.const 3)"), "status 3"),
        (columnar("(i32.const 0)").replace("(local.get $p))", "(i32.const 0))"), "tars_alloc"),
        (columnar("(i32.const 0)").replace("(local.get $p))", "(i32.const -64))"), "tars_alloc"),
    ):
        function = ScalarFunction(to_wasm(text), "f", [integer], integer, limits=limits)
        guest, machine = adapted(function)
        call = Call("f", limits, Budget(), 0, 0.0)
        with pytest.raises((UdfError, UdfLimitError), match=error):
            guest._parts(machine, [from_list(integer, [1])], 1, call)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_bytes_pass_as_seven_bit_text(data: bytes) -> None:
    text = messages.to_text(np.frombuffer(data, dtype=np.uint8))
    assert text.isascii() and len(text) == -(-len(data) // 7) * 8
    assert messages.to_bytes(text).tobytes() == data + bytes(-len(data) % 7)


def test_other_text_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        messages.to_bytes("é" * 8)


@pytest.mark.parametrize(
    ("declared", "limit", "grows_to"),
    [("1", 5, 5), ("1 3", 5, 3), ("1 900", 5, 5), ("5", 5, 5), ("0", 1, 1)],
)
def test_a_module_cannot_grow_past_the_cap(declared: str, limit: int, grows_to: int) -> None:
    """wasmtime validates what comes out, and growth ends where it should."""
    text = f"""(module (memory {declared}) (data (i32.const 0) "") (func (export "f") (result i32)
      (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (memory.size)))"""
    store = wasmtime.Store()
    module = wasmtime.Module(store.engine, component.capped(to_wasm(text), limit))
    grown: Any = wasmtime.Instance(store, module, []).exports(store)["f"]
    assert grown(store) == grows_to


@pytest.mark.parametrize(
    ("declared", "grows_to"),
    [("1 funcref", MAX_TABLE_ELEMENTS), ("0 externref", MAX_TABLE_ELEMENTS),
     ("2 7 funcref", 7), ("3 4000000 funcref", MAX_TABLE_ELEMENTS)],
)  # fmt: skip
def test_a_table_cannot_grow_past_the_cap(declared: str, grows_to: int) -> None:
    """Without the cap the table grows on, unless it names its own (control)."""
    null = "func" if "func" in declared else "extern"
    code = to_wasm(f"""(module (table 1 5 funcref) (table $t {declared})
      (func (export "to") (param i32) (result i32)
        (table.grow $t (ref.null {null}) (i32.sub (local.get 0) (table.size $t)))))""")
    held, free = grower(component.capped(code, 1)), grower(code)
    assert held(grows_to + 1) == -1 and held(grows_to) == int(declared[0])
    assert (free(grows_to + 1) == -1) == (grows_to == 7)


def grower(code: bytes) -> Callable[[int], int]:
    """Return a module's export ``to``."""
    store = wasmtime.Store()
    instance = wasmtime.Instance(store, wasmtime.Module(store.engine, code), [])
    export: Any = instance.exports(store)["to"]
    return partial(export, store)


def test_a_module_without_memory_stays_as_it_is() -> None:
    code = to_wasm('(module (func (export "f")))')
    assert component.capped(code, 1) == code


def test_the_component_holds_the_users_module_unchanged() -> None:
    """Splicing puts it where the empty one stood, and the result is one valid component."""
    code = to_wasm(IDENTITY)
    text = component.component("f", resettable=True)
    spliced = component.splice(to_wasm(text), code)
    assert code in spliced
    wasmtime_component.Component(wasmtime.Engine(), spliced)
    with pytest.raises(ValueError, match="without a core module"):
        component.splice(to_wasm("(component)"), code)


def test_an_artefact_is_kept_for_other_processes(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the component and what compiles it; damaged, it is compiled anew."""
    compiled: list[bytes] = []

    def compile_component(binary: bytes, name: str) -> bytes:
        compiled.append(binary)
        return b"native " + binary

    cache = ArtefactCache(tmp_path)
    monkeypatch.setattr(aot, "compile_component", compile_component)
    monkeypatch.setattr(modules, "artefacts", lambda: cache)
    for binary, times in ((b"one", 1), (b"one", 1), (b"two", 2)):
        modules._compiled.cache_clear()
        assert modules._compiled(binary, "f") == b"native " + binary
        assert len(compiled) == times
    (entry,) = (path for path in tmp_path.iterdir() if b"one" in path.read_bytes())
    entry.write_bytes(entry.read_bytes().replace(b"one", b"bad"))
    modules._compiled.cache_clear()
    assert modules._compiled(b"one", "f") == b"native one" and len(compiled) == 3
    monkeypatch.setattr(aot, "fingerprint", lambda: "another compiler")
    modules._compiled.cache_clear()
    assert modules._compiled(b"one", "f") == b"native one" and len(compiled) == 4
    modules._compiled.cache_clear()


def test_a_compiler_that_is_to_stop_is_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeps = tmp_path / "sleeps.py"
    sleeps.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(aot, "_CHILD", sleeps)
    monkeypatch.setattr(aot, "compiler_library", lambda: sleeps)
    began = time.monotonic()
    with stoppable(lambda: time.monotonic() > began + 0.2), pytest.raises(InterruptError):
        aot.compile_component(bytes(1 << 20), "f")
    monkeypatch.setattr(aot, "CPU_SECONDS", 0.01)
    with pytest.raises(UdfValidationError, match="took over"):
        aot.compile_component(b"", "f")
    assert time.monotonic() - began < 20
    sleeps.write_text("import sys; sys.stdin.read(); sys.exit('no good')")
    monkeypatch.setattr(aot, "CPU_SECONDS", 10)
    with pytest.raises(UdfValidationError, match="no good"):
        aot.compile_component(b"", "f")
