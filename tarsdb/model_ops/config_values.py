"""Untrusted numbers of a ``config.json``, each read within bounds.

Nothing downstream may allocate by a number nobody checked. Knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tarsdb.errors import ModelFormatError


def whole(
    config: Mapping[str, Any], key: str, default: int | None, limit: int, lowest: int = 1
) -> int:
    """Read a whole number up to ``limit``; an absent one is the default, if there is one."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelFormatError(f"config.json: {key} must be a whole number, not {short(value)}")
    if not lowest <= value <= limit:
        raise ModelFormatError(f"config.json: {key} is {short(value)}, outside {lowest} to {limit}")
    return value


def real(
    config: Mapping[str, Any], key: str, default: float | None, lowest: float, highest: float = 1e9
) -> float:
    """Read a number within bounds; an absent one is the default, if there is one."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ModelFormatError(f"config.json: {key} must be a number, not {short(value)}")
    if not lowest <= value <= highest:
        raise ModelFormatError(
            f"config.json: {key} is {short(value)}, outside {lowest:g} to {highest:g}"
        )
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """Read true or false."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ModelFormatError(f"config.json: {key} must be true or false, not {short(value)}")
    return value


def short(value: object) -> str:
    """Spell an untrusted value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
