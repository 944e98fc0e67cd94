"""No guest sees data of another call: a canary goes through one function, the next looks for it."""

from __future__ import annotations

import pytest

from tarsdb.columns import from_list
from tarsdb.errors import UdfTrapError
from tarsdb.types import BLOB, TEXT
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tests.sandbox.wasm_text import DUMP, IDENTITY

pytestmark = pytest.mark.usefixtures("each_backend")

CANARY = b"a canary of 28 bytes, flying"
GROWN = DUMP.replace(
    "(i32.store offset=40 (local.get $d) (i32.const 0))",
    "(drop (memory.grow (i32.const 64))) (i32.store offset=40 (local.get $d) (i32.const 0))",
)
FORGETFUL = DUMP.replace('(func (export "tars_reset")', "(func")


def ending(code: str, body: str) -> str:
    """Return a module whose function does this before it returns."""
    return code[: code.rindex("(i32.const 0)))")] + body + "(i32.const 0)))"


TRAPPING = ending(IDENTITY, "unreachable")


def run(code: str, data: bytes) -> bytes:
    """Return row 0 of a function made for this call."""
    function = ScalarFunction(to_wasm(code), "f", [BLOB], BLOB)
    try:
        return function.call([from_list(BLOB, [data])], 1).values.tobytes()
    finally:
        function.close()


@pytest.mark.parametrize("spy", [DUMP, GROWN], ids=["memory", "grown memory"])
@pytest.mark.parametrize("victim", [IDENTITY, TRAPPING], ids=["answers", "traps"])
def test_another_functions_data_is_not_there(spy: str, victim: str) -> None:
    for _ in range(5):
        try:
            run(victim, CANARY * 1000)
        except UdfTrapError:
            assert victim is TRAPPING
        found = run(spy, b"my own")
        assert b"my own" in found and CANARY not in found


def test_a_batch_before_is_not_there_without_reset() -> None:
    function = ScalarFunction(to_wasm(FORGETFUL), "f", [BLOB], BLOB)
    function.call([from_list(BLOB, [CANARY * 100])], 1)
    assert CANARY not in function.call([from_list(BLOB, [b"x"])], 1).values.tobytes()


def test_a_failed_batch_is_not_there() -> None:
    """A module with reset keeps its instance, but not one that trapped."""
    code = ending(
        DUMP,
        """(if (i32.eq (i32.load8_u (i32.load offset=8 (local.get $d))) (i32.const 97))
          (then unreachable))""",
    )
    function = ScalarFunction(to_wasm(code), "f", [BLOB], BLOB)
    with pytest.raises(UdfTrapError):
        function.call([from_list(BLOB, [CANARY * 100])], 1)
    assert CANARY not in function.call([from_list(BLOB, [b"x"])], 1).values.tobytes()


def test_canary_control() -> None:
    """With reset a function may remember its own earlier batches: the search finds that."""
    function = ScalarFunction(to_wasm(DUMP), "f", [BLOB], BLOB)
    function.call([from_list(BLOB, [CANARY * 100])], 1)
    assert CANARY in function.call([from_list(BLOB, [b"x"])], 1).values.tobytes()


def test_text_buffers_behind_null_rows_are_dropped() -> None:
    """What a guest leaves for rows it makes NULL does not come back as data."""
    code = ending(IDENTITY, "(i32.store offset=48 (local.get $d) (i32.const 60000))")
    function = ScalarFunction(to_wasm(code), "f", [TEXT], TEXT, strict=False)
    result = function.call([from_list(TEXT, ["secret", "x"])], 2)
    assert result.to_list() == [None, None] and len(result.values) == 0
