"""Bulk inserts and index builds inside a write set: columns in, blocks and sorted keys out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.columns import Column, concat
from tarsdb.options import OpenOptions
from tarsdb.schema import IndexDef
from tarsdb.storage import keys, row_changes, staging
from tarsdb.storage.index_keys import null_rows
from tarsdb.storage.own_rows import OwnBlock, OwnRows
from tarsdb.storage.stopping import CheckStop, heeding
from tarsdb.storage.unique import BulkKeys, bulk_keys, index_plans, violation

if TYPE_CHECKING:
    from tarsdb.storage.view import TableView

FEW_ROWS = 64


def insert(
    own: OwnRows, view: TableView, columns: Sequence[Column], options: OpenOptions
) -> np.ndarray:
    """Insert rows given as columns in table order; return provisional rowids."""
    table = view.table
    count = len(columns[0]) if columns else 0
    if count < FEW_ROWS:
        lists = [column.to_list() for column in columns]
        rows = list(zip(*lists, strict=True))
        return np.array(row_changes.insert(own, view, rows), dtype=np.int64)
    index_keys: dict[int, BulkKeys] = {
        plan.index.id: bulk_keys(view, own, plan, columns) for plan in index_plans(view, table)
    }
    base = own.next_rowid
    fresh = [
        staging.make_block(base, table, columns, index_keys, part)
        for part in staging.cut_rows(columns, staging.SegmentLimits(options.segment_rows))
    ]
    own.next_rowid += count
    own.add_blocks(fresh)
    own.change_live(count)
    _join_last(own, base, options.segment_rows)
    return np.arange(base, base + count, dtype=np.int64)


def _join_last(own: OwnRows, base: int, limit: int) -> None:
    """Make one block of the last old and the first new one when both are small."""
    at = next(i for i, block in enumerate(own.blocks) if block.base == base)
    if at and own.blocks[at - 1].count + own.blocks[at].count <= limit:
        joined = staging.join_blocks(own.blocks[at - 1], own.blocks[at])
        if joined is not None:
            own.blocks = (*own.blocks[: at - 1], joined, *own.blocks[at + 1 :])


def keep_in_memory(own: OwnRows) -> None:
    """Copy columns of waiting blocks that are views of a caller's arrays."""
    own.blocks = tuple(
        block if block.columns is None or block.owned else _copied(block) for block in own.blocks
    )


def _copied(block: OwnBlock) -> OwnBlock:
    columns = {c: concat(column.type, [column]) for c, column in (block.columns or {}).items()}
    return dataclasses.replace(block, columns=columns, owned=True)


def batches(blocks: Sequence[OwnBlock]) -> list[list[OwnBlock]]:
    """Group blocks into staging transactions."""
    out: list[list[OwnBlock]] = [[]]
    size = 0
    for block in blocks:
        if size and size + block.nbytes > staging.TXN_BYTES:
            out.append([])
            size = 0
        out[-1].append(block)
        size += block.nbytes
    return out


def rebuild_index(own: OwnRows, view: TableView, index: IndexDef, check_stop: CheckStop) -> None:
    """Compute the entries of an index for all live rows; they replace the stored ones."""
    codec = view.state.cache.codec(view.table, index)
    for run in own.runs:  # their rows are among all
        own.journal.append(functools.partial(setattr, run, "keys", run.keys))
        run.keys = {each: found for each, found in run.keys.items() if each != index.id}
    entries = own.index(index.id)
    before = own.indexes.pop(index.id)
    own.journal.append(lambda: own.indexes.__setitem__(index.id, before))
    entries = own.index(index.id)
    built: list[tuple[bytes, int, bool]] = []
    fresh_keys: dict[int, BulkKeys] = {}
    seen: set[bytes] = set()
    for chunk in heeding(view.chunks(index.column_ids), check_stop, 1):
        encoded, nulls = codec.encode_columns(chunk.columns), null_rows(chunk.columns)
        unique = np.full(len(encoded), index.unique)
        if nulls is not None:
            unique &= ~nulls
        for row, (key, rowid, once) in enumerate(
            zip(encoded, chunk.rowids.tolist(), unique.tolist(), strict=True)
        ):
            if once and key in seen:
                raise violation(view.table, index, [c.get(row) for c in chunk.columns])
            if once:
                seen.add(key)
            if rowid < keys.PROVISIONAL and rowid not in own.rows:
                built.append((key, rowid, once))
            elif rowid in own.rows:
                entries.add(rowid, (key, once))
    for block in own.blocks:
        columns = [block.column(view.table.column_by_id(c)) for c in index.column_ids]
        fresh_keys[block.base] = (codec.encode_columns(columns), null_rows(columns))
    _set_block_keys(own, index.id, fresh_keys)
    built.sort()
    entries.set_rebuilt(built, check_stop)


def _set_block_keys(own: OwnRows, index: int, found: dict[int, BulkKeys]) -> None:
    before = {block.base: block.index_keys for block in own.blocks}

    def undo() -> None:
        own.blocks = tuple(
            dataclasses.replace(block, index_keys=before.get(block.base, block.index_keys))
            for block in own.blocks
        )

    own.journal.append(undo)
    own.blocks = tuple(
        dataclasses.replace(block, index_keys={**block.index_keys, index: found[block.base]})
        for block in own.blocks
    )
    own.touch()
