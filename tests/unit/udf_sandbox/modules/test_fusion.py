"""Fused scalar functions beside the same ones called row by row by the generated driver."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.columns import Column
from tarsdb.errors import UdfLimitError, UdfTrapError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, INT, REAL, Kind, SqlType
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tarsdb.udf_sandbox.in_process import backend as in_process
from tarsdb.udf_sandbox.modules import driver, fusion

SMALLINT = SqlType(Kind.SMALLINT)
ROWS = (1, 3, 4, 7, 16, 31, 67, driver.CHUNK_ROWS, driver.CHUNK_ROWS + 5,
        2 * driver.CHUNK_ROWS + 3)  # fmt: skip

# name: (arguments, result, parameters and body)
FUNCTIONS: dict[str, tuple[tuple[SqlType, ...], SqlType, str]] = {
    "polynomial": ((DOUBLE,), DOUBLE, """(param f64) (result f64)
        (f64.sub (f64.mul (local.get 0) (local.get 0)) (f64.const 2.5))"""),
    "lanes": ((REAL, REAL), REAL, """(param f32 f32) (result f32) (local f32)
        (local.set 2 (f32.add (local.get 2) (f32.min (local.get 0) (f32.abs (local.get 1)))))
        (f32.div (f32.sqrt (local.tee 2 (f32.ceil (f32.neg (local.get 2))))) (local.get 1))"""),
    "every f64 instruction": ((DOUBLE, DOUBLE), DOUBLE, """(param f64 f64) (result f64)
        (f64.max (f64.floor (f64.trunc (local.get 0)))
          (f64.nearest (f64.div (f64.abs (local.get 0))
            (f64.min (f64.neg (f64.ceil (local.get 1))) (f64.sqrt (local.get 1))))))"""),
    "f32 max": ((REAL, REAL), REAL, """(param f32 f32) (result f32)
        (f32.max (f32.floor (f32.trunc (local.get 0)))
          (f32.nearest (f32.mul (local.get 0) (f32.sub (local.get 1) (f32.const 0.5)))))"""),
    "return": ((BIGINT,), BIGINT, """(param i64) (result i64)
        (if (i64.gt_s (local.get 0) (i64.const 0)) (then
          (block (loop (br_if 1 (i64.eq (local.get 0) (i64.const 5)))
            (return (i64.const 7))))
          (return (i64.const 8))))
        (local.get 0)"""),
    "locals start at zero": ((INT,), INT, """(param i32) (result i32) (local i32 i64 f32 f64)
        (local.set 1 (i32.add (local.get 1) (local.get 0)))
        (local.set 2 (i64.add (local.get 2) (i64.const 1)))
        (i32.add (local.get 1) (i32.wrap_i64 (local.get 2)))"""),
    "branches": ((SMALLINT, BOOLEAN), BOOLEAN, """(param i32 i32) (result i32)
        (block (block (block (br_table 0 1 2 (i32.rem_u (local.get 0) (i32.const 3))))
          (return (i32.const 0))) (return (i32.const 256)))
        (br 0 (local.get 1))"""),
    "loop": ((INT,), BIGINT, """(param i32) (result i64) (local i64)
        (block (loop (br_if 1 (i32.le_s (local.get 0) (i32.const -900)))
          (local.set 1 (i64.add (local.get 1) (i64.const 3)))
          (local.set 0 (i32.sub (local.get 0) (i32.const 100))) (br 0)))
        (local.get 1)"""),
    "callee": ((DOUBLE,), DOUBLE, """(param f64) (result f64)
        (f64.add (call $half (local.get 0)) (global.get $one))"""),
    "bits": ((DOUBLE,), BIGINT, "(param f64) (result i64) (i64.reinterpret_f64 (local.get 0))"),
    "sign of NaN": ((DOUBLE,), DOUBLE, """(param f64) (result f64)
        (f64.copysign (f64.const 1) (f64.div (local.get 0) (f64.const 0)))"""),
    "nothing": ((), DOUBLE, "(result f64) (f64.const 1.5)"),
}  # fmt: skip


def code_of(name: str) -> bytes:
    return to_wasm(f"""(module (global $one f64 (f64.const 1))
      (func $half (param f64) (result f64) (f64.mul (local.get 0) (f64.const 0.5)))
      (func (export "f") {FUNCTIONS[name][2]}))""")


def made(name: str, *, fused: bool, monkeypatch: pytest.MonkeyPatch) -> ScalarFunction:
    arguments, returns, _ = FUNCTIONS[name]
    with monkeypatch.context() as patch:
        if not fused:
            patch.setattr(in_process, "fuse", lambda *_: None)
        return ScalarFunction(code_of(name), "f", arguments, returns)


def column(sql_type: SqlType, rows: int, source: np.random.Generator) -> Column:
    if sql_type.dtype.kind == "f":
        values = source.normal(size=rows).astype(sql_type.dtype) * 10
        special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324], sql_type.dtype)
        at = source.random(rows) < 0.3
        values[at] = source.choice(special, int(at.sum()))
        return Column(sql_type, values)
    high = 2 if sql_type == BOOLEAN else 1000
    low = 0 if sql_type == BOOLEAN else -1000
    return Column(sql_type, source.integers(low, high, rows).astype(sql_type.dtype))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fused_functions_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(7)
    fast = made(name, fused=True, monkeypatch=monkeypatch)
    slow = made(name, fused=False, monkeypatch=monkeypatch)
    assert fast._compiled.driver is None  # type: ignore[attr-defined]
    assert slow._compiled.driver is not None  # type: ignore[attr-defined]
    for rows in ROWS:
        columns = [column(argument, rows, source) for argument in fast.arguments]
        a, b = fast.call(columns, rows), slow.call(columns, rows)
        assert a.values.dtype == b.values.dtype
        assert a.values.tobytes() == b.values.tobytes()


@pytest.mark.parametrize("name", ["polynomial", "f32 max"])
def test_one_nan_is_made_canonical_wherever_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = made(name, fused=True, monkeypatch=monkeypatch)
    rows = (
        2 * fusion.VECTORS * 16 // fast.returns.dtype.itemsize + 3
    )  # turns of vectors, and a rest
    plain = np.linspace(-9, 9, rows).astype(fast.returns.dtype)
    nan = np.array(np.nan, plain.dtype)
    for place in range(rows):
        values = plain.copy()
        values[place] = -nan  # another NaN than the canonical one
        columns = [Column(argument, values) for argument in fast.arguments]
        found = fast.call(columns, rows).values
        assert found[place].tobytes() == nan.tobytes()
        assert np.isnan(found).sum() == 1


def test_infinities_of_both_signs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = made("f32 max", fused=True, monkeypatch=monkeypatch)
    slow = made("f32 max", fused=False, monkeypatch=monkeypatch)
    values = np.resize(np.array([np.inf, 1, -np.inf, -2, 3], np.float32), 200)
    columns = [Column(REAL, values), Column(REAL, np.ones(200, np.float32))]
    a, b = fast.call(columns, 200).values, slow.call(columns, 200).values
    assert np.isinf(a).any() and not np.isnan(a).any()
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("name", "vectors", "sees_nan"),
    [("polynomial", True, False), ("lanes", True, False), ("every f64 instruction", True, False),
     ("f32 max", True, False), ("loop", False, False), ("callee", False, False),
     ("bits", False, True), ("sign of NaN", False, True), ("nothing", False, False)],
)  # fmt: skip
def test_what_a_function_becomes(name: str, vectors: bool, sees_nan: bool) -> None:
    arguments, returns, _ = FUNCTIONS[name]
    code = code_of(name)
    fused = fusion.fuse(code, "f", arguments, returns)
    assert fused is not None and fused.sees_nan == sees_nan
    assert (b"\xfd\x0b\x00" in fused.code) == vectors  # v128.store


def test_long_functions_are_called() -> None:
    body = "(local.set 0 (f64.add (local.get 0) (f64.const 1)))" * 60
    text = f'(module (func (export "f") (param f64) (result f64) {body} (local.get 0)))'
    assert fusion.fuse(to_wasm(text), "f", [DOUBLE], DOUBLE) is None


def test_a_trap_names_the_function() -> None:
    text = """(module (func $inner (export "ratio") (param i64) (result i64)
      (i64.div_s (i64.const 1) (local.get 0))))"""
    function = ScalarFunction(to_wasm(text), "ratio", [BIGINT], BIGINT)
    with pytest.raises(UdfTrapError, match="INTEGER_DIVISION_BY_ZERO in 'ratio'"):
        function.call([Column(BIGINT, np.array([1, 0], np.int64))], 2)
    assert function.call([Column(BIGINT, np.array([1, -1], np.int64))], 2).to_list() == [1, -1]


def test_fuel_counts_copied_rows() -> None:
    function = ScalarFunction(
        code_of("loop"), "f", [INT], BIGINT, limits=SandboxLimits(fuel=1000, fuel_per_row=0)
    )
    values = np.full(100, 1000, dtype=np.int32)
    with pytest.raises(UdfLimitError, match="out of fuel"):
        function.call([Column(INT, values)], 100)
    assert function.call([Column(INT, values[:1])], 1).to_list() == [57]
