"""One bar and the figure it is held against; which bars there are is in the modules of claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Records = Mapping[str, Mapping[str, Record]]
"""Workload -> level of the kernels -> what was measured."""
LEVELS = ("portable", "avx2", "avx512", "amx")


@dataclass(frozen=True)
class Claim:
    """One bar: a figure of a workload that is at most, at least or exactly something."""

    workload: str
    text: str
    bar: str
    """``<=``, ``>=`` or ``==`` and a number."""
    figure: Callable[[Record], Any]
    peer: str = ""
    levels: tuple[str, ...] = LEVELS
    """Levels of the kernels for which it is a bar."""

    def passes(self, value: Any) -> bool:
        """Compare; what is not a number passes no bar."""
        sign, _, limit = self.bar.partition(" ")
        if value is None or value != value:
            return False
        bound = float(limit)
        return {"<=": value <= bound, ">=": value >= bound, "==": value == bound}[sign]


def widest(records: Records, workload: str) -> Record | None:
    """Return a workload's result of the widest level that is stored."""
    found = records.get(workload, {})
    return next((found[level] for level in reversed(LEVELS) if level in found), None)


def path(*names: str) -> Callable[[Record], Any]:
    """Return a reader of a nested entry."""

    def read(record: Record) -> Any:
        found: Any = record
        for name in names:
            found = found[name]
        return found

    return read
