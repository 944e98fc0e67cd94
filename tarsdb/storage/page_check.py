"""A fast structural check of an LMDB 0.9 file: many pages at a time, level by level.

Follows lmdb.verify for the kinds of trees tarsdb makes and answers only "clean" or "suspicious": at
the first finding, and at anything lmdb can write but tarsdb does not, it gives up and leaves the
answer to lmdb.verify. It reads with pread, never maps, and looks at the first page of a long value
only. Knows nothing about tarsdb's records.
"""

from __future__ import annotations

import enum
import os
import sys
import time
from typing import NamedTuple

import numpy as np

from tarsdb.storage.page_bytes import (
    HEADER,
    NO_PAGE,
    PAGE,
    Ints,
    Keys,
    Meta,
    Pages,
    Suspicious,
    ascending,
    numbered,
    read_meta,
    require,
)

_BATCH = 1024  # pages held at once
_DEEPEST = 32
_BRANCH, _LEAF, _OVERFLOW, _DIRTY, _LEAF2, _SUBPAGE = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40
_BIG, _SUBTREE, _DUPLICATES = 1, 2, 4  # node flags
_DUPSORT, _DUPFIXED = 0x04, 0x10  # database flags
_FREE_FLAGS = (0x0008, 0x4008)  # integer keys; the environment was opened with subdir=False
# kinds of trees: free pages; names of databases; a database; one with several values a key; the
# values of one key. And the node flags seen in each.
_FREE, _MAIN, _NAMED, _MULTI, _VALUES = range(5)
_NODES = np.zeros((5, 8), dtype=bool)
_NODES[_FREE, [0, _BIG]] = True
_NODES[_MAIN, [0, _BIG, _SUBTREE]] = True
_NODES[_NAMED, [0, _BIG]] = True
_NODES[_MULTI, [0, _DUPLICATES, _DUPLICATES | _SUBTREE]] = True
# columns of a tree: those of its database record, what was found, its kind and its parent
_PAD, _FLAGS, _DEPTH, _BRANCHES, _LEAVES, _OVERFLOWS, _ENTRIES, _ROOT = range(8)
_FOUND = 8  # + 0..3: branches, leaves, overflow pages, entries
_KIND, _PARENT = 12, 13


class Verdict(enum.Enum):
    """What the fast check can say."""

    CLEAN = "clean"
    SUSPICIOUS = "suspicious"
    UNFINISHED = "unfinished"


class _OutOfTime(Exception):
    pass


def check_pages(path: str, limit_s: float | None) -> Verdict:
    """Check the structure of a file nobody writes to."""
    deadline = None if limit_s is None else time.monotonic() + limit_s
    try:
        require(sys.byteorder == "little")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _Walk(fd, deadline).run()
        finally:
            os.close(fd)
    except _OutOfTime:
        return Verdict.UNFINISHED
    except (Suspicious, OSError, ArithmeticError, IndexError, ValueError, MemoryError):
        return Verdict.SUSPICIOUS
    return Verdict.CLEAN


class _Front(NamedTuple):
    """Pages still to read: their numbers, trees and depths; those of a tree in key order."""

    numbers: Ints
    trees: Ints
    depths: Ints

    def at(self, where: Ints | slice) -> _Front:
        return _Front(self.numbers[where], self.trees[where], self.depths[where])


class _Nodes(NamedTuple):
    """Nodes of many pages: their page's place in the batch, place in the page, offset, key."""

    owners: Ints
    slots: Ints
    offsets: Ints
    key_sizes: Ints
    room: Ints  # bytes of the page after the key


class _Walk:
    def __init__(self, fd: int, deadline: float | None) -> None:
        self.fd = fd
        self.deadline = deadline
        self.size = os.fstat(fd).st_size
        self.meta: Meta = read_meta(fd, self.size)
        self.pages = self.meta.pages
        self.live = np.zeros(self.pages, dtype=np.bool_)
        self.accounted = 0  # pages of trees, extents and free lists, each time they are met
        self.extents: list[Ints] = []
        self.freed: list[Ints] = []
        self.trees: Ints = np.zeros((0, 14), dtype=np.int64)
        self.last_keys: dict[bool, tuple[int, bytes]] = {}

    def run(self) -> None:
        free, main = self.meta.free, self.meta.main
        require(int(free[_FLAGS]) in _FREE_FLAGS)
        require(main[_FLAGS] == 0 and main[_PAD] == 0)
        self._follow(self._plant(free[None], _FREE, None))
        self._follow(self._plant(main[None], _MAIN, None))
        self._compare_counts()
        self._account_for_all()

    def _follow(self, front: _Front) -> None:
        while front.numbers.size:
            parts: list[_Front] = []
            for start in range(0, front.numbers.size, _BATCH):
                if self.deadline is not None and time.monotonic() > self.deadline:
                    raise _OutOfTime
                self._batch(front.at(slice(start, start + _BATCH)), parts)
            if not parts:
                return
            # children of trees in progress first, new trees after them
            parts.sort(key=lambda part: bool(part.depths.size and part.depths[0] == 1))
            numbers, trees, depths = (np.concatenate(column) for column in zip(*parts, strict=True))
            front = _Front(numbers, trees, depths)

    # --- trees ---

    def _plant(self, records: Ints, kind: Ints | int, parents: Ints | None) -> _Front:
        """Add trees by their database records; return their roots."""
        trees = np.zeros((records.shape[0], 14), dtype=np.int64)
        trees[:, :8] = records
        trees[:, _KIND] = kind
        trees[:, _PARENT] = -1 if parents is None else parents
        ids = np.arange(records.shape[0], dtype=np.int64) + self.trees.shape[0]
        empty = records[:, _ROOT] == NO_PAGE
        require(records[empty][:, [_DEPTH, _OVERFLOWS, _ENTRIES]] == 0)
        counted = empty & (trees[:, _KIND] != _MULTI)
        require(records[counted][:, [_BRANCHES, _LEAVES]] == 0)
        require(records[~empty][:, _DEPTH] <= _DEEPEST)
        require(not (empty & (trees[:, _KIND] == _VALUES)).any())
        self.trees = np.concatenate([self.trees, trees])
        roots = records[~empty, _ROOT]
        return _Front(roots, ids[~empty], np.ones_like(roots))

    def _count(self, what: int, trees: Ints, amounts: Ints | None = None) -> None:
        np.add.at(self.trees[:, _FOUND + what], trees, 1 if amounts is None else amounts)

    def _compare_counts(self) -> None:
        trees = self.trees
        found = trees[:, _FOUND : _FOUND + 4]
        claimed = trees[:, _BRANCHES : _ENTRIES + 1]
        require(claimed[:, 2:] == found[:, 2:])
        # LMDB miscounts the pages where keys have many values; nothing depends on its count
        exact = trees[:, _KIND] != _MULTI
        require(claimed[exact, :2] == found[exact, :2])

    def _account_for_all(self) -> None:
        """Require each page to be in exactly one tree, extent or free list."""
        if self.extents:
            extents = np.concatenate(self.extents, axis=1)
            starts, ends = extents[:, np.argsort(extents[0])]
            require(ends[:-1] <= starts[1:])
            steps = np.zeros(self.pages + 1, dtype=np.int8)
            steps[starts] += 1
            steps[ends] -= 1
            self.live |= np.cumsum(steps[:-1], dtype=np.int8).astype(np.bool_)
            self.accounted += int((ends - starts).sum())
        for numbers in self.freed:
            require((numbers >= 2) & (numbers < self.pages))
            self.live[numbers] = True
            self.accounted += numbers.size
        require(self.accounted == self.pages - 2)
        require(self.live[2:])

    # --- pages ---

    def _batch(self, front: _Front, found: list[_Front]) -> None:
        numbers = front.numbers
        require((numbers >= 2) & (numbers < self.pages))
        require((numbers + 1) * PAGE <= self.size)
        require(~self.live[numbers])
        require(np.diff(np.sort(numbers)) > 0)
        self.live[numbers] = True
        self.accounted += numbers.size
        pages = Pages(self.fd, numbers)
        starts = pages.starts
        kinds = self.trees[front.trees, _KIND]
        depth = self.trees[front.trees, _DEPTH]
        require(front.depths <= depth)
        is_leaf = front.depths == depth
        packed = is_leaf & (kinds == _VALUES)
        expected = np.where(is_leaf, np.where(packed, _LEAF | _LEAF2, _LEAF), _BRANCH)
        require(pages.u64(starts) == numbers)
        require(pages.u16(starts + 10) == expected)
        lower, upper = pages.u16(starts + 12), pages.u16(starts + 14)
        require((lower > HEADER) & (lower % 2 == 0))
        require(packed | ((lower <= upper) & (upper <= PAGE)))
        self._count(0, front.trees[~is_leaf])
        self._count(1, front.trees[is_leaf])
        branches = np.flatnonzero(~is_leaf)
        if branches.size:
            found.append(self._branches(pages, starts[branches], front.at(branches)))
        leaves = np.flatnonzero(is_leaf & ~packed)
        if leaves.size:
            self._leaves(pages, starts[leaves], front.trees[leaves], found)
        leaves = np.flatnonzero(packed)
        if leaves.size:
            self._packed_leaves(pages, starts[leaves], front.trees[leaves])

    @staticmethod
    def _nodes(pages: Pages, starts: Ints) -> _Nodes:
        owners, slots = numbered((pages.u16(starts + 12) - HEADER) >> 1)
        page = starts[owners]
        pointers = pages.u16(page + HEADER + 2 * slots)
        require((pointers >= pages.u16(starts + 14)[owners]) & (pointers <= PAGE - 8))
        offsets = page + pointers
        key_sizes = pages.u16(offsets + 6)
        room = PAGE - 8 - pointers - key_sizes
        require(room >= 0)
        return _Nodes(owners, slots, offsets, key_sizes, room)

    def _branches(self, pages: Pages, starts: Ints, front: _Front) -> _Front:
        nodes = self._nodes(pages, starts)
        offsets = nodes.offsets
        trees = front.trees[nodes.owners]
        children = pages.u16(offsets) | pages.u16(offsets + 2) << 16 | pages.u16(offsets + 4) << 32
        keyed = nodes.slots > 0  # the first key of a branch is not used
        require(nodes.key_sizes[keyed] > 0)
        keys = Keys(offsets[keyed] + 8, nodes.key_sizes[keyed], nodes.owners[keyed])
        self._require_order(pages, keys, trees[keyed])
        return _Front(children, trees, front.depths[nodes.owners] + 1)

    def _require_order(self, pages: Pages, keys: Keys, trees: Ints) -> None:
        if trees.size == 0:
            return
        if trees[0] > 0:  # the tree of free pages is the first one, and read alone
            require(ascending(pages, keys))
            return
        require(keys.lengths == 8)
        numbers = pages.u64(keys.starts)
        require(numbers > 0)
        require((np.diff(numbers) > 0) | (np.diff(keys.groups) != 0))

    def _leaf_keys(self, pages: Pages, keys: Keys, packed: bool) -> None:
        """Require keys of leaves in order, also across batches."""
        self._require_order(pages, keys, keys.groups)
        tree = int(keys.groups[0])
        before = self.last_keys.get(packed)
        if before is not None and before[0] == tree:
            low, high = before[1], pages.cut(int(keys.starts[0]), int(keys.lengths[0]))
            require(low[::-1] < high[::-1] if tree == 0 else low < high)
        last = pages.cut(int(keys.starts[-1]), int(keys.lengths[-1]))
        self.last_keys[packed] = int(keys.groups[-1]), last

    def _packed_leaves(self, pages: Pages, starts: Ints, trees: Ints) -> None:
        widths = self.trees[trees, _PAD]
        require(pages.u16(starts + 8) == widths)
        keys = self._packed_keys(pages, starts, trees, PAGE)
        self._leaf_keys(pages, keys, True)
        self._count(3, keys.groups)

    def _packed_keys(self, pages: Pages, starts: Ints, trees: Ints, sizes: Ints | int) -> Keys:
        """Return the values in packed pages or sub-pages, grouped as `trees` says."""
        widths = pages.u16(starts + 8)
        counts = (pages.u16(starts + 12) - HEADER) >> 1
        require((widths > 0) & (counts > 0) & (counts * widths <= sizes - HEADER))
        owners, slots = numbered(counts)
        width = widths[owners]
        return Keys(starts[owners] + HEADER + slots * width, width, trees[owners])

    # --- leaves ---

    def _leaves(self, pages: Pages, starts: Ints, trees: Ints, found: list[_Front]) -> None:
        nodes = self._nodes(pages, starts)
        trees = trees[nodes.owners]
        self._leaf_keys(pages, Keys(nodes.offsets + 8, nodes.key_sizes, trees), False)
        kinds = self.trees[trees, _KIND]
        flags = pages.u16(nodes.offsets + 4)
        require(flags < 8)
        require(_NODES[kinds, flags])
        sizes = pages.u16(nodes.offsets) | pages.u16(nodes.offsets + 2) << 16
        require(np.where(flags == _BIG, 8, sizes) <= nodes.room)
        values = nodes.offsets + 8 + nodes.key_sizes
        self._count(3, trees[flags < _DUPLICATES])
        if (flags == _DUPLICATES).any():
            at = np.flatnonzero(flags == _DUPLICATES)
            self._sub_pages(pages, values[at], trees[at], sizes[at])
        for flag in (_SUBTREE, _SUBTREE | _DUPLICATES):
            at = np.flatnonzero(flags == flag)
            if at.size:
                require(sizes[at] == 48)
                found.append(self._sub_trees(pages.records(values[at]), trees[at]))
        at = np.flatnonzero(flags == _BIG)
        bodies = pages.u64(values[at])
        if at.size:
            self._extents(bodies, sizes[at], trees[at])
        if kinds[0] == _FREE:
            places = np.where(flags == _BIG, -1, values)
            places[at] = -bodies
            self._free_lists(pages, nodes.offsets + 8, places, sizes)

    def _sub_pages(self, pages: Pages, starts: Ints, trees: Ints, sizes: Ints) -> None:
        """Check several values of a key that lie in its node."""
        require(sizes >= HEADER)
        flags, lower = pages.u16(starts + 10), pages.u16(starts + 12)
        require((flags & ~_DIRTY) == (_LEAF | _LEAF2 | _SUBPAGE))
        require(lower % 2 == 0)
        keys = self._packed_keys(pages, starts, np.arange(starts.size, dtype=np.int64), sizes)
        require(ascending(pages, keys))
        self._count(3, trees, (lower - HEADER) >> 1)

    def _sub_trees(self, records: Ints, parents: Ints) -> _Front:
        """Take in databases found in the main tree, or values of a key that fill a tree."""
        if self.trees[parents[0], _KIND] == _MULTI:
            require((records[:, _FLAGS] == _DUPFIXED) & (records[:, _PAD] > 0))
            require(self.trees[parents, _KIND] == _MULTI)
            self._count(3, parents, records[:, _ENTRIES])
            return self._plant(records, _VALUES, parents)
        require(records[:, _PAD] == 0)
        multi = records[:, _FLAGS] == _DUPSORT | _DUPFIXED
        require(multi | (records[:, _FLAGS] == 0))
        return self._plant(records, np.where(multi, _MULTI, _NAMED), parents)

    def _extents(self, numbers: Ints, sizes: Ints, trees: Ints) -> None:
        """Check the first pages of values outside the tree, and count their pages.

        An extent may be larger than its value: LMDB keeps it when a transaction replaces its own
        value by a shorter one, and counts all of its pages.
        """
        needed = (HEADER - 1 + sizes) // PAGE + 1
        require((numbers >= 2) & (numbers <= self.pages - needed))
        heads = b"".join(os.pread(self.fd, HEADER, number * PAGE) for number in numbers.tolist())
        require(len(heads) == HEADER * numbers.size)
        stored = np.frombuffer(heads, dtype="<i8").reshape(-1, 2)[:, 0]
        flags = np.frombuffer(heads, dtype="<u2").reshape(-1, 8)[:, 5]
        counts = np.frombuffer(heads, dtype="<u4").reshape(-1, 4)[:, 3].astype(np.int64)
        require((stored == numbers) & (flags == _OVERFLOW) & (counts >= needed))
        ends = numbers + counts
        require((ends <= self.pages) & (ends * PAGE <= self.size))
        self._count(2, trees, counts)
        self.extents.append(np.stack([numbers, ends]))

    def _free_lists(self, pages: Pages, keys: Ints, places: Ints, sizes: Ints) -> None:
        """Read lists of free pages: offsets into the batch, or below zero, numbers of pages."""
        txns = pages.u64(keys)
        require((txns >= 1) & (txns <= self.meta.txn))
        require((sizes >= 8) & (sizes % 8 == 0))
        # each page is free once at most, so no list of lists is longer than the file has pages
        require(int(sizes.sum()) <= 8 * (self.pages + sizes.size))
        for place, size in zip(places.tolist(), sizes.tolist(), strict=True):
            if place < 0:
                raw = os.pread(self.fd, size, -place * PAGE + HEADER)
            else:
                raw = pages.cut(place, size)
            require(len(raw) == size)
            numbers = np.frombuffer(raw, dtype="<i8").astype(np.int64)
            require(numbers[0] == numbers.size - 1)
            require(np.diff(numbers[1:]) < 0)
            self.freed.append(numbers[1:])
