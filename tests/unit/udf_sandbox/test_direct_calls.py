"""Calls begin on the main thread unless they are likely to be long, and anew when they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tarsdb.columns import Column
from tarsdb.errors import UdfLimitError, UdfTrapError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tarsdb.udf_sandbox.in_process import backend, stacks

# n turns of a loop; 1 / n where n is negative, and a trap where it is 0
TURNS = """(module {state} (func (export "f") (param i64) (result i64) (local i64)
  (if (i64.le_s (local.get 0) (i64.const 0))
    (then (return (i64.div_s (i64.const 1) (local.get 0)))))
  (loop (local.set 1 (i64.add (local.get 1) (i64.const 1)))
    (br_if 0 (i64.lt_s (local.get 1) (local.get 0))))
  (local.get 1)))"""
LONG = backend.DIRECT_FUEL  # turns, each of several instructions
PLENTY = SandboxLimits(fuel=100 * LONG, fuel_per_row=0, timeout_ms=60_000)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the calls that another thread runs."""
    found: list[int] = []
    run = stacks.run_with_stack

    def counted(work: Callable[[], Any], cancel: Callable[[], None]) -> Any:
        found.append(1)
        return run(work, cancel)

    monkeypatch.setattr(stacks, "run_with_stack", counted)
    yield found


def function(state: str = "", limits: SandboxLimits = PLENTY) -> ScalarFunction:
    return ScalarFunction(to_wasm(TURNS.format(state=state)), "f", [BIGINT], BIGINT, limits=limits)


def call(made: ScalarFunction, *numbers: int) -> list[Any]:
    column = Column(BIGINT, np.array(numbers, np.int64))
    return made.call([column], len(numbers)).to_list()


def test_calls_of_a_cheap_function_stay(moved: list[int]) -> None:
    made = function()
    assert call(made, 5, 6) == [5, 6]
    assert call(made, 7) == [7]
    assert moved == []
    assert made.figures.reused == 1


def test_calls_of_a_costly_function_begin_elsewhere(moved: list[int]) -> None:
    made = function()
    transitions = []
    for _ in range(2):
        assert call(made, LONG) == [LONG]
        transitions.append(made.figures.transitions)
    assert len(moved) == 2
    assert transitions == [2, 3]  # the first call was tried here


def test_a_call_that_was_not_short_begins_anew(moved: list[int]) -> None:
    made, alone = function(), function()
    for each in (made, alone):
        call(each, 5)
    before = made.figures.fuel
    del moved[:]
    assert call(made, 7, LONG, 8) == [7, LONG, 8]
    assert len(moved) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "DIRECT_FUEL", 0)
        assert call(alone, 7, LONG, 8) == [7, LONG, 8]
    assert made.figures.fuel - before == alone.figures.fuel - before > LONG  # counted once
    assert made.figures.stopped == {}


def test_fuel_that_was_not_granted_is_not_used(moved: list[int]) -> None:
    made = function(limits=SandboxLimits(fuel=2 * LONG, fuel_per_row=0, timeout_ms=60_000))
    call(made, 5)
    del moved[:]
    with pytest.raises(UdfLimitError, match="out of fuel") as caught:
        call(made, LONG)
    assert caught.value.kind == "fuel"
    assert len(moved) == 1
    assert made.figures.stopped == {"fuel": 1}


def test_a_trap_is_not_repeated(moved: list[int]) -> None:
    made = function()
    call(made, 5)
    del moved[:]
    with pytest.raises(UdfTrapError, match="INTEGER_DIVISION_BY_ZERO"):
        call(made, 5, 0)
    assert moved == []


def test_functions_with_state_are_never_begun_twice(moved: list[int]) -> None:
    made = function(state="(global (mut i64) (i64.const 0))")
    for _ in range(3):
        assert call(made, 5) == [5]
    assert len(moved) == 3
