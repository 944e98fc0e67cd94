"""The nearest rows of a query in one call: search of some graphs, then exact comparison.

A graph names candidates by codes; the scan of the vectors' type compares them, and the fresh rows
no graph has, where their vectors lie. The scan is called by its address, so every type of vector
has the very distances of exact search. Small graphs are searched with a short list first, and with
the whole list where they gave many of the nearest; fresh rows are compared once, those with codes
as far as they may be nearer than the k-th of the others.

All arguments are addresses and counts; memory belongs to the caller.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tarsdb.kernels.cpu.calls import call_at
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_long, put_real, read_long, read_real

(
    SCAN, TABLE, BLOCKS, ROW_BYTES, WIDTH, QUERY_BYTES, NUMBER_BYTES, METRIC, K, FRESH, FRESH_ROWS,
    CODED, SCAN_BYTES, LISTED, PARTS,
) = range(15)  # fmt: skip
"""The words of a search: address of the scan, table of blocks and their number (see ``scan.py``),
bytes and elements of a row, bytes of a query as stored and as float32 numbers, metric, rows wanted,
address and number of the positions of fresh rows, address of the search of their codes (entry of
``coded_within`` and the address of its words; 0: none), scratch memory of the scan, candidates of
all parts at most, number of parts. Then of each part:"""
GRAPH, SHORT, SHORT_ROOM, WHOLE, WHOLE_ROOM, ALLOWED, PLACES, TAKEN, PART = range(9)
"""its table, list size and room (see ``graph.py``) at first and where it matters, ``allowed``, the
positions of its nodes, candidates to take of it; the number of these words."""
MANY = 3
"""A part that gave more than one in so many of the answers is searched with the whole list."""


@linked
def _row_id(table, blocks, place):  # type: ignore[no-untyped-def]
    """Return the row id at a position."""
    low, high = 0, blocks - 1
    while low < high:
        middle = (low + high + 1) // 2
        if read_long(table, 4 * middle + 3) <= place:
            low = middle
        else:
            high = middle - 1
    return read_long(read_long(table, 4 * low + 1), place - read_long(table, 4 * low + 3))


@linked
def _compare(words, query, slots, counts, fresh, places, ids, values, scratch):  # type: ignore[no-untyped-def]
    """Compare the candidates of all parts and ``fresh`` fresh rows; return how many are nearest."""
    size, slot = 0, slots
    for part in range(read_long(words, PARTS)):
        for i in range(read_long(counts, part)):
            put_long(places, size, read_long(slot, i))
            size += 1
        slot += 8 * read_long(words + 8 * (PARTS + 1 + PART * part), TAKEN)
    for i in range(fresh):
        put_long(places, size, read_long(read_long(words, FRESH), i))
        size += 1
    return call_at(read_long(words, SCAN), (
        read_long(words, TABLE), read_long(words, BLOCKS), 0, size, places,
        read_long(words, ROW_BYTES), read_long(words, WIDTH), query, 1,
        read_long(words, QUERY_BYTES), read_long(words, METRIC), min(size, read_long(words, K)),
        values, ids, scratch,
    )) if size else 0  # fmt: skip


@linked
def _merge(ids, values, size, k, more, farther, count):  # type: ignore[no-untyped-def]
    """Put ``count`` rows among ``size`` of at most k, in order of (distance, id); return the size.

    Both are in order; a row may be in both.
    """
    at = 0
    for i in range(count):
        rowid, value = read_long(more, i), read_real(farther, i)
        while at < size:
            other, own = read_long(ids, at), read_real(values, at)
            # NaN is behind all numbers
            if own > value or (own != own and value == value):
                break
            if not own < value and (own == own or value != value) and other >= rowid:
                break
            at += 1
        if at == k:
            break
        if at == size or read_long(ids, at) != rowid:
            size = min(size + 1, k)
            for later in range(size - 1, at, -1):
                put_long(ids, later, read_long(ids, later - 1))
                put_real(values, later, read_real(values, later - 1))
            put_long(ids, at, rowid)
            put_real(values, at, value)
    return size


@linked
def _gave_many(words, slot, count, ids):  # type: ignore[no-untyped-def]
    """Return whether many of the answers are among candidates."""
    k, hits = read_long(words, K), 0
    for i in range(count):
        rowid = _row_id(read_long(words, TABLE), read_long(words, BLOCKS), read_long(slot, i))
        for at in range(k):
            if read_long(ids, at) == rowid:
                hits += 1
                break
    return hits * MANY > k


def make_nearest(search: Any) -> Any:
    """Return ``nearest``; see ``graph.py``."""

    @linked
    def look(line, size, numbers, slot, memory):  # type: ignore[no-untyped-def]
        """Search one part with the list of a word (SHORT or WHOLE); return how many it gave."""
        return search(
            read_long(line, GRAPH), numbers, read_long(line, TAKEN), read_long(line, size),
            read_long(line, size + 1), read_long(line, ALLOWED), read_long(line, PLACES), slot,
            memory,
        )  # fmt: skip

    @njit(nogil=True)
    def nearest(words, numbers, queries, rows, ids, values, scratch):  # type: ignore[no-untyped-def]
        k, parts, first = read_long(words, K), read_long(words, PARTS), words + 8 * (PARTS + 1)
        slots = scratch + read_long(words, SCAN_BYTES)
        counts = slots + 8 * read_long(words, LISTED)
        places = counts + 8 * parts
        more = places + 8 * (read_long(words, LISTED) + read_long(words, FRESH_ROWS))
        farther = more + 8 * k
        limit = farther + 4 * k
        memory = limit + 8
        memory += -memory % 64
        for number in range(rows):
            slot = slots
            for part in range(parts):
                line = first + 8 * PART * part
                taken = look(line, SHORT, numbers, slot, memory)
                if taken < 0:
                    return number
                put_long(counts, part, taken)
                slot += 8 * read_long(line, TAKEN)
            fresh, coded = read_long(words, FRESH_ROWS), read_long(words, CODED)
            size = _compare(words, queries, slots, counts, 0 if coded else fresh, places, ids,
                            values, scratch)  # fmt: skip
            if coded:
                put_real(limit, 0, read_real(values, k - 1) if size == k else np.float32(np.inf))
                count = call_at(read_long(coded, 0), (
                    read_long(coded, 1), queries, queries, limit, more, farther, memory,
                ))  # fmt: skip
                if count < 0:  # bounds cannot tell
                    size = _compare(words, queries, slots, counts, fresh, places, ids, values,
                                    scratch)  # fmt: skip
                size = _merge(ids, values, size, k, more, farther, count)
            if size < k:
                return number
            again, slot = 0, slots
            for part in range(parts):
                line, count = first + 8 * PART * part, read_long(counts, part)
                is_short = read_long(line, SHORT) < read_long(line, WHOLE)
                if is_short and _gave_many(words, slot, count, ids):
                    again += 1
                    taken = look(line, WHOLE, numbers, slot, memory)
                    put_long(counts, part, count if taken < 0 else taken)  # else as at first
                slot += 8 * read_long(line, TAKEN)
            if again:
                count = _compare(words, queries, slots, counts, 0, places, more, farther, scratch)
                _merge(ids, values, k, k, more, farther, count)
            numbers += read_long(words, NUMBER_BYTES)
            queries += read_long(words, QUERY_BYTES)
            ids, values = ids + 8 * k, values + 4 * k
        return rows

    return nearest
