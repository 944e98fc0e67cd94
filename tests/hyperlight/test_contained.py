"""Hostile guests end as an error of their statement; this process and the next call are fine."""

from __future__ import annotations

import dataclasses
import os
import struct
import subprocess
import sys
import threading
import time

import pytest

from tarsdb.columns import Column, from_list
from tarsdb.errors import InterruptError, UdfError, UdfLimitError, UdfTrapError
from tarsdb.types import parse_type
from tarsdb.udf_sandbox import Budget, ScalarFunction
from tarsdb.udf_sandbox.hyperlight import aot, modules
from tarsdb.udf_sandbox.modules.artefacts import ArtefactCache
from tests.hyperlight.conftest import Make
from tests.sandbox.wasm_text import PRELUDE, columnar

LATE_S = 5.0 if os.environ.get("TARSDB_EMULATED") else 0.3  # ending a virtual machine takes time
ONE = from_list(parse_type("INT"), [1])
GOOD = '(module (func (export "f") (param i32) (result i32) (i32.add (local.get 0) (i32.const 1))))'


def bare(body: str, before: str = "") -> str:
    """Return a module whose bare scalar export has this body."""
    return f'(module {before} (func $f (export "f") (param i32) (result i32) {body}))'


TRAPS = {
    "unreachable": bare("unreachable"),
    "division": bare("(i32.div_s (i32.const 1) (i32.sub (local.get 0) (i32.const 1)))"),
    "recursion": bare("(i32.add (i32.const 1) (call $f (local.get 0)))"),
    "outside by a byte": bare("(i32.load (i32.const 65533))", "(memory 1)"),
    "outside by 1 GiB": bare("(i32.load (i32.const 0x40000000))", "(memory 1)"),
    "store outside": bare("(i32.store (i32.const -4) (i32.const 1)) (i32.const 0)", "(memory 1)"),
    "indirect": bare("(call_indirect (param i32) (result i32) (local.get 0) (i32.const 3))",
                     "(table 2 funcref)"),
    "start": bare("(i32.const 1)", "(func $s unreachable) (start $s)"),
}  # fmt: skip
LIES = {
    "data outside": "(i32.store offset=40 (local.get $d) (i32.const 0x7ffffff0)) (i32.const 0)",
    "data at the end": "(i32.store offset=40 (local.get $d) (i32.sub (i32.shl (memory.size) "
                       "(i32.const 16)) (i32.const 2))) (i32.const 0)",
    "validity outside": "(i32.store offset=48 (local.get $d) (i32.const -1)) (i32.const 0)",
    "status": "(i32.const 7)",
}  # fmt: skip


def call(function: ScalarFunction, budget: Budget | None = None) -> Column:
    """Call with one row."""
    return function.call([ONE], 1, budget)


@pytest.fixture(scope="module")
def good(make: Make) -> ScalarFunction:
    """Return a function that runs after every other, in whichever sandbox is left of it."""
    return make(GOOD, "INT", "INT")


@pytest.mark.parametrize("name", TRAPS)
def test_traps_are_errors_and_the_function_runs_again(
    name: str, make: Make, good: ScalarFunction
) -> None:
    """A guest that traps takes its sandbox's state along and nothing else."""
    bad = make(TRAPS[name], "INT", "INT")
    assert call(good).get(0) == 2
    for _ in range(2):
        with pytest.raises(UdfTrapError, match="function f: "):
            call(bad)
    assert call(good).get(0) == 2


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, make: Make) -> None:
    """What a guest says of its memory is checked against its size."""
    with pytest.raises(UdfError, match=r"outside its memory|status 7"):
        call(make(columnar(LIES[name]), "INT", "INT"))


@pytest.mark.parametrize("region", [0, -1, 0x7FFFFFFF])
def test_allocations_that_do_not_fit_are_refused(region: int, make: Make) -> None:
    """An address of tars_alloc is used only where the batch fits behind it."""
    alloc = f'(func (export "tars_alloc") (param i32) (result i32) (i32.const {region}))'
    start = PRELUDE.index("(func $alloc")
    end = PRELUDE.index('(func (export "tars_reset")')
    text = f"""(module {PRELUDE[:start]} {alloc} {PRELUDE[end:]}
      (func (export "f") (param i32 i32) (result i32) (i32.const 0)))"""
    with pytest.raises(UdfLimitError, match="tars_alloc"):
        call(make(text, "INT", "INT"))


@pytest.mark.parametrize(
    "body",
    ["(loop $l (br $l)) (i32.const 0)",
     "(loop $l (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536)) (br $l)) (i32.const 0)"],
)  # fmt: skip
def test_a_hang_ends_at_the_deadline(body: str, make: Make, good: ScalarFunction) -> None:
    """Its process is killed; the next call finds another."""
    hung = hanging(make, body)
    hung.limits = dataclasses.replace(hung.limits, timeout_ms=2_000)  # its sandbox is ready
    began = time.monotonic()
    with pytest.raises(UdfLimitError, match="timeout_ms = 2000"):
        call(hung)
    assert 2.0 <= time.monotonic() - began < 2.0 + LATE_S
    assert call(good).get(0) == 2


def hanging(make: Make, body: str) -> ScalarFunction:
    """Return a function that hangs for numbers other than 0, its sandbox loaded."""
    skipped = "(if (i32.eqz (local.get 0)) (then (return (i32.const 7))))"
    function = make(bare(f"{skipped} {body}", "(memory 1)"), "INT", "INT")
    assert function.call([from_list(parse_type("INT"), [0])], 1).get(0) == 7
    return function


def test_a_hang_ends_when_interrupted(make: Make) -> None:
    """Interrupting needs no help of the guest."""
    hung, budget = hanging(make, "(loop $l (br $l)) (i32.const 0)"), Budget()
    timer = threading.Timer(0.5, budget.interrupt)
    timer.start()
    with pytest.raises(InterruptError):
        call(hung, budget)
    timer.join()


def native(artefact: bytes, code: bytes) -> bytes:
    """Return an artefact whose machine code is replaced, as by an escape from WebAssembly."""
    (table,) = struct.unpack_from("<Q", artefact, 0x28)
    entry, count = struct.unpack_from("<HH", artefact, 0x3A)
    changed = bytearray(artefact)
    for header in range(table, table + count * entry, entry):
        (flags, _, start, size) = struct.unpack_from("<QQQQ", artefact, header + 8)
        if flags & 4:  # executable
            changed[start : start + size] = (code * size)[:size]
    return bytes(changed)


@pytest.mark.parametrize("code", [b"\xf4", b"\xcc", b"\x0f\x05", b"\x0f\x01\xc1", b"\xeb\xfe"])
def test_hostile_machine_code_stays_in_the_virtual_machine(
    code: bytes, make: Make, good: ScalarFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hlt, int3, syscall, vmcall and a jump to itself, run as the guest's own machine code."""
    compiled = aot.compile_component
    with monkeypatch.context() as patch:
        patch.setattr(aot, "compile_component", lambda *given: native(compiled(*given), code))
        patch.setattr(modules, "artefacts", lambda: ArtefactCache(None))
        modules._compiled.cache_clear()
        evil = make(bare(f"(i32.const {code[0]})"), "INT", "INT", timeout_ms=6_000)
    modules._compiled.cache_clear()
    with pytest.raises((UdfTrapError, UdfLimitError)):
        call(evil)
    assert call(good).get(0) == 2


def test_the_same_machine_code_ends_an_ordinary_process() -> None:
    """The negative control: without the virtual machine ``hlt`` ends the process that runs it."""
    run = (
        "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m.write(b'\\xf4' * 64); "
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    )
    assert subprocess.run([sys.executable, "-S", "-c", run], check=False).returncode < 0
