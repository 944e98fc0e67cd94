"""What sandboxed functions did: counted per function for operators, and per statement.

Knows numbers only; whoever runs a call fills in a :class:`~tarsdb.udf_sandbox.limits.Call`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import field
from typing import TYPE_CHECKING, Any

from tarsdb.columns import Column
from tarsdb.errors import InterruptError, UdfBackendError, UdfLimitError, UdfTrapError
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass

if TYPE_CHECKING:
    from tarsdb.udf_sandbox.limits import Call


@dataclass
class Figures:
    """Counts of a function, safe to add to from several threads.

    Attributes
    ----------
    calls, rows : int
        Batches that were run, and their rows.
    transitions : int
        Calls of guest code from the host.
    bytes_in, bytes_out : int
        Values and offsets copied to the guest, and back.
    fuel : int
    seconds : float
        Wall time of the calls.
    memory_high : int
        Most bytes of memory a guest had at the end of a call.
    reused : int
        Calls that found an instance from an earlier one.
    cache_hits : int
        Rows whose result was known, and for which nothing was called.
    traps : Counter
        By the trap's code.
    confinement : str
        What confined the process of the last call beside its limits: ``seccomp``, or why not;
        ``''`` where there was no such process.
    stopped : Counter
        Calls ended by us: ``fuel``, ``memory``, ``time``, ``interrupt``, or ``process`` where a
        process that ran it ended.
    """

    calls: int = 0
    rows: int = 0
    transitions: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    fuel: int = 0
    seconds: float = 0.0
    memory_high: int = 0
    reused: int = 0
    cache_hits: int = 0
    confinement: str = ""
    traps: Counter[str] = field(default_factory=Counter)
    stopped: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def hit(self, rows: int) -> None:
        """Count rows whose result was known."""
        with self._lock:
            self.cache_hits += rows

    def add(self, call: Call, seconds: float, error: BaseException | None) -> None:
        """Count a call that has ended."""
        with self._lock:
            self.calls += 1
            self.rows += call.rows
            self.transitions += call.transitions
            self.bytes_in += call.bytes_in
            self.bytes_out += call.bytes_out
            self.fuel += call.used
            self.seconds += seconds
            self.memory_high = max(self.memory_high, call.memory)
            self.reused += call.reused
            self.confinement = call.confinement
            if isinstance(error, UdfTrapError):
                self.traps[error.code] += 1
            elif error is not None and (reason := stop_of(error)) is not None:
                self.stopped[reason] += 1


def count(call: Call, seconds: float, error: BaseException | None) -> None:
    """Add a call that has ended to the counters of this process."""
    amounts = {"udf.calls": 1, "udf.fuel": call.used, "udf.seconds": seconds}
    if isinstance(error, UdfTrapError):
        amounts |= {"udf.traps": 1, f"udf.trap.{error.code}": 1}
    elif error is not None and (reason := stop_of(error)) is not None:
        amounts[f"udf.stopped.{reason}"] = 1
    METRICS.add_all(amounts)


def stop_of(error: BaseException) -> str | None:
    """Return why we ended a call, or None where we did not."""
    if isinstance(error, UdfLimitError):
        return error.kind
    if isinstance(error, UdfBackendError):
        return "process"
    return "interrupt" if isinstance(error, (InterruptError, KeyboardInterrupt)) else None


def size(columns: Iterable[Any]) -> int:
    """Return the bytes of values and offsets of the columns among some objects."""
    total = 0
    for column in columns:
        if isinstance(column, Column):
            total += column.nbytes
    return total
