"""Vacuum: row versions nobody can see any more are removed, and data nobody refers to.

Readers keep the pages of their LMDB snapshot, so versions ended by any commit may go at once. A
transaction that began before the vacuum and updates or deletes rows gets a ConflictError, because
the tombstones it would compare with are gone. Works in staging transactions of bounded size; a
crash between two leaves a valid file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import field
from typing import TYPE_CHECKING

import numpy as np

from tarsdb.errors import StorageFullError
from tarsdb.records import dataclass
from tarsdb.schema import CatalogObject, FunctionDef, ModelDef, ModuleDef, TableDef
from tarsdb.storage import (
    blobs,
    failpoints,
    garbage,
    inference,
    keys,
    leases,
    packed,
    rewrite,
    staging,
)
from tarsdb.storage.catalog import current_table, load_objects
from tarsdb.storage.checkpoints import forget_old_checkpoints
from tarsdb.storage.index_parts import all_digests
from tarsdb.storage.merge import merge, tables_of
from tarsdb.storage.segments import Segment, delete_segment
from tarsdb.storage.stopping import CheckStop, heeding, never
from tarsdb.storage.table_meta import read_counters, write_counters
from tarsdb.storage.tombstones import decode_tombstones, require_tombstones
from tarsdb.storage.transaction import ReadTxn, WriteTxn

if TYPE_CHECKING:
    from tarsdb.storage.environment import Environment

_TOMBS = 100_000


def vacuum(env: Environment, table: TableDef | None = None, check_stop: CheckStop = never) -> int:
    """Remove dead versions of one table or all; of all, unreferenced data too.

    ``check_stop`` is asked before every transaction and while rows are looked through; what was
    removed by then stays removed.

    Returns
    -------
    int
        Row versions, blocks and bytes of blobs removed, summed: 0 means nothing to do.
    """
    removed = 0
    if table is None:
        removed += garbage.collect(env, check_stop)
        abandoned = list(env.abandoned)
        removed += env.stage(lambda txn: _collect_orphans(txn, abandoned), frees_space=True)
        env.abandoned.difference_update(abandoned)
        removed += env.stage(_collect_blobs, frees_space=True)
        removed += inference.forget_dead(env) + inference.forget_damaged(env)
        removed += packed.forget_dead(env) + packed.forget_damaged(env)
        removed += env.stage(forget_old_checkpoints, frees_space=True)
    for each in [table] if table is not None else tables_of(env):
        removed += _vacuum_table(env, each, check_stop)
    return removed


def _vacuum_table(env: Environment, table: TableDef, check_stop: CheckStop) -> int:
    with env.read() as txn:
        if current_table(txn, env.caches, table.id) is not None:
            counters = read_counters(txn, table.id, table.name)
            require_tombstones(txn, table.id, table.name, counters)
    removed = _drop_dead_columns(env, table, check_stop)
    try:
        merge(env, table, force=True, check_stop=check_stop)
    except StorageFullError:  # make room among the merged rows first
        removed += _remove_dead(env, table, check_stop)
        merge(env, table, force=True, check_stop=check_stop)
    removed += _drop_dead_columns(env, table, check_stop)
    removed += _remove_dead(env, table, check_stop)
    rewrite.combine_small(env, table, 2)
    return removed


def _remove_dead(env: Environment, table: TableDef, check_stop: CheckStop) -> int:
    removed = 0
    for group in _groups(env, table.id):
        step = functools.partial(_vacuum_step, env, table.id, group, check_stop=check_stop)
        while gone := rewrite.within_space(step):
            removed += gone
    return removed


def _groups(env: Environment, table_id: int) -> list[int]:
    with env.read() as txn:
        table = current_table(txn, env.caches, table_id)
    return [] if table is None else [0, *(column.id for column in table.vector_columns)]


@dataclass
class _Step:
    """What one staging transaction of a vacuum will do."""

    layout: int
    segments: list[Segment] = field(default_factory=list)
    kept: rewrite.Versions | None = None
    tombs: list[bytes] = field(default_factory=list)
    purged: int = 0


def _vacuum_step(
    env: Environment, table_id: int, group: int, nbytes: int, check_stop: CheckStop
) -> int:
    with env.read() as txn:
        table = current_table(txn, env.caches, table_id)
        if table is None or rewrite.group_columns(table, group) is None:
            return 0
        step = _prepare(txn, table, group, nbytes, check_stop)
    if step is None:
        return 0

    def work(txn: WriteTxn) -> int:
        counters = read_counters(txn, table.id, table.name)
        if counters.layout != step.layout:
            return 0
        failpoints.hit("vacuum.before_write")
        if step.segments and step.kept is not None:
            limits = staging.SegmentLimits(
                env.options.segment_rows, min(staging.SEGMENT_BYTES, nbytes)
            )
            rewrite.replace_segments(txn, table, step.segments, step.kept, counters, limits)
        for key in heeding(step.tombs, check_stop):
            txn.delete("tombs", key)
        counters.remove_tombstones(step.tombs)
        counters.tomb_generation += 1
        counters.purged = max(counters.purged, step.purged)
        write_counters(txn, table.id, counters)
        failpoints.hit("vacuum.before_commit")
        return len(step.tombs) + sum(segment.rows for segment in step.segments)

    return env.stage(work, frees_space=True)


def _prepare(
    txn: ReadTxn, table: TableDef, group: int, nbytes: int, check_stop: CheckStop
) -> _Step | None:
    """Choose segments with dead rows, at most one transaction's worth, and their tombstones."""
    columns = rewrite.group_columns(table, group) or []
    step = _Step(read_counters(txn, table.id, table.name).layout)
    stored = txn.range("tombs", *keys.group_range(table.id, group))
    found = [key for key, _ in heeding(stored, check_stop)]
    tombs = decode_tombstones(b"".join(found))
    done = np.zeros(len(tombs), dtype=bool)
    in_delta = _delta_versions(txn, table, group)
    held = np.zeros(len(tombs), dtype=bool)  # the version waits for another step, or in the delta
    if in_delta:
        held |= np.array([(r, c) in in_delta for _, r, c in tombs.tolist()], dtype=bool)
    size = 0
    for segment in heeding(rewrite.list_segments(txn, table).get(group, []), check_stop, 1):
        hit = _tombs_of(txn, table, segment, tombs)
        segment.apply_tombstones(txn, table.name, tombs)
        if segment.deleted is None:
            continue
        if size and size + segment.nbytes > nbytes:
            held |= hit
            continue
        size += segment.nbytes
        step.segments.append(segment)
        done |= hit
    chosen = np.flatnonzero(~held)[:_TOMBS] if not step.segments else np.flatnonzero(done)
    if not step.segments and not len(chosen):
        return None
    step.tombs = [found[at] for at in chosen.tolist()]
    step.purged = int(tombs[chosen, 0].max()) if len(chosen) else 0
    if step.segments:
        step.kept = rewrite.read_versions(txn, table, step.segments, columns)
    return step


def _delta_versions(txn: ReadTxn, table: TableDef, group: int) -> set[tuple[int, int]]:
    found = set()
    for key, _ in txn.range("delta", *keys.group_range(table.id, group)):
        _, _, created, rowid = keys.read_delta_key(key)
        found.add((rowid, created))
    return found


def _tombs_of(txn: ReadTxn, table: TableDef, segment: Segment, tombs: np.ndarray) -> np.ndarray:
    """Return which tombstones name a version of a segment."""
    inside = np.flatnonzero((tombs[:, 1] >= segment.low) & (tombs[:, 1] <= segment.high))
    hit = np.zeros(len(tombs), dtype=bool)
    if not len(inside):
        return hit
    rowids = segment.rowids(txn, table.name)
    created = segment.created_at(txn, table.name, np.arange(segment.rows))
    pairs = set(zip(rowids.tolist(), created.tolist(), strict=True))
    for at, (_, rowid, made) in zip(inside.tolist(), tombs[inside].tolist(), strict=True):
        hit[at] = (rowid, made) in pairs
    return hit


def _drop_dead_columns(env: Environment, table: TableDef, check_stop: CheckStop) -> int:
    """Remove the vector groups of dropped columns."""

    def work(txn: WriteTxn) -> int:
        now = current_table(txn, env.caches, table.id)
        if now is None:
            return 0
        known = {0, *(column.id for column in now.vector_columns)}
        doomed = [
            segment
            for group, segments in rewrite.list_segments(txn, table).items()
            if group not in known
            for segment in segments
        ]
        tombs = [
            key
            for key, _ in heeding(txn.range("tombs", *keys.table_range(table.id)), check_stop)
            if keys.read_tomb_key(key)[1] not in known
        ]
        if not doomed and not tombs:
            return 0
        counters = read_counters(txn, table.id, table.name)
        for segment in doomed:
            delete_segment(txn, table.id, segment.group, segment.id)
            counters.remove_segment(segment.digest)
        for key in tombs:
            txn.delete("tombs", key)
        counters.remove_tombstones(tombs)
        counters.tomb_generation += 1
        counters.layout += 1
        write_counters(txn, table.id, counters)
        return len(doomed)

    return env.stage(work, frees_space=True)


def _collect_orphans(txn: WriteTxn, abandoned: Sequence[bytes]) -> int:
    """Remove what dead loaders staged: blocks no segment refers to and no live lease holds."""
    for token in [*leases.dead_tokens(txn), *abandoned]:
        staging.release_staged(txn, token)
    held = {each.name for each in leases.held(txn) if each.is_live}
    doomed: set[tuple[int, ...]] = set()
    for key, _ in txn.range("blocks", b"", None):
        place = keys.read_block_key(key)[:3]
        stored = keys.segment_key(*place)
        if place in doomed or staging.HOLD + stored in held:
            continue
        if txn.get("segments", stored) is None:
            doomed.add(place)
    for place in doomed:
        delete_segment(txn, *place)
    return len(doomed)


def _collect_blobs(txn: WriteTxn) -> int:
    live = all_digests(txn)
    for definition in load_objects(txn).values():
        live.update(blob_digests(definition))
    return blobs.delete_unreferenced(txn, live)


def blob_digests(definition: CatalogObject) -> set[str]:
    """Return the digests of the blobs a catalog object refers to."""
    if isinstance(definition, (ModuleDef, FunctionDef)):
        return {definition.digest}
    if not isinstance(definition, ModelDef):
        return set()
    digests: set[str] = set()
    for version in definition.versions:
        digests.update(version.files.values())
        digests.update(digest for _, _, digest in version.tensors.values())
    return digests
