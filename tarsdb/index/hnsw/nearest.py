"""Search of graphs and exact comparison of what they name, in one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tarsdb.index import sieve
from tarsdb.index.base import OFTEN, Found, Look
from tarsdb.index.flat import HEAP_LIMIT, FlatIndex
from tarsdb.index.hnsw.graph import Graph, list_and_room
from tarsdb.index.navigation import as_numbers
from tarsdb.index.threads import in_threads
from tarsdb.kernels import dispatch
from tarsdb.kernels import graph as kernels
from tarsdb.kernels.native import SCRATCH_ONE, address, scratch

_CODED = 11  # the word of kernels/cpu/graph_nearest.py; a test compares
CODED_ROWS = 64
"""Fresh rows from which their codes are worth it: fewer than of a filter, as a limit is known."""
QUERIES_AT_ONCE = 32
"""Queries of a batch a thread takes at a time, at most."""


class Nearest:
    """The nearest rows of queries, by some graphs; any number of threads may ask.

    It holds addresses of the exact index's blocks and lives no longer than these.

    Parameters
    ----------
    looks : sequence of Look
    fresh : int64 (f,)
        Positions of the rows that no graph has.
    flat : FlatIndex
    op : str
        The operator that is answered.
    k : int
        Rows wanted.
    """

    def __init__(
        self, looks: Sequence[Look[Graph]], fresh: np.ndarray, flat: FlatIndex, op: str, k: int
    ) -> None:
        scan, found = flat.scan(op), kernels.current()
        assert scan is not None
        assert found is not None
        self.level = dispatch.level()
        self._flat, self.k, self._kernel = flat, k, found.nearest
        self._held = list(looks), np.ascontiguousarray(fresh, np.int64)
        table, listed = scan.table, sum(look.taken for look in looks)
        words = [
            dispatch.entry(scan.kernel), table.address, len(table.entries) - 1, table.row_bytes,
            table.width, table.width * flat.query_dtype.itemsize, 4 * flat.elements, scan.metric,
            k, address(self._held[1]), len(fresh), 0, SCRATCH_ONE, listed, len(looks),
        ]  # fmt: skip
        self._op, self._until_often = op, OFTEN if len(fresh) >= CODED_ROWS else 0
        self._coded: list[tuple[np.ndarray, sieve.Nearest]] = []
        memory = sieve.call_bytes(table.width, k)
        for look in looks:
            allowed = 0 if look.allowed is None else address(look.allowed)
            short, whole = (
                list_and_room((ef, look.taken, look.reach), is_filtered=allowed != 0)
                for ef in (look.short, look.whole)
            )
            places = address(look.positions)
            words += [look.part.place[0], *short, *whole, allowed, places, look.taken]
            memory = max(memory, look.part.scratch_bytes(whole[1]))
        self._words = np.array(words, np.int64)
        memory += SCRATCH_ONE + 8 * (2 * listed + len(looks) + len(fresh)) + 12 * k + 128
        self.call = dispatch.entry(found.nearest), address(self._words), memory

    @staticmethod
    def is_ready(flat: FlatIndex, op: str, k: int) -> bool:
        """Return whether there is such a call: at this level, compiled, for so many rows."""
        return k <= HEAP_LIMIT and kernels.current() is not None and flat.scan(op) is not None

    def search(
        self, queries: np.ndarray, threads: int = 1, check: Callable[[], None] | None = None
    ) -> Found | None:
        """Return the k nearest rows of each query.

        Parameters
        ----------
        queries : (q, width)
            As ``prepare_query`` makes them.
        threads : int
            Threads to use at most.
        check : callable, optional
            Called by any of them between some queries; raises to stop.

        Returns
        -------
        rowids : int64 (q, k)
        distances : float32 (q, k)
            None where a query is to be answered otherwise: a graph's reach did not suffice, or
            too few rows were named.

        Raises
        ------
        DimensionMismatchError
        """
        given = self._flat.checked(queries)
        numbers, rows, k = as_numbers(given), len(given), self.k
        if self._until_often > 0:
            self._until_often -= rows
            if self._until_often <= 0:
                self.asked_often()
        ids, values = np.empty((rows, k), np.int64), np.empty((rows, k), np.float32)
        at = address(numbers), address(given), address(ids), address(values)
        if rows == 1:
            return (ids, values) if self._ask(1, at) else None
        steps = numbers.strides[0], given.strides[0], 8 * k, 4 * k
        step = max(1, min(QUERIES_AT_ONCE, -(-rows // threads)))
        failed: list[int] = []

        def some(start: int) -> None:
            if check is not None:
                check()
            count = 0 if failed else min(step, rows - start)
            done = self._ask(count, [a + start * by for a, by in zip(at, steps, strict=True)])
            if done < count:
                failed.append(start + done)

        in_threads(some, range(0, rows, step), threads)
        return None if failed else (ids, values)

    def asked_often(self) -> None:
        """Have the fresh rows compared by their codes first, where that pays."""
        fresh = self._held[1]
        self._flat.code(fresh, CODED_ROWS)
        by_codes = self._flat.by_codes(fresh, self.k, self._op)
        if by_codes is None:
            self._until_often = OFTEN  # kernels are being compiled
        elif not self._coded:
            words = np.array(by_codes.within, np.int64)
            self._coded.append((words, by_codes))  # all are kept: another thread may be here too
            self._words[_CODED] = address(words)  # a search under way sees all of it or nothing

    def _ask(self, count: int, at: Sequence[int]) -> int:
        """Answer queries whose numbers, own form, row ids and distances lie at addresses."""
        number, query, rowid, value = at
        _, words, memory = self.call
        return self._kernel(words, number, query, count, rowid, value, scratch.of(memory))
