"""Search of a graph over coded rows.

Rows are coded with 8 or 4 bits an element and two constants, squared norm and scale. The distance
of a coded query and a row is ``square - factor * scale * dot``. A search keeps one sorted list of
packed (distance, node, expanded) entries (Malkov & Yashunin 2018, Algorithm 2, without layers);
among allowed nodes it ends with the last allowed one that counts, and the others before that one
are passed through.
Before a row's code is read, its distance is estimated by the signs alone, as RaBitQ does (Gao &
Long 2024, without a rotation): one cache line, and most rows are told apart by it. Several nodes
are expanded at a time, so that the memory of all their neighbours is waited for once; what goes
which way is computed rather than branched on, as no processor foresees it.

All arguments are addresses and counts; memory belongs to the caller.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tarsdb.kernels.cpu.calls import call_at
from tarsdb.kernels.cpu.graph_products import make_products, offset_of
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    bits_of,
    float_of,
    prefetch,
    put_byte,
    put_int,
    put_long,
    read_byte,
    read_int,
    read_long,
    read_real,
    read_signed,
)
from tarsdb.kernels.cpu.sorted_list import (
    MOST,
    insert_into,
    key_of,
    node_of,
    pack,
    room_for,
    start_list,
)

(
    CODES, SKETCHES, EDGES, ENTRIES, MEAN, NODES, STARTS, DEGREE, BITS, PADDED, STRIDE, WIDTH, KIND,
    NORM, LEFT_OUT,
) = range(15)  # fmt: skip
"""The words of a graph's table: five addresses, the number of nodes and of entries, neighbours of
a node, bits of an element's code, elements of a code, bytes of a sketch, dimension of the space, 0
for ``<->``, 1 ``<#>``, 2 ``<=>``, the norm that queries are brought to unless by ``<->``, the bits
of a float32, and a node that a search passes by as if it were not there, or -1."""
START = 8
"""Entries whose distance is taken: the nearest by their signs."""
SCREEN = np.float32(0.7)
"""Standard deviations that an estimate by signs may be wrong before a node is left out."""
TOGETHER = 3
"""Nodes expanded at a time."""


@linked
def _norm(query, padded):  # type: ignore[no-untyped-def]
    """Return the norm of a coded query, float32."""
    square = np.int64(0)
    for i in range(padded):
        square += read_signed(query, i) * read_signed(query, i)
    return np.float32(np.sqrt(np.float64(square)))


@linked
def _code_query(query, graph, code):  # type: ignore[no-untyped-def]
    """Code a query as ``index/hnsw/codes.py`` says; return twice its scale."""
    mean, width, kind = read_long(graph, MEAN), read_long(graph, WIDTH), read_long(graph, KIND)
    given = width - (kind == 1)
    factor = np.float32(1)
    if kind:
        square = np.float32(0)
        for i in range(given):
            square += read_real(query, i) * read_real(query, i)
        norm = float_of(read_long(graph, NORM))
        factor = norm / np.sqrt(square) if square > 0 else np.float32(0)
    top = np.int64(0)  # as bits: they order as the numbers do
    for i in range(given):
        value = read_real(query, i) * factor - read_real(mean, i)
        top = max(top, bits_of(value) & 0x7FFFFFFF)
    for i in range(given, width):
        top = max(top, bits_of(read_real(mean, i)) & 0x7FFFFFFF)
    scale = float_of(top) / np.float32(127) if top > 0 else np.float32(1)
    inverse = np.float32(1) / scale
    for i in range(width):
        value = (read_real(query, i) * factor if i < given else np.float32(0)) - read_real(mean, i)
        number = max(min(np.rint(value * inverse), np.float32(127)), np.float32(-127))
        put_byte(code, i, np.int64(number))
    for i in range(width, read_long(graph, PADDED)):
        put_byte(code, i, 0)
    return np.float32(2) * scale


@linked
def rows_of(graph):  # type: ignore[no-untyped-def]
    """Return where codes and their numbers lie, their steps, elements of a code and their bits."""
    padded, bits = read_long(graph, PADDED), read_long(graph, BITS)
    codes, numbers = read_long(graph, CODES), read_long(graph, SKETCHES) + padded // 8
    return codes, numbers, padded * bits >> 3, read_long(graph, STRIDE), padded, bits


def make_search(variant: str, asks: bool = False) -> tuple[Any, Any, Any]:
    """Return ``search``, and ``traverse`` and ``apart`` it is made of; see ``graph.py``.

    One that ``asks`` is another kernel: the call alone makes searches without it slower.
    """
    dot, pick = make_products(variant)

    @linked
    def apart(rows, node, query, factor, offset):  # type: ignore[no-untyped-def]
        """Return the distance of a node and a coded query; ``rows`` is of :func:`rows_of`."""
        codes, numbers, lines, stride, padded, bits = rows
        product = dot(codes + node * lines, query, padded, bits) - offset
        place = numbers + node * stride
        return read_real(place, 0) - factor * read_real(place, 1) * np.float32(product)

    @linked
    def traverse(  # type: ignore[no-untyped-def]
        graph, limit, query, factor, offset, allowed, asked, wanted, beam, room, visited, near
    ):
        """Search from the entries among nodes below ``limit``; return the size of the list.

        ``beam`` is memory for a list of ``room`` entries, of which ``wanted`` are allowed at most,
        ``near`` for int32, ``TOGETHER`` times the degree or ``START``. ``limit`` is of entries:
        edges of nodes below it lead to nodes below it. Returns -1 when ``room`` did not suffice, or
        what ``asked`` names (see ``asking.py``) ended the search.
        """
        rows = rows_of(graph)
        codes, numbers, lines, stride, padded, bits = rows
        signs, edges = read_long(graph, SKETCHES), read_long(graph, EDGES)
        entries, degree = read_long(graph, ENTRIES), read_long(graph, DEGREE)
        total = offset // (15 if bits == 4 else 128)
        margin = SCREEN * factor * _norm(query, padded)
        for word in range((read_long(graph, NODES) >> 6) + 1):
            put_long(visited, word, 0)
        left_out = read_long(graph, LEFT_OUT)
        if left_out >= 0:
            put_byte(visited, left_out >> 3, 1 << (left_out & 7))
        size = taken = current = count = np.int64(0)
        beam = start_list(beam, room)
        most = min(START, room)
        for i in range(read_long(graph, STARTS)):  # the nearest by their signs
            entry = read_int(entries, i)
            if entry < limit and entry != left_out:
                line = signs + entry * stride
                inner = 2 * pick(line, query, padded) - total
                line += padded // 8
                key = read_real(line, 0) - factor * read_real(line, 2) * np.float32(inner)
                insert_into(beam, count, most, pack(key, entry))
                count = min(count + 1, most)
        for i in range(count):
            node = node_of(read_long(beam, i))
            put_long(beam, i, MOST)
            put_int(near, i, node)
            put_byte(visited, node >> 3, read_byte(visited, node >> 3) | 1 << (node & 7))
        while True:
            if taken == wanted if allowed else size == room:  # what is farther is not of interest
                worst = key_of(read_long(beam, size - 1))
                kept = 0
                for i in range(count):
                    node = read_int(near, i)
                    line = node * stride
                    inner = 2 * pick(signs + line, query, padded) - total
                    low = (read_real(numbers + line, 0)
                           - factor * read_real(numbers + line, 2) * np.float32(inner)
                           - margin * read_real(numbers + line, 3))  # fmt: skip
                    put_int(near, kept, node)
                    kept += low <= worst
                count = kept
            for i in range(count):
                place = codes + read_int(near, i) * lines
                for line in range(0, lines, 64):
                    prefetch(place + line)
            following = 0  # what is likely expanded next: its edges were asked for before
            for ahead in range(current, size):
                entry = read_long(beam, ahead)
                if not entry & 1:
                    other = edges + 4 * degree * node_of(entry)
                    following += 1
                    if following > TOGETHER:
                        for line in range(0, 4 * degree, 64):
                            prefetch(other + line)
                        if following == 2 * TOGETHER:
                            break
                        continue
                    for i in range(degree):  # where there is none, what is harmless to ask for
                        prefetch(signs + read_int(other, i) * stride)
            # the answers come while memory brings the codes
            if asks and call_at(read_long(asked, 0), (asked, near, count, allowed)):
                return np.int64(-1)
            lowest = size
            for i in range(count):
                node = read_int(near, i)
                entry = pack(apart(rows, node, query, factor, offset), node)
                if allowed:
                    last = read_long(beam, size - 1)  # less than all in an empty list
                    if taken == wanted and entry >> 1 > last >> 1:
                        continue
                    if size == room and entry < last:  # that one goes
                        taken -= read_byte(allowed, node_of(last))
                at = insert_into(beam, size, room, entry)
                if at == room:
                    continue
                size = min(size + 1, room)
                lowest = min(lowest, at)
                if allowed:
                    taken += read_byte(allowed, node)
                    while taken >= wanted:  # until it ends with the last allowed one that counts
                        is_allowed = read_byte(allowed, node_of(read_long(beam, size - 1)))
                        if is_allowed and taken == wanted:
                            break
                        taken -= is_allowed
                        size -= 1
                        put_long(beam, size, MOST)
            current = min(current, lowest, size)
            count = expanded = 0
            while current < size and expanded < TOGETHER:
                entry = read_long(beam, current)
                if not entry & 1:
                    put_long(beam, current, entry | 1)
                    expanded += 1
                    own = node_of(entry)
                    other = edges + 4 * degree * own
                    for i in range(degree):
                        node = read_int(other, i)
                        node = own if node < 0 else node  # no neighbour: one that is marked
                        marks = read_byte(visited, node >> 3)
                        prefetch(signs + node * stride)
                        put_int(near, count, node)
                        put_byte(visited, node >> 3, marks | 1 << (node & 7))
                        count += 1 - (marks >> (node & 7) & 1)
                current += 1
            if not expanded:
                if allowed and taken < wanted and size == room:
                    return np.int64(-1)  # there may be nearer ones beyond what the list holds
                return size

    @linked
    def look(graph, query, wanted, ef, room, allowed, asked, places, out, scratch):  # type: ignore[no-untyped-def]
        code = scratch
        near = code + read_long(graph, PADDED)
        beam = near + 4 * max(TOGETHER * read_long(graph, DEGREE), START)
        visited = beam + room_for(room)
        padded, bits = read_long(graph, PADDED), read_long(graph, BITS)
        factor = _code_query(query, graph, code)
        size = traverse(
            graph, read_long(graph, NODES), code, factor, offset_of(code, padded, bits), allowed,
            asked, ef, beam, room, visited, near,
        )  # fmt: skip
        beam += 8
        taken = min(size, np.int64(0))
        for i in range(size):
            if taken == wanted:
                break
            node = node_of(read_long(beam, i))
            if not allowed or read_byte(allowed, node):
                put_long(out, taken, read_long(places, node) if places else node)
                taken += 1
        return taken

    if asks:

        @njit(nogil=True)
        def search_asking(graph, query, wanted, ef, room, allowed, asked, places, out, scratch):  # type: ignore[no-untyped-def]
            return look(graph, query, wanted, ef, room, allowed, asked, places, out, scratch)

        return search_asking, traverse, apart

    @njit(nogil=True)
    def search(graph, query, wanted, ef, room, allowed, places, out, scratch):  # type: ignore[no-untyped-def]
        return look(graph, query, wanted, ef, room, allowed, 0, places, out, scratch)

    return search, traverse, apart
