"""Placing the parts of a vector index in a snapshot: where each node's vector lies, if it is live.

A placement is made from the one before: rows that ended or began since are looked up, and positions
move with their blocks. Without one before, every row began. Knows vectors by row id and creating
commit only, and nothing of graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tarsdb.columns import VectorBlock

_NONE = np.empty(0, dtype=np.int64)


class Cover:
    """The nodes of a part, and the commits whose row versions they are.

    Parameters
    ----------
    rowids : int64 (nodes,)
        Each once.
    after, upto : int
        Commits in ``(after, upto]`` created the versions.
    """

    def __init__(self, rowids: np.ndarray, after: int, upto: int) -> None:
        self.after, self.upto = after, upto
        self.size = len(rowids)
        self._order = np.argsort(rowids, kind="stable")
        self._rowids = rowids[self._order]

    def nodes(self, rowids: np.ndarray, created: np.ndarray) -> np.ndarray:
        """Return the node of each row version, -1 where the part has none; int64."""
        if not self.size:
            return np.full(len(rowids), -1, dtype=np.int64)
        at = np.minimum(self._rowids.searchsorted(rowids), self.size - 1)
        hit = (self._rowids[at] == rowids) & (created > self.after) & (created <= self.upto)
        return np.where(hit, self._order[at], -1)


class Placement:
    """Where the nodes of some parts lie among blocks of vectors.

    Attributes
    ----------
    covers : list of Cover
    positions : list of int64 (nodes,)
        Of each part; what a node that is not live has there means nothing.
    live : list of uint8 (nodes,)
        Which nodes stand for a live version.
    fresh : int64 (n,)
        Positions of the live vectors that no part has, ascending.
    """

    positions: list[np.ndarray]
    live: list[np.ndarray]
    fresh: np.ndarray

    def __init__(
        self, covers: Sequence[Cover], blocks: Sequence[VectorBlock], before: Placement | None
    ) -> None:
        self.covers = list(covers)
        self._blocks: list[VectorBlock] = list(blocks)
        self._starts: np.ndarray = np.cumsum([0, *(len(block.rowids) for block in blocks)])
        if before is None:
            before = _nothing(covers)
        self.positions = list(before.positions)
        self.live = [live.copy() for live in before.live]
        self.fresh = before.fresh
        known = {id(b.origin): at for at, b in enumerate(before._blocks) if b.origin is not None}
        found = [known.pop(id(block.origin), None) for block in self._blocks]
        self._move(before, found)
        changes = [
            (at, *_changes(None if old is None else before._blocks[old], block))
            for at, (old, block) in enumerate(zip(found, self._blocks, strict=True))
            if old is None or before._blocks[old] is not block
        ]
        self._end(*_joined([self._rows(at, ended) for at, ended, _ in changes]))
        self._begin(*_joined([self._rows(at, begun) for at, _, begun in changes]))

    def _rows(self, number: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return positions, row ids and creating commits of rows of a block."""
        if not len(offsets):
            return _NONE, _NONE, _NONE
        block = self._blocks[number]
        made = block.created
        created = np.full(len(offsets), made) if isinstance(made, int) else made[offsets]
        return offsets + self._starts[number], block.rowids[offsets], created

    def _move(self, before: Placement, found: Sequence[int | None]) -> None:
        """Give nodes and fresh rows their new positions; what has none any more is not live.

        Blocks that are gone are not looked into: what they point to may be gone as well.
        """
        sizes = np.diff(before._starts)
        kept = np.zeros(len(sizes), dtype=np.int64)  # rows of old blocks that are still there
        shifts = np.zeros(len(sizes), dtype=np.int64)
        for at, old in enumerate(found):
            if old is not None:
                kept[old] = min(sizes[old], len(self._blocks[at].rowids))
                shifts[old] = self._starts[at] - before._starts[old]
        if (kept == sizes).all() and not shifts.any():
            return
        moved = np.full(int(before._starts[-1]) + 1, -1, dtype=np.int64)  # -1 reads the last
        starts = before._starts[:-1]
        for start, rows, shift in zip(starts.tolist(), kept.tolist(), shifts.tolist(), strict=True):
            moved[start : start + rows] = np.arange(start + shift, start + shift + rows)
        for part, (positions, live) in enumerate(zip(self.positions, self.live, strict=True)):
            self.positions[part] = moved[positions]
            live[self.positions[part] < 0] = 0
        fresh = moved[self.fresh]
        self.fresh = np.sort(fresh[fresh >= 0])

    def _end(self, positions: np.ndarray, rowids: np.ndarray, created: np.ndarray) -> None:
        """Take rows out that are not live any more."""
        if not len(positions):
            return
        for cover, live in zip(self.covers, self.live, strict=True):
            nodes = cover.nodes(rowids, created)
            live[nodes[nodes >= 0]] = 0
        self.fresh = self.fresh[~np.isin(self.fresh, positions)]

    def _begin(self, positions: np.ndarray, rowids: np.ndarray, created: np.ndarray) -> None:
        """Place rows that were not live before."""
        if not len(positions):
            return
        is_fresh = np.ones(len(positions), dtype=bool)
        for part, (cover, live) in enumerate(zip(self.covers, self.live, strict=True)):
            nodes = cover.nodes(rowids, created)
            has = nodes >= 0
            if has.any():
                where = self.positions[part].copy()  # others may search by it
                where[nodes[has]] = positions[has]
                self.positions[part] = where
                live[nodes[has]] = 1
                is_fresh &= ~has
        self.fresh = np.sort(np.concatenate((self.fresh, positions[is_fresh])))


def _changes(old: VectorBlock | None, new: VectorBlock) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of rows that ended and that began, from a block to what it is now."""
    rows = len(new.rowids)
    known = 0 if old is None else min(len(old.rowids), rows)
    ended = begun = _NONE
    if old is not None and old.live is not new.live:
        was = np.ones(known, dtype=bool) if old.live is None else old.live[:known]
        now = np.ones(known, dtype=bool) if new.live is None else new.live[:known]
        changed = np.flatnonzero(was != now)
        ended, begun = changed[was[changed]], changed[now[changed]]
    if known == rows:
        return ended, begun
    added = np.arange(known, rows)
    if new.live is not None:
        added = added[new.live[known:]]
    return ended, np.concatenate((begun, added))


def _joined(parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)] or 3 * [_NONE]
    return columns[0], columns[1], columns[2]


def _nothing(covers: Sequence[Cover]) -> Placement:
    """Return a placement of parts among no blocks."""
    empty = Placement.__new__(Placement)
    empty._blocks, empty._starts, empty.fresh = [], np.zeros(1, dtype=np.int64), _NONE
    empty.positions = [np.full(cover.size, -1, dtype=np.int64) for cover in covers]
    empty.live = [np.zeros(cover.size, dtype=np.uint8) for cover in covers]
    return empty
