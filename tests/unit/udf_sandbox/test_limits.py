"""Options of sandboxed functions and the per-statement budget."""

from __future__ import annotations

import pytest

from tarsdb.errors import BindError, InterruptError
from tarsdb.options import SandboxLimits
from tarsdb.udf_sandbox.limits import Budget, limits_from_options, parse_size


def test_defaults() -> None:
    assert limits_from_options({}) == SandboxLimits()


def test_all_options() -> None:
    limits = limits_from_options(
        {"FUEL": 5, "fuel_per_row": "7", "max_memory": "16MB", "timeout_ms": 50.0,
         "backend": "wasmtime"}
    )  # fmt: skip
    assert limits == SandboxLimits(5, 7, 16 << 20, 50)


@pytest.mark.parametrize("value", [True, "true", 1])
def test_options_of_the_worker(value: object) -> None:
    limits = limits_from_options({"backend": "Worker", "require_seccomp": value})
    assert limits == SandboxLimits(backend="worker", require_seccomp=True)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MB", 16 << 20), ("1 gb", 1 << 30), ("64KiB", 65536), ("70000", 70000), ("9 B", 9), (8, 8)],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fule": 1}, "'fule' is not known"),
        ({"fuel": -1}, "fuel: -1 is outside"),
        ({"fuel": 2**80}, "outside"),
        ({"fuel": True}, "not a whole number"),
        ({"fuel": 1.5}, "not a whole number"),
        ({"fuel": float("inf")}, "not a whole number"),
        ({"fuel": None}, "not a whole number"),
        ({"timeout_ms": 0}, "outside 1"),
        ({"timeout_ms": "soon"}, "not a whole number"),
        ({"max_memory": "16 parsecs"}, "is not a size"),
        ({"max_memory": "1KB"}, "outside 65536"),
        ({"require_seccomp": True}, "is of backend = 'worker', not 'wasmtime'"),
        ({"backend": "worker", "require_seccomp": "maybe"}, "neither true nor false"),
        ({"backend": "vmware"}, "backends: wasmtime"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(BindError, match=words):
        limits_from_options(options)


def test_budget_counts_over_calls_of_one_function() -> None:
    budget, limits = Budget(), SandboxLimits(fuel=100, fuel_per_row=10, timeout_ms=1000)
    assert budget.begin(1, 5, limits) == (150, 1.0)
    budget.end(1, 130, 0.25)
    assert budget.begin(1, 2, limits) == (40, 0.75)
    assert budget.begin(2, 2, limits) == (120, 1.0)  # another function has its own
    budget.end(1, 999, 0.0)
    assert budget.begin(1, 0, limits)[0] == 0


def test_budget_interrupt() -> None:
    budget = Budget()
    budget.check("f")
    budget.interrupt()
    with pytest.raises(InterruptError, match="function f"):
        budget.check("f")
