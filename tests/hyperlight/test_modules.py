"""Modules give in Hyperlight what they give in wasmtime, batch by batch and byte by byte."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfError
from tarsdb.types import parse_type
from tarsdb.udf_sandbox import Budget
from tarsdb.udf_sandbox.hyperlight import messages, processes
from tests.hyperlight.conftest import Make
from tests.sandbox.wasm_text import IDENTITY, IS_NULL, columnar

RNG = np.random.default_rng(7)
FLOATS: Any = np.concatenate([RNG.normal(size=2_500), [0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324]])
TEXTS = ["", "a", "é", "日本", *("x" * (i % 97) + "é" for i in range(900)), "y" * 40_000]


def scalar(params: str, result: str, body: str) -> str:
    """Return a module whose bare scalar export has this body."""
    listed = " ".join(params.split())
    return f'(module (func (export "f") (param {listed}) (result {result}) {body}))'


def column(name: str, items: Sequence[Any]) -> Column:
    """Return a column of a type's name."""
    return from_list(parse_type(name), list(items))


CORPUS = {
    "double": (scalar("f64", "f64", "(f64.div (f64.const 1) (f64.sqrt (local.get 0)))"),
               "DOUBLE", "DOUBLE", [column("DOUBLE", list(FLOATS))]),
    "real": (scalar("f32 f32", "f32", "(f32.mul (f32.sub (local.get 0) (local.get 1)) "
                    "(f32.nearest (local.get 1)))"), "REAL REAL", "REAL",
             [column("REAL", list(np.asarray(FLOATS, np.float32)))] * 2),
    "bigint": (scalar("i64 i64", "i64", "(i64.xor (i64.rotl (local.get 0) (local.get 1)) "
                      "(i64.mul (local.get 0) (local.get 0)))"), "BIGINT BIGINT", "BIGINT",
               [column("BIGINT", RNG.integers(-2**63, 2**63 - 1, 3_000).tolist())] * 2),
    "narrow": (scalar("i32 i32", "i32", "(i32.sub (local.get 0) (local.get 1))"),
               "SMALLINT BOOLEAN", "SMALLINT",
               [column("SMALLINT", range(-300, 700)), column("BOOLEAN", [True, False] * 500)]),
    "boolean": (scalar("i32", "i32", "(i32.and (local.get 0) (i32.const 6))"), "INT", "BOOLEAN",
                [column("INT", list(range(1_000)))]),
    "strict NULLs": (scalar("i32", "i32", "(i32.add (local.get 0) (i32.const 1))"), "INT", "INT",
                     [column("INT", [None if i % 3 == 0 else i for i in range(500)])]),
    "text": (IDENTITY, "TEXT", "TEXT", [column("TEXT", TEXTS)]),
    "json": (IDENTITY, "JSON", "JSON", [column("JSON", ['{"a": [1, null]}', "[]"] * 200)]),
    "blob": (IDENTITY, "BLOB", "BLOB", [column("BLOB", [bytes(range(256)), b"", None, b"\0"])]),
    "vector": (IDENTITY, "VECTOR(48)", "VECTOR(48)",
               [column("VECTOR(48)", list(RNG.normal(size=(700, 48)).astype(np.float32)))]),
    "bit": (IDENTITY, "BIT(13)", "BIT(13)", [column("BIT(13)", [np.array([255, 248], np.uint8)])]),
    "uuid": (IDENTITY, "UUID", "UUID", [column("UUID", [bytes(range(16))] * 50)]),
    "sees NULL": (IS_NULL, "INT NULL", "INT",
                  [column("INT", [None if i % 5 else i for i in range(1_001)])]),
    "simd": (scalar("f32", "f32", "(f32x4.extract_lane 2 (f32x4.mul (f32x4.splat (local.get 0)) "
                    "(f32x4.splat (f32.const 3))))"), "REAL", "REAL",
             [column("REAL", list(np.asarray(FLOATS, np.float32)))]),
}  # fmt: skip


def same(found: Column, wanted: Column) -> bool:
    """Compare two columns bit by bit."""
    pairs = [(found.values, wanted.values), (found.offsets, wanted.offsets),
             (found.validity, wanted.validity)]  # fmt: skip
    return found.type == wanted.type and all(
        (a is None) == (b is None) and (a is None or b is None or a.tobytes() == b.tobytes())
        for a, b in pairs
    )


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_is_equal_to_wasmtime_bit_by_bit(name: str, make: Make) -> None:
    """Includes NaNs, NULLs, every kind of buffer, and outputs of several replies."""
    text, arguments, returns, columns = CORPUS[name]
    rows = len(columns[0])
    wanted = make(text, arguments, returns, backend="wasmtime").call(columns, rows)
    found = make(text, arguments, returns).call(columns, rows)
    assert same(found, wanted)


def test_a_difference_is_seen() -> None:
    """The comparison above can fail: a sign of zero is enough."""
    assert not same(column("DOUBLE", [0.0]), column("DOUBLE", [-0.0]))


def test_long_output_is_read_in_pieces_of_a_reply(make: Make) -> None:
    """The output buffer holds 16 KiB: one more byte than a reply's is one more transition."""
    function = make(IDENTITY, "BLOB", "BLOB")
    counts = []
    for size in (1_000, messages.REPLY_BYTES, messages.REPLY_BYTES + 1, 5 * messages.REPLY_BYTES):
        budget = Budget()
        blob = RNG.bytes(size)
        assert function.call([column("BLOB", [blob])], 1, budget).get(0) == blob
        counts.append(budget.figures_of(function.name).transitions)
    assert counts[1] + 1 == counts[2] and counts[1] + 4 == counts[3]


def test_wrong_results_of_a_module_name_the_row(make: Make) -> None:
    """A SMALLINT out of range is refused, as wasmtime's is."""
    text = scalar("i32", "i32", "(i32.const 70000)")
    errors = []
    for backend in ("wasmtime", "hyperlight"):
        with pytest.raises(UdfError, match="row 0 is 70000") as caught:
            make(text, "SMALLINT", "SMALLINT", backend=backend).call([column("SMALLINT", [1])], 1)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_memory_stops_growing_at_the_limit(make: Make) -> None:
    """memory.grow gives -1 at the same page as in wasmtime."""
    text = """(module (memory 1) (func (export "f") (param i32) (result i32)
      (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (memory.size)))"""
    one = column("INT", [0])
    wanted = make(text, "INT", "INT", backend="wasmtime").call([one], 1).get(0)
    assert make(text, "INT", "INT").call([one], 1).get(0) == wanted == 32


@pytest.mark.parametrize("memory", [2 << 20, 8 << 20])
def test_all_of_the_memory_can_be_used(memory: int, make: Make) -> None:
    """In one step, too: the guest's allocator needs a block for the new beside the old."""
    text = f"""(module (memory 1) (func (export "f") (param i32) (result i32)
      (drop (memory.grow (i32.const {memory // 65536 - 1})))
      (memory.fill (i32.const 0) (i32.const 7) (i32.shl (memory.size) (i32.const 16)))
      (i32.load8_u (i32.const {memory - 1}))))"""
    assert make(text, "INT", "INT", memory=memory).call([column("INT", [0])], 1).get(0) == 7


COUNTER = columnar("""
  (local $i i32)
  (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
  (i32.store (i32.load offset=40 (local.get $d)) (i32.load (i32.const 16)))
  (i32.const 0)""").replace('(func (export "tars_reset")', '(func (export "not_reset")')


def test_state_does_not_survive_restore(make: Make) -> None:
    """A module without tars_reset starts anew for each batch; unrestored it would not."""
    function = make(COUNTER, "INT", "INT")
    one = column("INT", [0])
    assert [function.call([one], 1).get(0) for _ in range(3)] == [1, 1, 1]


def test_state_does_survive_without_restore(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what the test above would see if nothing was restored."""
    function = make(COUNTER, "INT", "INT")
    one = column("INT", [0])
    original = processes.SandboxProcess.run

    def forgetful(self, number, text, call):  # type: ignore[no-untyped-def]  # as the original
        said = original(self, number, text, call)
        self.spare(number)
        return said

    monkeypatch.setattr(processes.SandboxProcess, "run", forgetful)
    assert [function.call([one], 1).get(0) for _ in range(3)] == [1, 2, 3]


def test_a_loaded_sandbox_is_used_again(make: Make) -> None:
    """The second batch makes no sandbox and no process."""
    function = make(CORPUS["double"][0], "DOUBLE", "DOUBLE")
    took = []
    for _ in range(2):
        began = time.monotonic()
        function.call(CORPUS["double"][3], len(FLOATS))
        took.append(time.monotonic() - began)
    assert took[1] < took[0]
