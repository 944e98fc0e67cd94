"""Writing a transaction's row versions: tombstones, delta records, published segments, counters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tarsdb.schema import ColumnDef, TableDef
from tarsdb.storage import keys, staging
from tarsdb.storage.blocks import missing_value
from tarsdb.storage.formats import TableCounters
from tarsdb.storage.own_rows import OwnBlock, OwnRows
from tarsdb.storage.records import shape_of
from tarsdb.storage.segments import publish
from tarsdb.storage.transaction import WriteTxn
from tarsdb.storage.values import ValueType, pack

MIN_SEGMENT_ROWS = 256
MIN_SEGMENT_BYTES = 1 << 20


def write_rows(
    txn: WriteTxn, table: TableDef, own: OwnRows, counters: TableCounters, shift: int
) -> dict[str, int]:
    """Write all versions of one table and bring its counters up to date.

    Returns
    -------
    dict
        Rows written and ended, for the commit log.
    """
    _write_tombstones(txn, table, own, counters)
    _write_singles(txn, table, own.rows, counters, shift)
    published, written = 0, len(own.rows)
    bulk = [(block, block.rowids() + shift) for block in own.blocks]
    for run in own.runs:
        if run.block is not None:
            kept = own.kept(run)
            block = run.block if kept is None else dataclasses.replace(run.block, dead=~kept)
            bulk.append((block, run.rowids))
    for block, rowids in bulk:
        if live := block.live_count():
            published += _write_block(txn, table, block, rowids, counters)
            written += live
    counters.layout += 1 if published else 0
    counters.next_rowid += own.inserted
    counters.live_rows += own.live_change
    counters.last_commit = txn.commit_number
    return {"written": written, "ended": len(own.hidden) + len(own.run_of)}


def _write_tombstones(
    txn: WriteTxn, table: TableDef, own: OwnRows, counters: TableCounters
) -> None:
    commit = txn.commit_number
    items = [
        (keys.tomb_key(table.id, group, commit, rowid, created), b"")
        for rowid, groups in own.hidden.items()
        for group, created in groups.items()
    ]
    if items:
        items.sort()
        txn.put_many("tombs", items)
        counters.tombstones += len(items)
    for run in own.runs:
        kept = own.kept(run)
        for group, created in run.ended.items():
            ends = created > 0 if kept is None else (created > 0) & kept
            found = keys.tomb_keys(table.id, group, commit, run.rowids[ends], created[ends])
            txn.put_pairs("tombs", found, [b""] * len(found))
            counters.tombstones += len(found)


def _write_singles(
    txn: WriteTxn,
    table: TableDef,
    rows: dict[int, dict[int, Any]],
    counters: TableCounters,
    shift: int,
) -> None:
    scalars, vectors = table.scalar_columns, table.vector_columns
    shape, commit = shape_of(scalars), txn.commit_number
    items: list[tuple[bytes, bytes]] = []
    for rowid, row in rows.items():
        final = rowid + shift if rowid >= keys.PROVISIONAL else rowid
        record = shape.encode([row[c.id] if c.id in row else missing_value(c) for c in scalars])
        items.append(_version(keys.delta_key(table.id, 0, commit, final), record, commit))
        for column in vectors:
            value = row.get(column.id)
            if value is not None:
                key = keys.delta_key(table.id, column.id, commit, final)
                items.append(_version(key, _vector_bytes(value, column), commit))
    if len(items) == 1:  # without a cursor
        txn.put("delta", *items[0])
    else:
        txn.put_many("delta", items)
    counters.delta_records += len(items)
    counters.delta_bytes += sum(len(value) for _, value in items)
    counters.delta_rows += len(rows)


def _vector_bytes(value: Any, column: ColumnDef) -> bytes:
    return np.ascontiguousarray(value, dtype=column.type.dtype).tobytes()


def _version(key: bytes, payload: bytes, commit: int) -> tuple[bytes, bytes]:
    return key, pack(ValueType.DELTA, key, payload, 1, commit)


def _write_block(
    txn: WriteTxn, table: TableDef, block: OwnBlock, rowids: np.ndarray, counters: TableCounters
) -> int:
    """Publish one bulk block; returns the segments made. A small one goes to the delta."""
    if block.columns is not None:
        columns = block.columns
        positions = None if block.dead is None else np.flatnonzero(~block.dead)
        if block.live_count() < MIN_SEGMENT_ROWS and block.nbytes < MIN_SEGMENT_BYTES:
            _write_singles(txn, table, _block_rows(table, block, rowids, positions), counters, 0)
            return 0
        if positions is not None:
            columns = {c: column.take(positions) for c, column in columns.items()}
            rowids = rowids[positions]
        groups = staging.write_groups(txn, table, columns, counters)
        dead = None
    else:
        groups, dead = block.staged, block.dead
    for group in groups.values():
        members = rowids if group.positions is None else rowids[group.positions]
        holes = dead if dead is None or group.positions is None else dead[group.positions]
        digest = publish(txn, group.blocks.copy(), members, txn.commit_number, holes)
        counters.add_segment(digest)
    return len(groups)


def _block_rows(
    table: TableDef, block: OwnBlock, rowids: np.ndarray, positions: np.ndarray | None
) -> dict[int, dict[int, Any]]:
    """Return rowid -> column id -> value of the rows at `positions`; None means all."""
    held = [c for c in table.columns if block.columns is None or c.id in block.columns]
    columns = [block.column(column) for column in held]
    if positions is not None:
        rowids, columns = rowids[positions], [column.take(positions) for column in columns]
    ids = [column.id for column in held]
    rows = zip(*(column.to_list() for column in columns), strict=True)
    return {
        rowid: dict(zip(ids, row, strict=True))
        for rowid, row in zip(rowids.tolist(), rows, strict=True)
    }
