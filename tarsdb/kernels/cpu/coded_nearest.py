"""The nearest coded rows of a query in one call: coding, sieve, exact comparison of what it leaves.

All arguments are addresses and counts; memory belongs to the caller.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.calls import call_at
from tarsdb.kernels.cpu.candidates import COSINE, L2, LIMIT
from tarsdb.kernels.cpu.coded import SCRATCH
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_long, put_real, read_long, read_real

(
    CODER, SIEVE, SCAN, WIDTH, PADDED, HEAD, RANGE, CODES, PARTS, METRIC, K, CAP, POSITIONS, TABLE,
    BLOCKS, ROW_BYTES,
) = range(16)  # fmt: skip
"""The words of a search: addresses of the coder of queries, the sieve and the scan; elements of a
vector, bytes of its code and of the code's head; address of the extremes (see ``encode.py``); table
of the coded parts and their number (see ``coded.py``); metric, rows wanted, candidates there is
room for; address of the positions the coded rows have (0: as the parts say); table of blocks and
their number, and bytes of a row (see ``scan.py``)."""
SIGNATURE = types.int64(*[types.int64] * 7)
NUMBERS = -(-SCRATCH // 64) * 64
STATE = NUMBERS + 64
WORK = STATE + 64
QUERY = WORK + 64
"""Places in the scratch memory: first that of the sieve, then numbers of the query, state of the
sieve, memory of the coder, then the coded query, heap, lower bounds, candidates, and the scan's."""


MARGIN = 2.0**-20
"""Share by which a limit is made larger: many times what its rounding to float32 takes."""


@linked
def _limit_of(distance, query, width, metric):  # type: ignore[no-untyped-def]
    """Return a distance in the measure of the sieve's bounds, rounded up; infinite if it is not."""
    known = np.float64(distance)
    if not math.isfinite(known):
        return np.float32(np.inf)
    if metric == COSINE:
        return np.float32(known - 1 + MARGIN)
    if metric == L2:  # bounds are of the squared distance less the query's square
        square = 0.0
        for i in range(width):
            square += np.float64(read_real(query, i)) * np.float64(read_real(query, i))
        known *= known
        return np.float32(known + MARGIN * (known + square) - square)
    return np.float32(known + MARGIN * abs(known))


@linked
def _one(words, turned, query, distance, ids, values, scratch):  # type: ignore[no-untyped-def]
    """Find the k nearest rows within a distance, or a few beyond; return how many, -1: unknown."""
    width, padded, head = (
        read_long(words, WIDTH), read_long(words, PADDED), read_long(words, HEAD)
    )  # fmt: skip
    metric, k, cap = read_long(words, METRIC), read_long(words, K), read_long(words, CAP)
    positions = read_long(words, POSITIONS)
    about, state, coded = scratch + NUMBERS, scratch + STATE, scratch + QUERY
    heap = coded + padded
    lows = heap + (4 * k + 63) // 64 * 64
    places = lows + 4 * cap
    usable = call_at(read_long(words, CODER), (
        turned, 1, width, padded, head, coded, about, 1, metric, read_long(words, RANGE),
        scratch + WORK,
    ))  # fmt: skip
    if usable == 0:
        return np.int64(-1)
    put_real(about, LIMIT, _limit_of(distance, query, width, metric))
    put_long(state, 0, 0)
    put_long(state, 1, 0)
    call_at(read_long(words, SIEVE), (
        read_long(words, CODES), read_long(words, PARTS), coded, 1, padded, head, about, k,
        heap, metric, places, lows, cap, state, scratch,
    ))  # fmt: skip
    count = read_long(state, 1)
    for i in range(count if positions != 0 else 0):
        put_long(places, i, read_long(positions, read_long(places, i)))
    k = min(k, count)
    if k > 0:
        call_at(read_long(words, SCAN), (
            read_long(words, TABLE), read_long(words, BLOCKS), 0, count, places,
            read_long(words, ROW_BYTES), width, query, 1, 4 * width, metric, k, values, ids,
            places + 8 * cap,
        ))  # fmt: skip
    return k


def make_coded_nearest() -> Any:
    """Return ``coded_nearest(words, turned, queries, rows, ids, values, scratch)``, not compiled.

    ``queries`` float32 (rows, width), ``turned`` the same in the basis of the codes. ``ids`` int64
    and ``values`` float32 (rows, k) get the answers by (distance, row id). Returns the number of
    the first query that is to be answered otherwise, or ``rows``. ``scratch``: see ``index/sieve``.
    """

    @njit(nogil=True)
    def coded_nearest(words, turned, queries, rows, ids, values, scratch):  # type: ignore[no-untyped-def]
        width, k, infinite = read_long(words, WIDTH), read_long(words, K), np.float32(np.inf)
        for number in range(rows):
            if _one(words, turned, queries, infinite, ids, values, scratch) < k:
                return np.int64(number)
            queries, turned = queries + 4 * width, turned + 4 * width
            ids, values = ids + 8 * k, values + 4 * k
        return np.int64(rows)

    return coded_nearest


def make_coded_within() -> Any:
    """Return ``coded_within(words, turned, query, distance, ids, values, scratch)``, not compiled.

    Of one query, when k rows within a distance are known elsewhere: ``distance`` is the address of
    a float32, as answers have it; if it is not finite, all rows count. Returns how many rows were
    found, the k nearest that are not farther among them, or -1 where bounds cannot tell.
    """

    @njit(nogil=True)
    def coded_within(words, turned, query, distance, ids, values, scratch):  # type: ignore[no-untyped-def]
        return _one(words, turned, query, read_real(distance, 0), ids, values, scratch)

    return coded_within
