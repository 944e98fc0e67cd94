"""Search of a graph over int8 codes.

Rows are coded as bytes (code + 128), padded to a multiple of 64, with two constants: squared norm
and scale. The distance of a coded query and a row is ``square - factor * scale * dot``. A search
keeps one sorted list of packed (distance, node, expanded) entries (Malkov & Yashunin 2018,
Algorithm 2, without layers). Before a row's code is read, its distance is estimated by the signs
alone, as RaBitQ does (Gao & Long 2024, without a rotation): one cache line instead of seven, and
most rows are told apart by it. Several nodes are expanded at a time, so that the memory of all their
neighbours is waited for once.

All arguments are addresses and counts; memory belongs to the caller.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from tarsdb.kernels.cpu.graph_products import make_products
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

CODES, SKETCHES, EDGES, ENTRIES, MEAN, NODES, STARTS, DEGREE, PADDED, STRIDE, WIDTH, KIND = range(12)
"""The words of a graph's table: five addresses, the number of nodes and of entries, neighbours of a
node, bytes of a code and of a sketch, dimension of the space, 0 for ``<->``, 1 ``<#>``, 2 ``<=>``."""
START = 8
"""Entries whose distance is taken: the nearest by their signs."""
SCREEN = np.float32(1.0)
"""Standard deviations that an estimate by signs may be wrong before a node is left out."""
TOGETHER = 2
"""Nodes expanded at a time."""


@njit(nogil=True)
def pack(key, node):  # type: ignore[no-untyped-def]
    """Return an entry that orders by distance, then node; the lowest bit says expanded."""
    bits = bits_of(key)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (np.int64(node) << 1)


@njit(nogil=True)
def node_of(entry):  # type: ignore[no-untyped-def]
    """Return the node of an entry."""
    return (entry & 0xFFFFFFFF) >> 1


@njit(nogil=True)
def key_of(entry):  # type: ignore[no-untyped-def]
    """Return the distance of an entry."""
    bits = entry >> 32
    return float_of(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@njit(nogil=True)
def insert_into(entries, size, limit, entry):  # type: ignore[no-untyped-def]
    """Put an entry into a sorted list of at most ``limit``; return where, or ``limit``."""
    if size == limit and entry >= read_long(entries, size - 1):
        return limit
    low, high = np.int64(0), size
    while low < high:
        middle = (low + high) >> 1
        if read_long(entries, middle) < entry:
            low = middle + 1
        else:
            high = middle
    for at in range(min(size, limit - 1), low, -1):
        put_long(entries, at, read_long(entries, at - 1))
    put_long(entries, low, entry)
    return low


@njit(nogil=True)
def correction_of(query, padded):  # type: ignore[no-untyped-def]
    """Return what codes + 128 add to every inner product with a query."""
    total = np.int64(0)
    for i in range(padded):
        total += read_signed(query, i)
    return 128 * total


@njit(nogil=True)
def _norm(query, padded):  # type: ignore[no-untyped-def]
    """Return the norm of a coded query, float32."""
    square = np.int64(0)
    for i in range(padded):
        square += read_signed(query, i) * read_signed(query, i)
    return np.float32(np.sqrt(np.float64(square)))


@njit(nogil=True)
def _code_query(query, graph, code):  # type: ignore[no-untyped-def]
    """Code a query as ``index/hnsw/codes.py`` says; return twice its scale."""
    mean, width, kind = read_long(graph, MEAN), read_long(graph, WIDTH), read_long(graph, KIND)
    given = width - (kind == 1)
    factor = np.float32(1)
    if kind == 2:
        square = np.float32(0)
        for i in range(given):
            square += read_real(query, i) * read_real(query, i)
        factor = np.float32(1) / np.sqrt(square) if square > 0 else np.float32(0)
    top = np.int64(0)  # as bits: they order as the numbers do
    for i in range(given):
        value = read_real(query, i) * factor - read_real(mean, i)
        top = max(top, bits_of(value) & 0x7FFFFFFF)
    for i in range(given, width):
        top = max(top, bits_of(read_real(mean, i)) & 0x7FFFFFFF)
    scale = float_of(top) / np.float32(127) if top > 0 else np.float32(1)
    inverse = np.float32(1) / scale
    for i in range(read_long(graph, PADDED)):
        value = np.float32(0)
        if i < width:
            value = (read_real(query, i) * factor if i < given else value) - read_real(mean, i)
        number = max(min(np.rint(value * inverse), np.float32(127)), np.float32(-127))
        put_byte(code, i, np.int64(number))
    return np.float32(2) * scale


def make_search(variant: str) -> tuple[Any, Any]:
    """Return ``search`` and ``traverse``, which it is made of; see ``graph.py``."""
    dot, pick = make_products(variant)

    @njit(nogil=True)
    def traverse(  # type: ignore[no-untyped-def]
        graph, limit, query, factor, correction, allowed, beam, room, best, wanted, visited, near
    ):
        """Search from the entries among nodes below ``limit``; return the sizes of both lists.

        ``beam`` holds ``room`` entries, ``best`` ``wanted`` allowed ones, ``near`` int32
        ``TOGETHER`` times the degree, or the entries. ``limit`` is of entries: edges of nodes below
        it lead to nodes below it.
        """
        codes, signs, rows = read_long(graph, CODES), read_long(graph, SKETCHES), read_long(graph, EDGES)
        degree, lines, stride = read_long(graph, DEGREE), read_long(graph, PADDED), read_long(graph, STRIDE)
        entries = read_long(graph, ENTRIES)
        total, margin = correction // 128, SCREEN * factor * _norm(query, lines)
        numbers = signs + lines // 8
        for word in range((read_long(graph, NODES) >> 6) + 1):
            put_long(visited, word, 0)
        size = taken = current = count = np.int64(0)
        most = min(START, room)
        for i in range(read_long(graph, STARTS)):  # the nearest by their signs
            entry = read_int(entries, i)
            if entry < limit:
                line = signs + entry * stride
                apart = 2 * pick(line, query, lines) - total
                line += lines // 8
                key = read_real(line, 0) - factor * read_real(line, 2) * np.float32(apart)
                insert_into(beam, count, most, pack(key, entry))
                count = min(count + 1, most)
        for i in range(count):
            node = node_of(read_long(beam, i))
            put_int(near, i, node)
            put_byte(visited, node >> 3, read_byte(visited, node >> 3) | 1 << (node & 7))
        while True:
            is_bounded = size == room
            worst = key_of(read_long(beam, size - 1)) if is_bounded else np.float32(0)
            if allowed:
                is_bounded = taken > 0 and taken == wanted
                worst = key_of(read_long(best, taken - 1)) if is_bounded else np.float32(0)
            if is_bounded:
                kept = 0
                for i in range(count):
                    node = read_int(near, i)
                    line = node * stride
                    apart = pick(signs + line, query, lines)
                    low = (read_real(numbers + line, 0)
                           - factor * read_real(numbers + line, 2) * np.float32(2 * apart - total)
                           - margin * read_real(numbers + line, 3))  # fmt: skip
                    put_int(near, kept, node)
                    kept += low <= worst
                count = kept
            for i in range(count):
                place = codes + read_int(near, i) * lines
                for offset in range(0, lines, 64):
                    prefetch(place + offset)
            following = 0  # what is likely expanded next: its edges were asked for before
            for ahead in range(current, size):
                entry = read_long(beam, ahead)
                if not entry & 1:
                    other = rows + 4 * degree * node_of(entry)
                    following += 1
                    if following > TOGETHER:
                        for offset in range(0, 4 * degree, 64):
                            prefetch(other + offset)
                        if following == 2 * TOGETHER:
                            break
                        continue
                    for i in range(degree):
                        node = read_int(other, i)
                        if node < 0:
                            break
                        if not read_byte(visited, node >> 3) >> (node & 7) & 1:
                            prefetch(signs + node * stride)
            lowest = size
            for i in range(count):
                node = read_int(near, i)
                product = dot(codes + node * lines, query, lines) - correction
                place = numbers + node * stride
                key = read_real(place, 0) - factor * read_real(place, 1) * np.float32(product)
                entry = pack(key, node)
                if allowed and read_byte(allowed, node):
                    at = insert_into(best, taken, wanted, entry)
                    taken = min(taken + (at < wanted), wanted)
                # farther than all of a full list of answers: it would never be expanded
                if taken and taken == wanted and entry >> 1 > read_long(best, taken - 1) >> 1:
                    continue
                at = insert_into(beam, size, room, entry)
                if at < room:
                    size = min(size + 1, room)
                    lowest = min(lowest, at)
            is_bounded = taken > 0 and taken == wanted
            farthest = read_long(best, taken - 1) >> 1 if is_bounded else np.int64(0)
            while is_bounded and size and read_long(beam, size - 1) >> 1 > farthest:
                size -= 1
            current = min(current, lowest, size)
            count = expanded = 0
            while current < size and expanded < TOGETHER:
                entry = read_long(beam, current)
                if not entry & 1:
                    if is_bounded and entry >> 1 > farthest:
                        break
                    put_long(beam, current, entry | 1)
                    expanded += 1
                    other = rows + 4 * degree * node_of(entry)
                    for i in range(degree):
                        node = read_int(other, i)
                        if node < 0:
                            break
                        marks = read_byte(visited, node >> 3)
                        prefetch(signs + node * stride)
                        put_int(near, count, node)
                        put_byte(visited, node >> 3, marks | 1 << (node & 7))
                        count += 1 - (marks >> (node & 7) & 1)
                current += 1
            if not expanded:
                if allowed and current == size and size == room:
                    return np.int64(-1), taken  # there may be nearer ones beyond what the list holds
                return size, taken

    @njit(nogil=True)
    def search(graph, query, wanted, ef, room, allowed, places, out, scratch):  # type: ignore[no-untyped-def]
        code = scratch
        near = code + read_long(graph, PADDED)
        beam = near + 4 * max(TOGETHER * read_long(graph, DEGREE), START)
        best = beam + 8 * room
        visited = best + 8 * ef
        factor = _code_query(query, graph, code)
        correction = correction_of(code, read_long(graph, PADDED))
        size, taken = traverse(
            graph, read_long(graph, NODES), code, factor, correction, allowed, beam, room, best,
            ef if allowed else 0, visited, near,
        )  # fmt: skip
        if size < 0:
            return size
        found, count = (best, taken) if allowed else (beam, size)
        count = min(count, wanted)
        for i in range(count):
            node = node_of(read_long(found, i))
            put_long(out, i, read_long(places, node) if places else node)
        return count

    return search, traverse
