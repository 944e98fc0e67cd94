"""Say why the other tests of this folder do not run here; fail where they must."""

from __future__ import annotations

import os

import pytest

from tests.hyperlight.conftest import REASON


def test_hyperlight_runs_here() -> None:
    """An emulated machine without Hyperlight is a failure."""
    if REASON and not os.environ.get("TARSDB_EMULATED"):
        pytest.skip(f"make test-hyperlight runs these: {REASON}")
    assert REASON == ""
