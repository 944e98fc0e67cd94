"""A transaction's own uncommitted changes to one table, in memory.

Single rows are dicts by column id; rows inserted in bulk are immutable :class:`OwnBlock` runs whose
columns are in memory or already staged on disk, rows updated or deleted in bulk an `OwnRun`.
Inserted rows have provisional rowids. Every change appends
its undo to the write set's journal, so a savepoint is a position in it. Knows no locks and no
commits.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.storage import blocks as block_format
from tarsdb.storage import keys
from tarsdb.storage.segments import PSEUDO_COLUMNS, SegmentBlocks
from tarsdb.storage.stopping import CheckStop, heeding, never
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.values import ValueType, unpack

if TYPE_CHECKING:
    from tarsdb.storage.own_runs import OwnRun

_NONE = np.zeros(0, dtype=bool)
Entry = tuple[bytes, bool]
"""Index key, and whether the index stores it as unique (key -> rowid)."""


@dataclass(frozen=True, slots=True)
class StagedGroup:
    """One column group of a block, staged on disk; ``positions`` of its rows when not all."""

    blocks: SegmentBlocks
    positions: np.ndarray | None


@dataclass(frozen=True, eq=False)
class OwnBlock:
    """Consecutive bulk rows.

    Attributes
    ----------
    base : int
        Provisional rowid of the first row.
    count : int
    columns : dict or None
        Column id -> Column while in memory.
    staged : dict
        Column group -> StagedGroup once on disk.
    index_keys : dict
        Index id -> (keys, bool array of rows whose key holds a NULL or None).
    dead : bool (count,), optional
        Rows deleted or superseded by this transaction.
    owned : bool
        The columns in memory are not views of a caller's arrays.
    """

    base: int
    count: int
    columns: dict[int, Column] | None
    index_keys: dict[int, tuple[list[bytes], np.ndarray | None]]
    staged: dict[int, StagedGroup] = field(default_factory=dict)
    reader: Callable[[], ReadTxn] | None = None
    dead: np.ndarray | None = None
    owned: bool = False
    maps: dict[int, dict[bytes, list[int]]] = field(default_factory=dict)
    greatest: dict[int, bytes] = field(default_factory=dict)

    def rowids(self) -> np.ndarray:
        """Return the provisional rowids."""
        return np.arange(self.base, self.base + self.count, dtype=np.int64)

    def column(self, column: ColumnDef) -> Column:
        """Return one column; staged ones are views into the map."""
        if self.columns is not None:
            found = self.columns.get(column.id)
            return block_format.missing_column(column, self.count) if found is None else found
        group = self.staged.get(column.id if column.type.is_vector else 0)
        if group is None or column.id not in group.blocks.columns:
            return block_format.missing_column(column, self.count)
        stored = self._read(group.blocks, column)
        if group.positions is None:
            return stored
        values = np.zeros((self.count, column.type.width), dtype=column.type.dtype)
        validity = np.zeros(self.count, dtype=bool)
        values[group.positions] = stored.values
        validity[group.positions] = True
        return Column(column.type, values, None, validity)

    def _read(self, written: SegmentBlocks, column: ColumnDef) -> Column:
        if self.reader is None:
            raise TypeError("a staged block has no reader")
        key = keys.block_key(written.table, written.group, written.id, column.id)
        where = f"staged rows of column {column.name}"
        value = self.reader().get("blocks", key) or b""
        payload, rows, _ = unpack(ValueType.BLOCK, key, value, where, check=False)
        return block_format.parse_block(
            payload, rows, column.type, bool(written.columns[column.id][1])
        )

    def greatest_key(self, index: int) -> bytes:
        """Return the greatest key of an index; bulk loads often come in key order."""
        known = self.greatest.get(index)
        if known is None:
            known = self.greatest[index] = max(self.index_keys[index][0], default=b"")
        return known

    def find_key(self, index: int, key: bytes) -> list[int]:
        """Return the provisional rowids of live rows with an index key."""
        mapped = self.maps.get(index)
        if mapped is None:
            mapped = {}
            for position, known in enumerate(self.index_keys[index][0]):
                mapped.setdefault(known, []).append(position)
            self.maps[index] = mapped
        return [
            self.base + position
            for position in mapped.get(key, ())
            if self.dead is None or not self.dead[position]
        ]

    def live_count(self) -> int:
        """Return how many rows are live."""
        return self.count - (0 if self.dead is None else int(self.dead.sum()))

    def without(self, positions: np.ndarray) -> OwnBlock:
        """Return this block with more rows dead."""
        dead = np.zeros(self.count, dtype=bool) if self.dead is None else self.dead.copy()
        dead[positions] = True
        return dataclasses.replace(self, dead=dead)

    @property
    def nbytes(self) -> int:
        """Bytes of columns held in memory."""
        return sum(c.nbytes for c in self.columns.values()) if self.columns else 0


class OwnIndex:
    """Own entries of one index.

    Attributes
    ----------
    new, old : dict
        rowid -> Entry of own rows, and of committed ones whose entry ends. A row that is updated
        and keeps its key is in neither.
    rebuilt : list of (key, rowid, unique) or None
        Entries of all committed rows when the index is being built anew.
    """

    def __init__(self) -> None:
        self.new: dict[int, Entry] = {}
        self.old: dict[int, Entry] = {}
        self.rebuilt: list[tuple[bytes, int, bool]] | None = None
        self.check_stop: CheckStop = never
        self._rows: dict[bytes, Any] = {}  # key -> rowid, or set of rowids
        self._rebuilt_rows: dict[bytes, list[int]] = {}

    def add(self, rowid: int, entry: Entry) -> None:
        """Add the entry of an own row."""
        self.new[rowid] = entry
        known = self._rows.setdefault(entry[0], rowid)
        if known is not rowid:
            if isinstance(known, set):
                known.add(rowid)
            else:
                self._rows[entry[0]] = {known, rowid}

    def add_all(self, rowids: Sequence[int], entries: Sequence[Entry]) -> None:
        """Add the entries of own rows."""
        for rowid, entry in zip(rowids, entries, strict=True):
            self.add(rowid, entry)

    def remove(self, rowid: int) -> None:
        """Remove the entry of an own row, if it has one."""
        entry = self.new.pop(rowid, None)
        if entry is None:
            return
        known = self._rows[entry[0]]
        if isinstance(known, set):
            known.discard(rowid)
            if not known:
                del self._rows[entry[0]]
        else:
            del self._rows[entry[0]]

    def remove_all(self, rowids: Sequence[int]) -> None:
        """Remove the entries of own rows."""
        for rowid in rowids:
            self.remove(rowid)

    def rows(self, key: bytes) -> list[int]:
        """Return the rowids of own rows with a key."""
        known = self._rows.get(key)
        if known is None:
            return []
        return list(known) if isinstance(known, set) else [known]

    def entries(self, start: bytes, stop: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield (key, rowid) of own rows and of committed ones with start <= key < stop."""
        new = [(key, rowid) for rowid, (key, _) in self.new.items()]
        rebuilt = [(key, rowid) for key, rowid, _ in self.rebuilt or () if rowid not in self.new]
        return ((key, rowid) for key, rowid in (*new, *rebuilt) if start <= key < stop)

    def set_rebuilt(
        self, entries: list[tuple[bytes, int, bool]] | None, check_stop: CheckStop = never
    ) -> None:
        """Replace the committed entries; the commit that writes them asks ``check_stop`` too."""
        self.rebuilt, self.check_stop = entries, check_stop
        self._rebuilt_rows = {}
        for key, rowid, _ in heeding(entries or (), check_stop):
            self._rebuilt_rows.setdefault(key, []).append(rowid)

    def rebuilt_rows(self, key: bytes) -> list[int]:
        """Return committed rowids with a key according to the rebuilt entries."""
        return self._rebuilt_rows.get(key, [])


class OwnRows:
    """Own changes to one table.

    Attributes
    ----------
    rows : dict
        rowid -> {column id: storage value}; inserted rows hold every column, updated ones the
        scalars and the vectors that changed.
    hidden : dict
        Committed rowid -> {column group: created commit} of the versions that end, of single rows.
    runs : list of OwnRun
    run_of : dict
        Committed rowid -> the run that knows the row; never of a row in ``hidden``.
    blocks : tuple of OwnBlock
    live_change : int
        Live rows added minus removed.
    version : int
        Rises with every change and undo.
    """

    def __init__(self, table: TableDef, journal: list[Callable[[], None]]) -> None:
        self.table = table
        self.journal = journal
        self.rows: dict[int, dict[int, Any]] = {}
        self.hidden: dict[int, dict[int, int]] = {}
        self.runs: list[OwnRun] = []
        self.run_of: dict[int, OwnRun] = {}
        self.blocks: tuple[OwnBlock, ...] = ()
        self.indexes: dict[int, OwnIndex] = {}
        self.next_rowid = keys.PROVISIONAL
        self.live_change = 0
        self.version = 0
        self._hidden_cache: dict[int, tuple[int, np.ndarray]] = {}

    @property
    def is_untouched(self) -> bool:
        """True when there is nothing of this transaction to show or write."""
        return not (self.rows or self.hidden or self.run_of or self.blocks or self.indexes)

    @property
    def inserted(self) -> int:
        """Provisional rowids given out."""
        return self.next_rowid - keys.PROVISIONAL

    def changed_rows(self, column_id: int) -> int:
        """Return how many values of a column were written or ended."""
        written = sum(column_id in row for row in self.rows.values())
        ended = sum(column_id in groups for groups in self.hidden.values())
        for run in self.runs:
            written += int(run.changed.get(column_id, _NONE).sum())
            ended += int(np.count_nonzero(run.ended.get(column_id, _NONE)))
        return written + ended + sum(block.count for block in self.blocks)

    def all_blocks(self) -> list[OwnBlock]:
        """Return the blocks of rows inserted and of rows updated in bulk."""
        updated = [run.block for run in self.runs if run.block is not None]
        return [*self.blocks, *updated]

    def index(self, index_id: int) -> OwnIndex:
        """Return the own entries of an index."""
        own = self.indexes.get(index_id)
        if own is None:
            own = self.indexes[index_id] = OwnIndex()
        return own

    # --- reading ---

    def covers(self, rowid: int) -> bool:
        """Return True when this transaction, not the snapshot, knows the row."""
        return rowid >= keys.PROVISIONAL or rowid in self.hidden or rowid in self.run_of

    def covers_many(self, rowids: np.ndarray) -> np.ndarray:
        """Return a bool array of :meth:`covers`."""
        mine: np.ndarray = rowids >= keys.PROVISIONAL
        for known in (self.hidden, self.run_of):
            if known:  # not by hidden_rowids: a statement of one row would sort all of them
                mine |= np.fromiter(map(known.__contains__, rowids.tolist()), bool, len(rowids))
        return mine

    def ends_entry(self, index_id: int, rowid: int) -> bool:
        """Return True when the committed entry of a row in an index counts no longer."""
        own = self.indexes.get(index_id)
        if own is not None and rowid in own.old:
            return True
        run = self.run_of.get(rowid)
        return run is not None and index_id in run.keys

    def hidden_rowids(self, group: int = 0) -> np.ndarray:
        """Return ascending rowids whose committed version in a group is hidden."""
        known = self._hidden_cache.get(group)
        if known is None or known[0] != self.version:
            found = [rowid for rowid, groups in self.hidden.items() if group in groups]
            parts = [np.array(found, dtype=np.int64)]
            for run in self.runs:
                ends = run.ended.get(group)
                if ends is not None:
                    kept = self.kept(run)
                    parts.append(run.rowids[(ends > 0) if kept is None else (ends > 0) & kept])
            known = (self.version, np.sort(np.concatenate(parts)))
            self._hidden_cache[group] = known
        return known[1]

    def kept(self, run: OwnRun) -> np.ndarray | None:
        """Return which rows of a run it still knows, bool (n,); None for all."""
        if not run.moved:
            return None
        known = self.run_of
        return np.array([known.get(rowid) is run for rowid in run.rowids.tolist()], dtype=bool)

    def is_live(self, rowid: int) -> bool:
        """Return True when a covered row exists."""
        if rowid in self.rows:
            return True
        run = self.run_of.get(rowid)
        if run is not None:
            return run.block is not None
        hit = self.find_block(rowid)
        if hit is None:
            return False
        block, position = hit
        return block.dead is None or not block.dead[position]

    def find_block(self, rowid: int) -> tuple[OwnBlock, int] | None:
        """Return the block and position of a provisional rowid."""
        at = bisect_right([block.base for block in self.blocks], rowid) - 1
        if at < 0 or rowid >= self.blocks[at].base + self.blocks[at].count:
            return None
        return self.blocks[at], rowid - self.blocks[at].base

    def holds(self, rowid: int, column: ColumnDef) -> bool:
        """Return False when a column of an updated row is unchanged in the snapshot."""
        if rowid >= keys.PROVISIONAL or not column.type.is_vector:
            return True
        run = self.run_of.get(rowid)
        return column.id in self.rows[rowid] if run is None else run.holds(rowid, column)

    def value(self, rowid: int, column: ColumnDef) -> Any:
        """Return a storage value of a live covered row."""
        row = self.rows.get(rowid)
        if row is not None:
            if column.id in row:
                return row[column.id]
            return None if column.type.is_vector else block_format.missing_value(column)
        run = self.run_of.get(rowid)
        if run is not None:
            return run.value(rowid, column)
        hit = self.find_block(rowid)
        return None if hit is None else hit[0].column(column).get(hit[1])

    def find_key(self, index_id: int, key: bytes) -> list[int]:
        """Return rowids of own live rows with an index key, and of rebuilt committed ones."""
        own = self.indexes.get(index_id)
        found: list[int] = []
        if own is not None:
            found = own.rows(key)
            if own.rebuilt is not None:
                found += [r for r in own.rebuilt_rows(key) if not self.ends_entry(index_id, r)]
        for run in self.runs:
            found += [r for r in run.find_key(index_id, key) if self.run_of.get(r) is run]
        for block in self.blocks:
            if index_id in block.index_keys:
                found += block.find_key(index_id, key)
        return found

    def entries(self, index_id: int, start: bytes, stop: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield (key, rowid) of own and rebuilt entries with start <= key < stop."""
        own = self.indexes.get(index_id)
        if own is not None:
            for key, rowid in own.entries(start, stop):
                if rowid in own.new or not self.ends_entry(index_id, rowid):
                    yield key, rowid
        for run in self.runs:
            for key, rowid in run.entries(index_id, start, stop):
                if self.run_of.get(rowid) is run:
                    yield key, rowid
        for block in self.blocks:
            for position, key in enumerate(block.index_keys.get(index_id, ((), None))[0]):
                if start <= key < stop and (block.dead is None or not block.dead[position]):
                    yield key, block.base + position

    # --- changing, with undo ---

    def touch(self) -> None:
        """Note a change for caches keyed by ``version``."""
        self.version += 1

    def save_row(self, rowid: int) -> Callable[[], None]:
        """Return a function that restores everything known about one row."""
        row, hidden, run = self.rows.get(rowid), self.hidden.get(rowid), self.run_of.get(rowid)
        entries = [(own, own.new.get(rowid), own.old.get(rowid)) for own in self.indexes.values()]

        def restore() -> None:
            _put_back(self.rows, rowid, row)
            _put_back(self.hidden, rowid, hidden)
            _put_back(self.run_of, rowid, run)
            for own in self.indexes.values():
                own.remove(rowid)
                own.old.pop(rowid, None)
            for own, new, old in entries:
                if new is not None:
                    own.add(rowid, new)
                if old is not None:
                    own.old[rowid] = old

        return restore

    def add_run(self, run: OwnRun) -> None:
        """Add committed rows that end together, with undo; none of them is covered yet."""
        rowids = run.rowids.tolist()

        def undo() -> None:
            self.runs.remove(run)
            for rowid in rowids:
                self.run_of.pop(rowid, None)
            self.touch()

        self.journal.append(undo)
        self.runs.append(run)
        self.run_of.update(dict.fromkeys(rowids, run))
        self.touch()

    def leave_run(self, rowid: int) -> None:
        """Make a live row of a run a single row; undone by :meth:`save_row`, called before."""
        run = self.run_of.pop(rowid)
        run.moved = True
        self.rows[rowid] = run.row(rowid, self.table)
        self.hidden[rowid] = run.groups(rowid)

    def add_blocks(self, blocks: Sequence[OwnBlock]) -> None:
        """Append bulk rows; the undo leaves them dead, because they may be staged by then."""
        first = blocks[0].base

        def undo() -> None:
            self.blocks = tuple(
                block.without(np.arange(max(first - block.base, 0), block.count))
                if block.base + block.count > first
                else block
                for block in self.blocks
            )
            self.touch()

        self.journal.append(undo)
        self.blocks += tuple(blocks)
        self.touch()

    def end_block_rows(self, rowids: np.ndarray) -> None:
        """Mark bulk rows (provisional rowids) dead, with undo."""
        for block in self.blocks:
            inside = rowids[(rowids >= block.base) & (rowids < block.base + block.count)]
            if len(inside):
                self.journal.append(self._restore_dead(block.base, block.dead))
                self._swap_block(block.without(inside - block.base))

    def _restore_dead(self, base: int, dead: np.ndarray | None) -> Callable[[], None]:
        def undo() -> None:
            hit = self.find_block(base)
            if hit is not None:
                self._swap_block(dataclasses.replace(hit[0], dead=dead))

        return undo

    def _swap_block(self, fresh: OwnBlock) -> None:
        self.blocks = tuple(fresh if b.base == fresh.base else b for b in self.blocks)
        self.touch()

    def undo_insert(self, first: int, count: int) -> Callable[[], None]:
        """Return the undo of ``count`` single rows inserted from ``first`` on."""

        def undo() -> None:
            for rowid in range(first, first + count):
                self.rows.pop(rowid, None)
                for own in self.indexes.values():
                    own.remove(rowid)
            self.live_change -= count

        return undo

    def change_live(self, change: int) -> None:
        """Change the number of live rows, with undo."""

        def undo() -> None:
            self.live_change -= change

        self.live_change += change
        self.journal.append(undo)


def _put_back(target: dict[int, Any], rowid: int, value: Any) -> None:
    if value is None:
        target.pop(rowid, None)
    else:
        target[rowid] = value


def is_pseudo(column_id: int) -> bool:
    """Return True for block ids that are no user column."""
    return column_id in PSEUDO_COLUMNS
