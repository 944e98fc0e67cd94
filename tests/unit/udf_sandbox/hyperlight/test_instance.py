"""Aggregate and table functions for Hyperlight without Hyperlight: the adapter runs in wasmtime."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import wasmtime
import wasmtime.component as wasmtime_component
from hypothesis import HealthCheck, given, settings

from tarsdb.columns import Column, from_list
from tarsdb.errors import UdfError, UdfLimitError, UdfTrapError
from tarsdb.options import SandboxLimits
from tarsdb.types import DOUBLE, INT, TEXT
from tarsdb.udf_sandbox import AggregateFunction, TableFunction, to_wasm
from tarsdb.udf_sandbox.functions import aggregates
from tarsdb.udf_sandbox.functions.function import SandboxedFunction
from tarsdb.udf_sandbox.guests import guest_of
from tarsdb.udf_sandbox.hyperlight import component, instance, messages, processes
from tarsdb.udf_sandbox.limits import Budget, Call
from tests.sandbox.kinds_text import LETTERS, MID, SUM, WEIGHT, aggregate
from tests.unit.udf_sandbox.functions.test_aggregates import X, means, random_groups
from tests.unit.udf_sandbox.functions.test_table_functions import model, rows
from tests.unit.udf_sandbox.hyperlight.test_modules import Adapted

MEMORY = 1 << 20
LIMITS = SandboxLimits(max_memory_bytes=MEMORY)


class Machine(Adapted):
    """The stand-in, whose traps are reported as a sandbox reports them."""

    killed = False

    def run(self, number: int, text: str, call: Call) -> str:
        try:
            return super().run(number, text, call)
        except wasmtime.Trap as error:
            raise processes.GuestFailure(str(error)) from error

    def kill(self) -> None:
        self.killed = True


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    """Let functions that :func:`moved` has seen run in stand-ins, a new one for every call."""
    made: list[Machine] = []

    @contextlib.contextmanager
    def lease(spec_key: str, call: Call) -> Iterator[Machine]:
        text, _, code = spec_key.partition("\0")
        made.append(Machine(text, bytes.fromhex(code)))
        yield made[-1]

    monkeypatch.setattr(processes.POOL, "lease", lease)
    return made


def moved(function: Any) -> Any:
    """Return the function with guests as Hyperlight has them."""
    assert isinstance(function, SandboxedFunction)
    program = function._program
    exports = instance.exports_of(program)
    code = component.capped(program.code, program.limits.max_memory_bytes >> 16)
    key = component.exports_component(exports) + "\0" + code.hex()
    spec = processes.SandboxSpec(key, b"", "", 1, 1, "")

    def guest(call: Call, watched: bool) -> Any:
        return guest_of(program, instance.SandboxInstance(program, spec, exports, call))

    made: Any = types.SimpleNamespace(guest=guest, close=lambda: None)
    function._compiled = made
    return function


def mid(text: str = MID, **options: Any) -> Any:
    return AggregateFunction(to_wasm(text), "mid", [DOUBLE], DOUBLE, limits=LIMITS, **options)


@pytest.mark.parametrize(
    ("groups", "most"), [(0, 0), (1, 0), (1, 5), (9, 3), (1000, 40), (20_000, 3), (3, 90_000)]
)
@pytest.mark.usefixtures("machines")
def test_aggregates_are_those_of_wasmtime(groups: int, most: int) -> None:
    values, offsets = random_groups(groups, most)
    function = moved(mid())
    for _ in range(2):
        found = function.call([Column(DOUBLE, values)], offsets)
        assert found.to_list() == means(values, offsets)


@pytest.mark.usefixtures("machines")
def test_text_nulls_and_several_arguments() -> None:
    columns = [from_list(TEXT, ["", "a", "héllo", None, "x" * 50_000, "zz"]),
               from_list(DOUBLE, [1.0, 2.0, 0.5, 7.0, 1.0, None])]  # fmt: skip
    made = [TEXT, DOUBLE], DOUBLE
    weight = AggregateFunction(to_wasm(WEIGHT), "weight", *made, limits=LIMITS)
    found = moved(weight).call(columns, np.array([0, 3, 3, 5, 6]))
    assert found.to_list() == [5.0, None, 50_000.0, None]


def test_shares_are_merged(machines: list[Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregates, "PARALLEL_ROWS", 1000)
    values, offsets = random_groups(7, 2000)
    found = moved(mid()).call([Column(DOUBLE, values)], offsets, threads=3)
    assert found.to_list() == means(values, offsets)
    assert len(machines) == 5  # the size of a state, three shares, the one that merges


@pytest.mark.parametrize("texts", [[], [""], ["abc"], ["ab", "", None, "c"], ["x" * 20_000, "y"]])
@pytest.mark.usefixtures("machines")
def test_table_functions_are_those_of_wasmtime(texts: list[str | None]) -> None:
    for strict in (True, False):
        function = moved(
            TableFunction(to_wasm(LETTERS), "letters", [TEXT], [TEXT, INT], strict=strict,
                          limits=LIMITS)
        )  # fmt: skip
        assert rows(function, texts) == model(texts)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (aggregate("mid", "(unreachable)", SUM), UdfTrapError, "UNREACHABLE"),
        (aggregate("mid", X, "(unreachable)"), UdfTrapError, "UNREACHABLE"),
        (aggregate("mid", "(f64.load (i32.const -8))", SUM), UdfTrapError, "OUT_OF_BOUNDS"),
        (aggregate("mid", X, SUM, size=0), UdfError, "mid_state_size gave 0"),
        (aggregate("mid", X, SUM).replace("(i32.const 0)))", "(i32.const 9)))"), UdfError,
         "mid_final returned status 9"),
        (aggregate("mid", X, SUM).replace(
            "(local.set $p (global.get $top))", "(return (i32.const 0))"), UdfLimitError,
         r"tars_alloc\(\d+\) gave 0"),
        (aggregate("mid", X, SUM).replace(
            "(local.set $p (global.get $top))", "(return (i32.const -64))"), UdfLimitError,
         r"tars_alloc\(\d+\) gave \d+ in a memory of 65536 bytes"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("machines")
def test_a_hostile_aggregate(text: str, error: type[Exception], message: str) -> None:
    column, offsets = [from_list(DOUBLE, [1.0, 2.0])], np.array([0, 2])
    function = moved(mid(text))
    for _ in range(2):
        with pytest.raises(error, match=message):
            function.call(column, offsets)
    assert moved(mid()).call(column, offsets).to_list() == [1.5]  # the same, well-meaning


def a_memory(machines: list[Machine]) -> instance.SandboxMemory:
    """Return the memory of a guest that was asked for all the bytes it can have."""
    program = mid()._program
    moved(function := mid())
    call = Call("mid", LIMITS, Budget(), 0, 0.0)
    guest = function._compiled.guest(call, True)
    assert guest.program.export == program.export
    guest.allocate(call, MEMORY - 4096)
    found: instance.SandboxMemory = guest.instance.memory()
    assert len(machines) == 1 and len(found) == MEMORY
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(0, 900_000), st.integers(0, 100_000), st.integers(0, 255)),
        max_size=12,
    )
)
def test_what_is_written_is_read(
    machines: list[Machine], writes: list[tuple[int, int, int]]
) -> None:
    machines.clear()
    memory, wanted = a_memory(machines), np.zeros(MEMORY, dtype=np.uint8)
    wanted[:65536] = memory[0:65536]
    for start, size, value in writes:
        place = slice(start, start + size)
        memory[place] = value if size % 2 else np.full(size, value, dtype=np.uint8)
        wanted[place] = value
    assert memory[0:MEMORY].tobytes() == wanted.tobytes()


def test_writes_go_with_the_next_call_in_few_requests(machines: list[Machine]) -> None:
    memory = a_memory(machines)
    before = machines[0].runs
    for start in range(0, 1000, 10):
        memory[start : start + 5] = 1
    assert machines[0].runs == before
    memory.send(messages.NOTHING)
    assert machines[0].runs == before + 1
    memory[0:900_000] = 2
    memory.send(messages.NOTHING)
    assert machines[0].runs == before + 5  # a quarter of a megabyte each


def test_an_outcome_that_is_no_error_of_ours_ends_the_process(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    memory = a_memory(machines)
    monkeypatch.setattr(machines[0], "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory[0:1]
    assert machines[0].killed
    monkeypatch.setattr(machines[0], "run", lambda *_: "é" * 8)
    with pytest.raises(UdfTrapError, match="no message"):
        memory[0:1]
    monkeypatch.setattr(machines[0], "run", lambda *_: "")
    with pytest.raises(UdfTrapError, match="sent 0 of 1 bytes"):
        memory[0:1]


def test_the_component_is_valid() -> None:
    program = mid()._program
    text = component.exports_component(instance.exports_of(program))
    spliced = component.splice(to_wasm(text), program.code)
    wasmtime_component.Component(wasmtime.Engine(), spliced)
    assert program.code in spliced
