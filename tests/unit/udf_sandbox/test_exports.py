"""Calls straight into wasmtime's C function: traps, and a store that is gone."""

from __future__ import annotations

import pytest
import wasmtime

from tarsdb.options import SandboxLimits
from tarsdb.udf_sandbox import exports
from tarsdb.udf_sandbox.exports import Export, Exports
from tarsdb.udf_sandbox.in_process.wasmtime_backend import Store, assemble, runtime

TEXT = b"""(module (memory (export "memory") 1) (global (export "version") i32 (i32.const 1))
  (func (export "half") (param i32) (result i32)
  (if (i32.eqz (local.get 0)) (then unreachable)) (i32.shr_u (local.get 0) (i32.const 1))))"""


def instance() -> tuple[Store, wasmtime.Instance]:
    store = Store(SandboxLimits(), False)
    store.raw.set_fuel(10_000)
    store.raw.set_epoch_deadline(1_000_000)
    module = wasmtime.Module(runtime().engines[True], assemble(TEXT))
    return store, wasmtime.Instance(store.raw, module, [])


def made() -> tuple[Store, Export]:
    store, found = instance()
    return store, Export(store.raw, Exports(store.raw, found)["half"], 1)


@pytest.mark.parametrize("is_direct", [True, False])
def test_exports_are_found_by_name(monkeypatch: pytest.MonkeyPatch, is_direct: bool) -> None:
    if not is_direct:
        monkeypatch.setattr(exports, "_export_get", None)
    store, made = instance()
    found, known = Exports(store.raw, made), made.exports(store.raw)
    assert exports._call_unchecked is not None
    assert found["half"](store.raw, 10) == known["half"](store.raw, 10) == 5
    assert found["memory"].data_len(store.raw) == 65536
    found["memory"].write(store.raw, b"abc", 7)
    assert known["memory"].read(store.raw, 7, 10) == b"abc"
    for name in ("", "hal", "half\0", "größe"):
        with pytest.raises(KeyError):
            found[name]
    if is_direct:  # neither a function nor a memory
        with pytest.raises(KeyError, match="version"):
            found["version"]
    store.close()


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
