"""Writing a transaction's row versions: tombstones, delta records, published segments, counters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tarsdb.schema import TableDef
from tarsdb.storage import keys, staging
from tarsdb.storage.blocks import missing_value
from tarsdb.storage.formats import TableCounters
from tarsdb.storage.fresh import FreshVersions
from tarsdb.storage.own_rows import OwnBlock, OwnRows
from tarsdb.storage.records import shape_of
from tarsdb.storage.segments import publish
from tarsdb.storage.transaction import WriteTxn
from tarsdb.storage.values import ValueType, pack_each

MIN_SEGMENT_ROWS = 256
MIN_SEGMENT_BYTES = 1 << 20


def write_rows(
    txn: WriteTxn, table: TableDef, own: OwnRows, counters: TableCounters, shift: int
) -> tuple[dict[str, int], FreshVersions]:
    """Write all versions of one table and bring its counters up to date.

    Returns
    -------
    log : dict
        Rows written and ended, for the commit log.
    fresh : FreshVersions
        What went to the delta.
    """
    fresh = FreshVersions(counters.delta_generation, counters.last_commit, txn.commit_number)
    rows = own.rows
    if shift:
        rows = {r + shift if r >= keys.PROVISIONAL else r: row for r, row in rows.items()}
    _write_tombstones(txn, table, own, counters)
    _write_singles(txn, table, rows, counters, fresh)
    published, written = 0, len(own.rows)
    bulk = [(block, block.rowids() + shift) for block in own.blocks]
    for run in own.runs:
        if run.block is not None:
            kept = own.kept(run)
            block = run.block if kept is None else dataclasses.replace(run.block, dead=~kept)
            bulk.append((block, run.rowids))
    for block, rowids in bulk:
        if live := block.live_count():
            published += _write_block(txn, table, (block, rowids), counters, fresh)
            written += live
    counters.layout += 1 if published else 0
    counters.next_rowid += own.inserted
    counters.live_rows += own.live_change
    counters.last_commit = txn.commit_number
    return {"written": written, "ended": len(own.hidden) + len(own.run_of)}, fresh


def _write_tombstones(
    txn: WriteTxn, table: TableDef, own: OwnRows, counters: TableCounters
) -> None:
    commit = txn.commit_number
    ended = [
        keys.tomb_key(table.id, group, commit, rowid, created)
        for rowid, groups in own.hidden.items()
        for group, created in groups.items()
    ]
    txn.put_pairs("tombs", ended, [b""] * len(ended))
    counters.add_tombstones(ended)
    for run in own.runs:
        kept = own.kept(run)
        for group, created in run.ended.items():
            ends = created > 0 if kept is None else (created > 0) & kept
            found = keys.tomb_keys(table.id, group, commit, run.rowids[ends], created[ends])
            txn.put_pairs("tombs", found, [b""] * len(found))
            counters.add_tombstones(found)


def _write_singles(
    txn: WriteTxn,
    table: TableDef,
    rows: dict[int, dict[int, Any]],
    counters: TableCounters,
    fresh: FreshVersions,
) -> None:
    """Add versions of rows to the delta, by final rowid what is new of each by column id."""
    if not rows:
        return
    scalars, rowids = table.scalar_columns, sorted(rows)
    shape = shape_of(scalars)
    records = [
        shape.encode([row[c.id] if c.id in row else missing_value(c) for c in scalars])
        for row in map(rows.__getitem__, rowids)
    ]
    _write_versions(txn, (table.id, 0), rowids, records, counters, fresh)
    for column in table.vector_columns:
        column_id, dtype = column.id, column.type.dtype
        chosen = [rowid for rowid in rowids if rows[rowid].get(column_id) is not None]
        vectors = [
            np.ascontiguousarray(rows[rowid][column_id], dtype=dtype).tobytes() for rowid in chosen
        ]
        _write_versions(txn, (table.id, column_id), chosen, vectors, counters, fresh)
    counters.delta_rows += len(rows)


def _write_versions(
    txn: WriteTxn,
    whose: tuple[int, int],
    rowids: list[int],
    payloads: list[bytes],
    counters: TableCounters,
    fresh: FreshVersions,
) -> None:
    """Add versions of one column group, given as table and group, to the delta."""
    commit = txn.commit_number
    found = [keys.delta_key(*whose, commit, rowid) for rowid in rowids]
    values = pack_each(ValueType.DELTA, found, payloads, commit)
    txn.put_pairs("delta", found, values)
    counters.delta_records += len(found)
    counters.delta_bytes += sum(map(len, values))
    fresh.add(whose[1], rowids, payloads)


def _write_block(
    txn: WriteTxn,
    table: TableDef,
    rows: tuple[OwnBlock, np.ndarray],
    counters: TableCounters,
    fresh: FreshVersions,
) -> int:
    """Publish a block of rows with these rowids; returns the segments made, 0 for the delta."""
    block, rowids = rows
    if block.columns is not None:
        columns = block.columns
        positions = None if block.dead is None else np.flatnonzero(~block.dead)
        if block.live_count() < MIN_SEGMENT_ROWS and block.nbytes < MIN_SEGMENT_BYTES:
            single = _block_rows(table, block, rowids, positions)
            _write_singles(txn, table, single, counters, fresh)
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
