"""The delta of one column group: fresh row versions, decoded once per process, append-only.

Records are read in commit order, so a snapshot is a prefix and an older snapshot a shorter one. The
log belongs to one delta generation: merging removes records and starts a new log.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tarsdb.columns import Column, concat, from_list
from tarsdb.errors import CorruptionError
from tarsdb.schema import ColumnDef
from tarsdb.storage import keys, records
from tarsdb.storage.blocks import missing_column, missing_value
from tarsdb.storage.tombstones import ALIVE, GrowingArray
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.values import ValueType, unpack

_LOOK = 4
"""Records that are sorted in the time that one row is looked up."""


class DeltaLog:
    """Decoded delta of one column group.

    Attributes
    ----------
    loaded : int
        Commit number up to which the log is complete.
    rowids, created, deleted : GrowingArray of int64
    """

    def __init__(self, table: int, group: int) -> None:
        self._table, self._group = table, group
        self.loaded = 0
        self.rowids = GrowingArray(np.int64)
        self.created = GrowingArray(np.int64)
        self.deleted = GrowingArray(np.int64)
        self.tombs = (-1, 0)  # as Segment.tombs
        self._latest: dict[int, int] = {}
        self._previous: list[int] = []
        self._rows: list[tuple[dict[int, int], tuple[Any, ...]]] = []
        self._columns: dict[int, Column] = {}
        self._vectors: GrowingArray | None = None

    @property
    def count(self) -> int:
        """Versions read so far."""
        return self.rowids.count

    def count_at(self, commit: int) -> int:
        """Return how many versions read so far commits up to this one created."""
        return int(np.searchsorted(self.created.prefix(self.count), commit, "right"))

    def extend(
        self,
        txn: ReadTxn,
        commit: int,
        name: str,
        vector: ColumnDef | None,
        known: tuple[list[int], list[bytes]] | None = None,
    ) -> None:
        """Read the versions of commits up to ``commit`` that are not here yet.

        ``known`` are all of them, rowids and payloads, where ``commit`` made them.
        """
        if commit <= self.loaded:
            return
        if known is None:
            rowids, created, payloads = self._read(txn, name)
        else:
            rowids, payloads = known
            created = [commit] * len(rowids)
        if rowids:
            self._decode(payloads, rowids, name, vector)
            self._link(rowids)
            self.created.extend(np.array(created, dtype=np.int64))
            self.deleted.extend(np.full(len(rowids), ALIVE, dtype=np.int64))
            self.rowids.extend(np.array(rowids, dtype=np.int64))
        self.loaded = commit

    def _read(self, txn: ReadTxn, name: str) -> tuple[list[int], list[int], list[bytes]]:
        """Return row ids, creating commits and payloads of the versions not here yet."""
        rowids, created, payloads = [], [], []
        start, stop = keys.commits_after(self._table, self._group, self.loaded)
        # not by lists of entries: they would touch the pages of other groups behind the end
        for key, value in txn.range("delta", start, stop):
            _, _, made, rowid = keys.read_delta_key(key)
            where = f"table {name}, row {rowid} in the delta"
            payload, _, _ = unpack(ValueType.DELTA, key, value, where)
            payloads.append(bytes(payload))
            rowids.append(rowid)
            created.append(made)
        return rowids, created, payloads

    def _decode(
        self, payloads: list[bytes], rowids: list[int], name: str, vector: ColumnDef | None
    ) -> None:
        if vector is None:
            for payload, rowid in zip(payloads, rowids, strict=True):
                try:
                    shape, values = records.decode(payload)
                except CorruptionError as error:
                    raise CorruptionError(f"table {name}, row {rowid}: {error.message}") from error
                self._rows.append((shape.index, values))
            return
        size = vector.type.width * vector.type.dtype.itemsize
        sizes = set(map(len, payloads))
        for payload, rowid in zip(payloads, rowids, strict=True) if sizes != {size} else ():
            if len(payload) != size:
                raise CorruptionError(
                    f"table {name}, column {vector.name}, row {rowid}: "
                    f"a vector of {len(payload)} bytes, expected {size}"
                )
        if self._vectors is None:
            self._vectors = GrowingArray(vector.type.dtype, vector.type.width)
        joined = np.frombuffer(b"".join(payloads), dtype=vector.type.dtype)
        self._vectors.extend(joined.reshape(len(payloads), vector.type.width))

    def _link(self, rowids: list[int]) -> None:
        latest, previous = self._latest, self._previous
        for position, rowid in enumerate(rowids, start=self.count):
            previous.append(latest.get(rowid, -1))
            latest[rowid] = position

    def apply_tombstones(self, tombs: np.ndarray) -> None:
        """Note deletions; rows ``(deleted, rowid, created)`` may name merged versions too."""
        if not self.count:
            return
        created, marks = self.created.data, self.deleted.data
        for deleted, rowid, made in tombs.tolist():
            position = self._latest.get(rowid, -1)
            while position >= 0:
                if created[position] == made:
                    marks[position] = min(int(marks[position]), deleted)
                    break
                position = self._previous[position]

    def find(self, rowid: int, count: int, commit: int) -> int:
        """Return the position of a row's version live at a commit, or -1."""
        position = self._latest.get(rowid, -1)
        while position >= 0:
            if position < count and self.deleted.data[position] > commit:
                return position
            position = self._previous[position]
        return -1

    def find_many(self, rowids: np.ndarray, count: int, commit: int) -> np.ndarray:
        """Return :meth:`find` of many rows; int64 like ``rowids``."""
        if len(rowids) * _LOOK < count:
            return np.array([self.find(r, count, commit) for r in rowids.tolist()], dtype=np.int64)
        live = np.flatnonzero(self.deleted.prefix(count) > commit)
        if not len(live):
            return np.full(len(rowids), -1, dtype=np.int64)
        known = self.rowids.prefix(count)[live]
        order = np.argsort(known, kind="stable")
        known = known[order]
        at = np.minimum(known.searchsorted(rowids), len(known) - 1)
        return np.where(known[at] == rowids, live[order[at]], -1)

    def live(self, count: int, commit: int) -> np.ndarray | None:
        """Return which of the first ``count`` versions are live, or None when all are."""
        mask: np.ndarray = self.deleted.prefix(count) > commit
        return None if mask.all() else mask

    def value(self, position: int, column: ColumnDef) -> Any:
        """Return one storage value of a version of group 0."""
        index, values = self._rows[position]
        at = index.get(column.id)
        return missing_value(column) if at is None else values[at]

    def vectors(self, count: int) -> np.ndarray:
        """Return the first ``count`` vectors, ``(count, width)``, as a view."""
        if self._vectors is None:
            raise CorruptionError("a vector group's delta is empty")
        return self._vectors.prefix(count)

    def column(self, column: ColumnDef, count: int) -> Column:
        """Return the first ``count`` values of a scalar column."""
        known = self._columns.get(column.id)
        if known is None or len(known) < count:
            start = 0 if known is None else len(known)
            fresh = from_list(column.type, [self.value(p, column) for p in range(start, count)])
            known = fresh if known is None else concat(column.type, [known, fresh])
            self._columns[column.id] = known
        return known if len(known) == count else known.slice(0, count)


def empty_values(column: ColumnDef, rows: int) -> Column:
    """Return a column of NULLs, or of the column's ``missing`` value."""
    return missing_column(column, rows)
