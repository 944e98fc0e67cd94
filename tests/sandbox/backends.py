"""A fixture that runs a test once on each backend that needs no virtual machine."""

from __future__ import annotations

import pytest

from tarsdb.udf_sandbox import backends
from tarsdb.udf_sandbox.functions import function


@pytest.fixture(params=["wasmtime", "worker"])
def each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let every function that names no backend run on one of them."""
    name = str(request.param)
    monkeypatch.setattr(function, "backend", lambda _: backends.backend(name))
    return name
