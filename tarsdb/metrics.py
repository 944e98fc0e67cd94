"""Counters for operators, kept in memory; ``SELECT * FROM tars_metrics`` shows them.

Knows no files and no clocks but the monotonic one its callers read.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Metrics:
    """Named counters, safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}
        self._here = threading.local()

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a counter; it starts at zero."""
        with self._lock:
            self._values[name] = self._values.get(name, 0) + amount
        record = getattr(self._here, "record", None)
        if record is not None:
            record[name] = record.get(name, 0) + amount

    def add_all(self, amounts: Mapping[str, float]) -> None:
        """Add to several counters at once."""
        kept = [self._values]
        record = getattr(self._here, "record", None)
        if record is not None:
            kept.append(record)
        with self._lock:
            for values in kept:
                for name, amount in amounts.items():
                    values[name] = values.get(name, 0) + amount

    @contextmanager
    def recorded(self) -> Iterator[dict[str, float]]:
        """Collect what this thread adds meanwhile; within another collection, instead of that."""
        record: dict[str, float] = {}
        before: dict[str, float] | None = getattr(self._here, "record", None)
        self._here.record = record
        try:
            yield record
        finally:
            self._here.record = before

    def snapshot(self) -> dict[str, float]:
        """Return a copy of all counters."""
        with self._lock:
            return dict(self._values)


METRICS = Metrics()
"""The counters of this process."""

if hasattr(os, "register_at_fork"):  # another thread may have been counting at the fork
    os.register_at_fork(after_in_child=METRICS._lock._at_fork_reinit)  # type: ignore[attr-defined]
