"""Table functions against a model in Python, and what a guest may not return from them."""

from __future__ import annotations

import numpy as np
import pytest

from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfError, UdfLimitError, UdfTrapError, UdfValidationError
from tarsdb.options import SandboxLimits
from tarsdb.types import INT, TEXT
from tarsdb.udf_sandbox import TableFunction, to_wasm
from tests.sandbox.kinds_text import LETTERS
from tests.sandbox.wasm_text import columnar


def letters(strict: bool = True, limits: SandboxLimits | None = None) -> TableFunction:
    return TableFunction(
        to_wasm(LETTERS), "letters", [TEXT], [TEXT, INT], strict=strict, limits=limits
    )


def rows(function: TableFunction, texts: list[str | None]) -> list[tuple[int, str, int]]:
    columns, offsets = function.call([from_list(TEXT, texts)], len(texts))
    owner = np.repeat(np.arange(len(texts)), np.diff(offsets)).tolist()
    return list(zip(owner, columns[0].to_list(), columns[1].to_list(), strict=True))


def model(texts: list[str | None]) -> list[tuple[int, str, int]]:
    return [(i, c, at) for i, t in enumerate(texts) for at, c in enumerate(t or "")]


@pytest.mark.parametrize(
    "texts",
    [[], [""], ["abc"], ["ab", "", None, "c"], [None, None], ["x" * 70_000, "y"], ["ab"] * 70_000],
)
def test_rows_of_rows(texts: list[str | None]) -> None:
    function = letters()
    for _ in range(2):
        assert rows(function, texts) == model(texts)
    assert rows(letters(strict=False), texts) == model(texts)


def store(offset: int, value: str) -> str:
    return f"(i32.store offset={offset} (local.get $d) {value})"


COUNTS = "(i32.load offset=40 (local.get $d))"
# descriptors: t at 0, counts at 32, an INT column at 64; one row each, at the argument's bytes
ONE = f"""(i32.store {COUNTS} (i32.const 1)) (i32.const 0)"""
FINE = f"{store(72, '(i32.const 64)')} {ONE}"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (FINE.replace("(i32.const 1))", "(i32.const -1))"), UdfError, "row 0 gives -1 rows"),
        (FINE.replace("(i32.const 1))", "(i32.const 2147483647))"), UdfError, "outside its memory"),
        (f"{store(72, '(i32.const -4)')} {ONE}", UdfError, "outside its memory"),
        (f"{store(80, '(i32.const -1)')} {FINE}", UdfError, "output validity at"),
        (f"{store(40, '(i32.const -64)')} (i32.const 0)", UdfError, "outside its memory"),
        (f"(i32.store8 (i32.load offset=48 (local.get $d)) (i32.const 0)) {FINE}", UdfError,
         "row 0 gives None rows"),
        (FINE.replace("(i32.const 0)", "(i32.const 3)"), UdfError, "status 3"),
        ("(unreachable)", UdfTrapError, "UNREACHABLE"),
        ("(loop $l (result i32) (br $l))", UdfLimitError, "out of fuel"),
    ],
)  # fmt: skip
def test_a_hostile_answer(body: str, error: type[Exception], message: str) -> None:
    limits = SandboxLimits(fuel=100_000, fuel_per_row=1000)
    column = from_list(TEXT, ["a"])
    for _ in range(2):
        bad = TableFunction(to_wasm(columnar(body)), "f", [TEXT], [INT], limits=limits)
        with pytest.raises(error, match=message):
            bad.call([column], 1)
    good = TableFunction(to_wasm(columnar(FINE)), "f", [TEXT], [INT], limits=limits)
    columns, offsets = good.call([column], 1)
    assert len(columns[0]) == 1 and offsets.tolist() == [0, 1]


def test_what_the_columns_hold_is_checked() -> None:
    function = letters()
    with pytest.raises(UdfError, match=r"row \d+ (is not UTF-8|starts inside)"):
        rows(function, ["ok", "é"])  # it cuts the character in two
    assert rows(function, ["ok"]) == model(["ok"])


def test_it_needs_the_columnar_interface() -> None:
    bare = to_wasm('(module (func (export "f") (param i32) (result i32) local.get 0))')
    with pytest.raises(UdfValidationError, match="needs the columnar ABI"):
        TableFunction(bare, "f", [INT], [INT])
    with pytest.raises(UdfValidationError, match="exports no function 'g'"):
        TableFunction(to_wasm(LETTERS), "g", [TEXT], [TEXT, INT])
    with pytest.raises(UdfError, match="argument 1 is TEXT of 1 rows"):
        letters().call([Column(INT, np.zeros(1, np.int32))], 1)


def test_in_a_worker() -> None:
    function = letters(limits=SandboxLimits(backend="worker"))
    texts = ["ab", "", None, "c" * 70_000]
    for _ in range(2):
        assert rows(function, texts) == model(texts)
    function.close()


# counts its calls at address 32, which tars_reset leaves alone, and traps after counting an X
COUNTING = f"""
  (i32.store (i32.const 32) (i32.add (i32.load (i32.const 32)) (i32.const 1)))
  (if (i32.eq (i32.load8_u (i32.load offset=8 (local.get $d))) (i32.const 88)) (then unreachable))
  {store(72, "(i32.const 32)")} {ONE}"""


@pytest.mark.parametrize("backend", ["wasmtime", "worker"])
def test_a_guest_that_trapped_is_never_asked_again(backend: str) -> None:
    limits = SandboxLimits(backend=backend)
    function = TableFunction(to_wasm(columnar(COUNTING)), "f", [TEXT], [INT], limits=limits)

    def count(text: str) -> int:
        (column,), _ = function.call([from_list(TEXT, [text])], 1)
        (found,) = column.to_list()
        return int(found)

    assert [count("a"), count("a")] == [1, 2]  # one guest: it lives on while nothing happens
    with pytest.raises(UdfTrapError):
        count("X")
    assert [count("a"), count("a")] == [1, 2]
    function.close()
