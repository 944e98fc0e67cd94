"""Segments: immutable runs of row versions of one column group, read as cached zero-copy columns.

A segment is a ``segments`` entry (JSON: rows, rowid and commit ranges, columns) and one ``blocks``
entry per column. Rows are sorted by (rowid, created). A :class:`Segment` caches parsed views per
process; they point into the memory map and are used only under a live read transaction that
lists the segment. Knows no tables' definitions beyond the columns it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import field
from typing import Any

import numpy as np

from tarsdb.columns import Column, VectorBlock
from tarsdb.errors import CorruptionError
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef
from tarsdb.storage import blocks, keys
from tarsdb.storage.tombstones import ALIVE, match_run, match_versions
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import ValueType, pack, unpack
from tarsdb.types import BIGINT, BOOLEAN, Physical

# Values below this may share a page that moves; they are copied. LMDB puts a value into a shared
# page when it is below half a page, and pages have at most 32 KiB.
_INLINE = 1 << 14
_FEW = 8  # rows that end one by one


@dataclass(slots=True)
class SegmentBlocks:
    """What is known of a segment once its blocks are written.

    Attributes
    ----------
    table, group, id, rows : int
    columns : dict
        Column id -> [physical type, bitmap leads (0/1), checksum of the block as hex].
    nbytes : int
        Stored bytes of all blocks.
    """

    table: int
    group: int
    id: int
    rows: int
    columns: dict[int, list[Any]] = field(default_factory=dict)
    nbytes: int = 0

    def copy(self) -> SegmentBlocks:
        """Return a copy; publishing adds blocks to it."""
        return SegmentBlocks(
            self.table, self.group, self.id, self.rows, dict(self.columns), self.nbytes
        )


def write_blocks(
    txn: WriteTxn, table: int, group: int, segment: int, columns: dict[int, Column]
) -> SegmentBlocks:
    """Store the columns of one segment as blocks; nothing refers to them yet."""
    written = SegmentBlocks(table, group, segment, len(next(iter(columns.values()))))
    for column_id, column in columns.items():
        _write_block(txn, written, column_id, column)
    return written


def _write_block(txn: WriteTxn, written: SegmentBlocks, column_id: int, column: Column) -> None:
    key = keys.block_key(written.table, written.group, written.id, column_id)
    parts, nulls = blocks.encode_block(column)
    value = pack(ValueType.BLOCK, key, parts, written.rows, txn.commit_number)
    txn.put("blocks", key, value)
    checksum = value[32:40].hex()
    written.columns[column_id] = [int(column.type.physical), int(nulls), checksum]
    written.nbytes += len(value)


def publish(
    txn: WriteTxn,
    written: SegmentBlocks,
    rowids: np.ndarray | int,
    created: np.ndarray | int,
    holes: np.ndarray | None = None,
) -> int:
    """Store the ``segments`` entry, which makes the rows visible.

    Parameters
    ----------
    written : SegmentBlocks
    rowids : int64 (n,) or int
        Ascending, or the first of consecutive rowids.
    created : int64 (n,) or int
        Creating commits.
    holes : bool (n,), optional
        Rows that were never live.

    Returns
    -------
    int
        Digest of the segment for the table's counters.
    """
    meta: dict[str, Any] = {"rows": written.rows}
    low = rowids if isinstance(rowids, int) else int(rowids[0])
    high = low + written.rows - 1 if isinstance(rowids, int) else int(rowids[-1])
    meta["rowids"] = [low, high]
    if isinstance(rowids, int) or is_run(rowids):
        meta["base"] = low
    else:
        _write_block(txn, written, keys.ROWIDS_COLUMN, Column(BIGINT, rowids.astype(np.int64)))
    if isinstance(created, int) or bool((created == created[0]).all()):
        first = created if isinstance(created, int) else int(created[0])
        meta["created"] = [first, first]
    else:
        meta["created"] = [int(created.min()), int(created.max())]
        _write_block(txn, written, keys.CREATED_COLUMN, Column(BIGINT, created.astype(np.int64)))
    if holes is not None and holes.any():
        _write_block(txn, written, keys.HOLES_COLUMN, Column(BOOLEAN, holes.astype(np.uint8)))
    meta["columns"] = {str(column_id): info for column_id, info in written.columns.items()}
    meta["bytes"] = written.nbytes
    key = keys.segment_key(written.table, written.group, written.id)
    payload = json.dumps(meta, separators=(",", ":")).encode()
    value = pack(ValueType.SEGMENT, key, payload, written.rows, txn.commit_number)
    txn.put("segments", key, value)
    return segment_digest(value)


def is_run(rowids: np.ndarray) -> bool:
    """Return True when ascending rowids are consecutive without repeats."""
    span = int(rowids[-1]) - int(rowids[0]) + 1
    return span == len(rowids) and bool((np.diff(rowids) == 1).all())


def segment_digest(value: bytes | memoryview) -> int:
    """Return the digest of a stored ``segments`` value: the checksum in its header."""
    return int.from_bytes(value[32:40], "little")


def delete_segment(txn: WriteTxn, table: int, group: int, segment: int) -> None:
    """Remove a segment's entry and blocks."""
    txn.delete("segments", keys.segment_key(table, group, segment))
    start, stop = keys.segment_blocks(table, group, segment)
    for key in [key for key, _ in txn.range("blocks", start, stop)]:
        txn.delete("blocks", key)


class Segment:
    """One segment as this process sees it.

    Attributes
    ----------
    table, group, id, rows, low, high : int
        ``low`` and ``high`` are the least and greatest rowid.
    base : int or None
        First rowid when they are consecutive.
    created_low, created_high : int
    columns : dict
        Column id -> [physical, bitmap leads, checksum].
    deleted : int64 (rows,) or None
        Deleting commit of each row; None while no row of it is deleted.
    digest : int
    """

    __slots__ = (
        "_block", "_ends", "_live", "_origin", "_parsed", "base", "columns", "created_high",
        "created_low", "deleted", "digest", "getters", "group", "high", "id", "low", "nbytes",
        "rows", "table", "tombs", "verify",
    )  # fmt: skip

    def __init__(self, key: bytes, value: memoryview, name: str, check: bool = True) -> None:
        self.table, self.group, self.id = keys.read_segment_key(key)
        where = f"table {name}: segment {self.id} of column group {self.group}"
        payload, self.rows, _ = unpack(ValueType.SEGMENT, key, value, where, check)
        meta = json.loads(bytes(payload))
        self.low, self.high = meta["rowids"]
        self.base: int | None = meta.get("base")
        self.created_low, self.created_high = meta["created"]
        self.columns: dict[int, list[Any]] = {int(c): info for c, info in meta["columns"].items()}
        self.nbytes: int = meta["bytes"]
        self.digest = segment_digest(value)
        self.deleted: np.ndarray | None = None
        self.tombs = (-1, 0)  # tombstone generation and how many of its log are in `deleted`
        self.verify = check
        self._ends = 0  # rises after each change of `deleted`
        # `_ends`, the newest number in `deleted`, which rows none deleted
        self._live: tuple[int, int, np.ndarray | None] | None = None
        self._parsed: dict[int, Column] = {}
        self._block: VectorBlock | None = None
        self._origin = object()
        self.getters: dict[int, Callable[[int], Any]] = {}

    def column(self, txn: ReadTxn, column: ColumnDef, name: str) -> Column:
        """Return a column as views valid under a transaction that lists this segment."""
        parsed = self._parsed.get(column.id)
        if parsed is None:
            parsed = self._load(txn, column, name)
            self._parsed[column.id] = parsed
        return parsed

    def getter(self, txn: ReadTxn, column: ColumnDef, name: str) -> Callable[[int], Any]:
        """Return a function from row position to storage value; fast for point reads."""
        getter = self.getters.get(column.id)
        if getter is None:
            getter = _getter(self.column(txn, column, name))
            self.getters[column.id] = getter
        return getter

    def _load(self, txn: ReadTxn, column: ColumnDef, name: str) -> Column:
        info = self.columns.get(column.id)
        if info is None:
            return blocks.missing_column(column, self.rows)
        where = f"table {name}, column {column.name}, rows {self.low}..{self.high}"
        key = keys.block_key(self.table, self.group, self.id, column.id)
        value = txn.get("blocks", key)
        if value is None:
            raise CorruptionError(f"{where}: the block is missing")
        if len(value) < _INLINE:
            value = memoryview(bytes(value))
        payload, rows, _ = unpack(ValueType.BLOCK, key, value, where, self.verify)
        if rows != self.rows or info[0] != column.type.physical:
            raise CorruptionError(
                f"{where}: the block holds {rows} rows of physical type {info[0]}, "
                f"expected {self.rows} of {int(column.type.physical)}"
            )
        try:
            return blocks.parse_block(payload, rows, column.type, bool(info[1]))
        except CorruptionError as error:
            raise CorruptionError(f"{where}: {error.message}") from error

    def rowids(self, txn: ReadTxn, name: str) -> np.ndarray:
        """Return the rowids, int64, ascending."""
        parsed = self._parsed.get(keys.ROWIDS_COLUMN)
        if parsed is None:
            if self.base is not None:
                rowids = np.arange(self.base, self.base + self.rows, dtype=np.int64)
                parsed = Column(BIGINT, rowids)
            else:
                parsed = self._load(txn, _ROWIDS, name)
            self._parsed[keys.ROWIDS_COLUMN] = parsed
        return parsed.values

    def created(self, txn: ReadTxn, name: str) -> np.ndarray | int:
        """Return the creating commits: one number when all rows share it."""
        if self.created_low == self.created_high:
            return int(self.created_low)
        values: np.ndarray = self.column(txn, _CREATED, name).values
        return values

    def vectors(
        self, txn: ReadTxn, column: ColumnDef, name: str, commit: int
    ) -> VectorBlock | None:
        """Return the rows of a vector column, None where none is live.

        The same block as before while the same rows are live.
        """
        live, known = self.live(commit), self._block
        if known is not None and known.live is live:
            return known
        if live is not None and not live.any():
            return None
        data = self.column(txn, column, name).values
        rowids, created = self.rowids(txn, name), self.created(txn, name)
        made = self._block = VectorBlock(rowids, data, live, created, self._origin)
        return made

    def created_at(self, txn: ReadTxn, name: str, positions: np.ndarray) -> np.ndarray:
        """Return the creating commits of some rows."""
        created = self.created(txn, name)
        if isinstance(created, int):
            return np.full(len(positions), created, dtype=np.int64)
        picked: np.ndarray = created[positions]
        return picked

    def find(self, txn: ReadTxn, name: str, rowid: int, commit: int) -> int:
        """Return the position of a row's version live at a commit, or -1."""
        deleted = self.deleted
        if self.base is not None:
            position = rowid - self.base
            if not 0 <= position < self.rows:
                return -1
            return position if deleted is None or deleted[position] > commit else -1
        rowids = self.rowids(txn, name)
        position = int(np.searchsorted(rowids, rowid))
        while position < self.rows and rowids[position] == rowid:
            if deleted is None or deleted[position] > commit:
                return position
            position += 1
        return -1

    def apply_tombstones(self, txn: ReadTxn, name: str, tombs: np.ndarray) -> None:
        """Note deletions; rows ``(deleted, rowid, created)`` may name other segments' rows too."""
        created = self.created(txn, name)
        if self.base is not None:
            positions, commits = match_run(self.base, self.rows, created, tombs)
        else:
            inside = (tombs[:, 1] >= self.low) & (tombs[:, 1] <= self.high)
            positions, commits = match_versions(self.rowids(txn, name), created, tombs[inside])
        self.end(positions, commits)

    def end(self, positions: np.ndarray, commits: np.ndarray) -> None:
        """Note the deleting commits of rows; int64 (n,) each. One thread at a time."""
        if not len(positions):
            return
        before, known, ends = self.deleted, self._live, self._ends
        # In place: whoever compares the array right now shows an older commit than these are, and
        # to that a row is live before and after. What they make of it meanwhile is not kept.
        deleted = self._fresh_deleted() if before is None else before
        if len(positions) <= _FEW:
            for position, commit in zip(positions.tolist(), commits.tolist(), strict=True):
                if commit < deleted.item(position):
                    deleted[position] = commit
        else:
            deleted[positions] = np.minimum(deleted[positions], commits)
        self._ends = ends + 1
        if before is None or (known is not None and known[0] == ends):
            newest, alive = (0, None) if before is None or known is None else known[1:]
            alive = np.ones(self.rows, dtype=np.bool_) if alive is None else alive.copy()
            alive[positions] = False
            self._live = ends + 1, max(newest, *commits.tolist()), alive
        self.deleted = deleted

    def load_holes(self, txn: ReadTxn, name: str) -> None:
        """Mark rows that were never live."""
        if keys.HOLES_COLUMN in self.columns and self.deleted is None:
            holes = self._load(txn, _HOLES, name).values
            if not holes.any():  # it stands for the rows of a table without scalar columns
                return
            deleted = self._fresh_deleted()
            deleted[holes != 0] = 0
            self.deleted = deleted

    def _fresh_deleted(self) -> np.ndarray:
        return np.full(self.rows, ALIVE, dtype=np.int64)

    def live(self, commit: int) -> np.ndarray | None:
        """Return which rows are live at a commit, or None when all are.

        The same array as before while no tombstone up to the commit is added.
        """
        deleted = self.deleted
        if deleted is None:
            return None
        known, ends = self._live, self._ends
        if known is None or known[0] != ends:
            alive = deleted == ALIVE
            newest = 0 if alive.all() else int(deleted[~alive].max())
            known = self._live = (ends, newest, None if alive.all() else alive)
        if commit >= known[1]:
            return known[2]
        mask: np.ndarray = deleted > commit
        return None if mask.all() else mask


_ROWIDS = ColumnDef(keys.ROWIDS_COLUMN, "rowid", BIGINT)
_CREATED = ColumnDef(keys.CREATED_COLUMN, "created", BIGINT)
_HOLES = ColumnDef(keys.HOLES_COLUMN, "holes", BOOLEAN)
PSEUDO_COLUMNS = {column.id: column for column in (_ROWIDS, _CREATED, _HOLES)}


def _getter(column: Column) -> Callable[[int], Any]:
    plain = column.validity is None and column.offsets is None and not column.type.is_vector
    if plain and column.type.physical not in (Physical.FIXED16, Physical.BOOL):
        item: Callable[[int], Any] = column.values.item
        return item
    if column.validity is None and column.type.physical is Physical.UTF8:
        return _text_getter(column)
    return column.get


def _text_getter(column: Column) -> Callable[[int], str]:
    offsets, raw = column.offsets, memoryview(column.values.data) if len(column.values) else b""

    def get(row: int) -> str:
        start, stop = offsets[row : row + 2].tolist()  # type: ignore[index]
        return str(raw[start:stop], "utf-8")

    return get
