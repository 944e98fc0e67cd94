"""Counters for operators, kept in memory; ``SELECT * FROM tars_metrics`` shows them.

Knows no files and no clocks but the monotonic one its callers read.
"""

from __future__ import annotations

import threading


class Metrics:
    """Named counters, safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a counter; it starts at zero."""
        with self._lock:
            self._values[name] = self._values.get(name, 0) + amount

    def snapshot(self) -> dict[str, float]:
        """Return a copy of all counters."""
        with self._lock:
            return dict(self._values)


METRICS = Metrics()
"""The counters of this process."""
