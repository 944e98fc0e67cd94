"""The step of :mod:`decoder` with marks between its stages."""

from __future__ import annotations

from typing import Any

from tarsdb.kernels.cpu import decoder, stages

SIGNATURES = decoder.SIGNATURES


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the kernels of SIGNATURES, not yet compiled; ``variant`` is KIND/VARIANT."""
    marked = stages.with_marks(decoder, "part", "read_long(batch, MARKS)")
    kernels: dict[str, Any] = marked["make_kernels"](variant)
    return kernels
