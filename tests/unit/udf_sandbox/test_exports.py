"""Calls straight into wasmtime's C function: traps, and a store that is gone."""

from __future__ import annotations

import pytest
import wasmtime

from tarsdb.options import SandboxLimits
from tarsdb.udf_sandbox.exports import Export
from tarsdb.udf_sandbox.in_process.wasmtime_backend import Store, assemble, runtime

TEXT = b"""(module (func (export "half") (param i32) (result i32)
  (if (i32.eqz (local.get 0)) (then unreachable)) (i32.shr_u (local.get 0) (i32.const 1))))"""


def made() -> tuple[Store, Export]:
    store = Store(SandboxLimits(), False)
    store.raw.set_fuel(10_000)
    store.raw.set_epoch_deadline(1_000_000)
    module = wasmtime.Module(runtime().engines[True], assemble(TEXT))
    instance = wasmtime.Instance(store.raw, module, [])
    return store, Export(store.raw, instance.exports(store.raw)["half"], 1)


def test_each_trap_is_raised_once() -> None:
    store, half = made()
    for _ in range(3):
        assert half(8) == 4
        with pytest.raises(wasmtime.Trap, match="unreachable"):
            half(0)
    assert half(6) == 3
    store.close()


def test_a_closed_store_is_an_error_and_no_crash() -> None:
    store, half = made()
    assert half(2) == 1
    store.close()
    with pytest.raises(ValueError, match="closed"):
        half(2)
