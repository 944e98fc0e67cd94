"""Integrity check: every counter, header, checksum, tombstone and index entry against the rest.

Reads past every cache, in one read transaction, and changes nothing. A finding is a sentence that
names the table and the rows; an index that disagrees is mended by ``WriteSet.rebuild_index``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.errors import Error, InterruptError, StatementTimeoutError
from tarsdb.schema import CatalogObject, IndexDef, TableDef
from tarsdb.storage import blobs, history, inference, keys, object_ids, packed, rewrite
from tarsdb.storage.catalog import load_objects
from tarsdb.storage.formats import DIGEST_MASK, TableCounters
from tarsdb.storage.index_keys import null_rows
from tarsdb.storage.index_parts import parts_key, read_parts
from tarsdb.storage.scalar_index import split_entry
from tarsdb.storage.segments import Segment
from tarsdb.storage.state import TableCache
from tarsdb.storage.stopping import CheckStop, heeding, never
from tarsdb.storage.table_meta import read_counters
from tarsdb.storage.tombstones import sum_tombstones
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.vacuum import blob_digests
from tarsdb.storage.values import ValueType, unpack
from tarsdb.storage.view import TableView

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment


def check(env: Environment, full: bool = False, check_stop: CheckStop = never) -> list[str]:
    """Return findings, empty when the file is sound.

    Parameters
    ----------
    env : Environment
    full : bool
        Also verify every checksum, every tombstone, every index entry, every blob, and that
        the commit log and the catalog tell the same.
    check_stop : callable, optional
        Asked every few thousand rows or entries; what it raises ends the check.
    """
    with env.read() as txn:
        damaged: dict[tuple[str, str], str] = {}
        try:
            objects = load_objects(txn, damaged)
        except Error as error:
            return [f"catalog: {error.message}"]
        findings = list(damaged.values())
        findings += [*history.check(txn, objects, full, damaged), *object_ids.check(txn, objects)]
        for definition in heeding(objects.values(), check_stop, 1):
            if isinstance(definition, TableDef):
                findings += check_table(txn, definition, full, check_stop)
            elif full:
                findings += _check_blobs(txn, definition)
        if full:
            findings += [*inference.check(txn), *packed.check(txn)]
        return findings


def check_table(
    txn: ReadTxn, table: TableDef, full: bool, check_stop: CheckStop = never
) -> list[str]:
    """Return the findings of one table."""
    try:
        counters = read_counters(txn, table.id, table.name)
        segments = rewrite.list_segments(txn, table)
    except Error as error:
        return [error.message]
    every = [segment for group in segments.values() for segment in group]
    findings = list(_check_counters(txn, table, counters, every))
    for segment in heeding(every, check_stop, 1):
        findings += _check_blocks(txn, table, segment, full)
    if full:
        findings += _check_delta(txn, table, check_stop)
    if full and not findings:
        try:
            findings += _check_rows(txn, table, counters, check_stop)
        except (InterruptError, StatementTimeoutError):  # damage is what is looked for
            raise
        except Error as error:
            findings.append(error.message)
    return findings


def _check_counters(
    txn: ReadTxn, table: TableDef, counters: TableCounters, segments: list[Segment]
) -> Iterator[str]:
    start, stop = keys.table_range(table.id)
    delta = [keys.read_delta_key(key)[1] for key, _ in txn.range("delta", start, stop)]
    tombs, tomb_digest = sum_tombstones(txn, table.id)
    digest = sum(segment.digest for segment in segments) & DIGEST_MASK
    found = {
        "segments": (counters.segments, len(segments)),
        "segment digest": (counters.segment_digest, digest),
        "delta records": (counters.delta_records, len(delta)),
        "delta rows": (counters.delta_rows, delta.count(0)),
        "tombstones": (counters.tombstones, tombs),
    }
    if counters.tombstone_digest is not None:
        found["tombstone digest"] = (counters.tombstone_digest, tomb_digest)
    for what, (expected, actual) in found.items():
        if expected != actual:
            yield f"table {table.name}: {what} should be {expected}, found {actual}"
    if any(segment.high >= counters.next_rowid for segment in segments):
        yield f"table {table.name}: a segment holds rowids not given out yet"


def _check_blocks(txn: ReadTxn, table: TableDef, segment: Segment, full: bool) -> Iterator[str]:
    rows = f"table {table.name}, rows {segment.low}..{segment.high}"
    for column_id, (_, _, checksum) in segment.columns.items():
        known = next((c.name for c in table.columns if c.id == column_id), str(column_id))
        where = f"{rows}, column {known}"
        key = keys.block_key(segment.table, segment.group, segment.id, column_id)
        value = txn.get("blocks", key)
        if value is None:
            yield f"{where}: the block is missing"
            continue
        try:
            _, held, _ = unpack(ValueType.BLOCK, key, value, where, check=full)
        except Error as error:
            yield error.message
            continue
        if held != segment.rows or bytes(value[32:40]).hex() != checksum:
            yield f"{where}: the block is not the one the segment was made with"


def _check_delta(txn: ReadTxn, table: TableDef, check_stop: CheckStop) -> Iterator[str]:
    stored = txn.range("delta", *keys.table_range(table.id))
    for key, value in heeding(stored, check_stop):
        rowid = keys.read_delta_key(key)[3]
        try:
            unpack(ValueType.DELTA, key, value, f"table {table.name}, row {rowid} in the delta")
        except Error as error:
            yield error.message


def _check_rows(
    txn: ReadTxn, table: TableDef, counters: TableCounters, check_stop: CheckStop
) -> Iterator[str]:
    raw = txn.get("meta", keys.table_key(table.id))
    state = TableCache(table.id, is_trusted=True).state(
        b"" if raw is None else bytes(raw), table.name
    )
    view = TableView(txn, table, state, None)
    rowids = np.sort(np.concatenate([_NONE, *(chunk.rowids for chunk in view.chunks([]))]))
    if len(rowids) != counters.live_rows:
        yield f"table {table.name}: {counters.live_rows} rows should be live, found {len(rowids)}"
    twice = rowids[1:][rowids[1:] == rowids[:-1]]
    if len(twice):
        yield f"table {table.name}: {_span(twice)} live more than once"
    for column in table.columns:
        if column.type.is_vector:
            yield from _check_vectors(view, column.id, rowids)
    for index in table.indexes:
        if index.method == "btree":
            yield from _check_index(view, index, check_stop)
        else:
            yield from _check_parts(txn, table, index)
    yield from _check_tombstones(txn, table, check_stop)


_NONE = np.empty(0, dtype=np.int64)


def _check_vectors(view: TableView, column_id: int, rowids: np.ndarray) -> Iterator[str]:
    parts = [
        block.rowids if block.live is None else block.rowids[block.live]
        for block in view.vectors(column_id)
    ]
    owners = np.sort(np.concatenate([_NONE, *parts]))
    name = f"table {view.table.name}, column {view.table.column_by_id(column_id).name}"
    stray = owners[~np.isin(owners, rowids)]
    if len(stray):
        yield f"{name}: vectors of rows that are not live, {_span(stray)}"
    twice = owners[1:][owners[1:] == owners[:-1]]
    if len(twice):
        yield f"{name}: more than one vector, {_span(twice)}"


def _check_tombstones(txn: ReadTxn, table: TableDef, check_stop: CheckStop) -> Iterator[str]:
    known = {0, *(column.id for column in table.vector_columns)}
    ended: dict[tuple[int, int, int], int] = {}
    twice = 0
    for key, _ in heeding(txn.range("tombs", *keys.table_range(table.id)), check_stop):
        _, group, commit, rowid, created = keys.read_tomb_key(key)
        if group in known:
            twice += (group, rowid, created) in ended
            ended[group, rowid, created] = commit
            if commit > txn.commit_number or commit < created:
                yield f"table {table.name}, row {rowid}: deleted by impossible commit {commit}"
    if twice:
        yield f"table {table.name}: {twice} row versions are deleted twice"


def _check_index(view: TableView, index: IndexDef, check_stop: CheckStop) -> Iterator[str]:
    codec = view.state.cache.codec(view.table, index)
    expected: set[tuple[bytes, int]] = set()
    taken: set[bytes] = set()
    clashes = 0
    for chunk in heeding(view.chunks(index.column_ids), check_stop, 1):
        nulls = null_rows(chunk.columns)
        for at, (key, rowid) in enumerate(
            zip(codec.encode_columns(chunk.columns), chunk.rowids.tolist(), strict=True)
        ):
            expected.add((key, rowid))
            if index.unique and (nulls is None or not nulls[at]):
                clashes += key in taken
                taken.add(key)
    name = f"table {view.table.name}, index {index.name}"
    if clashes:
        yield f"{name}: {clashes} live rows share a unique key"
    stray: list[int] = []
    stored = view.txn.range("index", *keys.table_range(index.id))
    for key, value in heeding(stored, check_stop):
        if len(value) != 8:
            yield f"{name}: an entry is damaged"
            continue
        found = split_entry(key, value)
        if found in expected:
            expected.discard(found)
        else:
            stray.append(found[1])
    if stray:
        yield f"{name}: {len(stray)} entries lead to no live row with that key, {_span(stray)}"
    if expected:
        lost = [rowid for _, rowid in expected]
        yield f"{name}: {len(lost)} live rows have no entry, {_span(lost)}"


def _span(rowids: list[int] | np.ndarray) -> str:
    low, high = int(min(rowids)), int(max(rowids))
    return f"row {low}" if low == high else f"rows {low}..{high}"


def _check_blobs(txn: ReadTxn, definition: CatalogObject) -> Iterator[str]:
    for digest in sorted(blob_digests(definition)):
        yield from _check_blob(txn, digest, definition.name)


def _check_blob(txn: ReadTxn, digest: str, name: str) -> Iterator[str]:
    try:
        for _ in blobs.blob_views(txn, digest):
            pass
    except Error as error:
        yield f"{name}: {error.message}"


def _check_parts(txn: ReadTxn, table: TableDef, index: IndexDef) -> Iterator[str]:
    name = f"table {table.name}, index {index.name} (REINDEX rebuilds it)"
    try:
        parts = read_parts(txn, index.id)
    except Error as error:
        yield f"{name}: {error.message}"
        return
    if txn.get("meta", parts_key(index.id)) is None:
        yield f"{name}: its list of parts is missing"
    for part in parts:
        if part.digest:
            yield from _check_blob(txn, part.digest, name)
