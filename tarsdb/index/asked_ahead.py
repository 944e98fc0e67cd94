"""Asks the system for rows a search is about to compare, all of them at once.

Rows of a memory map that the system does not hold are read when they are touched: one after the
other, each with the pages around it (128 KiB on Linux, megabytes on some disks). So a search says
before which pages it will touch (``madvise``, ``MADV_WILLNEED``): just these are read, side by
side. Each such call costs a microsecond, so a thread asks at its first search and while its
searches wait for disks, as its count of major faults tells; once in a while it looks whether all
rows were there without (``mincore``), and then stops. Where the system has no such counts and calls
nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

import numpy as np

from tarsdb.kernels.native import BlockTable
from tarsdb.metrics import METRICS

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

MOST_ROWS = 4096
"""More rows are not asked for: a scan of many finds several of them within what is read around."""
SEARCHES = 64
"""Searches that ask before one looks whether that is still of use."""
_PAGE = mmap.PAGESIZE


class _Waits(threading.local):
    """What a thread knows of its waiting."""

    def __init__(self) -> None:
        self.faults = 0  # major faults when last looked at
        self.left = 1  # searches that still ask


_waits = _Waits()


def ask(table: BlockTable, positions: np.ndarray) -> None:
    """Ask for rows that are about to be compared, as long as this thread waits for disks.

    Parameters
    ----------
    table : BlockTable
        Its blocks stay mapped during the call.
    positions : int64 (n,)
    """
    if _system is None or len(positions) > MOST_ROWS:
        return
    waits = _waits
    if not waits.left:
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        if faults == waits.faults:
            return
        waits.faults, waits.left = faults, SEARCHES
    pages = list(zip(*(each.tolist() for each in pages_of(table, positions)), strict=True))
    waits.left -= 1
    if not waits.left:
        waits.faults = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
        waits.left = 0 if _system.has(pages) else SEARCHES
    _system.ask(pages)
    METRICS.add("index.rows_asked_ahead", len(positions))


def pages_of(table: BlockTable, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first and end addresses of the pages that hold some rows; int64 (n,) each."""
    firsts = table.entries[:, 3]
    block = firsts.searchsorted(positions, "right") - 1
    rows = table.entries[block, 0] + (positions - firsts[block]) * table.row_bytes
    return rows // _PAGE * _PAGE, -(-(rows + table.row_bytes) // _PAGE) * _PAGE


class _System:
    """What is asked of the system; ranges are first and end addresses of pages."""

    def __init__(self) -> None:
        self._libc = ctypes.PyDLL(None)  # each call is too short to let other threads run
        self._libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

    def ask(self, ranges: list[tuple[int, int]]) -> None:
        """Have pages read; returns at once."""
        for start, stop in ranges:
            self._libc.madvise(start, stop - start, mmap.MADV_WILLNEED)

    def has(self, ranges: list[tuple[int, int]]) -> bool:
        """Return whether all pages are in memory."""
        for start, stop in ranges:
            found = ctypes.create_string_buffer((stop - start) // _PAGE)
            if self._libc.mincore(start, stop - start, found) == 0 and any(
                not byte & 1 for byte in found.raw
            ):
                return False
        return True


def _known_system() -> _System | None:
    """Return the system where it has all calls, and threads can count their faults."""
    is_known = sys.platform.startswith("linux") and hasattr(resource, "RUSAGE_THREAD")
    return _System() if is_known and hasattr(mmap, "MADV_WILLNEED") else None


_system = _known_system()
