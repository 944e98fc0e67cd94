"""Values of a few rows out of runs of rows: all memory is asked for before any of it is read."""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    prefetch,
    put_byte,
    put_int,
    put_long,
    read_byte,
    read_int,
    read_long,
)

FIRST, STOP, LIVE, VALUES = range(4)
"""The words of a run: its first row id, the one behind its last, the address of its live mask (0:
all are live), then of each column the address of its values."""
SIGNATURE = types.int64(*[types.int64] * 7)


@linked
def _run_of(table, runs, step, rowid):  # type: ignore[no-untyped-def]
    """Return the run of a live row, or 0."""
    low, high = 0, runs - 1
    while low < high:
        middle = (low + high + 1) // 2
        if read_long(table + middle * step, FIRST) <= rowid:
            low = middle
        else:
            high = middle - 1
    run = table + low * step
    row, live = rowid - read_long(run, FIRST), read_long(run, LIVE)
    if row < 0 or rowid >= read_long(run, STOP) or (live and not read_byte(live, row)):
        return np.int64(0)
    return run


def make_gather() -> Any:
    """Return the (not yet compiled) ``gather(table, runs, columns, sizes, rowids, count, out)``.

    ``table`` has the runs by row id, ``sizes`` int64 (columns,) the bytes of a value, ``out`` int64
    (columns,) the addresses of what gets the values of each. Returns whether all rows are live and
    in a run; nothing is written otherwise.
    """

    @njit(nogil=True)
    def gather(table, runs, columns, sizes, rowids, count, out):  # type: ignore[no-untyped-def]
        step = 8 * (VALUES + columns)
        for i in range(count):
            rowid = read_long(rowids, i)
            run = _run_of(table, runs, step, rowid)
            if run == 0:
                return np.int64(0)
            row = rowid - read_long(run, FIRST)
            for column in range(columns):
                prefetch(read_long(run, VALUES + column) + row * read_long(sizes, column))
        for i in range(count):
            rowid = read_long(rowids, i)
            run = _run_of(table, runs, step, rowid)
            row = rowid - read_long(run, FIRST)
            for column in range(columns):
                values, to = read_long(run, VALUES + column), read_long(out, column)
                size = read_long(sizes, column)
                if size == 8:
                    put_long(to, i, read_long(values, row))
                elif size == 4:
                    put_int(to, i, read_int(values, row))
                else:
                    for byte in range(size):
                        put_byte(to, i * size + byte, read_byte(values, row * size + byte))
        return np.int64(1)

    return gather
