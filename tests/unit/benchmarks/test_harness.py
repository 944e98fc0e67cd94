"""What is set before libraries are imported."""

from __future__ import annotations

import os

import pytest

from benchmarks import harness

NAMES = {name for caps in harness.CAPS.values() for name in caps}


@pytest.mark.parametrize("level", ["", "portable", "avx2", "avx512", "amx"])
def test_rivals_are_held_to_the_level_that_is_forced(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"TARSDB_ISA": level} if level else {})
    harness.cap_rivals()
    found = {name: value for name, value in os.environ.items() if name in NAMES}
    assert found == harness.CAPS.get(level, {})
    assert bool(found) == (level in ("avx2", "avx512"))
