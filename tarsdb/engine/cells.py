"""Scalar values of a few rows, read by one compiled call where rows lie in runs of row ids."""

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
    """Columns of one state of a table's scalars; one thread uses it at a time.

    It holds views of the map, used only under transactions that show this state.

    Parameters
    ----------
    runs : sequence of (int, bool (n,) or None, list of arrays (n,))
        First row id, which rows are live, and the values of each column; by row id.
    most : int
        Rows asked for at a time, at most.
    """

    def __init__(
        self, kernel: dispatch.Kernel, runs: Sequence[tuple[int, Any, list[np.ndarray]]], most: int
    ) -> None:
        self._kernel, self._held, self._most = kernel, runs, most
        self._out = [np.empty(most, values.dtype) for values in runs[0][2]]
        sizes = np.array([values.itemsize for values in self._out], np.int64)
        to = np.array([address(values) for values in self._out], np.int64)
        table = np.array([
            (first, first + len(values[0]), 0 if live is None else address(live),
             *map(address, values))
            for first, live, values in runs
        ], dtype=np.int64)  # fmt: skip
        self._arrays = table, sizes, to
        self._words = address(table), len(runs), len(to), address(sizes)
        self._to = address(to)

    @staticmethod
    def of(
        txn: ReadTxn, group: GroupState, columns: Sequence[ColumnDef], most: int
    ) -> Cells | None:
        """Return the cells of columns; None where they are not to be had in this way (yet)."""
        kernel = dispatch.get(dispatch.GATHER)
        if kernel is None:
            dispatch.prepare(dispatch.GATHER)
            return None
        try:
            runs = plain_runs(txn, group, columns, MOST_RUNS)
        except CorruptionError:  # of rows that may not be asked for
            return None
        return Cells(kernel, runs, most) if runs else None

    def read(self, rowids: int, count: int) -> list[list[Any]] | None:
        """Return values of rows, a list a column; None where one of them is not live.

        ``rowids`` is the address of int64 (count,).
        """
        if not self._kernel(*self._words, rowids, count, self._to):
            return None
        if count == self._most:
            return [values.tolist() for values in self._out]
        return [values[:count].tolist() for values in self._out]
