"""Skip, with the reason, where Hyperlight does not run; fail where it must."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tarsdb.options import SandboxLimits
from tarsdb.types import parse_type
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tarsdb.udf_sandbox.hyperlight import probe

SLOW = 60_000  # milliseconds; an emulated machine starts a sandbox in seconds
MEMORY = 2 << 20

Make = Callable[..., ScalarFunction]


@pytest.fixture(scope="session", autouse=True)
def _hyperlight() -> None:
    reason = probe.unavailable()
    if reason and os.environ.get("TARSDB_EMULATED"):
        pytest.fail(f"Hyperlight must run in the emulated machine: {reason}")
    if reason:
        pytest.skip(f"make test-hyperlight runs these: {reason}")


@pytest.fixture
def make() -> Make:
    """Return a function of a module in a backend, by the names of its types."""

    def made(
        text: str | bytes, arguments: str, returns: str, backend: str = "hyperlight",
        timeout_ms: int = SLOW, memory: int = MEMORY,
    ) -> ScalarFunction:  # fmt: skip
        limits = SandboxLimits(
            fuel=10**12, timeout_ms=timeout_ms, max_memory_bytes=memory, backend=backend
        )
        names = arguments.split()
        types = [parse_type(name) for name in names if name != "NULL"]  # NULL: not STRICT
        return ScalarFunction(
            to_wasm(text), "f", types, parse_type(returns), strict="NULL" not in names,
            limits=limits,
        )  # fmt: skip

    return made
