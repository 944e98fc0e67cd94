"""Where the scalar values of a few rows lie, for the compiled call that gathers them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tarsdb.errors import CorruptionError
from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address
from tarsdb.schema import ColumnDef
from tarsdb.storage import GroupState, ReadTxn, plain_runs

MOST_RUNS = 1024
"""Segments up to which all are looked at, for the values of a few rows."""


class Cells:
    """Columns of one state of a table's scalars, and memory for values; one thread at a time.

    It holds views of the map, used only under transactions that show this state.

    Parameters
    ----------
    runs : sequence of (int, bool (n,) or None, list of arrays (n,))
        First row id, which rows are live, and the values of each column; by row id.
    most : int
        Rows asked for at a time, at most.

    Attributes
    ----------
    values : list of ndarray (most,)
        Memory for the values of each column.
    words : tuple of int
        What ``gather`` takes besides the rows: runs and their number, number of columns, addresses
        of the sizes of values and of where they go; see ``kernels/cpu/gather.py``.
    """

    def __init__(self, runs: Sequence[tuple[int, Any, list[np.ndarray]]], most: int) -> None:
        self.values = [np.empty(most, values.dtype) for values in runs[0][2]]
        sizes = np.array([values.itemsize for values in self.values], np.int64)
        to = np.array([address(values) for values in self.values], np.int64)
        table = np.array([
            (first, first + len(values[0]), 0 if live is None else address(live),
             *map(address, values))
            for first, live, values in runs
        ], dtype=np.int64)  # fmt: skip
        self._held = runs, table, sizes, to
        self.words = address(table), len(runs), len(to), address(sizes), address(to)

    @staticmethod
    def of(
        txn: ReadTxn, group: GroupState, columns: Sequence[ColumnDef], most: int
    ) -> Cells | None:
        """Return the cells of columns; None where they are not to be had in this way."""
        try:
            runs = plain_runs(txn, group, columns, MOST_RUNS, most)
        except CorruptionError:  # of rows that may not be asked for
            return None
        return Cells(runs, most) if runs else None


def kernels() -> tuple[dispatch.Kernel, dispatch.Kernel] | None:
    """Return ``answer`` and ``gather``, or have them made in the background."""
    answer, gather = dispatch.get(dispatch.ANSWER), dispatch.get(dispatch.GATHER)
    if answer is not None and gather is not None:
        return answer, gather
    for kind in (dispatch.ANSWER, dispatch.GATHER):
        dispatch.prepare(kind)
    return None
