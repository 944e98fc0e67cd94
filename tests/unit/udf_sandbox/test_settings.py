"""wasmtime's settings: every proposal it knows is chosen, and a store keeps to one thread."""

from __future__ import annotations

import re
import threading
import time

import pytest
import wasmtime
from wasmtime import _bindings as c_api

from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT
from tarsdb.udf_sandbox import Budget, ScalarFunction, settings, to_wasm
from tarsdb.udf_sandbox.limits import Call

WANTED = {"wasm_simd", "wasm_bulk_memory", "wasm_multi_value", "wasm_reference_types"}
"""Proposals that guests may use."""
NO_PROPOSAL = {"wasm_relaxed_simd_deterministic"}

PROPOSALS = {
    "wasm_threads": "(module (memory 1 1 shared))",
    "wasm_memory64": "(module (memory i64 1))",
    "wasm_multi_memory": "(module (memory 1) (memory 1))",
    "wasm_gc": "(module (type (struct (field i32))))",
    "wasm_exceptions": "(module (tag (param i32)))",
    "wasm_tail_call": "(module (func $f (return_call $f)))",
    "wasm_relaxed_simd": "(module (func (param v128) (result v128) (f32x4.relaxed_max "
    "(local.get 0) (local.get 0))))",
    "wasm_function_references": "(module (type $t (func)) (func (param (ref $t))))",
    "wasm_wide_arithmetic": "(module (func (param i64) (result i64 i64) (i64.mul_wide_u "
    "(local.get 0) (local.get 0))))",
    "wasm_custom_page_sizes": "(module (memory 1 (pagesize 1)))",
    "wasm_stack_switching": "(module (type $f (func)) (type (cont $f)))",
}


def test_every_proposal_of_this_wasmtime_is_chosen() -> None:
    """A new release that brings another one has to be thought about."""
    found = (re.fullmatch("wasmtime_config_(wasm_.*)_set", name) for name in dir(c_api))
    known = {match[1] for match in found if match}
    known = {name for name in known if not name.startswith("wasm_component_model_")}
    off = {name for name in settings._OFF if name.startswith("wasm_")}
    assert known - NO_PROPOSAL - WANTED == off | set(settings._OFF_BY_BINDING)
    assert off == set(PROPOSALS) | {"wasm_component_model"}


@pytest.mark.parametrize("name", settings.SETTINGS)
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_proposals_are_off(name: str, proposal: str) -> None:
    code = bytes(wasmtime.wat2wasm(PROPOSALS[proposal]))
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module.validate(settings.engine(name), code)


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_the_proposals_above_are_known_to_wasmtime(proposal: str) -> None:
    """The control: switched on, each module is valid."""
    config = wasmtime.Config()
    for name in PROPOSALS:
        setattr(config, name, True)
    config.shared_memory = True
    wasmtime.Module.validate(wasmtime.Engine(config), bytes(wasmtime.wat2wasm(PROPOSALS[proposal])))


def test_a_store_is_used_by_one_thread() -> None:
    code = to_wasm('(module (func (export "f") (param i64) (result i64) (local.get 0)))')
    function = ScalarFunction(code, "f", [BIGINT], BIGINT)
    call = Call("f", SandboxLimits(), Budget(), 10**6, time.monotonic() + 10)
    guest = function._compiled.guest(call, True)
    instance = guest.instance  # type: ignore[attr-defined]
    assert instance.invoke("run", call) is not None
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            instance.invoke("run", call)
        except AssertionError as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "another thread" in str(failures[0])
    guest.close()
