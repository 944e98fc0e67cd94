"""Tests on a forced instruction set level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tarsdb.kernels import dispatch


def forced(name: str) -> Iterator[str]:
    """Use a level, its kernels compiled, until resumed; skip where the processor lacks it."""
    order = dispatch.LEVELS
    if order.index(name) < order.index(dispatch._best_level()):
        pytest.skip(f"this processor has no {name}")
    dispatch.use(name)
    dispatch.warmup()
    yield name
    dispatch.use(None)
