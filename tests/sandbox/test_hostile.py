"""Hostile guests: each ends in a typed error, quickly, and the function works afterwards.

The negative controls show that the same harness passes harmless code and that limits, not the
harness, stop the hostile one.
"""

from __future__ import annotations

import threading
import time

import pytest

from tarsdb.columns import Column, from_list
from tarsdb.errors import InterruptError, UdfError, UdfLimitError, UdfTrapError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT, BLOB, BOOLEAN, INT, TEXT, SqlType, parse_type
from tarsdb.udf_sandbox import Budget, ScalarFunction, inspect_module, to_wasm
from tests.sandbox.wasm_text import columnar

pytestmark = pytest.mark.usefixtures("each_backend")

LOOP = "(loop $l (br $l))"
ENDLESS = SandboxLimits(fuel=2**60, timeout_ms=20_000)


def scalar(body: str, extra: str = "") -> str:
    return f'(module {extra} (func $f (export "f") (param i64) (result i64) {body} (local.get 0)))'


def make(text: str, limits: SandboxLimits | None = None) -> ScalarFunction:
    columnar_text = "tars_abi_v1" in text
    types: tuple[SqlType, SqlType] = (TEXT, TEXT) if columnar_text else (BIGINT, BIGINT)
    return ScalarFunction(to_wasm(text), "f", [types[0]], types[1], limits=limits)


def call(function: ScalarFunction, budget: Budget | None = None) -> Column:
    items = ["some text", "more"] if function.returns == TEXT else [1, 2]
    return function.call([from_list(function.arguments[0], items)], 2, budget)


def stop(function: ScalarFunction, budget: Budget | None = None) -> tuple[BaseException, float]:
    start = time.monotonic()
    with pytest.raises((UdfError, InterruptError)) as caught:
        call(function, budget)
    return caught.value, time.monotonic() - start


@pytest.mark.parametrize("text", [scalar(LOOP), columnar(LOOP + "(i32.const 0)")])
def test_endless_loop_runs_out_of_fuel(text: str) -> None:
    error, _ = stop(make(text, SandboxLimits(fuel=1_000_000)))
    assert isinstance(error, UdfLimitError) and error.kind == "fuel"
    assert "function f" in str(error) and "1000000" in str(error)


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("text", [scalar(LOOP), columnar(LOOP + "(i32.const 0)")])
def test_endless_loop_with_endless_fuel_runs_out_of_time(text: str, thread: bool) -> None:
    function = make(text, SandboxLimits(fuel=2**60, timeout_ms=150))
    found: list[tuple[BaseException, float]] = []
    if thread:
        worker = threading.Thread(target=lambda: found.append(stop(function)))
        worker.start()
        worker.join()
    else:
        found.append(stop(function))
    error, seconds = found[0]
    assert isinstance(error, UdfLimitError) and error.kind == "time" and "150" in str(error)
    assert 0.14 <= seconds < 3


def test_time_ends_a_direct_call_on_the_main_thread() -> None:
    """Little fuel, much time: memory.fill costs one fuel however long it takes."""
    body = """(local i32) (loop $l (memory.fill (i32.const 0) (i32.const 1) (i32.const 33554432))
      (br $l))"""
    text = (
        f'(module (memory 512) (func (export "f") (param i64) (result i64) {body} (local.get 0)))'
    )
    function = make(text, SandboxLimits(fuel=1_000_000, fuel_per_row=0, timeout_ms=100))
    error, seconds = stop(function)
    assert isinstance(error, UdfLimitError) and error.kind in ("time", "fuel")
    assert seconds < 5


def test_start_function_runs_under_the_limits() -> None:
    text = scalar("", f"(func $s {LOOP}) (start $s)")
    assert stop(make(text))[0].kind == "fuel"  # type: ignore[attr-defined]
    text = scalar("", "(func $s unreachable) (start $s)")
    assert stop(make(text))[0].code == "UNREACHABLE"  # type: ignore[attr-defined]


def test_time_and_fuel_are_counted_per_statement() -> None:
    count = "(local.set 1 (i64.const 100000)) (loop $l (br_if $l (i64.ne (i64.const 0) " \
        "(local.tee 1 (i64.sub (local.get 1) (i64.const 1))))))"  # fmt: skip
    text = (
        f'(module (func (export "f") (param i64) (result i64) (local i64) {count} (local.get 0)))'
    )
    function = make(text, SandboxLimits(fuel=5_000_000, fuel_per_row=0))
    budget, calls = Budget(), 0
    with pytest.raises(UdfLimitError, match="out of fuel"):
        for calls in range(50):  # noqa: B007 - counted for the assertion below
            call(function, budget)
    assert 2 <= calls <= 10
    call(function, Budget())  # another statement


@pytest.mark.parametrize("switch", ["function", "budget"])
def test_interrupt_ends_a_running_call(switch: str) -> None:
    function, budget = make(scalar(LOOP), ENDLESS), Budget()
    target = function.interrupt if switch == "function" else budget.interrupt
    timer = threading.Timer(0.1, target)
    timer.start()
    error, seconds = stop(function, budget)
    timer.join()
    assert isinstance(error, InterruptError) and seconds < 3
    if switch == "budget":
        with pytest.raises(InterruptError):
            call(function, budget)


def test_interrupt_leaves_other_functions_alone() -> None:
    victim, other = (
        make(scalar(LOOP), ENDLESS),
        make(scalar(LOOP), SandboxLimits(2**60, 0, timeout_ms=600)),
    )
    found: list[BaseException] = []
    thread = threading.Thread(target=lambda: found.append(stop(other)[0]))
    thread.start()
    threading.Timer(0.1, victim.interrupt).start()
    assert isinstance(stop(victim)[0], InterruptError)
    assert thread.is_alive()
    thread.join()
    assert isinstance(found[0], UdfLimitError)


@pytest.mark.parametrize("fuel", [50_000_000, 2**60])
def test_memory_growth_stops_at_the_limit(fuel: int) -> None:
    grow = """(block $out (loop $l
      (br_if $out (i32.eq (memory.grow (i32.const 16)) (i32.const -1))) (br $l)))
      (i64.store (i32.const 0) (i64.extend_i32_u (memory.size)))"""
    text = f"""(module (memory 1) (func (export "f") (param i64) (result i64) {grow}
      (i64.load (i32.const 0))))"""
    limits = SandboxLimits(fuel=fuel, max_memory_bytes=8 << 20)
    pages = call(make(text, limits)).to_list()
    assert 112 <= pages[0] <= 128 and pages[0] == pages[1]


def test_memory_limits() -> None:
    big = '(module (memory 2000) (func (export "f") (param i64) (result i64) (local.get 0)))'
    with pytest.raises(UdfLimitError, match="131072000") as caught:
        make(big)
    assert caught.value.kind == "memory"
    assert len(call(make(big, SandboxLimits(max_memory_bytes=256 << 20)))) == 2  # control
    limits = SandboxLimits(max_memory_bytes=1 << 20)
    function = make(columnar("(i32.const 0)"), limits)
    with pytest.raises(UdfLimitError, match="max_memory") as caught:
        function.call([from_list(TEXT, ["x" * (2 << 20)])], 1)
    assert caught.value.kind == "memory"
    assert len(call(function)) == 2  # and goes on


@pytest.mark.parametrize("answer", ["(i32.const 0)", "(i32.const -1)", "(i32.const 0x7fffffff)",
                                    "(i32.const 0xffffff00)", "(i32.const 65500)"])  # fmt: skip
def test_lying_allocators(answer: str) -> None:
    text = f"""(module (memory (export "memory") 1)
      (global (export "tars_abi_v1") i32 (i32.const 1))
      (func (export "tars_alloc") (param i32) (result i32) {answer})
      (func (export "f") (param i32 i32) (result i32) (i32.const 0)))"""
    error, _ = stop(make(text))
    assert isinstance(error, UdfLimitError) and error.kind == "memory"


TRAPS = {
    "UNREACHABLE": "unreachable",
    "INTEGER_DIVISION_BY_ZERO": "(drop (i64.div_s (local.get 0) (i64.const 0)))",
    "INTEGER_OVERFLOW": "(drop (i64.div_s (i64.const 0x8000000000000000) (i64.const -1)))",
    "BAD_CONVERSION_TO_INTEGER": "(drop (i64.trunc_f64_s (f64.const nan)))",
    "MEMORY_OUT_OF_BOUNDS": "(drop (i64.load (i32.const 65529)))",
    "STACK_OVERFLOW": "(drop (call $f (i64.const 1)))",
    "TABLE_OUT_OF_BOUNDS": "(call_indirect (type 0) (i32.const 99))",
    "INDIRECT_CALL_TO_NULL": "(call_indirect (type 0) (i32.const 0))",
}


@pytest.mark.parametrize("thread_stack", [None, 256 << 10])
@pytest.mark.parametrize("code", TRAPS)
def test_traps(code: str, thread_stack: int | None) -> None:
    function = make(scalar(TRAPS[code], "(type (func)) (memory 1) (table 1 funcref)"))
    found: list[BaseException] = []
    if thread_stack is None:
        found.append(stop(function)[0])
    else:
        before = threading.stack_size(thread_stack)
        thread = threading.Thread(target=lambda: found.append(stop(function)[0]))
        thread.start()
        threading.stack_size(before)
        thread.join()
    assert isinstance(found[0], UdfTrapError) and found[0].code == code
    assert "function f" in str(found[0])


def test_memory_far_out_of_bounds() -> None:
    for where in ("0xfffffff8", "0x7fffffff", "65536"):
        text = scalar(
            f"(i64.store offset=0xffffffff (i32.const {where}) (i64.const 1))", "(memory 1)"
        )
        assert stop(make(text))[0].code == "MEMORY_OUT_OF_BOUNDS"  # type: ignore[attr-defined]


def test_table_growth_is_bounded() -> None:
    body = """(table.set (i32.const 0) (ref.null func))
      (return (i64.extend_i32_s (table.grow (ref.null func) (i32.const 90000000))))"""
    assert call(make(scalar(body, "(table 1 funcref)"))).to_list() == [-1, -1]


def test_a_trap_does_not_poison_the_next_call() -> None:
    """The shadow stack pointer is left low by a trap; a used guest would trap again."""
    body = """(global.set $sp (i64.sub (global.get $sp) (i64.const 1)))
      (if (i64.ne (global.get $sp) (i64.const 9)) (then unreachable))
      (if (i64.eq (local.get 0) (i64.const 666)) (then unreachable))
      (global.set $sp (i64.const 10))"""
    function = make(scalar(body, "(global $sp (mut i64) (i64.const 10))"))
    assert function.call([from_list(BIGINT, [5])], 1).to_list() == [5]
    with pytest.raises(UdfTrapError):
        function.call([from_list(BIGINT, [666])], 1)
    assert function.call([from_list(BIGINT, [5])], 1).to_list() == [5]


# Each body writes a lie into the output descriptor (32 bytes behind the argument's).
LIES = {
    "outside its memory": "(i32.store offset=40 (local.get $d) (i32.const 0x7ffffff0))"
    "(i32.store (i32.add (i32.load offset=52 (local.get $d)) (i32.const 8)) (i32.const 50))",
    "output offsets at": "(i32.store offset=52 (local.get $d) (i32.const -4))",
    "output validity at": "(i32.store offset=48 (local.get $d) (i32.const 0xfffffff0))",
    "offsets decrease at row 1": "(i32.store offset=4 (i32.load offset=52 (local.get $d))"
    "(i32.const 9))",
    "offsets decrease at row 0": "(i32.store (i32.load offset=52 (local.get $d)) (i32.const 9))",
    "output bytes": "(i32.store offset=8 (i32.load offset=52 (local.get $d))"
    "(i32.const 0x7fffffff))",
    "decrease": "(i32.store (i32.load offset=52 (local.get $d)) (i32.const -8))",
    "status 7": "(return (i32.const 7))",
    "status -1": "(return (i32.const -1))",
    "row 0 is not UTF-8": "(i32.store8 (i32.const 65000) (i32.const 0xff))"
    "(i32.store offset=40 (local.get $d) (i32.const 65000))"
    "(i32.store offset=4 (i32.load offset=52 (local.get $d)) (i32.const 1))"
    "(i32.store offset=8 (i32.load offset=52 (local.get $d)) (i32.const 1))",
    "row 1 starts inside": "(i32.store16 (i32.const 65000) (i32.const 0xa9c3))"
    "(i32.store offset=40 (local.get $d) (i32.const 65000))"
    "(i32.store offset=4 (i32.load offset=52 (local.get $d)) (i32.const 1))"
    "(i32.store offset=8 (i32.load offset=52 (local.get $d)) (i32.const 2))",
}


@pytest.mark.parametrize("words", LIES)
def test_outputs_that_lie(words: str) -> None:
    error, _ = stop(make(columnar(LIES[words] + "(i32.const 0)")))
    assert words in str(error) and "function f" in str(error)


def test_output_control() -> None:
    """The same harness accepts an honest output: two empty texts."""
    assert call(make(columnar("(i32.const 0)"))).to_list() == ["", ""]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("DATE", 9_999_999, "no DATE"), ("SMALLINT", 40_000, "no SMALLINT"),
        ("TIME", -1, "no TIME"), ("TIMESTAMP", 2**62, "no TIMESTAMP"),
        ("DECIMAL(3,1)", 1000, "no DECIMAL"),
    ],
)  # fmt: skip
def test_values_outside_their_type(name: str, value: int, words: str) -> None:
    wasm = "i32" if name in ("DATE", "SMALLINT") else "i64"
    text = f'(module (func (export "f") (result {wasm}) ({wasm}.const {value})))'
    with pytest.raises(UdfError, match=words):
        ScalarFunction(to_wasm(text), "f", [], parse_type(name)).call([], 1)


def test_vectors_must_be_finite_and_booleans_are_normalised() -> None:
    nan = "(f32.store (i32.load offset=40 (local.get $d)) (f32.const nan)) (i32.const 0)"
    function = ScalarFunction(to_wasm(columnar(nan)), "f", [INT], parse_type("VECTOR(2)"))
    with pytest.raises(UdfError, match="row 0 is a vector with NaN"):
        function.call([from_list(INT, [1])], 1)
    two = ScalarFunction(
        to_wasm('(module (func (export "f") (result i32) i32.const -256))'), "f", [], BOOLEAN
    )
    assert two.call([], 2).values.tolist() == [1, 1]


def test_nan_bits_are_canonical() -> None:
    body = "(i64.reinterpret_f64 (f64.sub (f64.const inf) (f64.const inf))) (return)"
    assert call(make(scalar(body))).to_list() == [0x7FF8000000000000] * 2


def test_arguments_are_copies() -> None:
    wipe = """(memory.fill (i32.load offset=8 (local.get $d)) (i32.const 0) (i32.const 4))
      (i32.const 0)"""
    function = ScalarFunction(to_wasm(columnar(wipe)), "f", [BLOB], BLOB)
    column = from_list(BLOB, [b"abcd"])
    function.call([column], 1)
    assert column.to_list() == [b"abcd"]


def test_unknown_imports_never_compile() -> None:
    for text in (
        '(module (import "env" "abort" (func)))',
        '(module (import "" "" (table 1 funcref)))',
    ):
        with pytest.raises(UdfValidationError, match="imports"):
            inspect_module(to_wasm(text))
