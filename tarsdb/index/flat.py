"""Exact nearest neighbours: one pass over blocks of vectors, where they lie.

The product's exact search and the oracle of every approximate index. Holds addresses of the
blocks, so it lives only as long as the transaction that gave them. Knows no storage and no SQL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.errors import DataError, DeviceError, DimensionMismatchError, NotSupportedError
from tarsdb.index import asked_ahead, on_device, own_metric
from tarsdb.index.base import Found, metric_code, placed
from tarsdb.index.coded import MIN_CHOSEN, CodeCache, CodedBlocks, coded_blocks, coded_rows
from tarsdb.index.navigation import elements
from tarsdb.index.sieve import Nearest
from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.native import BlockTable, Scan
from tarsdb.metrics import METRICS
from tarsdb.types import Kind, SqlType, to_storage

_Runs = tuple[np.ndarray, np.ndarray, np.ndarray]

HEAP_LIMIT = 1024
"""Up to this k a heap is used whatever the number of rows; above, when k is a small part."""

_FEW = 64  # positions that are looked up one by one

_KERNEL_KINDS = {Kind.VECTOR: "f32", Kind.HALFVEC: "f16", Kind.INT8VEC: "i8", Kind.BIT: "bit"}


class FlatIndex:
    """Exact search over blocks of vectors.

    Parameters
    ----------
    blocks : sequence of VectorBlock
        Row ids are unique among the live rows of all blocks. Data may be unaligned.
    sql_type : SqlType
        VECTOR, HALFVEC, INT8VEC or BIT.
    codes : CodeCache, optional
        Where int8 codes of the blocks are kept, which make a search of VECTOR several times
        faster; its answers stay the same to the last bit.
    """

    def __init__(
        self, blocks: Sequence[VectorBlock], sql_type: SqlType, codes: CodeCache | None = None
    ) -> None:
        self._type = sql_type
        self.query_dtype = query_dtype(sql_type)
        self._codes = codes if sql_type.kind is Kind.VECTOR else None
        self._coded: CodedBlocks | None = None
        self._blocks = [block for block in blocks if len(block.rowids)]
        self._table = BlockTable.of([placed(block) for block in self._blocks])
        self._starts = self._table.entries[:, 3].copy()
        self._rows = self._table.rows
        self._kind = _KERNEL_KINDS[sql_type.kind]
        self._places: tuple[np.ndarray, np.ndarray] | None = None
        self._run_bounds: tuple[_Runs | None] | None = None
        self._scans: dict[str, Scan] = {}

    def search(
        self,
        queries: np.ndarray,
        k: int,
        op: str,
        *,
        positions: np.ndarray | None = None,
        descending: bool = False,
        threads: int = 1,
    ) -> Found:
        """Return the k nearest rows of each query.

        Parameters
        ----------
        queries : (q, width)
            Rows as :func:`prepare_query` makes them.
        k : int
            May exceed the number of rows.
        op : str
            ``<->`` ``<#>`` ``<=>`` ``<+>`` on numeric types, ``<~>`` ``<%>`` on BIT.
        positions : int64 (m,), optional
            Search these rows only; from :meth:`positions`, without -1.
        descending : bool
            The farthest rows instead.
        threads : int
            Threads to use at most.

        Returns
        -------
        rowids : int64 (q, k')
        distances : float32 (q, k')
            k' is the smaller of k and the number of live rows; ordered by distance, then row id.
        """
        metric = metric_code(op, self._type)
        matrix = self.checked(queries)
        k = min(k, self._rows if positions is None else len(positions))
        if k <= 0 or not len(matrix):
            return np.empty((len(matrix), 0), np.int64), np.empty((len(matrix), 0), np.float32)
        kernel = dispatch.get(self._kind)
        if kernel is None:
            return self._by_reference(metric, matrix, k, positions, descending)
        scan = Scan(kernel, self._table, metric, _as_positions(positions), descending)
        if self._codes is not None and not descending:
            by_codes = self._by_codes(self._codes, scan, matrix, k, (positions, threads))
            if by_codes is not None:
                return by_codes
        if k <= HEAP_LIMIT or k * 4 <= self._rows:
            return scan.nearest(matrix, k, threads)
        found = [_ordered(*scan.everything(query), k, descending) for query in matrix]
        return np.stack([ids for ids, _ in found]), np.stack([values for _, values in found])

    def search_on(
        self, device: Device, queries: np.ndarray, k: int, op: str, *, threads: int = 1
    ) -> Found:
        """Return what :meth:`search` does of all rows, ascending, by a device where that may pay.

        Parameters
        ----------
        device : Device
            It is asked for large batches over VECTOR, and never answers without proof: see
            ``on_device``. What it cannot prove the processor searches, and all when it fails.
        queries : (q, width)
        k : int
        op : str
        threads : int
            Threads of the processor to use at most.
        """
        metric, matrix = metric_code(op, self._type), self.checked(queries)
        kernel, k = dispatch.get(self._kind), min(k, self._rows)
        fitting = self._type.kind is Kind.VECTOR and k > 0
        if kernel is None or not fitting or not on_device.is_worth(matrix, self._rows, k, metric):
            return self.search(matrix, k, op, threads=threads)
        scan = Scan(kernel, self._table, metric)
        try:
            found = on_device.search(device, self._blocks, scan, matrix, k)
        except DeviceError:  # out of memory, mostly; the answer can be had without it
            METRICS.add("index.device_failures")
            found = None
        if found is None or not found[1].any():
            return self.search(matrix, k, op, threads=threads)
        (rowids, values), certified = found
        if not certified.all():
            rest = self.search(matrix[~certified], k, op, threads=threads)
            rowids[~certified], values[~certified] = rest
        return rowids, values

    def among(self, queries: np.ndarray, positions: np.ndarray, k: int, op: str) -> Found:
        """Return the k nearest of some live rows to each query, as :meth:`search` does but sooner.

        Parameters
        ----------
        queries : (q, width)
            As :func:`prepare_query` makes them.
        positions : int64 (q, m), m >= k
            Of each query its own, each once, all of live vectors.
        k : int
        op : str

        Returns
        -------
        rowids : int64 (q, k)
        distances : float32 (q, k)
        """
        scan = self.scan(op)
        if scan is None or positions.shape[1] > HEAP_LIMIT or k <= 0:
            found = [
                self.search(query[np.newaxis], k, op, positions=own)
                for query, own in zip(queries, positions, strict=True)
            ]
            return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])
        checked = self.checked(queries)
        asked_ahead.ask(self._table, positions.reshape(-1))
        if len(queries) == 1:
            return scan.among_one(checked, positions[0], k)
        places = np.ascontiguousarray(positions)
        return scan.among(checked, places, [places.shape[1]] * len(places), k)

    def scan(self, op: str) -> Scan | None:
        """Return the scan of all rows by an operator, or None while it is not compiled."""
        kernel, known = dispatch.get(self._kind), self._scans.get(op)
        if kernel is None or (known is not None and known.kernel is kernel):
            return None if kernel is None else known
        made = self._scans[op] = Scan(kernel, self._table, metric_code(op, self._type))
        return made

    def is_coded(self, positions: np.ndarray) -> bool:
        """Return whether codes of these rows lie side by side: when asked for again, mostly."""
        return self._codes is not None and coded_rows(self._codes, positions, self) is not None

    def by_codes(self, positions: np.ndarray, k: int, op: str) -> Nearest | None:
        """Return a search of a filter's rows as one call; None where they are not coded (yet).

        Its ``k`` is smaller where there are fewer live rows.
        """
        scan = self.scan(op)
        rows = None if self._codes is None else self._codes.known(positions)
        return None if rows is None or scan is None else rows.nearest(scan, k)

    def code(self, positions: np.ndarray, least: int = MIN_CHOSEN) -> None:
        """Code rows that are searched often, if so many; :meth:`by_codes` finds them."""
        if self._codes is not None:
            for _ in range(2):  # the cache codes what it is asked for again
                coded_rows(self._codes, positions, self, least)

    def search_by(
        self,
        distance: own_metric.Distance,
        query: np.ndarray,
        k: int,
        positions: np.ndarray | None = None,
    ) -> Found:
        """Return the k nearest rows of one query by a distance of the caller's own; exact.

        Parameters
        ----------
        distance : callable
            ``distance(query float32 (width,), rows float32 (n, width)) -> float32 (n,)``, called
            for blocks of live rows; rows of other element types come as float32. They are read-only
            and may be views of the blocks: they must not be kept.
        query : (width,)
        k : int
            May exceed the number of rows.
        positions : int64 (m,), optional
            Search these rows only; from :meth:`positions`, without -1.

        Returns
        -------
        rowids : int64 (k',)
        distances : float32 (k',)
            k' is the smaller of k and the number of live rows; ordered by distance, then row id,
            NaN last.

        Raises
        ------
        NotSupportedError
            The rows are BIT.
        DimensionMismatchError
            The query has another width.
        DataError
            The function failed, or returned something else than float32 (n,), or NaN for a row.
        """
        if self._type.kind is Kind.BIT:
            raise NotSupportedError(
                f"a distance function of one's own is not defined for {self._type}"
            )
        if query.shape != (self._type.width,):
            raise DimensionMismatchError(
                f"the query has shape {query.shape}, the vectors are {self._type}"
            )
        wide = np.array(query, dtype=np.float32)
        return own_metric.nearest(distance, wide, self._windows(positions), k)

    def within(
        self,
        query: np.ndarray,
        radius: float,
        op: str,
        *,
        inclusive: bool,
        positions: np.ndarray | None = None,
    ) -> Found:
        """Return all rows within a radius of one query, ascending by (distance, row id).

        Returns
        -------
        rowids : int64 (m,)
        distances : float32 (m,)
        """
        metric = metric_code(op, self._type)
        rowids, values = self._all(metric, self.checked(query[np.newaxis])[0], positions)
        keep = values <= radius if inclusive else values < radius
        return _ordered(rowids[keep], values[keep], len(rowids), descending=False)

    def positions(self, rowids: np.ndarray) -> np.ndarray:
        """Return the position of each row id, -1 where it has none; int64.

        A position may be that of a dead vector where the row has no live one; searches skip it.
        """
        runs = self._runs()
        if runs is not None:
            lows, starts, stops = runs
            if len(lows) == 1 and len(rowids):
                places: np.ndarray = rowids + (starts[0] - lows[0])
                if starts[0] <= places.min() and places.max() < stops[0]:
                    return places
            block = np.searchsorted(lows, rowids, side="right") - 1
            places = rowids + (starts - lows)[block]
            return np.where((block >= 0) & (places < stops[block]), places, -1)
        if self._places is None:
            self._places = self._sorted_places()
        known, places = self._places
        if not len(known):
            return np.full(len(rowids), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(known, rowids), len(known) - 1)
        return np.where(known[at] == rowids, places[at], -1)

    @property
    def blocks(self) -> Sequence[VectorBlock]:
        """The blocks, empty ones left out; positions count their rows one after the other."""
        return self._blocks

    @property
    def rows(self) -> int:
        """Number of positions, those of dead vectors included."""
        return self._rows

    @property
    def width(self) -> int:
        """Elements of a vector."""
        return self._type.width

    @property
    def elements(self) -> int:
        """Numbers of a vector, see :mod:`tarsdb.index.navigation`."""
        return elements(self._type)

    def rowids(self, positions: np.ndarray) -> np.ndarray:
        """Return the row ids at positions; int64."""
        if len(positions) <= _FEW:
            numbers = self._starts.searchsorted(positions, "right") - 1
            return np.array(
                [
                    self._blocks[number].rowids[at - self._starts[number]]
                    for number, at in zip(numbers.tolist(), positions.tolist(), strict=True)
                ],
                dtype=np.int64,
            )
        every = [block.rowids for block in self._blocks]
        return np.concatenate(every)[positions] if every else np.empty(0, np.int64)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Return copies of the vectors at ascending positions; (n, width)."""
        found = np.empty((len(positions), self._type.width), dtype=self._type.dtype)
        bounds = np.searchsorted(positions, self._starts)
        for number, block in enumerate(self._blocks):
            low, high = bounds[number], bounds[number + 1]
            np.take(
                block.data, positions[low:high] - self._starts[number], axis=0, out=found[low:high]
            )
        return found

    def live(self) -> np.ndarray:
        """Return which positions hold a live vector; bool (rows,)."""
        masks = [
            np.ones(len(block.rowids), dtype=bool) if block.live is None else block.live
            for block in self._blocks
        ]
        return np.concatenate(masks) if masks else np.empty(0, dtype=bool)

    def created(self) -> np.ndarray:
        """Return the creating commit of every position; int64 (rows,)."""
        numbers = [np.broadcast_to(np.asarray(b.created), b.rowids.shape) for b in self._blocks]
        return np.concatenate(numbers) if numbers else np.empty(0, dtype=np.int64)

    def _windows(self, positions: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield row ids and live rows as float32, block by block: read-only, views where it can."""
        step = max(1, own_metric.BLOCK_BYTES // (4 * max(1, self._type.width)))
        for number, block in enumerate(self._blocks):
            chosen = self._chosen(number, positions)
            for start in range(0, len(block.rowids if chosen is None else chosen), step):
                window = slice(start, start + step)
                at = window if chosen is None else chosen[window]
                rows = np.asarray(block.data[at], dtype=np.float32).view()
                rows.flags.writeable = False
                yield block.rowids[at], rows

    def _runs(self) -> _Runs | None:
        """Return first row id, first position and end of runs that all blocks are made of.

        Row ids ascend by one in a run, and from one run to the next. None where blocks have others.
        """
        if self._run_bounds is None:
            self._run_bounds = (_runs_of(self._blocks, self._starts),)
        return self._run_bounds[0]

    def _by_codes(
        self,
        cache: CodeCache,
        scan: Scan,
        matrix: np.ndarray,
        k: int,
        how: tuple[np.ndarray | None, int],
    ) -> Found | None:
        """Search by codes where there are any that pay."""
        positions, threads = how
        if positions is None:
            blocks = self._coded_blocks(cache)
            return blocks.search(scan, matrix, k, threads) if blocks else None
        if len(matrix) > 1 or len(positions) < MIN_CHOSEN:
            return None
        rows = coded_rows(cache, positions, self)
        return None if rows is None else rows.search(scan, matrix, k)

    def _coded_blocks(self, cache: CodeCache) -> CodedBlocks:
        held = self._coded
        basis = None if held is None else held.next_basis()
        if held is not None and basis is None:
            return held
        coded, unsettled = coded_blocks(cache, self._blocks, self._table, basis)
        self._coded = None if unsettled else coded
        return coded

    def _sorted_places(self) -> tuple[np.ndarray, np.ndarray]:
        rowids, places = [], []
        for block, start in zip(self._blocks, self._starts, strict=False):
            chosen = np.arange(len(block.rowids)) if block.live is None else (
                np.flatnonzero(block.live))  # fmt: skip
            rowids.append(block.rowids[chosen])
            places.append(chosen + start)
        if not rowids:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        known, where = np.concatenate(rowids), np.concatenate(places)
        order = np.argsort(known, kind="stable")
        return known[order], where[order]

    def _by_reference(
        self, metric: int, matrix: np.ndarray, k: int, positions: Any, descending: bool
    ) -> Found:
        """Search with NumPy: blocks outside, queries inside, so that a block is read once."""
        best = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(matrix)
        for number, block in enumerate(self._blocks):
            chosen = self._chosen(number, positions)
            rowids = block.rowids if chosen is None else block.rowids[chosen]
            step = max(k, reference.rows_of_chunk(block.data))
            for start in range(0, len(rowids), step):
                window = slice(start, start + step)
                data = block.data[window if chosen is None else chosen[window]]
                values = reference.distance_matrix(metric, data, matrix)
                for query, (ids, kept) in enumerate(best):
                    near = _not_beyond(kept[k - 1 :], values[query], descending)
                    if near.size:
                        ids = np.concatenate((ids, rowids[window][near]))
                        both = np.concatenate((kept, values[query][near]))
                        best[query] = _ordered(ids, both, k, descending)
        dispatch.prepare(self._kind)
        return np.stack([ids for ids, _ in best]), np.stack([values for _, values in best])

    def _all(self, metric: int, query: np.ndarray, positions: np.ndarray | None) -> Found:
        kernel = dispatch.get(self._kind)
        if kernel is not None:
            return Scan(kernel, self._table, metric, _as_positions(positions)).everything(query)
        ids, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for number, block in enumerate(self._blocks):
            chosen = self._chosen(number, positions)
            data = block.data if chosen is None else block.data[chosen]
            ids.append(block.rowids if chosen is None else block.rowids[chosen])
            values.append(reference.distances(metric, data, query))
        dispatch.prepare(self._kind)
        return np.concatenate(ids), np.concatenate(values)

    def _chosen(self, number: int, positions: np.ndarray | None) -> np.ndarray | None:
        live = self._blocks[number].live
        if positions is None:
            return None if live is None else np.flatnonzero(live)
        start, stop = self._starts[number], self._starts[number + 1]
        chosen: np.ndarray = positions[(positions >= start) & (positions < stop)] - start
        return chosen if live is None else chosen[live[chosen]]

    def checked(self, queries: np.ndarray) -> np.ndarray:
        """Return queries (q, width) as kernels read them.

        Raises
        ------
        DimensionMismatchError
        """
        if queries.ndim != 2 or queries.shape[1] != self._type.width:
            raise DimensionMismatchError(
                f"the query has shape {queries.shape}, the vectors are {self._type}"
            )
        if queries.dtype == self.query_dtype and queries.flags.c_contiguous:
            return queries
        return np.ascontiguousarray(queries, dtype=self.query_dtype)


def _runs_of(blocks: Sequence[VectorBlock], starts: np.ndarray) -> _Runs | None:
    if not blocks:
        return None
    lows = np.array([block.rowids[0] for block in blocks], dtype=np.int64)
    highs = np.array([block.rowids[-1] for block in blocks], dtype=np.int64)
    rows = np.diff(starts)
    if (highs - lows + 1 != rows).any() or (lows[1:] <= highs[:-1]).any():
        return None
    if any((np.diff(block.rowids) != 1).any() for block in blocks):
        return None
    first = np.concatenate(([True], lows[1:] != highs[:-1] + 1))  # others go on with a run
    begins = np.flatnonzero(first)
    return lows[begins], starts[begins], np.append(starts[begins[1:]], starts[-1])


def _not_beyond(worst: np.ndarray, values: np.ndarray, descending: bool) -> np.ndarray:
    """Return where values may be among the first k; `worst` is the k-th so far, or empty."""
    if not worst.size:
        return np.arange(values.size)
    beyond = values < worst if descending else values > worst  # False where either is NaN
    return np.flatnonzero(~beyond)


def _ordered(rowids: np.ndarray, values: np.ndarray, k: int, descending: bool) -> Found:
    order = reference.smallest(values, rowids, k, descending)
    return rowids[order], values[order]


def _as_positions(positions: np.ndarray | None) -> np.ndarray | None:
    return None if positions is None else np.ascontiguousarray(positions, dtype=np.int64)


def query_dtype(sql_type: SqlType) -> np.dtype[Any]:
    """Return the dtype a query of a type has in the kernels: float32 for half vectors."""
    return np.dtype(np.float32) if sql_type.kind is Kind.HALFVEC else sql_type.dtype


def prepare_query(value: Any, sql_type: SqlType) -> np.ndarray:
    """Convert a bound value to the (width,) array the kernels want.

    Raises
    ------
    DimensionMismatchError, DataError, ValueRangeError
    """
    try:
        stored = to_storage(value, sql_type, "query")
    except DimensionMismatchError as error:
        found = error.message.rpartition("the value has ")[2]
        raise DimensionMismatchError(
            f"the query has {found}, the vectors are {sql_type}", error.hint
        ) from error
    if stored is None:
        raise DataError(f"the query is NULL, the vectors are {sql_type}")
    return np.ascontiguousarray(stored, dtype=query_dtype(sql_type))


def prepare_queries(values: np.ndarray, sql_type: SqlType) -> np.ndarray:
    """Convert a batch (q, dim), q > 0, to (q, width): what ``prepare_query`` makes of each row.

    Numbers for a type of float32 are converted together, without a step of Python for each.

    Raises
    ------
    DimensionMismatchError, DataError, ValueRangeError
    """
    is_plain = sql_type.kind is Kind.VECTOR and values.dtype.kind in "fiu"
    if is_plain and values.shape[1] == sql_type.dim:
        with np.errstate(over="ignore"):
            together = np.ascontiguousarray(values, dtype=query_dtype(sql_type))
        if np.isfinite(together).all():
            return together
    return np.stack([prepare_query(row, sql_type) for row in values])


def distances(op: str, left: np.ndarray, right: np.ndarray, sql_type: SqlType) -> np.ndarray:
    """Return elementwise distances, float32 (n,), to the last bit those a search finds.

    Parameters
    ----------
    op : str
    left : (n, width)
    right : (width,) or (n, width)
    sql_type : SqlType
        Of the left side.
    """
    metric = metric_code(op, sql_type)
    if right.shape[-1] != sql_type.width or left.shape[-1] != sql_type.width:
        raise DimensionMismatchError(
            f"{op}: left has {left.shape[-1]} elements, right has {right.shape[-1]}, "
            f"{sql_type} has {sql_type.width}"
        )
    rows, other = np.ascontiguousarray(left), np.ascontiguousarray(right, query_dtype(sql_type))
    if other.ndim == 2 and len(other) and (other == other[0]).all():
        other = other[0]
    index = FlatIndex([VectorBlock(np.arange(len(rows)), rows)], sql_type)
    if other.ndim == 1:
        return index._all(metric, other, None)[1] if len(rows) else np.empty(0, np.float32)
    scan = index.scan(op)
    if scan is None:
        return reference.distances(metric, rows, other)
    return scan.among(other, np.arange(len(rows))[:, np.newaxis], [1] * len(rows), 1)[1][:, 0]
