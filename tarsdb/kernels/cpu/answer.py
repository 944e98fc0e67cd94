"""The answer of a search in one call: the nearest rows of a query, and values of their columns."""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.calls import call_at
from tarsdb.kernels.cpu.memory import read_long, read_real

SEARCH, SEARCHED, IDS, VALUES, K, GATHER, RUNS, COUNT, COLUMNS, SIZES, OUT = range(11)
"""The words of an answer: address of a search (``nearest`` or ``coded_nearest``) and of its words;
addresses of int64 (k,) and float32 (k,) for what it finds, and k; address of ``gather`` and what it
takes: runs and their number, number of columns, sizes of values, addresses of what gets them."""
SIGNATURE = types.int64(*[types.int64] * 3)


def make_answer() -> Any:
    """Return the (not yet compiled) ``answer(words, query, scratch)`` of one float32 query.

    Returns 1; or 0 where the search is to be answered otherwise, a row is not where ``gather``
    looks, or the smallest distance is not finite.
    """

    @njit(nogil=True)
    def answer(words, query, scratch):  # type: ignore[no-untyped-def]
        ids, values = read_long(words, IDS), read_long(words, VALUES)
        found = call_at(read_long(words, SEARCH), (
            read_long(words, SEARCHED), query, query, 1, ids, values, scratch
        ))  # fmt: skip
        if found != 1 or not math.isfinite(read_real(values, 0)):
            return np.int64(0)
        return call_at(read_long(words, GATHER), (
            read_long(words, RUNS), read_long(words, COUNT), read_long(words, COLUMNS),
            read_long(words, SIZES), ids, read_long(words, K), read_long(words, OUT),
        ))  # fmt: skip

    return answer
