"""The nearest coded rows of a query in one call: coding, sieve, exact comparison of what it leaves.

All arguments are addresses and counts; memory belongs to the caller.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.calls import call_at
from tarsdb.kernels.cpu.coded import SCRATCH
from tarsdb.kernels.cpu.memory import put_long, read_long

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


def make_coded_nearest() -> Any:
    """Return ``coded_nearest(words, turned, queries, rows, ids, values, scratch)``, not compiled.

    ``queries`` float32 (rows, width), ``turned`` the same in the basis of the codes. ``ids`` int64
    and ``values`` float32 (rows, k) get the answers by (distance, row id). Returns the number of
    the first query that is to be answered otherwise, or ``rows``. ``scratch``: see ``index/sieve``.
    """

    @njit(nogil=True)
    def coded_nearest(words, turned, queries, rows, ids, values, scratch):  # type: ignore[no-untyped-def]
        width, padded, head = (
            read_long(words, WIDTH), read_long(words, PADDED), read_long(words, HEAD)
        )  # fmt: skip
        metric, k, cap = read_long(words, METRIC), read_long(words, K), read_long(words, CAP)
        positions = read_long(words, POSITIONS)
        about, state, query = scratch + NUMBERS, scratch + STATE, scratch + QUERY
        heap = query + padded
        lows = heap + (4 * k + 63) // 64 * 64
        places = lows + 4 * cap
        for number in range(rows):
            usable = call_at(read_long(words, CODER), (
                turned, 1, width, padded, head, query, about, 1, metric, read_long(words, RANGE),
                scratch + WORK,
            ))  # fmt: skip
            if usable == 0:
                return np.int64(number)
            put_long(state, 0, 0)
            put_long(state, 1, 0)
            call_at(read_long(words, SIEVE), (
                read_long(words, CODES), read_long(words, PARTS), query, 1, padded, head, about, k,
                heap, metric, places, lows, cap, state, scratch,
            ))  # fmt: skip
            count = read_long(state, 1)
            if count < k:
                return np.int64(number)
            for i in range(count if positions != 0 else 0):
                put_long(places, i, read_long(positions, read_long(places, i)))
            call_at(read_long(words, SCAN), (
                read_long(words, TABLE), read_long(words, BLOCKS), 0, count, places,
                read_long(words, ROW_BYTES), width, queries, 1, 4 * width, metric, k, values, ids,
                places + 8 * cap,
            ))  # fmt: skip
            queries, turned = queries + 4 * width, turned + 4 * width
            ids, values = ids + 8 * k, values + 4 * k
        return np.int64(rows)

    return coded_nearest
