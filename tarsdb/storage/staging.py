"""Bulk rows on their way to disk: cutting them into segment-sized blocks and staging those.

Rows wait in memory until 20 MB have gathered; then they are written as unreferenced blocks in
transactions of at most 32 MB under a lease, and the commit only publishes them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tarsdb.columns import Column, concat
from tarsdb.schema import TableDef
from tarsdb.storage import failpoints, formats, keys, leases
from tarsdb.storage.environment import Environment
from tarsdb.storage.own_rows import OwnBlock, StagedGroup
from tarsdb.storage.segments import SegmentBlocks, delete_segment, write_blocks
from tarsdb.storage.table_meta import read_counters, write_counters
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.unique import BulkKeys
from tarsdb.types import BOOLEAN

STAGE_BYTES = 20 << 20
TXN_BYTES = 28 << 20
SEGMENT_BYTES = 16 << 20
_WIDER, _NARROW_BYTES = 4, 1 << 19  # a scan has costs by the segment, a row read by its bytes
HOLD = b"segment/"


class SegmentLimits(NamedTuple):
    """How large a segment may become.

    Segments without vectors may have four times as many rows, as long as they stay below 512 KiB.
    """

    rows: int
    nbytes: int = SEGMENT_BYTES

    def narrow_rows(self, rows: int, nbytes: int) -> int:
        """Return how many rows fill a segment without vectors, of the size of some rows."""
        filled = _NARROW_BYTES * rows // max(nbytes, 1)
        return min(max(filled, self.rows), _WIDER * self.rows)


def cut_rows(columns: Sequence[Column], limits: SegmentLimits) -> list[tuple[int, int]]:
    """Return row ranges of even size within the limits of a segment."""
    rows = len(columns[0])
    nbytes = sum(column.nbytes for column in columns)
    has_vectors = any(column.type.is_vector for column in columns)
    most = limits.rows if has_vectors else limits.narrow_rows(rows, nbytes)
    pieces = max(-(-rows // most), -(-nbytes // limits.nbytes), 1)
    bounds = np.linspace(0, rows, pieces + 1).astype(int).tolist()
    return [(a, b) for a, b in itertools.pairwise(bounds) if b > a]


def make_block(
    base: int,
    table: TableDef,
    columns: Sequence[Column],
    index_keys: dict[int, BulkKeys],
    part: tuple[int, int],
) -> OwnBlock:
    """Return a range of bulk rows as a block of views."""
    start, stop = part
    return OwnBlock(
        base + start,
        stop - start,
        {
            definition.id: column.slice(start, stop)
            for definition, column in zip(table.columns, columns, strict=True)
        },
        {
            index: (found[start:stop], None if nulls is None else nulls[start:stop])
            for index, (found, nulls) in index_keys.items()
        },
    )


def join_blocks(first: OwnBlock, second: OwnBlock) -> OwnBlock | None:
    """Return two adjacent in-memory blocks as one, or None when they do not fit together."""
    if first.columns is None or second.columns is None or first.dead is not None:
        return None
    if first.base + first.count != second.base or first.columns.keys() != second.columns.keys():
        return None
    if first.index_keys.keys() != second.index_keys.keys():
        return None
    columns = {c: concat(left.type, [left, second.columns[c]]) for c, left in first.columns.items()}
    joined = {
        index: (left + second.index_keys[index][0], _join_nulls(first, second, index))
        for index, (left, _) in first.index_keys.items()
    }
    return OwnBlock(first.base, first.count + second.count, columns, joined, owned=True)


def _join_nulls(first: OwnBlock, second: OwnBlock, index: int) -> np.ndarray | None:
    parts = [block.index_keys[index][1] for block in (first, second)]
    if parts[0] is None and parts[1] is None:
        return None
    return np.concatenate(
        [
            np.zeros(block.count, dtype=bool) if nulls is None else nulls
            for block, nulls in zip((first, second), parts, strict=True)
        ]
    )


def column_groups(
    table: TableDef, columns: dict[int, Column]
) -> Iterable[tuple[int, dict[int, Column], np.ndarray | None]]:
    """Yield (group, columns, positions of its rows or None for all) of rows to store."""
    scalars = {c.id: columns[c.id] for c in table.scalar_columns if c.id in columns}
    if not scalars:  # rows of a table without scalar columns still exist
        rows = len(next(iter(columns.values())))
        scalars = {keys.HOLES_COLUMN: no_holes(rows)}
    yield 0, scalars, None
    for definition in table.vector_columns:
        column = columns.get(definition.id)
        if column is None:
            continue
        if column.validity is None or column.validity.all():
            yield definition.id, {definition.id: dataclasses.replace(column, validity=None)}, None
        elif column.validity.any():
            positions = np.flatnonzero(column.validity)
            kept = Column(column.type, column.values[positions])
            yield definition.id, {definition.id: kept}, positions


def no_holes(rows: int) -> Column:
    """Return the column that stands for rows without scalars."""
    return Column(BOOLEAN, np.zeros(rows, dtype=np.uint8))


def write_groups(
    txn: WriteTxn, table: TableDef, columns: dict[int, Column], counters: formats.TableCounters
) -> dict[int, StagedGroup]:
    """Store rows as blocks of new segments that nothing refers to yet."""
    staged = {}
    for group, members, positions in column_groups(table, columns):
        number = counters.next_segment
        counters.next_segment += 1
        written = write_blocks(txn, table.id, group, number, members)
        staged[group] = StagedGroup(written, positions)
    return staged


def stage_blocks(
    env: Environment,
    table: TableDef,
    blocks: Sequence[OwnBlock],
    lease: leases.Lease,
    reader: Callable[[], ReadTxn],
    is_written: Callable[[], None],
) -> list[OwnBlock]:
    """Write in-memory blocks to disk, unreferenced and leased; return them without columns.

    ``is_written`` is called when all is in the transaction, before its commit.
    """

    def work(txn: WriteTxn) -> list[dict[int, StagedGroup]]:
        counters = read_counters(txn, table.id, table.name)
        written = []
        for block in blocks:
            groups = write_groups(txn, table, block.columns or {}, counters)
            for group in groups.values():
                lease.hold(txn, hold_name(group.blocks))
            written.append(groups)
        write_counters(txn, table.id, counters)
        failpoints.hit("load.before_stage")
        is_written()
        return written

    staged = env.stage(work)
    return [
        dataclasses.replace(block, columns=None, staged=groups, reader=reader)
        for block, groups in zip(blocks, staged, strict=True)
    ]


def hold_name(written: SegmentBlocks) -> bytes:
    """Return the lease name of a staged segment."""
    return HOLD + keys.segment_key(written.table, written.group, written.id)


def release_staged(txn: WriteTxn, token: bytes) -> int:
    """Delete the staged segments under a lease that no commit published; return how many."""
    gone = 0
    for held in list(leases.held(txn)):
        if held.token == token and held.name.startswith(HOLD):
            gone += _drop_unpublished(txn, held.name[len(HOLD) :])
    leases.forget(txn, token)
    return gone


def _drop_unpublished(txn: WriteTxn, key: bytes) -> int:
    if txn.get("segments", key) is not None:
        return 0
    delete_segment(txn, *keys.read_segment_key(key))
    return 1
