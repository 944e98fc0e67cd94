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

Many queries at once, where the processor multiplies no bytes four by four, are compared with the
higher five bits, rounded: c'' = 8 ((c + 4) div 8) is no more than 4 away from c, zero too, and has
a residual r'' of its own. They also begin with a guess at the limit: the largest upper bound of
some near rows, each of another tile of a sample. Rows beyond it are left out. In the end k upper
bounds within the guess prove it; a query that lacks them is answered by the float kernel.

Vectors may be coded in another basis (``basis``): x and q then stand for x' and q', and codes are
taken apart into the head, c_1, and the rest. Reading the head alone,

    |<q', x'> - t s <d_1, c_1>| <= f |x'| + |t d| r + |q'_2| |x'_2|

with Cauchy and Schwarz for what lies behind the head, and r' in place of r for the rough codes of
the head. Only rows which that lets pass have the rest of their codes read. Norms and squares
are those of x itself, whose distance is meant; how far <q', x'> and <q, x>, |x'| and |x|, |q'| and
|q| may lie apart is a share of |q| |x|, at most ``distortion`` e, that ``quantization/principal``
derives for the matrix in hand. The inner product takes e (1 + f / |q|), the cosine for |q'| in
place of |q| at most e / 2 more, L2 twice this of |q| |x| <= (|q|**2 + |x|**2) / 2; so 3 e is
added to kappa.

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

from collections.abc import Sequence

import numpy as np

from tarsdb.index.basis import Basis
from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.native import SCRATCH_ONE, Found, Scan, address, scratch
from tarsdb.records import dataclass

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
_TILE, _LINES, _ENTRY = 16, 7, 7  # as in kernels/cpu; a test compares
_SCRATCH, _SCRATCH_MANY = 134_912, 9664
_EACH = 596  # bytes of a query among many, besides an eighth of its head
_SCRATCH_ONE = _SCRATCH + 3 * 64  # coded_nearest's, before the coded query
_NUMBERS, _WORK = 10, 56
_AT_ONCE = 4096  # rows turned at once, a multiple of a tile
_LIMIT, _NEVER = 5, np.float32(-(2.0**127))  # line of the limits, one that no row is within


@dataclass(frozen=True, slots=True)
class Codes:
    """Codes of one block: c + 136, of the head in two planes of four bits.

    Attributes
    ----------
    high : uint8 (tiles, head / 8, 16, 4)
        Higher bits of eight elements in four bytes: the first four elements in the lower halves of
        the bytes. The rows of a tile of 16 side by side. At an address that 64 divides.
    low : uint8 (tiles * 16, head / 2)
        Lower bits row by row: 32 elements in the lower halves of 32 bytes, the next 32 in the
        higher ones.
    rest : uint8 (tiles * 16, padded - head)
        What is behind the head, row by row.
    constants : float32 (tiles, 7, 16)
        s, |x|**2, |x|, r', r, |x'_2|, 1 / |x|; the norms rounded up but for the square.
    fives : float32 (tiles * 16,)
        r'', in memory behind the constants.
    rows : int
    largest : float
        The largest squared norm; not finite where codes cannot be used.
    smallest : float
        The smallest squared norm of the rows that are not zero.
    basis : Basis
    """

    high: np.ndarray
    low: np.ndarray
    rest: np.ndarray
    constants: np.ndarray
    fives: np.ndarray
    rows: int
    largest: float
    smallest: float
    basis: Basis

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(each.nbytes for each in self._arrays)

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.high, self.low, self.rest, self.constants, self.fives

    @property
    def are_sound(self) -> bool:
        """Tell whether float32 can hold the squared distances."""
        return self.largest < HUGE


def padded_width(width: int) -> int:
    """Return the bytes of a coded row."""
    return -(-width // 64) * 64


def bytes_of(rows: int, width: int) -> int:
    """Return the bytes that codes of so many rows take."""
    return -(-rows // _TILE) * _TILE * (padded_width(width) + 4 * _LINES + 4)


def encode(data: np.ndarray, kernel: dispatch.Kernel, basis: Basis | None = None) -> Codes:
    """Code a C-contiguous float32 (n, width) block, as it is unless a basis is given."""
    rows, width = data.shape
    basis = basis or Basis()
    padded, tiles = padded_width(width), -(-rows // _TILE)
    head = basis.head or padded
    high = aligned(tiles * _TILE * head // 2).reshape(tiles, head // 8, _TILE, 4)
    low = aligned(tiles * _TILE * head // 2).reshape(tiles * _TILE, head // 2)
    rest = aligned(tiles * _TILE * (padded - head)).reshape(tiles * _TILE, padded - head)
    both = np.zeros((tiles, _LINES + 1, _TILE), np.float32).reshape(-1)
    constants, fives = np.split(both, [tiles * _LINES * _TILE])
    constants = constants.reshape(tiles, _LINES, _TILE)
    constants[-1, 1, rows - (tiles - 1) * _TILE :] = np.inf
    step = rows if basis.axes is None else _AT_ONCE
    for at in range(0, rows, step):
        part, tile = data[at : at + step], at // _TILE
        turned = basis.turned(part)
        kernel(
            address(part), address(turned), len(part), width, padded, head, address(high[tile:]),
            address(low[at:]), address(rest[at:]), address(constants[tile:]),
            address(fives[at:]),
        )  # fmt: skip
    squares = constants[:, 1].reshape(-1)[:rows]
    nonzero = squares[constants[:, -1].reshape(-1)[:rows] != 0]
    smallest = float(nonzero.min()) if len(nonzero) else np.inf
    return Codes(high, low, rest, constants, fives, rows, float(squares.max()), smallest, basis)


def candidates_of(k: int) -> int:
    """Return how many candidates there is room for."""
    return max(MIN_CANDIDATES, CANDIDATES_PER_K * k)


def call_bytes(width: int, k: int) -> int:
    """Return the scratch memory of the call of a :class:`Nearest`."""
    return _SCRATCH_ONE + padded_width(width) + 4 * k + 64 + 12 * candidates_of(k) + SCRATCH_ONE


class Sieve:
    """The codes of some blocks.

    Parameters
    ----------
    parts : sequence of (Codes, int, int)
        In one basis. With each the address of its live mask (0: all live) and its first position.
    """

    def __init__(self, parts: Sequence[tuple[Codes, int, int]]) -> None:
        self._held = [codes for codes, _, _ in parts]
        self._entries = np.array(
            [
                (*map(address, (c.high, c.low, c.constants)), c.rows, *at, address(c.rest))
                for c, *at in parts
            ],
            dtype=np.int64,
        ).reshape(-1, _ENTRY)
        self.basis = self._held[0].basis if self._held else Basis()
        self._extremes = np.array([
            max((codes.largest for codes in self._held), default=0.0),
            min((codes.smallest for codes in self._held), default=np.inf),
            self.basis.distortion,
        ])  # fmt: skip
        self.table, self.range = address(self._entries), address(self._extremes)
        self.parts = len(self._entries)
        self.rows = sum(codes.rows for codes in self._held)

    def many(self, metric: int, queries: np.ndarray, k: int) -> tuple[np.ndarray, list[int]]:
        """Return positions among which the k nearest coded rows of queries are.

        Parameters
        ----------
        metric : int
        queries : float32 (q, width), C-contiguous
        k : int
            At most ``rows``.

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
        head = self.basis.head or codes.shape[1]
        usable = numbers[_LIMIT, : len(queries)] > 0
        if many is not None:
            codes = side_by_side(codes)
        cap = candidates_of(k)
        places, lows = np.empty((count, cap), np.int64), np.empty((count, cap), np.float32)
        heaps, state = np.empty((count, k), np.float32), np.zeros((count, 2), np.int64)
        many_bytes = _SCRATCH_MANY + 32 * head + (head // 8 + _EACH) * count
        memory = aligned(_SCRATCH if many is None else many_bytes)
        kernel(
            self.table, len(self._entries), address(codes), count, codes.shape[1], head,
            address(numbers), k, address(heaps), metric, address(places), address(lows), cap,
            address(state), address(memory),
        )  # fmt: skip
        counts = state[: len(queries), 1]
        counts[~usable] = -1
        return places, counts.tolist()

    def _code(
        self, coder: dispatch.Kernel, metric: int, queries: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return codes int8 (count, padded) and numbers (10, count); no row passes the surplus."""
        given, width = queries.shape
        codes = aligned(count * padded_width(width)).view(np.int8).reshape(count, -1)
        codes[given:] = 0
        numbers = np.zeros((_NUMBERS, count), np.float32)
        numbers[_LIMIT] = _NEVER
        work = np.empty(_WORK, np.uint8)
        padded, turned = codes.shape[1], self.basis.turned(queries)
        coder(
            address(turned), given, width, padded, self.basis.head or padded, address(codes),
            address(numbers), count, metric, self.range, address(work),
        )  # fmt: skip
        return codes, numbers


class Nearest:
    """The nearest coded rows of a query, by one compiled call; any number of threads may ask.

    As an `OneCall` it is for rows that are coded as they are, since its call turns no query.
    It holds addresses of the scan's blocks and lives no longer than these.

    Parameters
    ----------
    sieve : Sieve
        Of codes that are sound.
    scan : Scan
        Over all blocks, ascending, by one of ``METRICS``.
    k : int
        Rows wanted, at most ``MAX_K`` and as many as there are.
    positions : int64 (rows,), optional
        Where the scan finds the coded rows, if not at their positions.
    """

    def __init__(
        self, sieve: Sieve, scan: Scan, k: int, positions: np.ndarray | None = None
    ) -> None:
        kernel, *parts = map(dispatch.get, ("coded_nearest", "code_queries", "sieve"))
        assert kernel is not None
        self.level, self.k, self._kernel = dispatch.level(), k, kernel
        table = scan.table
        self._basis = sieve.basis
        self._held = sieve, table, positions  # not the scan, which may hold a filter's positions
        padded, cap = padded_width(table.width), candidates_of(k)
        self._words = np.array([
            *(dispatch.entry(each) for each in (*parts, scan.kernel) if each is not None),
            table.width, padded, sieve.basis.head or padded, sieve.range, sieve.table, sieve.parts,
            scan.metric, k, cap,
            0 if positions is None else address(positions), table.address, len(table.entries) - 1,
            table.row_bytes,
        ], np.int64)  # fmt: skip
        self.call = dispatch.entry(kernel), address(self._words), call_bytes(table.width, k)

    @property
    def within(self) -> tuple[int, int]:
        """The call of one query of which k rows are known elsewhere: its entry, and its words."""
        kernel = dispatch.get("coded_within")
        assert kernel is not None
        return dispatch.entry(kernel), self.call[1]

    def asked_often(self) -> None:
        """Do nothing: all is made."""

    @staticmethod
    def is_ready() -> bool:
        """Return whether its kernels are compiled."""
        needed = "coded_nearest", "coded_within", "code_queries", "sieve"
        return None not in map(dispatch.get, needed)

    def search(self, query: np.ndarray) -> Found | None:
        """Return row ids and distances (1, k) for float32 (1, width); None: bounds cannot tell."""
        ids, values = np.empty((1, self.k), np.int64), np.empty((1, self.k), np.float32)
        turned, (_, words, memory) = self._basis.turned(query), self.call
        found = self._kernel(
            words, address(turned), address(query), 1, address(ids), address(values),
            scratch.of(memory),
        )  # fmt: skip
        return (ids, values) if found else None


def side_by_side(codes: np.ndarray) -> np.ndarray:
    """Lay 16 queries at a time side by side, 64 bytes each, as the kernels of many want them."""
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
