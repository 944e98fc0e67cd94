"""Calling sandboxed functions: both kinds of export against a model in Python."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tarsdb.columns import Column, empty, from_list
from tarsdb.errors import InterfaceError, UdfError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT, BOOLEAN, DOUBLE, INT, REAL, TEXT, SqlType, parse_type, to_storage
from tarsdb.udf_sandbox import Budget, ScalarFunction, to_wasm
from tests.sandbox.wasm_text import DEMO, IDENTITY, IS_NULL, columnar

pytestmark = pytest.mark.usefixtures("each_backend")

SAMPLES: dict[str, list[Any]] = {
    "BOOLEAN": [True, False], "SMALLINT": [-32768, 32767, 0], "INT": [-(2**31), 2**31 - 1, 5],
    "BIGINT": [-(2**63), 2**63 - 1, 5], "REAL": [1.5, -0.0, float("inf")],
    "DOUBLE": [1e308, 5e-324, -1.0], "DECIMAL(10,2)": ["12345678.91", "-0.01"],
    "DECIMAL(38,4)": ["123456789012345678901234567890.1234", "-1"],
    "TEXT": ["", "a", "héllo €😀", "x" * 300], "BLOB": [b"", b"\x00\xff\x80"],
    "DATE": ["0001-01-01", "9999-12-31"], "TIME": ["00:00:00", "23:59:59.999999"],
    "TIMESTAMP": ["0001-01-01", "9999-12-31T23:59:59.999999"],
    "TIMESTAMP WITH TIME ZONE": ["2024-02-29T12:00:00+02:00"], "INTERVAL": [(1, -2, 3)],
    "UUID": ["12345678-1234-5678-1234-567812345678"], "JSON": ['{"a":[1,null]}', "3"],
    "INT[]": [[1, None, 3], []], "VECTOR(3)": [[1, 2, 3.5]], "HALFVEC(2)": [[0.5, -2]],
    "INT8VEC(5)": [[-128, 127, 0, 1, 2]], "BIT(11)": ["10110111011"],
}  # fmt: skip


def same(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_type_crosses_both_ways(name: str, strict: bool) -> None:
    sql_type = parse_type(name)
    function = ScalarFunction(to_wasm(IDENTITY), "f", [sql_type], sql_type, strict=strict)
    stored = [to_storage(item, sql_type, "x") for item in SAMPLES[name]]
    for items in (stored, [*stored, None, *stored, None], [None], stored[:1], [], stored * 100):
        column = from_list(sql_type, items)
        result = function.call([column], len(items))
        assert result.type == sql_type and len(result) == len(items)
        assert same(result.to_list(), items)


SCALAR_TYPES = {"BOOLEAN": "i32", "SMALLINT": "i32", "INT": "i32", "BIGINT": "i64", "REAL": "f32",
                "DOUBLE": "f64", "DATE": "i32", "TIME": "i64", "TIMESTAMP": "i64",
                "DECIMAL(10,2)": "i64"}  # fmt: skip


@pytest.mark.parametrize(("name", "wasm"), SCALAR_TYPES.items())
@pytest.mark.parametrize("position", [0, 1])
def test_scalar_exports_of_every_type(name: str, wasm: str, position: int) -> None:
    sql_type = parse_type(name)
    text = f"""(module (func (export "pick") (param {wasm} {wasm}) (result {wasm})
        (local.get {position})))"""
    function = ScalarFunction(to_wasm(text), "pick", [sql_type, sql_type], sql_type)
    items = [to_storage(item, sql_type, "x") for item in SAMPLES[name]]
    left, right = [*items, None, items[0]], [items[-1], *items, None]
    expected = [None if a is None or b is None else (a, b)[position]
                for a, b in zip(left, right, strict=True)]  # fmt: skip
    columns = [from_list(sql_type, left), from_list(sql_type, right)]
    assert function.call(columns, len(left)).to_list() == expected


@pytest.mark.parametrize("rows", [0, 1, 7, 16_384, 16_385, 100_000])
def test_scalar_batches(rows: int) -> None:
    text = '(module (func (export "f") (param i64 f64) (result f64) ' \
        "(f64.mul (f64.convert_i64_s (local.get 0)) (local.get 1))))"  # fmt: skip
    function = ScalarFunction(to_wasm(text), "f", [BIGINT, DOUBLE], DOUBLE)
    numbers = np.arange(rows, dtype=np.int64) - 5
    valid = numbers % 3 != 0
    columns = [Column(BIGINT, numbers, None, valid), Column(DOUBLE, numbers / 7)]
    result = function.call(columns, rows)
    expected = np.where(valid, numbers * (numbers / 7), 0)
    assert np.array_equal(result.values, expected)
    assert rows < 2 or (result.validity is not None and np.array_equal(result.validity, valid))


def test_no_arguments_and_read_only_strided_input() -> None:
    one = ScalarFunction(
        to_wasm('(module (func (export "f") (result i32) i32.const 7))'), "f", [], INT
    )
    assert one.call([], 3).to_list() == [7, 7, 7]
    values = np.arange(20, dtype=np.int32)[::2]
    values.flags.writeable = False
    for text in ('(module (func (export "f") (param i32) (result i32) local.get 0))', IDENTITY):
        same_number = ScalarFunction(to_wasm(text), "f", [INT], INT)
        assert same_number.call([Column(INT, values)], 10).to_list() == values.tolist()


def text_model(name: str) -> Callable[..., Any]:
    def lev(a: str, b: str) -> int:
        left, right = a.encode(), b.encode()
        line = list(range(len(right) + 1))
        for i, x in enumerate(left, 1):
            before, line = line, [i]
            for j, y in enumerate(right, 1):
                line.append(min(before[j] + 1, line[-1] + 1, before[j - 1] + (x != y)))
        return line[-1]

    models: dict[str, Callable[..., Any]] = {
        "lev": lev,
        "vowels": lambda t: sum(c in "aeiouAEIOU" for c in t),
        "shout": lambda t: "".join(c.upper() if "a" <= c <= "z" else c for c in t),
    }
    return models[name]


@pytest.mark.parametrize(("name", "count", "returns"),
                         [("lev", 2, INT), ("vowels", 1, INT), ("shout", 1, TEXT)])  # fmt: skip
def test_demo_text_functions(name: str, count: int, returns: SqlType) -> None:
    code = to_wasm((DEMO / "textkit.wat").read_text())
    function = ScalarFunction(code, name, [TEXT] * count, returns)
    source = random.Random(7)
    letters = "aeiouxyzAEIOU {}@`[\x00éß€😀"
    rows = 400
    arguments = [
        [None if source.random() < 0.1 else "".join(source.choices(letters, k=source.randrange(25)))
         for _ in range(rows)]
        for _ in range(count)
    ]  # fmt: skip
    model = text_model(name)
    expected = [None if None in row else model(*row) for row in zip(*arguments, strict=True)]
    for _ in range(3):  # the second call uses the guest again
        result = function.call([from_list(TEXT, items) for items in arguments], rows)
        assert result.to_list() == expected


def test_demo_scalar_functions() -> None:
    short = ScalarFunction(
        to_wasm((DEMO / "is_short.wat").read_text()), "is_short", [BIGINT], BOOLEAN
    )
    assert short.call([from_list(BIGINT, [-1, 0, 1, 80, 81, None])], 6).to_list() == [
        False, False, True, True, False, None]  # fmt: skip
    score = ScalarFunction(
        to_wasm((DEMO / "score.wat").read_text()), "score", [REAL, BIGINT], DOUBLE
    )
    result = score.call([from_list(REAL, [0.25]), from_list(BIGINT, [200])], 1).get(0)
    assert result == pytest.approx(0.75 * 200 / 240 / 1.05)


def test_a_hundred_thousand_texts_in_several_batches() -> None:
    code = to_wasm((DEMO / "textkit.wat").read_text())
    function = ScalarFunction(
        code, "shout", [TEXT], TEXT, limits=SandboxLimits(max_memory_bytes=4 << 20)
    )
    items = [f"row {i} é" for i in range(100_000)]
    result = function.call([from_list(TEXT, items)], len(items))
    assert result.to_list() == [f"ROW {i} é" for i in range(100_000)]


def test_functions_called_on_null_input_see_the_validity() -> None:
    function = ScalarFunction(to_wasm(IS_NULL), "f", [TEXT], INT, strict=False)
    items = [None if i % 3 == 0 else "x" for i in range(1000)]
    assert function.call([from_list(TEXT, items)], 1000).to_list() == [
        int(i is None) for i in items
    ]
    assert function.call([from_list(TEXT, ["a", "b"])], 2).to_list() == [0, 0]
    strict = ScalarFunction(to_wasm(IS_NULL), "f", [TEXT], INT)
    assert strict.call([from_list(TEXT, [None, "x"])], 2).to_list() == [None, 0]
    assert strict.call([from_list(TEXT, [None, None])], 2).to_list() == [None, None]
    with pytest.raises(UdfValidationError, match="bare scalar"):
        ScalarFunction(to_wasm((DEMO / "is_short.wat").read_text()), "is_short", [BIGINT], BOOLEAN,
                       strict=False)  # fmt: skip


def test_null_rows_hide_their_bytes() -> None:
    clear = """(i32.store8 (i32.load offset=48 (local.get $d)) (i32.const 0xFD))
      (memory.copy (i32.add (local.get $d) (i32.const 52)) (i32.add (local.get $d) (i32.const 20))
        (i32.const 4))
      (i32.store offset=40 (local.get $d) (i32.load offset=8 (local.get $d))) (i32.const 0)"""
    function = ScalarFunction(to_wasm(columnar(clear)), "f", [TEXT], TEXT)
    result = function.call([from_list(TEXT, ["ab", "secret", "c"])], 3)
    assert result.to_list() == ["ab", None, "c"]
    assert result.values.tobytes() == b"abc"


def test_json_output_must_parse() -> None:
    as_json = ScalarFunction(to_wasm(IDENTITY), "f", [TEXT], parse_type("JSON"))
    assert as_json.call([from_list(TEXT, [json.dumps({"a": 1})])], 1).get(0) == '{"a": 1}'
    for bad in ("{", "NaN", "", "[" * 100_000):
        with pytest.raises(UdfError, match="row 1 is no JSON"):
            as_json.call([from_list(TEXT, ["1", bad])], 2)


def test_state_does_not_leak_between_calls() -> None:
    text = """(module (global $n (mut i32) (i32.const 0))
      (func (export "f") (result i32)
        (global.set $n (i32.add (global.get $n) (i32.const 1))) (global.get $n)))"""
    function = ScalarFunction(to_wasm(text), "f", [], INT)
    assert function.call([], 3).to_list() == function.call([], 3).to_list() == [1, 2, 3]


def test_wrong_columns() -> None:
    function = ScalarFunction(to_wasm(IDENTITY), "f", [INT], INT)
    with pytest.raises(UdfError, match="takes 1 arguments, got 0"):
        function.call([], 1)
    with pytest.raises(UdfError, match="argument 1 is INT of 2 rows, got BIGINT of 2"):
        function.call([from_list(BIGINT, [1, 2])], 2)
    with pytest.raises(UdfError, match="got INT of 1 rows"):
        function.call([from_list(INT, [1])], 2)
    function.close()
    with pytest.raises(InterfaceError, match="closed"):
        function.call([empty(INT)], 0)


def test_many_threads_share_a_function_and_a_budget() -> None:
    code = to_wasm((DEMO / "textkit.wat").read_text())
    function, budget, failures = ScalarFunction(code, "shout", [TEXT], TEXT), Budget(), []

    def work(number: int) -> None:
        items = [f"t{number} {i}" for i in range(50 + number)]
        for _ in range(20):
            found = function.call([from_list(TEXT, items)], len(items), budget).to_list()
            if found != [item.upper() for item in items]:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


FIXTURES = DEMO.parents[2] / "tests" / "fixtures" / "wasm"


def test_module_built_from_c() -> None:
    code = (FIXTURES / "length.wasm").read_bytes()
    function = ScalarFunction(code, "length", [TEXT], INT)
    items = ["abc", None, "é", "", "x" * 100_000]
    assert function.call([from_list(TEXT, items)], 5).to_list() == [3, None, 2, 0, 100_000]


def test_module_built_from_assemblyscript() -> None:
    code = (FIXTURES / "short.wasm").read_bytes()
    function = ScalarFunction(code, "is_short", [BIGINT], BOOLEAN)
    assert function.call([from_list(BIGINT, [80, 81, None])], 3).to_list() == [True, False, None]


def test_large_guests_are_not_kept() -> None:
    function = ScalarFunction(to_wasm(IDENTITY), "f", [TEXT], TEXT)
    function.call([from_list(TEXT, ["small"])], 1)
    assert sum(map(len, function._idle.values())) == 1
    huge = from_list(TEXT, ["x" * (20 << 20)])
    assert function.call([huge], 1).offsets is not None
    assert sum(map(len, function._idle.values())) == 0
    assert function.call([from_list(TEXT, ["again"])], 1).to_list() == ["again"]
