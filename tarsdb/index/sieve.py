"""Which coded rows can be among the k nearest of a query, with proof.

A row x is coded as s c and a query q as t d, with integer c and d, leaving r = |x - s c| and
f = |q - t d|. Since <q, x> - t s <d, c> = <q - t d, x> + <t d, x - s c>, Cauchy and Schwarz give

    |<q, x> - t s <d, c>| <= f |x| + |t d| r,

and so a lower and an upper bound of each distance. A row is left out only if its lower bound is
above the k-th smallest upper bound: then k other rows have strictly smaller distances.

A code is read in two halves. Its higher four bits alone are a rougher code c' of the same scale,
with a residual r' = |x - s c'| of its own, for which the same holds; few queries read the lower
four bits of those rows only that this bound lets pass. The byte of c is c + 136, so that multiples
of 16 are among the rough codes, zero too: elements that are zero lose nothing, and no element of c'
is more than 8 away from that of c.

The distances meant are those of ``flat``'s float32 kernel, so bounds also hold its rounding. With
u = 2**-24 a sum of products over w elements in 8 or more lanes differs by at most
m u / (1 - m u) times the sum of magnitudes, where m = w / 8 + 5: for L2 times |q - x|**2
<= 2 (|q|**2 + |x|**2), for the inner product times |q| |x|, for the cosine 1, and as much for
the norms. Its root, rounded and squared again, adds 3 u; the float32 arithmetic of the bounds, on
numbers of at most 4 (|q|**2 + |x|**2), 4 |q| |x| or 4 (|s c'| is at most 2.2 |x|), less than 32 u.
``kappa`` = 4 u (w / 8 + 32) covers them together. Sums that underflow are covered by an absolute
term, and where float32 could overflow, or a norm is too small for its square, the float kernel
searches instead. Bounds for L2 are of the squared distance, as float32 rounded it: rounding cannot
make two rows tie unnoticed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.native import address

MAX_K = 512
"""More neighbours than this are searched by the float kernel: too many rows would be candidates."""
MIN_CANDIDATES, CANDIDATES_PER_K = 1024, 32
MANY = 16
"""Queries from which whole codes are put together for all of them."""
METRICS = (reference.L2, reference.IP, reference.COSINE)
HUGE = 1e36
"""Squared norms beyond it are left to the float kernel."""

GROUP = 32
"""Queries that go to the kernel of many at once, in multiples."""
_TILE, _LINES, _ENTRY = 16, 6, 6  # as in kernels/cpu; a test compares
_SCRATCH, _SCRATCH_MANY = 2368, 5824
_NUMBERS, _WORK = 8, 40
_LIMIT, _NEVER = 5, np.float32(-(2.0**127))  # line of the limits, one that no row is within


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of one block: c + 136 in two planes of four bits.

    Attributes
    ----------
    high : uint8 (tiles, padded / 8, 16, 4)
        Higher bits of eight elements in four bytes: the first four elements in the lower halves of
        the bytes. The rows of a tile of 16 side by side. At an address that 64 divides.
    low : uint8 (tiles * 16, padded / 2)
        Lower bits row by row: 32 elements in the lower halves of 32 bytes, the next 32 in the
        higher ones.
    constants : float32 (tiles, 6, 16)
        s, |x|**2, |x|, r', r, 1 / |x|; the norms rounded up but for the square.
    rows : int
    largest : float
        The largest squared norm; not finite where codes cannot be used.
    smallest : float
        The smallest squared norm of the rows that are not zero.
    """

    high: np.ndarray
    low: np.ndarray
    constants: np.ndarray
    rows: int
    largest: float
    smallest: float

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.high.nbytes + self.low.nbytes + self.constants.nbytes

    @property
    def are_sound(self) -> bool:
        """Tell whether float32 can hold the squared distances."""
        return self.largest < HUGE


def padded_width(width: int) -> int:
    """Return the bytes of a coded row."""
    return -(-width // 64) * 64


def bytes_of(rows: int, width: int) -> int:
    """Return the bytes that codes of so many rows take."""
    return -(-rows // _TILE) * _TILE * (padded_width(width) + 4 * _LINES)


def encode(data: np.ndarray, kernel: dispatch.Kernel) -> Codes:
    """Code a C-contiguous float32 (n, width) block."""
    rows, width = data.shape
    padded, tiles = padded_width(width), -(-rows // _TILE)
    half = tiles * _TILE * padded // 2
    high = aligned(half).reshape(tiles, padded // 8, _TILE, 4)
    low = aligned(half).reshape(tiles * _TILE, padded // 2)
    constants = np.zeros((tiles, _LINES, _TILE), np.float32)
    constants[-1, 1, rows - (tiles - 1) * _TILE :] = np.inf
    kernel(address(data), rows, width, padded, address(high), address(low), address(constants))
    squares = constants[:, 1].reshape(-1)[:rows]
    nonzero = squares[constants[:, -1].reshape(-1)[:rows] != 0]
    smallest = float(nonzero.min()) if len(nonzero) else np.inf
    return Codes(high, low, constants, rows, float(squares.max()), smallest)


class _Memory(threading.local):
    """Memory of one thread's searches for one query; grows as asked."""

    def __init__(self) -> None:
        self.padded = self.k = 0

    def fit(self, padded: int, k: int) -> None:
        """Make room for a query of so many bytes and so many neighbours."""
        if padded <= self.padded and k <= self.k:
            return
        self.padded, self.k = max(padded, self.padded), max(k, self.k)
        cap = candidates_of(self.k)
        self.places, self.state = np.empty(cap, np.int64), np.zeros(2, np.int64)
        sizes = (_SCRATCH, self.padded, 4 * _NUMBERS, _WORK, 4 * self.k, 4 * cap)
        self._raw = aligned(sum(-(-size // 64) * 64 for size in sizes))
        at = [address(self._raw)]
        for size in sizes:
            at.append(at[-1] + -(-size // 64) * 64)
        self.scratch, self.codes, self.numbers, self.work, self.heap, self.lows, _ = at
        self.place, self.status = address(self.places), address(self.state)


def candidates_of(k: int) -> int:
    """Return how many candidates there is room for."""
    return max(MIN_CANDIDATES, CANDIDATES_PER_K * k)


_memory = _Memory()


class Sieve:
    """The codes of some blocks.

    Parameters
    ----------
    parts : sequence of (Codes, int, int)
        With each the address of its live mask (0: all live) and its first position.
    """

    def __init__(self, parts: Sequence[tuple[Codes, int, int]]) -> None:
        self._held = [codes for codes, _, _ in parts]
        self._entries = np.array(
            [(*map(address, (c.high, c.low, c.constants)), c.rows, *at) for c, *at in parts],
            dtype=np.int64,
        ).reshape(-1, _ENTRY)
        self._extremes = np.array([
            max((codes.largest for codes in self._held), default=0.0),
            min((codes.smallest for codes in self._held), default=np.inf),
        ])  # fmt: skip
        self._table, self._range = address(self._entries), address(self._extremes)
        self.rows = sum(codes.rows for codes in self._held)

    def one(self, metric: int, query: np.ndarray, k: int) -> np.ndarray | None:
        """Return positions among which the k nearest coded rows of one query are.

        Parameters
        ----------
        metric : int
        query : float32 (1, width), C-contiguous
        k : int
            At most ``rows``.

        Returns
        -------
        positions : int64 (n,)
            This thread's memory, until it searches again. None where bounds cannot tell.
        """
        coder, kernel = dispatch.get("code_queries"), dispatch.get("sieve")
        if coder is None or kernel is None:
            return None
        width = query.shape[1]
        padded = padded_width(width)
        own = _memory
        own.fit(padded, k)
        usable = coder(
            address(query), 1, width, padded, own.codes, own.numbers, 1, metric, self._range,
            own.work,
        )  # fmt: skip
        if not usable:
            return None
        own.state.fill(0)
        kernel(
            self._table, len(self._entries), own.codes, 1, padded, own.numbers, k, own.heap, metric,
            own.place, own.lows, candidates_of(k), own.status, own.scratch,
        )  # fmt: skip
        count = own.state.item(1)
        return None if count < 0 else own.places[:count]

    def many(self, metric: int, queries: np.ndarray, k: int) -> tuple[np.ndarray, list[int]]:
        """Return the same for several queries, float32 (q, width).

        Returns
        -------
        positions : int64 (q, cap)
        counts : list of int
            How many there are; -1 where bounds cannot tell.
        """
        many = dispatch.get("sieve_many") if len(queries) >= MANY else None
        kernel, coder = many or dispatch.get("sieve"), dispatch.get("code_queries")
        if kernel is None or coder is None:
            return np.empty((len(queries), 0), np.int64), [-1] * len(queries)
        count = len(queries) if many is None else -(-len(queries) // GROUP) * GROUP
        codes, numbers = self._code(coder, metric, queries, count)
        usable = numbers[_LIMIT, : len(queries)] > 0
        if many is not None:
            codes = side_by_side(codes)
        cap = candidates_of(k)
        places, lows = np.empty((count, cap), np.int64), np.empty((count, cap), np.float32)
        heaps, state = np.empty((count, k), np.float32), np.zeros((count, 2), np.int64)
        scratch = aligned(_SCRATCH if many is None else _SCRATCH_MANY + 32 * codes.shape[1])
        kernel(
            self._table, len(self._entries), address(codes), count, codes.shape[1],
            address(numbers), k, address(heaps), metric, address(places), address(lows), cap,
            address(state), address(scratch),
        )  # fmt: skip
        counts = state[: len(queries), 1]
        counts[~usable] = -1
        return places, counts.tolist()

    def _code(
        self, coder: dispatch.Kernel, metric: int, queries: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return codes int8 (count, padded) and numbers (8, count); no row passes the surplus."""
        given, width = queries.shape
        codes = aligned(count * padded_width(width)).view(np.int8).reshape(count, -1)
        codes[given:] = 0
        numbers = np.zeros((_NUMBERS, count), np.float32)
        numbers[_LIMIT] = _NEVER
        work = np.empty(_WORK, np.uint8)
        coder(
            address(queries), given, width, codes.shape[1], address(codes), address(numbers), count,
            metric, self._range, address(work),
        )  # fmt: skip
        return codes, numbers


def side_by_side(codes: np.ndarray) -> np.ndarray:
    """Lay 16 queries at a time side by side, 64 bytes each, as the kernel of many wants them."""
    count, padded = codes.shape
    laid = aligned(codes.size).view(np.int8)
    laid.reshape(count // 16, padded // 64, 16, 64).transpose(0, 2, 1, 3)[...] = codes.reshape(
        count // 16, 16, padded // 64, 64
    )
    return laid.reshape(count, padded)


def aligned(size: int) -> np.ndarray:
    """Return uint8 memory at an address that 64 divides."""
    raw = np.empty(size + 64, np.uint8)
    start = -address(raw) % 64
    return raw[start : start + size]
