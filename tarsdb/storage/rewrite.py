"""Writing row versions as new segments, and replacing old segments by them.

Shared by merge and vacuum. Old segments are read under a short read transaction and replaced in one
staging transaction, which does nothing when the table's layout changed in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.columns import Column, concat
from tarsdb.errors import StorageFullError
from tarsdb.records import dataclass
from tarsdb.schema import ColumnDef, TableDef
from tarsdb.storage import failpoints, keys, staging
from tarsdb.storage.catalog import current_table
from tarsdb.storage.formats import TableCounters
from tarsdb.storage.segments import Segment, delete_segment, publish, write_blocks
from tarsdb.storage.staging import SegmentLimits
from tarsdb.storage.table_meta import read_counters, write_counters
from tarsdb.storage.transaction import ReadTxn, WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

REWRITE_BYTES = 24 << 20
_LEAST_BYTES = 8 << 10


@dataclass
class Versions:
    """Row versions of one column group, sorted by (rowid, created).

    Attributes
    ----------
    rowids, created : int64 (n,)
    columns : dict
        Column id -> Column.
    """

    rowids: np.ndarray
    created: np.ndarray
    columns: dict[int, Column]

    def __len__(self) -> int:
        return len(self.rowids)

    def take(self, rows: np.ndarray) -> Versions:
        """Return some of the versions, by position."""
        return Versions(
            self.rowids[rows],
            self.created[rows],
            {c: column.take(rows) for c, column in self.columns.items()},
        )


def write_segments(
    txn: WriteTxn,
    table: TableDef,
    group: int,
    versions: Versions,
    counters: TableCounters,
    limits: SegmentLimits,
) -> None:
    """Store versions as published segments and count them."""
    if not len(versions):
        return
    columns = versions.columns or {keys.HOLES_COLUMN: staging.no_holes(len(versions))}
    for start, stop in staging.cut_rows(list(columns.values()), limits):
        part = {c: column.slice(start, stop) for c, column in columns.items()}
        written = write_blocks(txn, table.id, group, counters.next_segment, part)
        counters.next_segment += 1
        digest = publish(txn, written, versions.rowids[start:stop], versions.created[start:stop])
        counters.add_segment(digest)


def group_columns(table: TableDef, group: int) -> list[ColumnDef] | None:
    """Return the columns of a group, or None when its vector column was dropped."""
    if group == 0:
        return list(table.scalar_columns)
    return next(([c] for c in table.vector_columns if c.id == group), None)


def list_segments(txn: ReadTxn, table: TableDef) -> dict[int, list[Segment]]:
    """Return fresh Segment objects of a table by group, with holes marked."""
    found: dict[int, list[Segment]] = {}
    for key, value in txn.range("segments", *keys.table_range(table.id)):
        segment = Segment(key, value, table.name)
        segment.load_holes(txn, table.name)
        found.setdefault(segment.group, []).append(segment)
    return found


def read_versions(
    txn: ReadTxn, table: TableDef, segments: Sequence[Segment], columns: list[ColumnDef]
) -> Versions:
    """Return the versions of segments that are not marked deleted, sorted, copied."""
    rowids, created = [], []
    parts: dict[int, list[Column]] = {column.id: [] for column in columns}
    for segment in segments:
        every = np.arange(segment.rows)
        keep = every if segment.deleted is None else np.flatnonzero(segment.deleted == _ALIVE)
        rowids.append(segment.rowids(txn, table.name)[keep])
        created.append(segment.created_at(txn, table.name, keep))
        for column in columns:
            parts[column.id].append(segment.column(txn, column, table.name).take(keep))
    all_rowids, all_created = np.concatenate(rowids), np.concatenate(created)
    order = np.lexsort((all_created, all_rowids))
    joined = {c.id: concat(c.type, parts[c.id]).take(order) for c in columns}
    return Versions(all_rowids[order], all_created[order], joined)


_ALIVE = np.iinfo(np.int64).max


def replace_segments(
    txn: WriteTxn,
    table: TableDef,
    old: Sequence[Segment],
    new: Versions,
    counters: TableCounters,
    limits: SegmentLimits,
) -> None:
    """Put versions in the place of segments; the caller stores the counters."""
    write_segments(txn, table, old[0].group, new, counters, limits)
    for segment in old:
        delete_segment(txn, table.id, segment.group, segment.id)
        counters.remove_segment(segment.digest)
    counters.layout += 1


def within_space(step: Callable[[int], int]) -> int:
    """Run a rewriting step with a limit on its bytes, a smaller one while space is short.

    A step needs room for what it writes before it gives back what it replaces. Its segments must
    keep to the limit too: LMDB stores a block in consecutive pages, and the free ones may be many
    without many of them in a row.
    """
    limit = REWRITE_BYTES
    while True:
        try:
            return step(limit)
        except StorageFullError:
            if limit <= _LEAST_BYTES:
                raise
            limit //= 8


def combine_small(env: Environment, table: TableDef, least: int) -> int:
    """Rewrite small segments as full ones where at least ``least`` are small; return how many.

    Does nothing where there is no room for it.
    """
    combined = 0
    with env.read() as txn:
        by_group = list_segments(txn, table)
    for segments in by_group.values():
        limits = SegmentLimits(env.options.segment_rows)
        small = [segment for segment in segments if _is_small(segment, limits)]
        if len(small) >= max(least, 2):
            with contextlib.suppress(StorageFullError):
                combined += _combine(env, table.id, small)
    return combined


def _is_small(segment: Segment, limits: SegmentLimits) -> bool:
    rows, nbytes = segment.rows, segment.nbytes
    full = limits.rows if segment.group else limits.narrow_rows(rows, nbytes)
    return rows < full // 2 and nbytes < limits.nbytes // 2  # wide rows fill its bytes first


def _combine(env: Environment, table_id: int, small: list[Segment]) -> int:
    batch, size = [], 0
    for segment in small:
        if size + segment.nbytes > REWRITE_BYTES:
            break
        batch.append(segment)
        size += segment.nbytes
    if len(batch) < 2:
        return 0
    with env.read() as txn:
        table = current_table(txn, env.caches, table_id)
        columns = None if table is None else group_columns(table, batch[0].group)
        if table is None or columns is None:
            return 0
        layout = read_counters(txn, table.id, table.name).layout
        wanted = {segment.id for segment in batch}
        listed = list_segments(txn, table).get(batch[0].group, [])
        current = [segment for segment in listed if segment.id in wanted]
        if len(current) != len(batch):
            return 0
        versions = read_versions(txn, table, current, columns)

    def work(txn: WriteTxn) -> int:
        counters = read_counters(txn, table.id, table.name)
        if counters.layout != layout:
            return 0
        failpoints.hit("merge.before_write")
        limits = SegmentLimits(env.options.segment_rows)
        replace_segments(txn, table, current, versions, counters, limits)
        write_counters(txn, table.id, counters)
        failpoints.hit("merge.before_commit")
        return len(current)

    return env.stage(work)
