"""Where the scalar values of a few rows lie, for the compiled call that gathers them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tarsdb.errors import CorruptionError
from tarsdb.kernels import dispatch
from tarsdb.kernels.native import address
from tarsdb.schema import ColumnDef
from tarsdb.storage import ByRow, GroupState, TableView, plain_runs

MOST_RUNS = 1024
"""Segments up to which all are looked at, for the values of a few rows."""
COPIED_BYTES = 32 << 20
"""Copied columns a process holds of the tables of a file, at most."""
_Run = tuple[int, np.ndarray | None, list[np.ndarray]]
_Kept = dict[int, tuple["weakref.ref[GroupState]", ByRow]]


class Cells:
    """Columns of one state of a table's scalars, and memory for values; one thread at a time.

    It holds views of the map, used only under transactions that show this state.

    Parameters
    ----------
    runs : sequence of (int, bool (n,) or None, list of arrays (n,))
        First row id, which rows are live, and the values of each column; by row id.
    most : int
        Rows asked for at a time, at most.
    owner : ByRow, optional
        Has the memory of the runs, which is not kept by the cells then.

    Attributes
    ----------
    values : list of ndarray (most,)
        Memory for the values of each column.
    words : tuple of int
        What ``gather`` takes besides the rows: runs and their number, number of columns, addresses
        of the sizes of values and of where they go; see ``kernels/cpu/gather.py``.
    held : callable
        Returns what has the memory of the runs, for as long as it is used; None once it is gone.
    """

    def __init__(self, runs: Sequence[_Run], most: int, owner: ByRow | None = None) -> None:
        self.values = [np.empty(most, values.dtype) for values in runs[0][2]]
        sizes = np.array([values.itemsize for values in self.values], np.int64)
        to = np.array([address(values) for values in self.values], np.int64)
        table = np.array([
            (first, first + len(values[0]), 0 if live is None else address(live),
             *map(address, values))
            for first, live, values in runs
        ], dtype=np.int64)  # fmt: skip
        self.is_copied = owner is not None
        self.held: Callable[[], object] = (lambda: runs) if owner is None else weakref.ref(owner)
        self._memory = table, sizes, to
        self.words = address(table), len(runs), len(to), address(sizes), address(to)

    @staticmethod
    def of(view: TableView, columns: Sequence[ColumnDef], most: int) -> Cells | None:
        """Return the cells of columns; None where they are not to be had in this way."""
        try:
            runs = plain_runs(view.txn, view.scalars(), columns, MOST_RUNS, most)
        except CorruptionError:  # of rows that may not be asked for
            return None
        return Cells(runs, most) if runs else None

    @staticmethod
    def copied(
        caches: dict[str, Any], view: TableView, columns: Sequence[ColumnDef], most: int
    ) -> Cells | None:
        """Return the cells of columns that are copied, or were for another search in this state.

        None where there is no room for them, or they have NULLs or are not of numbers. Copies are
        kept in ``caches``: of one state of a table, the last, as long as this state is in use.
        """
        kept: _Kept = caches.setdefault("cells by row", {})
        table, group, copies = view.table.id, view.scalars(), _copies(caches, view)
        nbytes = ByRow.bytes_of(group, columns)
        if copies is not None and copies.nbytes + nbytes > COPIED_BYTES:
            copies = None  # of columns that others asked for
        if nbytes > COPIED_BYTES:
            return None
        try:
            copies = copies or ByRow(group)
            run = copies.run(view.txn, group, columns)
        except CorruptionError:
            return None
        if run is None:
            return None
        kept.pop(table, None)
        while kept and copies.nbytes + sum(each.nbytes for _, each in kept.values()) > COPIED_BYTES:
            kept.pop(next(iter(kept)), None)
        kept[table] = weakref.ref(group, lambda _: kept.pop(table, None)), copies
        return Cells([run], most, copies)

    @staticmethod
    def are_copied(caches: dict[str, Any], view: TableView, columns: Sequence[ColumnDef]) -> bool:
        """Return whether `copied` finds the columns copied."""
        copies = _copies(caches, view)
        return copies is not None and copies.has(columns)


def _copies(caches: dict[str, Any], view: TableView) -> ByRow | None:
    """Return what is copied of a table in this state."""
    kept: _Kept = caches.get("cells by row", {})
    state, copies = kept.get(view.table.id, (None, None))
    return copies if state is not None and state() is view.scalars() else None


def kernels() -> tuple[dispatch.Kernel, dispatch.Kernel] | None:
    """Return ``answer`` and ``gather``, or have them made in the background."""
    answer, gather = dispatch.get(dispatch.ANSWER), dispatch.get(dispatch.GATHER)
    if answer is not None and gather is not None:
        return answer, gather
    for kind in (dispatch.ANSWER, dispatch.GATHER):
        dispatch.prepare(kind)
    return None
