"""Columns of one state of a column group copied into arrays by row id.

Made where versions lie scattered, in the delta and in segments whose row ids overlap, and a state
is read often: a value is then found by its row id alone. Knows committed rows only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tarsdb.columns import Column
from tarsdb.schema import ColumnDef
from tarsdb.storage.gather import NUMBERS
from tarsdb.storage.segments import Segment
from tarsdb.storage.state import GroupState
from tarsdb.storage.transaction import ReadTxn

_LIVE = -1
"""In the place of a column id: which row ids are live rows."""
_Rows = tuple[np.ndarray | slice, np.ndarray | None, Segment | None]


class ByRow:
    """Copied columns of the scalars of one state; arrays it gives out do not change.

    Parameters
    ----------
    group : GroupState
        Column group 0.
    """

    def __init__(self, group: GroupState) -> None:
        self._first, self._stop = _range(group)
        # column id -> values of all row ids; threads that copy the same agree on the first one's
        self._columns: dict[int, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(values.nbytes for values in list(self._columns.values()))

    def has(self, columns: Sequence[ColumnDef]) -> bool:
        """Return whether columns are copied."""
        return all(column.id in self._columns for column in columns)

    @staticmethod
    def bytes_of(group: GroupState, columns: Sequence[ColumnDef]) -> int:
        """Return the bytes that columns of a group take."""
        first, stop = _range(group)
        return (stop - first) * (1 + sum(column.type.dtype.itemsize for column in columns))

    def run(
        self, txn: ReadTxn, group: GroupState, columns: Sequence[ColumnDef]
    ) -> tuple[int, np.ndarray, list[np.ndarray]] | None:
        """Return the first row id, which rows from there on are live, and values of columns.

        That is one run like those of `plain_runs`. What stands for rows that are not live means
        nothing. None where live rows have NULLs, or values are not numbers as a reader sees them.

        Parameters
        ----------
        txn : ReadTxn
            Shows the state of ``group``, the same as at the beginning.

        Raises
        ------
        CorruptionError
            A block is damaged.
        """
        missing = [column for column in columns if column.id not in self._columns]
        if not columns or any(column.type.physical not in NUMBERS for column in columns):
            return None
        rows = self._stop - self._first
        made = [np.empty(rows, column.type.dtype) for column in missing]
        alive = np.zeros(rows, dtype=np.bool_)
        for to, live, segment in _places(txn, group, self._first) if missing else ():
            alive[to] = True
            for column, values in zip(missing, made, strict=True):
                found = _column(txn, group, segment, column)
                valid = found.validity
                if valid is not None and not (valid if live is None else valid[live]).all():
                    return None
                values[to] = found.values if live is None else found.values[live]
        known = self._columns.setdefault
        live = known(_LIVE, alive)
        for column, values in zip(missing, made, strict=True):
            known(column.id, values)
        return self._first, live, [self._columns[column.id] for column in columns]


def _places(txn: ReadTxn, group: GroupState, first: int) -> Iterator[_Rows]:
    """Yield of each segment, and None for the delta, where the rows live in it are to go.

    Offsets from the first row id, which rows of the source these are (None: all), and the source.
    """
    for segment in group.segments:
        live = segment.live(group.commit)
        if live is None and segment.base is not None:
            start = segment.base - first
            yield slice(start, start + segment.rows), None, segment
        else:
            rowids = segment.rowids(txn, group.name)
            yield (rowids if live is None else rowids[live]) - first, live, segment
    if group.count:
        live, rowids = group.delta_live(), group.delta.rowids.prefix(group.count)
        yield (rowids if live is None else rowids[live]) - first, live, None


def _range(group: GroupState) -> tuple[int, int]:
    """Return the least row id of a group and the one behind its greatest."""
    ends = [(segment.low, segment.high) for segment in group.segments]
    if group.count:
        rowids = group.delta.rowids.prefix(group.count)
        ends.append((int(rowids.min()), int(rowids.max())))
    return (min(low for low, _ in ends), max(high for _, high in ends) + 1) if ends else (0, 0)


def _column(txn: ReadTxn, group: GroupState, segment: Segment | None, column: ColumnDef) -> Column:
    if segment is None:
        return group.delta.column(column, group.count)
    return segment.column(txn, column, group.name)
