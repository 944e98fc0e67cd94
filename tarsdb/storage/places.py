"""Where the rows of a column group lie among its segments.

Segments of loaded rows are disjoint ranges of rowids, so a look at one of them finds a row. Updates
leave versions in segments that overlap all of these. Of such segments :class:`Places` remembers,
row by row, which one holds the version that is live now. That is a hint: whoever follows it checks
that the version is live in its snapshot, and looks everywhere when it is not.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tarsdb.storage.segments import Segment
from tarsdb.storage.tombstones import ALIVE, TombstoneLog
from tarsdb.storage.transaction import ReadTxn

FEW = 3
"""So many overlapping segments are looked at one by one."""
_NONE = np.empty(0, dtype=np.int64)


class Places:
    """Segment and position of rows, by rowid.

    Attributes
    ----------
    rowids : int64 (n,)
        Ascending.
    numbers, positions, created : int64 (n,)
        Number of the segment, position in it, creating commit of the version there.
    segments : dict
        Number -> Segment.
    """

    __slots__ = ("created", "numbers", "positions", "rowids", "segments")

    def __init__(self) -> None:
        self.rowids = self.numbers = self.positions = self.created = _NONE
        self.segments: dict[int, Segment] = {}

    @staticmethod
    def of(txn: ReadTxn, name: str, segments: Sequence[Segment], before: Places | None) -> Places:
        """Return the places of the rows that are live now; ``before`` knows some segments."""
        made = Places()
        made.segments = {segment.id: segment for segment in segments}
        known = {} if before is None else before.segments
        new = [s for s in segments if known.get(s.id) is not s]
        parts = [_live_rows(txn, name, segment) for segment in new]
        rowids, positions, commits = (
            np.concatenate([part[at] for part in parts]) if parts else _NONE for at in range(3)
        )
        numbers = np.repeat([s.id for s in new], [len(part[0]) for part in parts]).astype(np.int64)
        order = np.argsort(rowids, kind="stable")
        added = rowids[order], numbers[order], positions[order], commits[order]
        if before is not None:
            gone = [number for number in known if made.segments.get(number) is not known[number]]
            added = _merged(before, ~np.isin(before.numbers, gone) if gone else None, added)
        made.rowids, made.numbers, made.positions, made.created = added
        return made

    def find(self, rowids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return number of the segment and position in it of rows; -1 for rows not known."""
        if not len(self.rowids):
            nowhere = np.full(len(rowids), -1, dtype=np.int64)
            return nowhere, nowhere
        at = np.minimum(self.rowids.searchsorted(rowids), len(self.rowids) - 1)
        hit = self.rowids[at] == rowids
        return np.where(hit, self.numbers[at], -1), np.where(hit, self.positions[at], -1)


def _live_rows(
    txn: ReadTxn, name: str, segment: Segment
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row ids, positions and creating commits of rows that are live now."""
    deleted = segment.deleted
    live = np.arange(segment.rows) if deleted is None else np.flatnonzero(deleted == ALIVE)
    return segment.rowids(txn, name)[live], live, segment.created_at(txn, name, live)


_Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _merged(before: Places, kept: np.ndarray | None, added: _Rows) -> _Rows:
    """Put rows that were added over the ones kept."""
    known: _Rows = before.rowids, before.numbers, before.positions, before.created
    if kept is not None:
        known = known[0][kept], known[1][kept], known[2][kept], known[3][kept]
    if not len(known[0]) or not len(added[0]):
        return known if len(known[0]) else added
    at = known[0].searchsorted(added[0])
    same = known[0][np.minimum(at, len(known[0]) - 1)] == added[0]
    merged = []
    for old, new in zip(known, added, strict=True):
        values = old.copy()
        values[at[same]] = new[same]
        merged.append(np.insert(values, at[~same], new[~same]))
    return merged[0], merged[1], merged[2], merged[3]


class SegmentList:
    """The segments of one group in one layout, ordered for look-ups by rowid.

    Attributes
    ----------
    items : list of Segment
        By least rowid.
    lows : list of int
        Their least rowids.
    apart : list of Segment
        Some of them, with disjoint ranges of rowids, ascending.
    starts : list of int
        The least rowids of these.
    overlapping : list of Segment
        The others.
    """

    __slots__ = ("_before", "_commits", "_done", "_index", "_places", "_rowids", "_runs", "apart",
                 "items", "lows", "overlapping", "ranges", "starts")  # fmt: skip

    def __init__(self, items: list[Segment], before: SegmentList | None = None) -> None:
        self.items = sorted(items, key=lambda segment: (segment.low, segment.id))
        self.lows = [segment.low for segment in self.items]
        self.apart = _disjoint(self.items)
        self.starts = [segment.low for segment in self.apart]
        chosen = {segment.id for segment in self.apart}
        self.overlapping = [segment for segment in self.items if segment.id not in chosen]
        self.ranges = _pairs([[s.low, s.high] for s in self.apart])
        self._runs = np.array([_commit_of_run(s) for s in self.apart], dtype=np.int64)
        self._commits = _pairs([[s.created_low, s.created_high] for s in self.items])
        self._rowids = _pairs([[s.low, s.high] for s in self.items])
        self._index = {segment.id: at for at, segment in enumerate(self.items)}
        self._places: Places | None = None
        self._before: Places | None = None
        self._done: tuple[int, int] | None = None  # as Segment.tombs, of all items
        if before is not None:
            self._before = before._places or before._before
            before._hand_on()

    def index(self, segment: Segment) -> int:
        """Return the position of a segment among all."""
        return self._index[segment.id]

    def apart_at(self, rowid: int) -> Segment | None:
        """Return the segment of the disjoint ones that may hold a row."""
        at = bisect_right(self.starts, rowid) - 1
        return self.apart[at] if at >= 0 else None

    def overlapping_at(
        self, txn: ReadTxn, name: str, rowids: list[int], commit: int
    ) -> list[tuple[Segment, int] | None]:
        """Return where versions of rows that are live at a commit lie among overlapping ones."""
        if len(self.overlapping) <= FEW:
            return [self._walk(txn, name, rowid, commit) for rowid in rowids]
        places = self._known_places(txn, name)
        numbers, positions = places.find(np.array(rowids, dtype=np.int64))
        found: list[tuple[Segment, int] | None] = []
        for number, position, rowid in zip(
            numbers.tolist(), positions.tolist(), rowids, strict=True
        ):
            segment = places.segments.get(number)
            deleted = None if segment is None else segment.deleted
            if segment is not None and (deleted is None or deleted[position] > commit):
                found.append((segment, position))
            else:  # deleted, or live in an older snapshot only
                found.append(self._walk(txn, name, rowid, commit))
        return found

    def locate_overlapping(
        self, txn: ReadTxn, name: str, rowids: np.ndarray, commit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return :meth:`overlapping_at` of many rows: positions among all segments, and in them.

        Both int64 like ``rowids``; -1 among the segments where there is no such version.
        """
        places = self._known_places(txn, name)
        numbers, positions = places.find(rowids)
        found = np.full(len(rowids), -1, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        apart, starts = np.unique(numbers[order], return_index=True)
        bounds = [*starts.tolist(), len(order)]
        for at, number in enumerate(apart.tolist()):
            segment, rows = places.segments.get(number), order[bounds[at] : bounds[at + 1]]
            if segment is not None:
                if segment.deleted is not None:
                    rows = rows[segment.deleted[positions[rows]] > commit]
                found[rows] = self._index[number]
        for row in np.flatnonzero(found < 0).tolist():  # deleted, or live in an older snapshot only
            hit = self._walk(txn, name, int(rowids[row]), commit)
            if hit is not None:
                found[row], positions[row] = self._index[hit[0].id], hit[1]
        return found, positions

    def _known_places(self, txn: ReadTxn, name: str) -> Places:
        if self._places is None:
            self._places = Places.of(txn, name, self.overlapping, self._before)
            self._before = None
        return self._places

    def _walk(self, txn: ReadTxn, name: str, rowid: int, commit: int) -> tuple[Segment, int] | None:
        for segment in self.overlapping:
            if segment.low <= rowid <= segment.high:
                position = segment.find(txn, name, rowid, commit)
                if position >= 0:
                    return segment, position
        return None

    # --- tombstones ---

    def apply_tombstones(self, txn: ReadTxn, name: str, log: TombstoneLog, generation: int) -> None:
        """Bring the ``deleted`` arrays of all segments up to date."""
        done = (generation, log.count)
        if self._done == done:
            return
        if self._done is not None and self._done[0] == generation:
            tombs = log.since(self._done[1])
            if len(tombs) <= FEW and len(self.overlapping) <= FEW:
                self._mark_few(txn, name, tombs)
            else:
                self._mark(txn, name, tombs, None)
        else:
            self._mark_each(txn, name, log, generation)
        self._done = done

    def _mark_each(self, txn: ReadTxn, name: str, log: TombstoneLog, generation: int) -> None:
        """Look where each segment stands; what it held before then has no later tombstones."""
        behind: dict[int, list[int]] = {}
        for at, segment in enumerate(self.items):
            known, start = segment.tombs
            if known != generation:
                start = log.first_after(segment.created_low)
            if start < log.count:
                behind.setdefault(start, []).append(at)
        for start, chosen in behind.items():
            tombs = log.since(start)
            if len(chosen) > FEW:  # what these know of was handed on by the list before
                tombs = self._mark_placed(tombs)
            self._mark(txn, name, tombs, np.array(chosen))

    def _mark_few(self, txn: ReadTxn, name: str, tombs: np.ndarray) -> None:
        """Apply tombstones one by one, where no more than a look tells the segments they name."""
        for at, (_, rowid, created) in enumerate(tombs.tolist()):
            for segment in (self.apart_at(rowid), *self.overlapping):
                if (
                    segment is not None
                    and segment.low <= rowid <= segment.high
                    and segment.created_low <= created <= segment.created_high
                ):
                    segment.apply_tombstones(txn, name, tombs[at : at + 1])

    def _mark(self, txn: ReadTxn, name: str, tombs: np.ndarray, chosen: np.ndarray | None) -> None:
        """Apply tombstones to the segments that hold rows and commits they name."""
        if chosen is None:
            tombs = self._mark_placed(tombs)
            tombs = self._mark_runs(tombs)
        if not len(tombs):
            return
        by_commit, *commits = _slices(tombs, 2, self._commits, chosen)
        by_row, *rows = _slices(tombs, 1, self._rowids, chosen)
        named = np.minimum(commits[1] - commits[0], rows[1] - rows[0]) > 0
        for at in np.flatnonzero(named).tolist():
            segment = self.items[at if chosen is None else chosen[at]]
            part = by_commit[commits[0][at] : commits[1][at]]
            other = by_row[rows[0][at] : rows[1][at]]
            segment.apply_tombstones(txn, name, part if len(part) <= len(other) else other)

    def _mark_placed(self, tombs: np.ndarray) -> np.ndarray:
        """Apply tombstones of versions whose places are known; return the others."""
        places = self._places or self._before
        if places is None or not len(places.rowids):
            return tombs
        at = np.minimum(places.rowids.searchsorted(tombs[:, 1]), len(places.rowids) - 1)
        hit = (places.rowids[at] == tombs[:, 1]) & (places.created[at] == tombs[:, 2])
        rows = np.flatnonzero(hit)
        rows = rows[np.argsort(places.numbers[at[rows]], kind="stable")]
        apart, starts = np.unique(places.numbers[at[rows]], return_index=True)
        bounds = [*starts.tolist(), len(rows)]
        for number, (start, stop) in zip(apart.tolist(), pairwise(bounds), strict=True):
            segment, chosen = places.segments[number], rows[start:stop]
            index = self._index.get(number)
            if index is not None and self.items[index] is segment:
                segment.end(places.positions[at[chosen]], tombs[chosen, 0])
            else:  # the list before had it; its rows are in another one now
                hit[chosen] = False
        others: np.ndarray = tombs[~hit]
        return others

    def _mark_runs(self, tombs: np.ndarray) -> np.ndarray:
        """Apply tombstones of consecutive rows that one commit loaded; return the others."""
        if not len(tombs) or not len(self.apart):
            return tombs
        at = self.ranges[0].searchsorted(tombs[:, 1], "right") - 1
        hit = (at >= 0) & (tombs[:, 1] <= self.ranges[1][at]) & (tombs[:, 2] == self._runs[at])
        rows = np.flatnonzero(hit)
        if not len(rows):
            return tombs
        rows = rows[np.argsort(at[rows], kind="stable")]
        found = at[rows]
        positions, commits = tombs[rows, 1] - self.ranges[0][found], tombs[rows, 0]
        bounds = np.flatnonzero(np.diff(found, prepend=-1, append=len(self.apart))).tolist()
        for start, stop in pairwise(bounds):
            self.apart[found[start]].end(positions[start:stop], commits[start:stop])
        others: np.ndarray = tombs[~hit]
        return others

    def _hand_on(self) -> None:
        """Note in the segments how far they are, for the list that comes next."""
        if self._done is not None:
            for segment in self.items:
                segment.tombs = self._done


def _slices(
    tombs: np.ndarray, field: int, bounds: np.ndarray, chosen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort tombstones by a field; return them and the slice inside the bounds of each segment."""
    ordered = tombs[np.argsort(tombs[:, field], kind="stable")]
    known = np.ascontiguousarray(ordered[:, field])
    low, high = bounds if chosen is None else bounds[:, chosen]
    return ordered, known.searchsorted(low, "left"), known.searchsorted(high, "right")


def _commit_of_run(segment: Segment) -> int:
    """Return the commit that made all rows of a segment with consecutive rowids; else -1."""
    is_run = segment.base is not None and segment.created_low == segment.created_high
    return segment.created_low if is_run else -1


def _pairs(rows: list[list[int]]) -> np.ndarray:
    """Return int64 (2, n)."""
    return np.array(rows, dtype=np.int64).reshape(-1, 2).T.copy()


def _disjoint(items: list[Segment]) -> list[Segment]:
    """Choose as many segments as possible whose ranges do not overlap, ascending."""
    chosen: list[Segment] = []
    for segment in sorted(items, key=lambda segment: (segment.high, segment.id)):
        if not chosen or segment.low > chosen[-1].high:
            chosen.append(segment)
    return chosen
