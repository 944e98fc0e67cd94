"""Exact search through int8 codes: what the sieve leaves, the float kernel looks at.

Codes belong to a block of vectors, or to the rows of a filter that is asked for again and again.
Answers are those of ``flat``'s float32 kernel to the last bit; see ``sieve`` for the proof.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from tarsdb.columns import VectorBlock
from tarsdb.index import sieve
from tarsdb.index.base import Found, placed
from tarsdb.index.basis import Basis
from tarsdb.index.sieve import Codes, Nearest, Sieve, encode, padded_width
from tarsdb.index.threads import in_threads
from tarsdb.kernels import dispatch, reference
from tarsdb.kernels.native import BlockTable, Scan
from tarsdb.metrics import METRICS
from tarsdb.records import dataclass

BUDGET_BYTES = 512 << 20
"""Bytes of codes a process keeps unless told otherwise."""
MIN_ROWS = 1024
"""Blocks below are searched by the float kernel: they change often, and are soon read."""
MIN_CHOSEN, MAX_CHOSEN = 256, 1 << 16
"""Rows of a filter whose codes are worth having."""
MAX_WIDTH = 65_536
QUERIES_AT_ONCE = 1024
PATIENCE = 64
"""Searches that may fall back before the codes of an index are left alone."""
CERTIFIED, FALLBACKS = "index.exact_certified", "index.exact_fallbacks"
"""Counters of searches that codes answered, and of those they could not."""
KEPT_CALLS = 64
"""Numbers of neighbours, by metric, for which the call is kept."""
_Calls = dict[tuple[int, int], Nearest]


class _Codes(Protocol):
    @property
    def nbytes(self) -> int: ...

    @property
    def basis(self) -> Basis: ...


_Coded = TypeVar("_Coded", bound=_Codes)


class CodeCache:
    """What was coded, by the identity of an array, within a budget; safe to use from threads.

    Parameters
    ----------
    budget : int
        Bytes of codes to keep at most. What is beyond it is not coded.

    Notes
    -----
    An array (the vectors of a block, the positions of a filter) is coded for the second time it is
    asked for, and forgotten when it dies. Arrays must not change.
    """

    def __init__(self, budget: int = BUDGET_BYTES) -> None:
        self._budget = budget
        self._coding = threading.Lock()
        self._entries: dict[int, tuple[weakref.ref[np.ndarray], Any]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of codes held."""
        return sum(codes.nbytes for _, codes in list(self._entries.values()) if codes is not None)

    def known(self, key: np.ndarray) -> Any:
        """Return what an array was coded to, or None; it does not count as asking."""
        entry = self._entries.get(id(key))
        return None if entry is None or entry[0]() is not key else entry[1]

    def basis(self, keys: Sequence[np.ndarray]) -> Basis | None:
        """Return the last chosen of the bases in which arrays are coded; None if none is."""
        entries = [self._entries.get(id(key)) for key in keys]
        bases = [entry[1].basis for entry in entries if entry is not None and entry[1] is not None]
        return max(bases, key=lambda basis: basis.rows, default=None)

    def get(
        self,
        key: np.ndarray,
        shape: tuple[int, int],
        make: Callable[[], _Coded],
        basis: Basis | None = None,
    ) -> tuple[_Coded | None, bool]:
        """Return what ``make`` coded, or None, and whether asking again could give other things.

        ``shape`` is of the rows coded, to tell their bytes in advance. What is held in another
        basis than the one given is coded anew.
        """

        def fits(coded: _Coded | None) -> bool:
            return coded is not None and (basis is None or coded.basis is basis)

        entry = self._entries.get(id(key))
        if entry is None or entry[0]() is not key:
            number, entries = id(key), self._entries
            entries[number] = (weakref.ref(key, lambda _: entries.pop(number, None)), None)
            return None, True
        if fits(entry[1]):
            return entry[1], False
        if not self._coding.acquire(blocking=False):
            return None, True  # another thread codes; this search need not wait for it
        try:
            entry = self._entries[id(key)]
            if not fits(entry[1]):
                held = 0 if entry[1] is None else entry[1].nbytes
                if self.nbytes - held + sieve.bytes_of(*shape) > self._budget:
                    return None, False
                entry = self._entries[id(key)] = (entry[0], make())
            return entry[1], False
        finally:
            self._coding.release()


class Vectors(Protocol):
    """What holds the vectors of a filter's rows: a flat index."""

    @property
    def width(self) -> int:
        """Elements of a vector."""
        ...

    def live(self) -> np.ndarray:
        """Return which positions hold a live vector; bool."""
        ...

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at ascending positions."""
        ...


@dataclass(frozen=True)
class CodedRows:
    """The rows of a filter, coded side by side.

    Attributes
    ----------
    positions : int64 (n,)
        The live ones.
    codes : Codes
    sieve : Sieve
    """

    positions: np.ndarray
    codes: Codes
    sieve: Sieve
    _calls: _Calls = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.codes.nbytes + self.positions.nbytes

    @property
    def basis(self) -> Basis:
        """That of the codes."""
        return self.codes.basis

    @classmethod
    def of(cls, positions: np.ndarray, vectors: np.ndarray, kernel: dispatch.Kernel) -> CodedRows:
        """Code float32 (n, width) vectors, n > 0."""
        codes = encode(vectors, kernel)
        return cls(positions, codes, Sieve([(codes, 0, 0)]))

    def search(self, scan: Scan, query: np.ndarray, k: int) -> Found | None:
        """Return what ``scan.nearest`` would over the positions; None where bounds cannot tell.

        ``query`` is float32 (1, width); the scan is over all blocks, ascending.
        """
        nearest = self.nearest(scan, k)
        if nearest is None:
            return None
        found = nearest.search(query)
        METRICS.add(FALLBACKS if found is None else CERTIFIED)
        return found

    def nearest(self, scan: Scan, k: int) -> Nearest | None:
        """Return the search as one call; None where there is none."""
        k = min(k, len(self.positions))
        if k > sieve.MAX_K or scan.metric not in sieve.METRICS or not self.codes.are_sound:
            return None
        return _call(self._calls, self.sieve, scan, k, self.positions)


def _call(
    calls: _Calls, rows: Sieve, scan: Scan, k: int, positions: np.ndarray | None = None
) -> Nearest | None:
    """Return the search of coded rows as one call, made at first use; None: not compiled."""
    known = calls.get((scan.metric, k))
    if known is not None and known.level == dispatch.level():
        return known
    if not Nearest.is_ready():
        return None
    if len(calls) >= KEPT_CALLS:
        calls.clear()
    made = calls[scan.metric, k] = Nearest(rows, scan, k, positions)
    return made


class CodedBlocks:
    """The coded blocks of one flat index, and the table of the others.

    Parameters
    ----------
    blocks : sequence of VectorBlock
        Of float32 data.
    table : BlockTable
        Of the same blocks.
    codes : list of Codes or None
        One per block, all in one basis.
    """

    def __init__(
        self, blocks: Sequence[VectorBlock], table: BlockTable, codes: list[Codes | None]
    ) -> None:
        self._sieve = Sieve([
            (found, int(table.entries[at, 2]), int(table.entries[at, 3]))
            for at, found in enumerate(codes) if found is not None
        ])  # fmt: skip
        self._table = table  # holds the live masks
        self._tried = self._failed = 0
        self._calls: _Calls = {}
        self._vectors = [b.data for b, c in zip(blocks, codes, strict=True) if c is not None]
        rest = [b for b, found in zip(blocks, codes, strict=True) if found is None]
        self._rest = BlockTable.of([placed(block) for block in rest]) if rest else None
        self.coded = [found is not None for found in codes]

    def __bool__(self) -> bool:
        """Tell whether any block is coded."""
        return self._sieve.rows > 0

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
        if k > sieve.MAX_K or scan.metric not in sieve.METRICS or self._is_futile():
            return None
        self._sieve.basis.count(len(queries))
        if len(queries) == 1:
            return self._one(scan, queries, k)
        step = min(QUERIES_AT_ONCE, max(sieve.GROUP, -(-len(queries) // threads)))
        starts = range(0, len(queries), step)

        def part(at: int) -> Found:
            return self._part(scan, queries[at : at + step], k, threads if len(starts) == 1 else 1)

        if len(starts) == 1:
            return part(0)
        parts = in_threads(part, starts, threads)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def next_basis(self) -> Basis | None:
        """Return a better basis for these blocks when it is time, to one thread."""
        return self._sieve.basis.next(self._vectors) if self else None

    def _is_futile(self) -> bool:
        """Tell whether most searches fell back: rows that are all alike are looked at twice."""
        return self._failed > PATIENCE and 2 * self._failed > self._tried

    def _one(self, scan: Scan, query: np.ndarray, k: int) -> Found | None:
        nearest = _call(self._calls, self._sieve, scan, min(k, self._sieve.rows))
        found = None if nearest is None else nearest.search(query)
        self._tried += 1
        if found is None:
            self._failed += 1
            METRICS.add(FALLBACKS)
            return None
        METRICS.add(CERTIFIED)
        return found if self._rest is None else self._with_rest(scan, query, found, k, 1)

    def _part(self, scan: Scan, queries: np.ndarray, k: int, threads: int) -> Found:
        places, counts = self._sieve.many(scan.metric, queries, min(k, self._sieve.rows))
        whole = [number for number, count in enumerate(counts) if count < 0]
        self._tried += len(queries)
        self._failed += len(whole)
        METRICS.add(CERTIFIED, len(queries) - len(whole))
        if whole:
            METRICS.add(FALLBACKS, len(whole))
            if len(whole) == len(queries):
                return scan.nearest(queries, k, threads)
        found = scan.among(queries, places, counts, min(k, max(counts)))
        if self._rest is not None:
            found = self._with_rest(scan, queries, found, k, threads)
        if whole:
            rowids, values = scan.nearest(queries[whole], k, threads)
            found[0][whole], found[1][whole] = rowids, values
        return found

    def _with_rest(
        self, scan: Scan, queries: np.ndarray, found: Found, k: int, threads: int
    ) -> Found:
        """Merge an answer with that of the blocks that are not coded."""
        assert self._rest is not None
        rest = Scan(scan.kernel, self._rest, scan.metric)
        return _merged(found, rest.nearest(queries, min(k, self._rest.rows), threads), k)


def _merged(one: Found, other: Found, k: int) -> Found:
    rowids = np.concatenate([one[0], other[0]], axis=1)
    values = np.concatenate([one[1], other[1]], axis=1)
    order = np.stack([reference.smallest(v, r, k) for v, r in zip(values, rowids, strict=True)])
    return np.take_along_axis(rowids, order, 1), np.take_along_axis(values, order, 1)


def worth_coding(block: VectorBlock) -> bool:
    """Tell whether a block is large enough, and its codes much smaller than its vectors."""
    rows, width = block.data.shape
    fitting = block.data.dtype == np.float32 and rows >= MIN_ROWS and is_compact(width)
    return fitting and block.data.flags.c_contiguous


def is_compact(width: int) -> bool:
    """Tell whether codes of so many elements are much smaller than the vectors."""
    return width <= MAX_WIDTH and padded_width(width) <= 2 * width


def coded_blocks(
    cache: CodeCache, blocks: Sequence[VectorBlock], table: BlockTable, basis: Basis | None = None
) -> tuple[CodedBlocks, bool]:
    """Return the coded blocks of an index, and whether more may be coded when asked again.

    In the basis given, or that of most rows coded already.
    """
    codes: list[Codes | None] = [None] * len(blocks)
    wanted = [at for at, block in enumerate(blocks) if worth_coding(block)]
    encoder = ready() if wanted else None
    if encoder is None:
        return CodedBlocks(blocks, table, codes), bool(wanted)
    basis = basis or cache.basis([blocks[at].data for at in wanted]) or Basis()
    unsettled = False
    for at in wanted:
        data = blocks[at].data
        make = partial(encode, data, encoder, basis)
        found, again = cache.get(data, data.shape, make, basis)
        codes[at] = found if found is not None and found.are_sound else None
        unsettled |= again
    return CodedBlocks(blocks, table, codes), unsettled


def coded_rows(
    cache: CodeCache, positions: np.ndarray, flat: Vectors, least: int = MIN_CHOSEN
) -> CodedRows | None:
    """Return the codes of some rows, by the identity of ``positions``; None when not yet.

    ``least`` is how many rows are worth it.
    """
    rows = len(positions)
    if not least <= rows <= MAX_CHOSEN or not is_compact(flat.width):
        return None
    encoder = ready()
    if encoder is None:
        return None

    def make() -> CodedRows:
        live = np.sort(positions[flat.live()[positions]])  # a filter's are in the scalars' order
        return CodedRows.of(live, flat.vectors(live), encoder)

    return cache.get(positions, (rows, flat.width), make)[0]


def ready() -> dispatch.Kernel | None:
    """Return the coder of rows, or have it and the other kernels made in the background."""
    for kind in dispatch.CODED:
        dispatch.prepare(kind)
    return dispatch.get("encode")
