"""Chooses between the compiled kernels and NumPy."""

from __future__ import annotations

from collections.abc import Callable


def warmup(progress: Callable[[str], None] | None = None) -> None:
    """Compile every kernel now."""


def wait() -> None:
    """Return when no kernel is being compiled in the background."""
