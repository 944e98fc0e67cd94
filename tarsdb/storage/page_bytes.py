"""Fields of many LMDB 0.9 pages at once: gathers at any byte offset, key order, meta pages.

Knows where the bytes are and how keys compare; knows nothing about trees. A field is gathered only
from offsets the caller has checked.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PAGE = 4096
HEADER = 16
NO_PAGE = -1
MOST_PAGES_PAST_END = 1 << 20

Ints = npt.NDArray[np.int64]

_SLACK = 16
_MAGIC = 0xBEEFC0DE
_META_FLAG = 0x08
_META = struct.Struct("<Q2xH4xII8xQ48s48sQQ")
_RECORD = struct.Struct("<IHHQQQQQ")
# the bits of the first n bytes of a big-endian word
_FIRST_BYTES = np.array([(1 << 64) - (1 << (64 - 8 * n)) for n in range(9)], dtype=np.uint64)


class Suspicious(Exception):
    """Something here is damaged, or healthy in a way this reader does not know."""


def require(condition: Any) -> None:
    """Raise unless a condition, or each element of one, holds."""
    if not np.all(condition):
        raise Suspicious


class Meta(NamedTuple):
    """What the newer meta page says: the two core trees, the number of pages, the transaction."""

    free: Ints
    main: Ints
    pages: int
    txn: int


def read_meta(fd: int, size: int) -> Meta:
    """Check both meta pages and return the one the engine would select."""
    metas = []
    for number in (0, 1):
        head = os.pread(fd, _META.size, number * PAGE)
        require(len(head) == _META.size)
        stored, flags, magic, version, _, free, main, last, txn = _META.unpack(head)
        require((stored, flags, magic, version) == (number, _META_FLAG, _MAGIC, 1))
        require(txn == 0 or txn % 2 == number)
        free_record = _RECORD.unpack(free)
        require(free_record[0] == PAGE)
        metas.append((txn, last, free_record, _RECORD.unpack(main)))
    txn, last, free_record, main_record = max(metas, key=lambda meta: meta[0])
    require(1 <= last < size // PAGE + MOST_PAGES_PAST_END)
    return Meta(_record(free_record), _record(main_record), last + 1, txn)


def _record(fields: tuple[int, ...]) -> Ints:
    return np.array(fields, dtype=np.uint64).view(np.int64)


class Pages:
    """Pages copied into one buffer, and the fields at arrays of byte offsets into it."""

    def __init__(self, fd: int, numbers: Ints) -> None:
        """Read the pages `numbers`, without repeats; `starts` tells where each lies."""
        size = numbers.size * PAGE
        self.raw = np.zeros(size + _SLACK, dtype=np.uint8)
        order = np.argsort(numbers)
        self.starts: Ints = np.empty(numbers.size, dtype=np.int64)
        self.starts[order] = np.arange(numbers.size, dtype=np.int64) * PAGE
        in_order = numbers[order]
        runs = np.flatnonzero(np.diff(in_order, prepend=-2) != 1)
        ends = np.append(runs[1:], numbers.size)
        whole = self.raw.data
        firsts = in_order[runs] * PAGE
        pieces = zip((runs * PAGE).tolist(), (ends * PAGE).tolist(), firsts.tolist(), strict=True)
        for begin, end, at in pieces:
            require(os.preadv(fd, [whole[begin:end]], at) == end - begin)

    def _fields(self, kind: str, offsets: Ints) -> npt.NDArray[Any]:
        width = int(kind[-1])
        every = np.ndarray((self.raw.size - width + 1,), kind, self.raw, strides=(1,))
        return np.asarray(every[offsets])

    def u16(self, offsets: Ints) -> Ints:
        """Return 16-bit fields."""
        return self._fields("<u2", offsets).astype(np.int64)

    def u32(self, offsets: Ints) -> Ints:
        """Return 32-bit fields."""
        return self._fields("<u4", offsets).astype(np.int64)

    def u64(self, offsets: Ints) -> Ints:
        """Return 64-bit fields; what exceeds int64 becomes negative."""
        return self._fields("<i8", offsets).astype(np.int64)

    def words(self, offsets: Ints) -> npt.NDArray[np.uint64]:
        """Return eight bytes as a number that orders like them."""
        return self._fields(">u8", offsets).astype(np.uint64)

    def cut(self, start: int, length: int) -> bytes:
        """Return bytes."""
        return self.raw[start : start + length].tobytes()

    def records(self, offsets: Ints) -> Ints:
        """Return database records: pad, flags, depth, branches, leaves, overflow, entries, root."""
        fields = [self.u32(offsets), self.u16(offsets + 4), self.u16(offsets + 6)]
        fields += [self.u64(offsets + at) for at in range(8, 48, 8)]
        return np.stack(fields, axis=1)


class Keys(NamedTuple):
    """Keys in tree order: where they lie, their lengths, and what they are ordered within."""

    starts: Ints
    lengths: Ints
    groups: Ints


def ascending(pages: Pages, keys: Keys) -> bool:
    """Return whether keys of the same group increase strictly, as memcmp orders them."""
    left = np.flatnonzero(keys.groups[1:] == keys.groups[:-1])
    first = pages.words(keys.starts) & _FIRST_BYTES[np.minimum(keys.lengths, 8)]
    low, high = first[left], first[left + 1]
    done = 0
    while True:
        if (low > high).any():
            return False
        left = left[low == high]
        if left.size == 0:
            return True
        done += 8
        low_left, high_left = keys.lengths[left] - done, keys.lengths[left + 1] - done
        ended = np.minimum(low_left, high_left) <= 0
        # equal so far and one has ended: the shorter one comes first
        if (low_left[ended] >= high_left[ended]).any():
            return False
        left, low_left, high_left = left[~ended], low_left[~ended], high_left[~ended]
        low = pages.words(keys.starts[left] + done) & _FIRST_BYTES[np.minimum(low_left, 8)]
        high = pages.words(keys.starts[left + 1] + done) & _FIRST_BYTES[np.minimum(high_left, 8)]


def numbered(counts: Ints) -> tuple[Ints, Ints]:
    """Return for `counts` items each: the owner of every item and its number within the owner."""
    owners = np.repeat(np.arange(counts.size, dtype=np.int64), counts)
    firsts = np.cumsum(counts) - counts
    return owners, np.arange(owners.size, dtype=np.int64) - firsts[owners]
