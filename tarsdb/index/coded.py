"""Exact search through int8 codes: bounds leave few rows for the float kernel to look at.

A row x is coded as s c and a query q as t d, with integer c and d, leaving r = |x - s c| and
f = |q - t d|. Since <q, x> - t s <d, c> = <q - t d, s c> + <q, x - s c>, Cauchy and Schwarz give

    |<q, x> - t s <d, c>| <= f |s c| + |q| r,

and so a lower and an upper bound of each distance. A row is left out only if its lower bound is
above the k-th smallest upper bound: then k other rows have strictly smaller distances.

The distances meant are those of ``flat``'s float32 kernel, so bounds also hold its rounding. With
u = 2**-24 a sum of products over w elements in 8 or more lanes differs by at most
m u / (1 - m u) times the sum of magnitudes, where m = w / 8 + 5: for L2 times |q - x|**2
<= 2 (|q|**2 + |x|**2), for the inner product times |q| |x|, for the cosine 1, and as much for
the norms. Its root, rounded and squared again, adds 3 u; the float32 arithmetic of the bounds, on
numbers of at most 4 (|q|**2 + |x|**2), 4 |q| |x| or 4, less than 32 u. ``kappa`` = 4 u (w / 8 + 32)
covers them together. Sums that underflow are covered by an absolute term, and where float32 could
overflow, or a norm is too small for its square, the float kernel searches instead. Bounds for L2
are of the squared distance, as float32 rounded it: rounding cannot make two rows tie unnoticed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.index.base import Found
from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.native import BlockTable, Scan, address
from tarsdb.metrics import METRICS

BUDGET_BYTES = 512 << 20
"""Bytes of codes a process keeps unless told otherwise."""
MIN_ROWS = 1024
"""Blocks below are searched by the float kernel: they change often, and are soon read."""
MAX_K = 512
"""More neighbours than this are searched by the float kernel: too many rows would be candidates."""
MAX_WIDTH = 65_536
MIN_CANDIDATES, CANDIDATES_PER_K = 1024, 32
MANY = 16
"""Queries from which tile registers pay."""
QUERIES_AT_ONCE = 1024
PATIENCE = 64
"""Searches that may fall back before the codes of an index are left alone."""

_TILE, _LINES, _GROUP, _SCRATCH = 16, 5, 32, 5696  # as in kernels/cpu/coded.py; a test compares
_HUGE, _SMALL = 1e36, 2.0**-100
_NEVER = np.float32(-3e38)  # a limit that no row is within
_UPWARD = 1 + 2.0**-18
_METRICS = (reference.L2, reference.IP, reference.COSINE)


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of one block, in tiles of 16 rows.

    Attributes
    ----------
    codes : uint8 (tiles, padded / 4, 16, 4)
        c + 128; the rows of a tile side by side. At an address that 64 divides.
    constants : float32 (tiles, 5, 16)
        s, |x|**2, |s c|, r, 1 / |x|; the norms rounded up but for the square.
    rows : int
    largest : float
        The largest squared norm; not finite where codes cannot be used.
    smallest : float
        The smallest squared norm of the rows that are not zero.
    """

    codes: np.ndarray
    constants: np.ndarray
    rows: int
    largest: float
    smallest: float

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.codes.nbytes + self.constants.nbytes


def padded_width(width: int) -> int:
    """Return the bytes of a coded row."""
    return -(-width // 64) * 64


def encode(data: np.ndarray, kernel: dispatch.Kernel) -> Codes:
    """Code a C-contiguous float32 (n, width) block."""
    rows, width = data.shape
    padded, tiles = padded_width(width), -(-rows // _TILE)
    codes = _aligned(tiles * padded * _TILE).reshape(tiles, padded // 4, _TILE, 4)
    constants = np.zeros((tiles, _LINES, _TILE), np.float32)
    constants[-1, 1, rows - (tiles - 1) * _TILE :] = np.inf
    kernel(address(data), rows, width, padded, address(codes), address(constants))
    squares = constants[:, 1].reshape(-1)[:rows]
    nonzero = squares[constants[:, 4].reshape(-1)[:rows] != 0]
    smallest = float(nonzero.min()) if len(nonzero) else np.inf
    return Codes(codes, constants, rows, float(squares.max()), smallest)


def _aligned(size: int) -> np.ndarray:
    raw = np.empty(size + 64, np.uint8)
    start = -address(raw) % 64
    return raw[start : start + size]


class CodeCache:
    """Codes of blocks by the identity of their arrays, within a budget; safe to use from threads.

    Parameters
    ----------
    budget : int
        Bytes of codes to keep at most. Blocks beyond it are not coded.

    Notes
    -----
    A block is coded the second time it is asked for, and forgotten when its array dies. Arrays
    must not change.
    """

    def __init__(self, budget: int = BUDGET_BYTES) -> None:
        self._budget = budget
        self._coding = threading.Lock()
        self._entries: dict[int, tuple[weakref.ref[np.ndarray], Codes | None]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of codes held."""
        return sum(codes.nbytes for _, codes in list(self._entries.values()) if codes is not None)

    def get(self, data: np.ndarray, kernel: dispatch.Kernel) -> tuple[Codes | None, bool]:
        """Return the codes of a block, or None, and whether asking again could give others."""
        key = id(data)
        entry = self._entries.get(key)
        if entry is None or entry[0]() is not data:
            entries = self._entries
            self._entries[key] = (weakref.ref(data, lambda _: entries.pop(key, None)), None)
            return None, True
        if entry[1] is not None:
            return entry[1], False
        if not self._coding.acquire(blocking=False):
            return None, True  # another thread codes; this search need not wait for it
        try:
            entry = self._entries[key]
            if entry[1] is None:
                rows, width = data.shape
                size = -(-rows // _TILE) * _TILE * (padded_width(width) + 4 * _LINES)
                if self.nbytes + size > self._budget:
                    return None, False
                entry = self._entries[key] = (entry[0], encode(data, kernel))
            return entry[1], False
        finally:
            self._coding.release()


@dataclass(frozen=True, slots=True)
class QueryCodes:
    """Coded queries: int8 (q, padded), and float32 (8, q), the numbers the sieve wants of each.

    ``usable`` is False for queries whose bounds cannot be had.
    """

    codes: np.ndarray
    numbers: np.ndarray
    usable: np.ndarray


def code_queries(
    queries: np.ndarray, metric: int, limit: int, largest: float, smallest: float
) -> QueryCodes:
    """Code float32 (q, width) queries with integers up to ``limit``; see the module's text.

    ``largest`` and ``smallest`` are squared norms of rows, see :class:`Codes`.
    """
    wide = queries.astype(np.float64)
    count, width = wide.shape
    squares = np.einsum("ij,ij->i", wide, wide)
    norms = np.sqrt(squares)
    with np.errstate(all="ignore"):
        usable = (norms + np.sqrt(largest)) ** 2 < _HUGE
        if metric == reference.COSINE:
            usable &= (squares >= _SMALL) & (smallest >= _SMALL)
        wide[~usable], norms[~usable] = 0, 0
        scales = (np.abs(wide).max(axis=1) / limit).astype(np.float32).astype(np.float64)
        scales[scales < _SMALL] = 0
        digits = np.rint(wide / np.where(scales > 0, scales, np.inf)[:, None])
    np.clip(digits, -limit, limit, out=digits)
    left = wide - scales[:, None] * digits
    lost = np.sqrt(np.einsum("ij,ij->i", left, left)) * (1 + 1e-9)
    codes = np.zeros((count, padded_width(width)), np.int8)
    codes[:, :width] = digits
    numbers = np.zeros((8, count), np.float32)
    kappa = 4 * 2.0**-24 * (width / 8 + 32)
    factors = _factors(metric, scales, norms, lost, kappa)
    numbers[0] = factors[0]
    numbers[1:5] = np.stack(factors[1:]) * _UPWARD
    numbers[4] += np.float32(width * _SMALL)
    numbers[5] = np.where(usable, np.inf, _NEVER)
    numbers.view(np.int32)[6] = 128 * digits.sum(axis=1)
    return QueryCodes(codes, numbers, usable)


def _factors(
    metric: int, scales: np.ndarray, norms: np.ndarray, lost: np.ndarray, kappa: float
) -> tuple[np.ndarray, ...]:
    """Return the factors of <d, c> s, |s c|, r and |x|**2 and the constant of the bounds."""
    zero = np.zeros_like(norms)
    if metric == reference.L2:
        return 2 * scales, 2 * lost, 2 * norms, zero + kappa, kappa * norms**2
    if metric == reference.IP:
        return scales, lost + kappa * norms, norms * (1 + kappa), zero, zero
    safe = np.where(norms > 0, norms, 1)
    return scales / safe, lost / safe, zero + 1, zero, zero + kappa


class CodedBlocks:
    """The coded blocks of one flat index, and the table of the others.

    Parameters
    ----------
    blocks : sequence of VectorBlock
        Of float32 data.
    table : BlockTable
        Of the same blocks.
    codes : list of Codes or None
        One per block.
    """

    def __init__(
        self, blocks: Sequence[VectorBlock], table: BlockTable, codes: list[Codes | None]
    ) -> None:
        self._table, self._held = table, codes
        known = [(at, found) for at, found in enumerate(codes) if found is not None]
        self._entries = np.array(
            [
                (address(c.codes), address(c.constants), c.rows, *table.entries[at, 2:4])
                for at, c in known
            ],
            dtype=np.int64,
        )
        self._rows = sum(found.rows for _, found in known)
        self._largest = max((found.largest for _, found in known), default=0.0)
        self._smallest = min((found.smallest for _, found in known), default=np.inf)
        self._tried = self._failed = 0
        rest = [b for b, found in zip(blocks, codes, strict=True) if found is None]
        self._rest = BlockTable.of([(b.data, b.rowids, b.live) for b in rest]) if rest else None

    def __bool__(self) -> bool:
        """Tell whether any block is coded."""
        return len(self._entries) > 0

    def search(self, scan: Scan, queries: np.ndarray, k: int, threads: int) -> Found | None:
        """Return what ``scan.nearest`` would, or None where codes are not used.

        Parameters
        ----------
        scan : Scan
            Over all blocks, without positions, ascending.
        queries : float32 (q, width)
        k : int
        threads : int
        """
        many = dispatch.get("sieve_many") if len(queries) >= MANY else None
        kernel = many or dispatch.get("sieve")
        if kernel is None or k > MAX_K or scan.metric not in _METRICS or self._is_futile():
            return None
        step = min(QUERIES_AT_ONCE, max(_GROUP, -(-len(queries) // threads)))
        starts = range(0, len(queries), step)

        def part(at: int) -> Found:
            return self._part(scan, queries[at : at + step], k, threads if len(starts) == 1 else 1)

        if len(starts) == 1:
            return part(0)
        parts = _in_threads(part, starts, threads)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _is_futile(self) -> bool:
        """Tell whether most searches fell back: rows that are all alike are looked at twice."""
        return self._failed > PATIENCE and 2 * self._failed > self._tried

    def _part(self, scan: Scan, queries: np.ndarray, k: int, threads: int) -> Found:
        places, counts = self.candidates(scan.metric, queries, k)
        whole = [number for number, count in enumerate(counts) if count < 0]
        self._tried += len(queries)
        self._failed += len(whole)
        METRICS.add("index.exact_certified", len(queries) - len(whole))
        if whole:
            METRICS.add("index.exact_fallbacks", len(whole))
            if len(whole) == len(queries):
                return scan.nearest(queries, k, threads)
        known = min(k, max(counts))
        found = scan.among(queries, places, counts, known)
        if self._rest is not None:
            rest = Scan(scan.kernel, self._rest, scan.metric)
            found = _merged(found, rest.nearest(queries, min(k, self._rest.rows), threads), k)
        if whole:
            rowids, values = scan.nearest(queries[whole], k, threads)
            found[0][whole], found[1][whole] = rowids, values
        return found

    def candidates(self, metric: int, queries: np.ndarray, k: int) -> tuple[np.ndarray, list[int]]:
        """Return positions among which the k nearest coded rows of each query are.

        Returns
        -------
        places : int64 (q, cap)
        counts : list of int
            How many there are; -1 where bounds cannot tell.
        """
        many = dispatch.get("sieve_many") if len(queries) >= MANY else None
        kernel = many or dispatch.get("sieve")
        if kernel is None:
            return np.empty((len(queries), 0), np.int64), [-1] * len(queries)
        coded = code_queries(queries, metric, dispatch.code_limit(), self._largest, self._smallest)
        k = min(k, self._rows)
        cap = max(MIN_CANDIDATES, CANDIDATES_PER_K * k)
        if many is not None:
            coded = _filled(coded, -(-len(queries) // _GROUP) * _GROUP)
        count = len(coded.codes)
        places, lows = np.empty((count, cap), np.int64), np.empty((count, cap), np.float32)
        heaps, state = np.empty((count, k), np.float32), np.zeros((count, 2), np.int64)
        scratch = _aligned(_SCRATCH)
        kernel(
            address(self._entries), len(self._entries), address(coded.codes), count,
            coded.codes.shape[1], address(coded.numbers), k, address(heaps), metric,
            address(places), address(lows), cap, address(state), address(scratch),
        )  # fmt: skip
        counts = state[: len(queries), 1]
        counts[~coded.usable] = -1
        return places, counts.tolist()


def _in_threads(part: Callable[[int], Found], starts: range, threads: int) -> list[Found]:
    if threads < 2:
        return [part(at) for at in starts]
    from concurrent.futures import ThreadPoolExecutor  # not needed to open a database

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(part, starts))


def _filled(coded: QueryCodes, count: int) -> QueryCodes:
    """Add queries that no row passes, up to a count, and lay 16 side by side."""
    given, padded = coded.codes.shape
    codes = _aligned(count * padded).view(np.int8).reshape(count // 16, padded // 64, 16, 64)
    by_query = codes.transpose(0, 2, 1, 3)
    filled = np.zeros((count, padded), np.int8)
    filled[:given] = coded.codes
    by_query[:] = filled.reshape(by_query.shape)
    numbers = np.zeros((8, count), np.float32)
    numbers[5] = _NEVER
    numbers[:, :given] = coded.numbers
    return QueryCodes(codes.reshape(count, padded), numbers, coded.usable)


def _merged(one: Found, other: Found, k: int) -> Found:
    rowids = np.concatenate([one[0], other[0]], axis=1)
    values = np.concatenate([one[1], other[1]], axis=1)
    order = np.stack([reference.smallest(v, r, k) for v, r in zip(values, rowids, strict=True)])
    return np.take_along_axis(rowids, order, 1), np.take_along_axis(values, order, 1)


def worth_coding(block: VectorBlock) -> bool:
    """Tell whether a block is large enough, and its codes much smaller than its vectors."""
    rows, width = block.data.shape
    if block.data.dtype != np.float32 or rows < MIN_ROWS or width > MAX_WIDTH:
        return False
    return padded_width(width) <= 2 * width and block.data.flags.c_contiguous


def coded_blocks(
    cache: CodeCache, blocks: Sequence[VectorBlock], table: BlockTable
) -> tuple[CodedBlocks, bool]:
    """Return the coded blocks of an index, and whether more may be coded when asked again."""
    codes: list[Codes | None] = [None] * len(blocks)
    wanted = [at for at, block in enumerate(blocks) if worth_coding(block)]
    encoder = dispatch.get("encode")
    for kind in dispatch.CODED if wanted else ():
        dispatch.prepare(kind)
    if encoder is None:
        return CodedBlocks(blocks, table, codes), bool(wanted)
    unsettled = False
    for at in wanted:
        found, again = cache.get(blocks[at].data, encoder)
        codes[at] = found if found is not None and found.largest < _HUGE else None
        unsettled |= again
    return CodedBlocks(blocks, table, codes), unsettled
