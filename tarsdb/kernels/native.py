"""Calls a compiled scan: memory for answers and scratch, threads, merging of their parts.

Knows addresses and counts; not where the blocks come from.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np

from tarsdb.kernels import reference
from tarsdb.kernels.dispatch import Kernel
from tarsdb.records import dataclass

QUERIES_AT_ONCE = 256
"""Queries one pass over the rows serves: their answers and partial results fit in the L2 cache."""
THREAD_BYTES = 1 << 21
"""Vector bytes below which another thread costs more than it saves."""
_SCRATCH_FIXED, _SCRATCH_QUERY = 8 * 132, 256  # scan.scratch_bytes without importing Numba
SCRATCH_ONE = _SCRATCH_FIXED + 2 * _SCRATCH_QUERY
"""Bytes of scratch memory of a scan for one query."""

Found = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class PlacedBlock:
    """Where a block lies, and the arrays it is made of."""

    addresses: tuple[int, int, int]
    """Data, row ids, live mask (0: all live)."""
    held: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, data: np.ndarray, rowids: np.ndarray, live: np.ndarray | None) -> PlacedBlock:
        """Place a block of vectors (n, width), n > 0."""
        arrays = [np.ascontiguousarray(data), np.ascontiguousarray(rowids, dtype=np.int64)]
        if live is None:
            return cls((address(arrays[0]), address(arrays[1]), 0), tuple(arrays))
        arrays.append(np.ascontiguousarray(live, dtype=np.bool_))
        one, two, three = map(address, arrays)
        return cls((one, two, three), tuple(arrays))


@dataclass(frozen=True, slots=True)
class BlockTable:
    """Addresses of blocks: a (blocks + 1, 4) int64 array the kernels read.

    Columns: data, row ids, live mask (0: all live), first position; the last row holds only the
    number of rows. The table keeps the arrays alive, but not the transaction they are views of.
    """

    entries: np.ndarray
    held: tuple[PlacedBlock, ...]
    address: int
    rows: int
    width: int
    row_bytes: int

    @classmethod
    def of(cls, blocks: Sequence[PlacedBlock]) -> BlockTable:
        """Build the table of blocks."""
        entries = np.zeros((len(blocks) + 1, 4), dtype=np.int64)
        if not blocks:
            return cls(entries, (), address(entries), 0, 0, 0)
        entries[:-1, :3] = [block.addresses for block in blocks]
        np.cumsum([len(block.held[1]) for block in blocks], out=entries[1:, 3])
        data = blocks[0].held[0]
        width, size = data.shape[1], data.itemsize
        rows = int(entries[-1, 3])
        return cls(entries, tuple(blocks), address(entries), rows, width, width * size)


def _by_interface(array: np.ndarray) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


def _by_layout(array: np.ndarray) -> int:
    """Read the first field of the array object: eight times as fast as asking the array."""
    return ctypes.c_size_t.from_address(id(array) + _HEAD).value


def _address() -> Callable[[np.ndarray], int]:
    tried = np.arange(3)
    if sys.implementation.name == "cpython" and _by_layout(tried) == _by_interface(tried):
        return _by_layout
    return _by_interface


_HEAD = object.__basicsize__
"""Where an array object's own fields begin; NumPy's binary interface fixes their order."""
address = _address()
"""Returns where an array's first element lies."""


class _Scratch(threading.local):
    """Memory of one thread's searches for one query; grows as asked."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._address = 0

    def of(self, size: int) -> int:
        """Return the address of so many bytes, which 64 divides; the next call may return it."""
        if len(self._memory) < size + 64:
            self._memory = np.empty(2 * size + 64, np.uint8)
            start = address(self._memory)
            self._address = start + -start % 64
        return self._address


scratch = _Scratch()


@dataclass(slots=True)
class Scan:
    """One search over a block table by a compiled kernel.

    ``queries`` is (q, width) C-contiguous of the kernel's query type; ``positions`` int64 or None.
    """

    kernel: Kernel
    table: BlockTable
    metric: int
    positions: np.ndarray | None = None
    descending: bool = False

    def nearest(self, queries: np.ndarray, k: int, threads: int = 1) -> Found:
        """Return row ids and distances (q, k') of the first k rows of each query."""
        total = self._total()
        if threads == 1 and len(queries) <= QUERIES_AT_ONCE:
            return self._part(queries, k, (0, total))
        parts = [
            self._nearest(queries[at : at + QUERIES_AT_ONCE], k, total, threads)
            for at in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def everything(self, query: np.ndarray) -> Found:
        """Return row ids and distances of all live rows, in order of position."""
        total = self._total()
        rowids, values = np.empty(total, np.int64), np.empty(total, np.float32)
        found = self._call((0, total), query.reshape(1, -1), 0, rowids, values)
        return rowids[:found], values[:found]

    def among(self, queries: np.ndarray, places: np.ndarray, counts: list[int], k: int) -> Found:
        """Return the first k rows of each query among positions of its own.

        Parameters
        ----------
        queries : (q, width)
        places : int64 (q, cap), C-contiguous
        counts : list of int
            How many positions a query has; with fewer than k, the rest of its answer is undefined.
        k : int

        Returns
        -------
        rowids : int64 (q, k)
        distances : float32 (q, k)
        """
        rowids, values = (
            np.empty((len(queries), k), np.int64),
            np.empty((len(queries), k), np.float32),
        )
        table, blocks = self.table, len(self.table.entries) - 1
        size, pitch = queries.shape[1] * queries.itemsize, 8 * places.shape[1]
        query, place, value, rowid = map(address, (queries, places, values, rowids))
        memory = scratch.of(SCRATCH_ONE)
        for number, count in enumerate(counts):
            self.kernel(
                table.address, blocks, 0, max(count, 0), place + number * pitch, table.row_bytes,
                table.width, query + number * size, 1, size, self.metric, k,
                value + 4 * k * number, rowid + 8 * k * number, memory,
            )  # fmt: skip
        return rowids, values

    def among_one(self, query: np.ndarray, places: np.ndarray, k: int) -> Found:
        """Return the first k rows of one query, (1, width), among at least k int64 positions."""
        rowids, values = np.empty((1, k), np.int64), np.empty((1, k), np.float32)
        table = self.table
        self.kernel(
            table.address, len(table.entries) - 1, 0, len(places), address(places), table.row_bytes,
            table.width, address(query), 1, table.row_bytes, self.metric, k, address(values),
            address(rowids), scratch.of(SCRATCH_ONE),
        )  # fmt: skip
        return rowids, values

    def _total(self) -> int:
        return self.table.rows if self.positions is None else len(self.positions)

    def _nearest(self, queries: np.ndarray, k: int, total: int, threads: int) -> Found:
        useful = total * self.table.row_bytes * len(queries) // THREAD_BYTES
        count = max(1, min(threads, useful))
        bounds = [total * part // count for part in range(count + 1)]
        parts: list[Found | None] = [None] * count

        def run(part: int) -> None:
            parts[part] = self._part(queries, k, (bounds[part], bounds[part + 1]))

        others = [threading.Thread(target=run, args=(part,)) for part in range(1, count)]
        for other in others:
            other.start()
        run(0)
        for other in others:
            other.join()
        done = [part for part in parts if part is not None]
        return done[0] if len(done) == 1 else self._merged(done, k)

    def _part(self, queries: np.ndarray, k: int, window: tuple[int, int]) -> Found:
        shape = (len(queries), k)
        rowids, values = np.empty(shape, np.int64), np.empty(shape, np.float32)
        found = self._call(window, queries, k, rowids, values)
        return (rowids, values) if found == k else (rowids[:, :found], values[:, :found])

    def _merged(self, parts: list[Found], k: int) -> Found:
        rowids = np.concatenate([part[0] for part in parts], axis=1)
        values = np.concatenate([part[1] for part in parts], axis=1)
        order = [
            reference.smallest(v, r, k, self.descending)
            for r, v in zip(rowids, values, strict=True)
        ]
        chosen = np.stack(order)
        return np.take_along_axis(rowids, chosen, 1), np.take_along_axis(values, chosen, 1)

    def _call(
        self, window: tuple[int, int], queries: np.ndarray, k: int, rowids: np.ndarray,
        values: np.ndarray,
    ) -> int:  # fmt: skip
        table, count = self.table, len(queries)
        if count == 1:
            memory = scratch.of(SCRATCH_ONE)
        else:
            several = np.empty(_SCRATCH_FIXED + _SCRATCH_QUERY * (count + 1), np.uint8)
            memory = address(several)
        places = 0 if self.positions is None else address(self.positions)
        return self.kernel(
            table.address, len(table.entries) - 1, *window, places, table.row_bytes, table.width,
            address(queries), count, queries.shape[1] * queries.itemsize,
            self.metric | self.descending << 4, k, address(values), address(rowids),
            memory,
        )  # fmt: skip
