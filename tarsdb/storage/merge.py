"""Merging: the delta of a table becomes segments, and small segments become full ones.

Versions keep their identity (rowid, created commit), so tombstones and indexes are not touched and
readers are not held up: blocks are built from a short read transaction and written in one staging
transaction, which gives up when another merge came first. A writer starts a short-lived background
thread when the delta passes its limit or it made some segments, and merges itself at four times the
limit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np

from tarsdb.columns import Column, from_list
from tarsdb.errors import CorruptionError, Error, StorageFullError
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass
from tarsdb.schema import TableDef
from tarsdb.storage import background, failpoints, keys, records, rewrite
from tarsdb.storage.blocks import missing_value
from tarsdb.storage.catalog import CatalogView, current_table, load_objects
from tarsdb.storage.formats import TableCounters
from tarsdb.storage.rewrite import Versions
from tarsdb.storage.staging import SegmentLimits
from tarsdb.storage.state import table_cache
from tarsdb.storage.stopping import CheckStop, never
from tarsdb.storage.table_meta import read_counters, write_counters
from tarsdb.storage.transaction import ReadTxn, WriteTxn
from tarsdb.storage.values import ValueType, unpack

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

THREAD = "merge"
_PRESSURE = 4
_SMALL_SEGMENTS = 4
_NEW_SEGMENTS = 16
"""Segments a process makes of a table before it looks whether small ones can be combined."""


def merge(
    env: Environment,
    table: TableDef | None = None,
    force: bool = False,
    check_stop: CheckStop = never,
) -> int:
    """Merge deltas into segments; return the row versions moved.

    Parameters
    ----------
    env : Environment
    table : TableDef, optional
        Only this table.
    force : bool
        Merge however few rows the delta holds.
    check_stop : callable, optional
        Asked before every transaction; what was merged by then stays so.
    """
    with env.merging:
        moved = 0
        for each in [table] if table is not None else tables_of(env):
            limit = -1 if force else env.options.delta_limit_rows
            moved += _merge_table(env, each, limit, check_stop)
            check_stop()
            rewrite.combine_small(env, each, 2 if force else _SMALL_SEGMENTS)
        return moved


def tables_of(env: Environment) -> list[TableDef]:
    """Return the tables of the latest commit whose definitions are sound."""
    with env.read() as txn:
        return CatalogView(load_objects(txn, {})).tables()


@dataclass
class _Prepared:
    """Delta records read for one staging transaction, by column group."""

    table: TableDef
    generation: int
    versions: dict[int, Versions] = field(default_factory=dict)
    doomed: list[bytes] = field(default_factory=list)
    rows: int = 0
    nbytes: int = 0


def _merge_table(env: Environment, table: TableDef, limit: int, check_stop: CheckStop) -> int:
    moved = 0

    def step(nbytes: int) -> int:
        """Merge up to so many bytes; return the records read, 0 when there is no more to do."""
        nonlocal moved
        check_stop()
        with env.read() as txn:
            now = current_table(txn, env.caches, table.id)
            counters = read_counters(txn, table.id, table.name)
            if now is None or not counters.delta_records:
                return 0
            if not moved and counters.delta_rows <= limit:
                return 0
            prepared = None
            if counters.delta_bytes <= nbytes:
                prepared = _known(txn, env, now, counters)
            if prepared is None:
                prepared = _prepare(txn, now, counters, nbytes)
        failpoints.hit("merge.before_stage")
        frees_space = limit < 0  # asked for: the delta's pages are free afterwards
        work = functools.partial(_write, env=env, prepared=prepared)
        if env.stage(work, frees_space=frees_space):
            moved += len(prepared.doomed)
            METRICS.add("storage.merges")
        return len(prepared.doomed)

    while rewrite.within_space(step):
        pass
    return moved


def _known(
    txn: ReadTxn, env: Environment, table: TableDef, counters: TableCounters
) -> _Prepared | None:
    """Return the whole delta as this process has decoded it already; None where it has not."""
    cache = table_cache(env.caches, table.id)
    if not cache.has_read(counters.delta_generation):
        return None
    raw = txn.get("meta", keys.table_key(table.id))
    state = cache.state(b"" if raw is None else bytes(raw), table.name)
    prepared = _Prepared(table, counters.delta_generation, nbytes=counters.delta_bytes)
    for column in (None, *table.vector_columns):
        number = 0 if column is None else column.id
        group = state.group(txn, number, column)
        log, count = group.delta, group.count
        if not count:
            continue
        rowids, created = log.rowids.prefix(count), log.created.prefix(count)
        order = np.lexsort((created, rowids))
        if column is None:
            prepared.rows = count
            columns = {c.id: log.column(c, count).take(order) for c in table.scalar_columns}
        else:
            columns = {column.id: Column(column.type, log.vectors(count)[order])}
        prepared.versions[number] = Versions(rowids[order], created[order], columns)
        prepared.doomed += keys.delta_keys(table.id, number, created, rowids)
    # records of a column that was dropped are known to nobody
    return prepared if len(prepared.doomed) == counters.delta_records else None


def _prepare(txn: ReadTxn, table: TableDef, counters: TableCounters, nbytes: int) -> _Prepared:
    """Read and decode delta records up to the size of one staging transaction."""
    prepared = _Prepared(table, counters.delta_generation)
    found: dict[int, list[tuple[int, int, bytes]]] = {}
    start, stop = keys.table_range(table.id)
    for key, value in txn.range("delta", start, stop):
        _, group, created, rowid = keys.read_delta_key(key)
        where = f"table {table.name}, row {rowid} in the delta"
        payload, _, _ = unpack(ValueType.DELTA, key, value, where)
        found.setdefault(group, []).append((rowid, created, bytes(payload)))
        prepared.doomed.append(key)
        prepared.nbytes += len(value)
        if prepared.nbytes >= nbytes:
            break
    known = {column.id for column in table.vector_columns}
    for group, entries in found.items():
        entries.sort(key=lambda entry: entry[:2])
        if group == 0:
            prepared.rows = len(entries)
            prepared.versions[0] = _scalar_versions(table, entries)
        elif group in known:  # else the column was dropped, and its records go
            prepared.versions[group] = _vector_versions(table, group, entries)
    return prepared


def _identity(entries: list[tuple[int, int, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    rowids = np.array([entry[0] for entry in entries], dtype=np.int64)
    return rowids, np.array([entry[1] for entry in entries], dtype=np.int64)


def _scalar_versions(table: TableDef, entries: list[tuple[int, int, bytes]]) -> Versions:
    decoded = []
    for rowid, _, payload in entries:
        try:
            decoded.append(records.decode(payload))
        except CorruptionError as error:
            raise CorruptionError(f"table {table.name}, row {rowid}: {error.message}") from error
    columns = {}
    for column in table.scalar_columns:
        default = missing_value(column)
        values = [
            row[shape.index[column.id]] if column.id in shape.index else default
            for shape, row in decoded
        ]
        columns[column.id] = from_list(column.type, values)
    return Versions(*_identity(entries), columns)


def _vector_versions(
    table: TableDef, group: int, entries: list[tuple[int, int, bytes]]
) -> Versions:
    column = table.column_by_id(group)
    joined = np.frombuffer(b"".join(entry[2] for entry in entries), dtype=column.type.dtype)
    values = joined.reshape(len(entries), column.type.width)
    return Versions(*_identity(entries), {group: Column(column.type, values)})


def _write(txn: WriteTxn, env: Environment, prepared: _Prepared) -> bool:
    table = prepared.table
    counters = read_counters(txn, table.id, table.name)
    if counters.delta_generation != prepared.generation or not counters.delta_records:
        return False
    failpoints.hit("merge.before_write")
    limits = SegmentLimits(env.options.segment_rows)
    for group, versions in prepared.versions.items():
        rewrite.write_segments(txn, table, group, versions, counters, limits)
    for key in prepared.doomed:
        txn.delete("delta", key)
    counters.delta_records -= len(prepared.doomed)
    counters.delta_rows -= prepared.rows
    counters.delta_bytes -= prepared.nbytes
    counters.delta_generation += 1
    counters.layout += 1
    write_counters(txn, table.id, counters)
    failpoints.hit("merge.before_commit")
    return True


# --- started by writers ---


def before_commit(env: Environment, tables: Iterable[int]) -> None:
    """Hold a writer back while a table's delta is far over its limit: it merges itself."""
    known: dict[int, int] = env.caches.get("delta rows", {})
    limit = _PRESSURE * env.options.delta_limit_rows
    for table_id in tables:
        if known.get(table_id, 0) >= limit:
            # a transaction that deletes may be what makes room
            with contextlib.suppress(StorageFullError):
                _merge_ids(env, [table_id])


def after_commit(env: Environment, counters: Mapping[int, TableCounters]) -> None:
    """Note what a commit left and start a background merge where it is too much.

    That is a delta beyond its limit, or many segments more than after the last merge.
    """
    limit = env.options.delta_limit_rows
    known: dict[int, int] = env.caches.setdefault("delta rows", {})
    merged: dict[int, int] = env.caches.setdefault("merged segments", {})
    over = []
    for table_id, each in counters.items():
        known[table_id] = each.delta_rows
        made = each.segments - merged.setdefault(table_id, each.segments)
        if each.delta_rows > limit or made >= _NEW_SEGMENTS:
            over.append(table_id)
    if over and env.options.background_merge and not background.is_busy(env, THREAD):
        background.start(env, THREAD, lambda: _run(env, over))


def _run(env: Environment, tables: list[int]) -> None:
    try:
        _merge_ids(env, tables)
    except Error:  # the next writer tries again; a damaged delta shows itself when read
        METRICS.add("storage.merge_failures")


def _merge_ids(env: Environment, tables: list[int]) -> None:
    known: dict[int, Any] = env.caches.setdefault("delta rows", {})
    for table in tables_of(env):
        if table.id in tables:
            merge(env, table)
            known.pop(table.id, None)
            env.caches.get("merged segments", {}).pop(table.id, None)


def wait_for_merge(env: Environment) -> None:
    """Return when no background merge runs."""
    background.wait(env, THREAD)
