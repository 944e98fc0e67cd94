"""What one table looks like at one commit, shared by every snapshot that shows that commit.

Per process and table there is one :class:`TableCache` with segments, delta logs and tombstone logs;
all only grow. A :class:`TableState` is a cut through them: the table's counters as stored (they are
the key), and per column group the segments, the delta prefix and what is deleted. States hold
views into the memory map, so they are used only under a live read transaction in which the table
has exactly these counters. A write transaction never gets one: it would see uncommitted data.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.errors import CorruptionError
from tarsdb.schema import ColumnDef, IndexDef, TableDef
from tarsdb.storage import keys
from tarsdb.storage.delta import DeltaLog
from tarsdb.storage.formats import DIGEST_MASK, TableCounters
from tarsdb.storage.fresh import FreshVersions
from tarsdb.storage.index_keys import KeyCodec
from tarsdb.storage.places import SegmentList
from tarsdb.storage.segments import Segment, segment_digest
from tarsdb.storage.tombstones import TombstoneLog, require_tombstones
from tarsdb.storage.transaction import ReadTxn
from tarsdb.storage.values import ValueType, unpack

_NO_ROWS = np.empty(0, dtype=np.int64)
_KEPT_STATES = 8
_KEPT_LOGS = 3
_SEE_CHECK = "restore from a backup; PRAGMA integrity_check lists all damage"


class GroupState:
    """One column group at one commit.

    Attributes
    ----------
    segments : list of Segment
        By least rowid.
    delta : DeltaLog
    count : int
        Length of the delta prefix that belongs to this state.
    commit : int
        Versions deleted after it are live.
    """

    __slots__ = ("__weakref__", "_blocks", "_list", "commit", "count", "delta", "name", "segments")

    def __init__(self, name: str, segments: SegmentList, delta: DeltaLog, commit: int) -> None:
        self.name = name
        self.segments = segments.items
        self._list = segments
        self.delta = delta
        self.commit = commit
        self.count = delta.count_at(commit)
        self._blocks: list[VectorBlock] | None = None

    def is_of(self, name: str, segments: SegmentList, delta: DeltaLog) -> bool:
        """Return whether these are what the group is made of."""
        return self.name == name and self._list is segments and self.delta is delta

    @property
    def overlapping(self) -> bool:
        """Return whether ranges of row ids of segments overlap."""
        return bool(self._list.overlapping)

    def find(self, txn: ReadTxn, rowid: int) -> tuple[Segment | None, int] | None:
        """Return (segment or None for the delta, position) of a row's live version, or None."""
        if self.count:
            position = self.delta.find(rowid, self.count, self.commit)
            if position >= 0:
                return None, position
        segment = self._list.apart_at(rowid)
        if segment is not None:
            position = segment.find(txn, self.name, rowid, self.commit)
            if position >= 0:
                return segment, position
        if not self._list.overlapping:
            return None
        return self._list.overlapping_at(txn, self.name, [rowid], self.commit)[0]

    def find_each(self, txn: ReadTxn, rowids: list[int]) -> list[tuple[Segment | None, int]]:
        """Return :meth:`find` of each of some rows; (None, -1) for none."""
        found: list[tuple[Segment | None, int]] = []
        starts, apart, count, commit = self._list.starts, self._list.apart, self.count, self.commit
        missing = []
        for rowid in rowids:
            position = self.delta.find(rowid, count, commit) if count else -1
            at = bisect_right(starts, rowid) - 1
            if position >= 0 or at < 0:
                found.append((None, position))
            else:
                segment = apart[at]
                if segment.base is not None and segment.deleted is None:  # without a call
                    position = rowid - segment.base if rowid <= segment.high else -1
                else:
                    position = segment.find(txn, self.name, rowid, commit)
                found.append((segment if position >= 0 else None, position))
            if position < 0:
                missing.append(len(found) - 1)
        if missing and self._list.overlapping:
            asked = [rowids[at] for at in missing]
            others = self._list.overlapping_at(txn, self.name, asked, commit)
            for at, hit in zip(missing, others, strict=True):
                found[at] = hit or (None, -1)
        return found

    def find_together(self, rowids: list[int]) -> tuple[Segment, list[int]] | None:
        """Return the one segment that holds all rows, none deleted, and their positions in it.

        None where that is not so, or takes more than a look to tell.
        """
        if self.count or not rowids:
            return None
        first, last = min(rowids), max(rowids)
        lows = self._list.lows
        at = bisect_right(lows, first)
        if not at or (at < len(lows) and lows[at] <= last):
            return None
        segment = self.segments[at - 1]
        base = segment.base
        if base is None or segment.deleted is not None or last > segment.high:
            return None
        return segment, [rowid - base for rowid in rowids]

    def locate(self, txn: ReadTxn, rowids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the live versions of many rows.

        Returns
        -------
        sources, positions : int64 arrays like ``rowids``
            Source is an index into ``segments``, ``len(segments)`` for the delta, -1 for none.
        """
        sources = np.full(len(rowids), -1, dtype=np.int64)
        positions = np.zeros(len(rowids), dtype=np.int64)
        order = np.argsort(rowids, kind="stable")
        wanted = rowids[order]
        starts = np.searchsorted(wanted, self._list.ranges[0], "left")
        stops = np.searchsorted(wanted, self._list.ranges[1], "right")
        for at in np.flatnonzero(stops > starts).tolist():
            part = slice(int(starts[at]), int(stops[at]))
            segment = self._list.apart[at]
            found = _find_sorted(segment, txn, self.name, wanted[part], self.commit)
            hit = found >= 0
            sources[order[part][hit]] = self._list.index(segment)
            positions[order[part][hit]] = found[hit]
        if self.count:
            found = self.delta.find_many(rowids, self.count, self.commit)
            hit = found >= 0
            sources[hit] = len(self.segments)
            positions[hit] = found[hit]
        missing = np.flatnonzero(sources < 0) if self._list.overlapping else _NO_ROWS
        if len(missing):
            sources[missing], positions[missing] = self._list.locate_overlapping(
                txn, self.name, rowids[missing], self.commit
            )
        return sources, positions

    def created(self, txn: ReadTxn, sources: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the creating commits of located versions; 0 where there is none."""
        out = np.zeros(len(sources), dtype=np.int64)
        for at in np.unique(sources).tolist():
            mask = sources == at
            if at == len(self.segments):
                out[mask] = self.delta.created.data[positions[mask]]
            elif at >= 0:
                out[mask] = self.segments[at].created_at(txn, self.name, positions[mask])
        return out

    def created_one(self, txn: ReadTxn, segment: Segment | None, position: int) -> int:
        """Return the creating commit of one version from :meth:`find`."""
        if segment is None:
            return int(self.delta.created.data[position])
        created = segment.created(txn, self.name)
        return created if isinstance(created, int) else int(created[position])

    def created_each(self, txn: ReadTxn, places: Sequence[tuple[Segment | None, int]]) -> list[int]:
        """Return :meth:`created_one` of each place."""
        found = []
        for segment, position in places:
            if segment is not None and segment.created_low == segment.created_high:
                found.append(segment.created_low)  # without a call
            else:
                found.append(self.created_one(txn, segment, position))
        return found

    def delta_live(self) -> np.ndarray | None:
        """Return the live mask of the delta prefix, or None when all are live."""
        return self.delta.live(self.count, self.commit)

    def vector_blocks(self, txn: ReadTxn, column: ColumnDef) -> list[VectorBlock]:
        """Return all vectors of a vector group; the same list while this state lives."""
        if self._blocks is None:
            commit, name = self.commit, self.name
            each = [segment.vectors(txn, column, name, commit) for segment in self.segments]
            found = [block for block in each if block is not None]
            if self.count:
                live = self.delta_live()
                rowids = self.delta.rowids.prefix(self.count)
                made = self.delta.created.prefix(self.count)
                data = self.delta.vectors(self.count)
                found.append(VectorBlock(rowids, data, live, made, self.delta))
            self._blocks = found
        return self._blocks


def _find_sorted(
    segment: Segment, txn: ReadTxn, name: str, wanted: np.ndarray, commit: int
) -> np.ndarray:
    """Return positions of live versions of ascending rowids in a segment, -1 where none."""
    if segment.base is not None:
        found = wanted - segment.base
        if segment.deleted is not None:
            found = np.where(segment.deleted[found] > commit, found, -1)
        return np.asarray(found)
    rowids = segment.rowids(txn, name)
    live = segment.live(commit)
    if live is None:
        live_at = None
    else:
        live_at = np.flatnonzero(live)
        rowids = rowids[live_at]
    if not len(rowids):
        return np.full(len(wanted), -1, dtype=np.int64)
    found = np.minimum(np.searchsorted(rowids, wanted), len(rowids) - 1)
    hit = rowids[found] == wanted
    if live_at is not None:
        found = live_at[found]
    return np.where(hit, found, -1)


class _GroupCache:
    """Everything this process decoded of one column group."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self.lists: OrderedDict[int, SegmentList] = OrderedDict()
        self.deltas: OrderedDict[int, DeltaLog] = OrderedDict()
        self.tombs: OrderedDict[int, TombstoneLog] = OrderedDict()
        self._state: GroupState | None = None

    def state_at(
        self, name: str, segments: SegmentList, delta: DeltaLog, tombs: TombstoneLog, commit: int
    ) -> GroupState:
        """Return the group at a commit: the last one given out where no commit between changed it.

        What is kept with it (blocks of vectors, and what is made of them) stays in use then.
        """
        state = self._state
        if state is None or not (
            state.is_of(name, segments, delta)
            and tombs.first_after(state.commit) == tombs.first_after(commit)
            and delta.count_at(state.commit) == delta.count_at(commit)
        ):
            state = self._state = GroupState(name, segments, delta, commit)
        return state


class TableCache:
    """Decoded data of one table, shared by all snapshots of one process.

    Parameters
    ----------
    table : int
    is_trusted : bool
        Leave it to the caller to count segments and rows.
    """

    def __init__(self, table: int, is_trusted: bool = False) -> None:
        self.table = table
        self.lock = threading.RLock()
        self.states: OrderedDict[bytes, TableState] = OrderedDict()
        self._groups: dict[int, _GroupCache] = {}
        self._codecs: dict[int, KeyCodec] = {}
        self._is_trusted = self._has_counted_rows = is_trusted
        self._counted_layout = -1  # of which all segments are known to be there
        self._summed_generation = -1  # of tombstones that are known to be as they were made
        self.fresh: FreshVersions | None = None  # of the last commit of this process
        self.plans: tuple[TableDef, list[Any]] | None = None  # of `unique.index_plans`

    def state(self, raw: bytes, name: str) -> TableState:
        """Return the state for counters as stored; ``b""`` for a table without data."""
        state = self.states.get(raw)
        if state is None:
            with self.lock:
                state = TableState(self, raw, name)
                self.states[raw] = state
                while len(self.states) > _KEPT_STATES:
                    self.states.popitem(last=False)
        return state

    def codec(self, table: TableDef, index: IndexDef) -> KeyCodec:
        """Return the key codec of an index."""
        codec = self._codecs.get(index.id)
        if codec is None:
            codec = KeyCodec([table.column_by_id(c).type for c in index.column_ids])
            self._codecs[index.id] = codec
        return codec

    def has_read(self, generation: int) -> bool:
        """Return whether this process has decoded rows of a delta."""
        cache = self._groups.get(0)
        return cache is not None and generation in cache.deltas

    def build_group(
        self, txn: ReadTxn, counters: TableCounters, group: int, column: ColumnDef | None, name: str
    ) -> GroupState:
        """Return the state of one group, reading what is new since the last time."""
        with self.lock:
            cache = self._groups.get(group)
            if cache is None:
                cache = self._groups[group] = _GroupCache()
            segments = self._segments(txn, cache, group, counters.layout, name)
            if counters.layout != self._counted_layout and not self._is_trusted:
                self._require_segments(txn, counters, name)
            if counters.tomb_generation != self._summed_generation and not self._is_trusted:
                require_tombstones(txn, self.table, name, counters)
                self._summed_generation = counters.tomb_generation
            delta = _recent(
                cache.deltas, counters.delta_generation, lambda: DeltaLog(self.table, group)
            )
            tombs = _recent(
                cache.tombs, counters.tomb_generation, lambda: TombstoneLog(self.table, group)
            )
            commit = counters.last_commit
            try:
                if counters.delta_records:
                    known = None
                    if self.fresh is not None:
                        generation = counters.delta_generation
                        known = self.fresh.after(group, generation, delta.loaded, commit)
                    delta.extend(txn, commit, name, column, known)
                if counters.tombstones:
                    tombs.extend(txn, commit)
                segments.apply_tombstones(txn, name, tombs, counters.tomb_generation)
                _apply_to_delta(delta, tombs, counters.tomb_generation)
                state = cache.state_at(name, segments, delta, tombs, commit)
                if group == 0 and not self._has_counted_rows:
                    self._require_rows(txn, state, counters)
                return state
            except BaseException:  # Ctrl-C or damage: a log cut short is not to be continued
                cache.deltas.pop(counters.delta_generation, None)
                cache.tombs.pop(counters.tomb_generation, None)
                raise

    def _require_segments(self, txn: ReadTxn, counters: TableCounters, name: str) -> None:
        """Raise CorruptionError unless the table's segments are all there, whatever their group."""
        if not counters.segments and not counters.delta_records:
            require_no_rows(txn, self.table, name)
        count = digest = 0
        for _, value in txn.range("segments", *keys.table_range(self.table)):
            count += 1
            digest += segment_digest(value)
        if (count, digest & DIGEST_MASK) != (counters.segments, counters.segment_digest):
            raise CorruptionError(
                f"table {name}: {counters.segments} segments should be there, found {count}"
                f"{' others' if count == counters.segments else ''}",
                hint=_SEE_CHECK,
            )
        self._counted_layout = counters.layout

    def _require_rows(self, txn: ReadTxn, state: GroupState, counters: TableCounters) -> None:
        """Raise CorruptionError unless as many rows are live, and records there, as were counted.

        Ends of rows and records of the delta are keys, which no checksum covers. This is done once
        for what a process reads first, not for the commits that it sees later.
        """
        live = [segment.live(state.commit) for segment in state.segments]
        found = sum(
            segment.rows if mask is None else int(np.count_nonzero(mask))
            for segment, mask in zip(state.segments, live, strict=True)
        )
        fresh = state.delta_live()
        found += state.count if fresh is None else int(np.count_nonzero(fresh))
        records = sum(map(len, txn.keys("delta", *keys.table_range(self.table))))
        for what, expected, there in (
            ("rows should be live", counters.live_rows, found),
            ("records should be in the delta", counters.delta_records, records),
        ):
            if there != expected:
                raise CorruptionError(
                    f"table {state.name}: {expected} {what}, found {there}", hint=_SEE_CHECK
                )
        self._has_counted_rows = True

    def _segments(
        self, txn: ReadTxn, cache: _GroupCache, group: int, layout: int, name: str
    ) -> SegmentList:
        known = cache.lists.get(layout)
        if known is not None:
            return known
        items = []
        start, stop = keys.group_range(self.table, group)
        for key, value in txn.range("segments", start, stop):
            number = keys.read_segment_key(key)[2]
            segment = cache.segments.get(number)
            if segment is None:
                segment = Segment(key, value, name)
                segment.load_holes(txn, name)
                cache.segments[number] = segment  # only once its holes are known
            items.append(segment)
        listed = {segment.id for segment in items}
        if not cache.lists or layout > max(cache.lists):
            for number in [n for n in cache.segments if n not in listed]:
                del cache.segments[number]
        newest = cache.lists[max(cache.lists)] if cache.lists else None
        known = cache.lists[layout] = SegmentList(items, newest)
        while len(cache.lists) > _KEPT_LOGS:
            cache.lists.popitem(last=False)
        return known


def _recent(logs: OrderedDict[int, Any], generation: int, make: Any) -> Any:
    log = logs.get(generation)
    if log is None:
        log = logs[generation] = make()
        while len(logs) > _KEPT_LOGS:
            logs.popitem(last=False)
    return log


def _apply_to_delta(delta: DeltaLog, tombs: TombstoneLog, generation: int) -> None:
    """Bring the ``deleted`` array of a delta up to date with the tombstones."""
    known, start = delta.tombs
    if known != generation and delta.count:
        start = tombs.first_after(int(delta.created.data[0]))
    if start < tombs.count:
        delta.apply_tombstones(tombs.since(start))
    delta.tombs = (generation, tombs.count)


class TableState:
    """One table at one commit; groups are read on first use.

    Attributes
    ----------
    counters : TableCounters
    """

    __slots__ = ("__weakref__", "_groups", "cache", "counters", "name")

    def __init__(self, cache: TableCache, raw: bytes, name: str) -> None:
        self.cache = cache
        self.name = name
        self.counters = decode_counters(cache.table, raw, name) if raw else TableCounters()
        self._groups: dict[int, GroupState] = {}

    def group(self, txn: ReadTxn, group: int, column: ColumnDef | None = None) -> GroupState:
        """Return one column group; ``column`` is the vector column of a vector group."""
        state = self._groups.get(group)
        if state is None:
            state = self.cache.build_group(txn, self.counters, group, column, self.name)
            state = self._groups.setdefault(group, state)
        return state


def require_no_rows(txn: ReadTxn, table: int, name: str) -> None:
    """Raise CorruptionError where a table without counters has rows: they were lost."""
    for db in ("segments", "delta"):
        if next(iter(txn.range(db, *keys.table_range(table))), None) is not None:
            raise CorruptionError(
                f"table {name}: its counters are missing", hint="restore from a backup"
            )


def decode_counters(table: int, raw: bytes | memoryview, name: str) -> TableCounters:
    """Return a table's counters from the value under its ``meta`` key."""
    payload, _, _ = unpack(ValueType.META, keys.table_key(table), raw, f"table {name}: counters")
    return TableCounters.decode(payload)


def forget_tables(caches: dict[str, Any], kept: Collection[int]) -> None:
    """Drop the caches of tables that are gone; a snapshot that still shows one reads it again."""
    known: dict[int, TableCache] = caches.get("tables") or {}
    for table in [table for table in list(known) if table not in kept]:
        known.pop(table, None)


def table_cache(caches: dict[str, Any], table: int) -> TableCache:
    """Return the process-wide cache of a table."""
    known = caches.get("tables")
    if known is None:
        known = caches.setdefault("tables", {})
    cache: TableCache | None = known.get(table)
    if cache is None:
        cache = known.setdefault(table, TableCache(table))
    return cache
