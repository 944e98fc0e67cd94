"""Functions in the backend under test; where that does not run, no tests but one that says why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tarsdb.options import SandboxLimits
from tarsdb.types import parse_type
from tarsdb.udf_sandbox import ScalarFunction, to_wasm
from tarsdb.udf_sandbox.hyperlight import probe

SLOW = 60_000  # milliseconds; an emulated machine starts a sandbox in seconds
MEMORY = 2 << 20

Make = Callable[..., ScalarFunction]


REASON = probe.unavailable()
collect_ignore_glob = ["test_[!a]*.py"] if REASON else []
"""Where Hyperlight does not run, ``test_available`` says so for all."""


@pytest.fixture(scope="session")
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
