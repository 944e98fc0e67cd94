"""Backends by name: a function gets the one it names or a typed error, never another."""

from __future__ import annotations

import pytest

from tarsdb.columns import from_list
from tarsdb.errors import BindError, UdfBackendError
from tarsdb.options import SandboxLimits
from tarsdb.types import BIGINT
from tarsdb.udf_sandbox import ScalarFunction, backends, to_wasm

CODE = to_wasm('(module (func (export "f") (param i64) (result i64) (local.get 0)))')


class Broken(backends.Backend):
    """A backend this machine lacks."""

    name = "worker"

    def unavailable(self) -> str:
        """Say why."""
        return "no such thing"


def test_names() -> None:
    assert backends.backend("WasmTime").name == "wasmtime"
    with pytest.raises(BindError, match="'vmware' is not known") as failed:
        backends.backend("vmware")
    assert "wasmtime, worker, hyperlight" in str(failed.value.hint)


def test_a_backend_that_is_absent_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends._LOADERS, "worker", Broken)
    limits = SandboxLimits(backend="worker")
    with pytest.raises(UdfBackendError, match="'worker' is not available here: no such thing"):
        ScalarFunction(CODE, "f", [BIGINT], BIGINT, limits=limits)
    # the same function without the name runs: nothing else was wrong with it
    assert ScalarFunction(CODE, "f", [BIGINT], BIGINT).call([from_list(BIGINT, [3])], 1).get(0) == 3
