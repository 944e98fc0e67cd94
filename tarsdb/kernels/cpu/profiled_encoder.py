"""The encoder of :mod:`encoder` with marks between its stages."""

from __future__ import annotations

from typing import Any

from tarsdb.kernels.cpu import encoder, stages

SIGNATURES = encoder.SIGNATURES


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the kernels of SIGNATURES, not yet compiled; ``variant`` is KIND/VARIANT."""
    marked = stages.with_marks(encoder, "0", "read_long(memory, MARKS)")
    kernels: dict[str, Any] = marked["make_kernels"](variant)
    return kernels
