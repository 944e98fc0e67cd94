"""Many committed rows that one statement of a transaction ends or replaces, as arrays.

A run knows its rows as long as `OwnRows` says so: a row that is changed once more becomes a single
row, and the run is asked no longer. Knows no undo and no commits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.storage.own_rows import OwnBlock


@dataclass(frozen=True, slots=True)
class RunKeys:
    """Keys of a run's rows in one index: as committed, and as they are now.

    Attributes
    ----------
    old : list of bytes
    new : list of bytes
        Empty where the rows are deleted.
    nulls : bool (n,), optional
        Rows whose new key holds a NULL.
    """

    old: list[bytes]
    new: list[bytes]
    nulls: np.ndarray | None = None

    def part(self, start: int, stop: int) -> RunKeys:
        """Return the keys of some rows."""
        nulls = None if self.nulls is None else self.nulls[start:stop]
        return RunKeys(self.old[start:stop], self.new[start:stop], nulls)


class OwnRun:
    """Committed rows that end, with the versions that replace them or none.

    Attributes
    ----------
    rowids : int64 (n,)
        Ascending.
    ended : dict
        Column group -> int64 (n,): the commit that created the version that ends; 0 for none.
    block : OwnBlock or None
        New values by position: all scalars, and the vector columns some row changes. None where
        the rows are deleted.
    changed : dict
        Vector column id -> bool (n,): rows whose vector is another one, or none any more.
    keys : dict
        Index id -> RunKeys, of the indexes whose entries end or change. The others keep theirs.
    moved : bool
        Some row became a single row at some time.
    """

    __slots__ = ("_maps", "block", "changed", "ended", "keys", "moved", "rowids")

    def __init__(
        self,
        rowids: np.ndarray,
        ended: dict[int, np.ndarray],
        block: OwnBlock | None,
        changed: dict[int, np.ndarray],
        keys: dict[int, RunKeys],
    ) -> None:
        self.rowids = rowids
        self.ended = ended
        self.block = block
        self.changed = changed
        self.keys = keys
        self.moved = False
        self._maps: dict[int, tuple[RunKeys, dict[bytes, list[int]]]] = {}

    def part(self, start: int, stop: int) -> OwnRun:
        """Return some of the rows as a run of their own, of views."""
        block = self.block
        if block is not None:
            columns = {c: v.slice(start, stop) for c, v in (block.columns or {}).items()}
            block = dataclasses.replace(block, count=stop - start, columns=columns)
        return OwnRun(
            self.rowids[start:stop],
            {group: made[start:stop] for group, made in self.ended.items()},
            block,
            {column_id: rows[start:stop] for column_id, rows in self.changed.items()},
            {index: found.part(start, stop) for index, found in self.keys.items()},
        )

    def __len__(self) -> int:
        return len(self.rowids)

    def position(self, rowid: int) -> int:
        """Return where a row of the run is."""
        return int(self.rowids.searchsorted(rowid))

    def groups(self, rowid: int) -> dict[int, int]:
        """Return column group -> created commit of the versions of a row that end."""
        at = self.position(rowid)
        return {group: int(made[at]) for group, made in self.ended.items() if made[at]}

    def holds(self, rowid: int, column: ColumnDef) -> bool:
        """Return False when a column of a row is unchanged in the snapshot."""
        if not column.type.is_vector:
            return True
        changed = self.changed.get(column.id)
        return changed is not None and bool(changed[self.position(rowid)])

    def value(self, rowid: int, column: ColumnDef) -> Any:
        """Return a storage value the run holds of a row."""
        assert self.block is not None
        return self.block.column(column).get(self.position(rowid))

    def row(self, rowid: int, table: TableDef) -> dict[int, Any]:
        """Return all the run holds of a row, by column id."""
        return {c.id: self.value(rowid, c) for c in table.columns if self.holds(rowid, c)}

    def find_key(self, index: int, key: bytes) -> list[int]:
        """Return the rowids with a new key of an index."""
        found = self.keys.get(index)
        if found is None:
            return []
        known = self._maps.get(index)
        if known is None or known[0] is not found:
            mapped: dict[bytes, list[int]] = {}
            for rowid, each in zip(self.rowids.tolist(), found.new, strict=False):
                mapped.setdefault(each, []).append(rowid)
            known = self._maps[index] = found, mapped
        return known[1].get(key, [])

    def entries(self, index: int, start: bytes, stop: bytes) -> list[tuple[bytes, int]]:
        """Return (key, rowid) of the new keys of an index with start <= key < stop."""
        found = self.keys.get(index)
        if found is None:
            return []
        pairs = zip(found.new, self.rowids.tolist(), strict=False)
        return [(key, rowid) for key, rowid in pairs if start <= key < stop]
