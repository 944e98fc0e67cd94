"""Graph over int8 codes: insertion in batches, reverse edges, an order for locality.

``graph_search.py`` says what codes, constants and sketches are; integers are exact on every level.
Insertion searches as a query does and prunes as Subramanya et al. 2019 (Algorithm 2, RobustPrune)
do, on squared distances. It reads the graph of earlier batches only and reverse edges are added per
destination, so the result does not depend on the number of threads. Arrays belong to the caller;
nothing is locked.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.asking import make_ask
from tarsdb.kernels.cpu.graph_nearest import make_nearest
from tarsdb.kernels.cpu.graph_products import VARIANTS, code_of, offset_of
from tarsdb.kernels.cpu.graph_search import START, TOGETHER, WIDTH, make_search, rows_of
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    address_of,
    put_byte,
    put_long,
    put_real,
    read_byte,
    read_long,
    read_real,
)
from tarsdb.kernels.cpu.sorted_list import insert_into, key_of, node_of, pack, start_list

__all__ = ["SIGNATURES", "VARIANTS", "make_kernels"]

SLACK = 8
"""A full node is pruned to leave this part of its room free."""

_U8, _I4, _I8A, _F4 = types.uint8, types.int32, types.int64, types.float32
_CODES, _EDGES, _CONSTANTS = _U8[:, ::1], _I4[:, ::1], _F4[:, ::1]
_LIST, _NODES, _MARKS = _I8A[::1], _I4[::1], _U8[::1]
SIGNATURES = {
    "sketch": types.void(_CODES, _CONSTANTS, types.int64, types.int64, _CODES),
    "search": types.int64(*[types.int64] * 9),
    "search_asking": types.int64(*[types.int64] * 10),
    "ask": types.int64(*[types.int64] * 4),
    "nearest": types.int64(*[types.int64] * 7),
    "insert": types.void(types.int64, _EDGES, *[types.int64] * 4, _F4, _LIST, _MARKS),
    "link": types.void(
        types.int64, _EDGES, _NODES, _NODES, types.int64, types.int64, _F4, _LIST
    ),
    "order": types.int64(_EDGES, _NODES, _NODES, _MARKS, _NODES),
}  # fmt: skip


@linked
def _turn(rows, node, width, turned, number):  # type: ignore[no-untyped-def]
    """Bring a row's code into the form of a query; return its offset and twice its scale."""
    codes, numbers, lines, stride, padded, bits = rows
    row, to = codes + node * lines, address_of(turned) + number * padded
    if bits == 8:
        for i in range(padded):
            put_byte(to, i, read_byte(row, i) - 128)
    else:
        for run in range(lines >> 6):
            for i in range(64):
                byte = read_byte(row, 64 * run + i)
                put_byte(to, 128 * run + i, 2 * (byte & 15) - 15)
                put_byte(to, 128 * run + 64 + i, 2 * (byte >> 4) - 15)
    for i in range(width, padded):
        put_byte(to, i, 0)
    offset = offset_of(to, padded, bits)
    return offset, np.float32(2) * read_real(numbers + node * stride, 1)


@linked
def _square(rows, node):  # type: ignore[no-untyped-def]
    """Return the squared norm of a row."""
    return read_real(rows[1] + node * rows[3], 0)


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the (not yet compiled) kernels of a variant by name; ``SIGNATURES`` has their types.

    sketch(codes, constants, bits, width, sketches)
        Writes of each node the signs of its codes, a bit each, then float32 squared norm, scale,
        factor of the estimate and its standard deviation a unit of the query's norm.
    search(graph, query, wanted, ef, room, allowed, places, out, scratch)
        ``graph`` is a table as ``graph_search.py`` says, ``query`` float32 (dim,), ``allowed``
        uint8 (n,) or 0, ``places`` int64 (n,) or 0. ``out`` int64 (wanted,) gets nodes in order, or
        their places; returns how many. ``room`` is ``ef`` without ``allowed``; with it ``ef`` of
        the nearest allowed are looked for, the search goes on until what is left is farther, and
        ``room`` bounds its work: -1 when that did not suffice. ``scratch``: see ``Graph``.
    search_asking(graph, query, wanted, ef, room, allowed, asked, places, out, scratch)
        The same; it asks about nodes that ``allowed`` does not know. ``asked`` are the words of
        ``ask``; -1, too, when a filter ended the search.
    ask(words, nodes, count, allowed)
        Asks a filter of another library about nodes that are unknown; ``asking.py`` says what the
        words are, ``nodes`` are int32.
    nearest(words, numbers, queries, rows, ids, values, scratch)
        Searches graphs and compares what they name by the vectors; ``graph_nearest.py`` says what
        the words are. ``numbers`` are queries as float32, ``queries`` as the scan takes them.
        ``ids`` int64 and ``values`` float32 (rows, k) get the answers by (distance, row id).
        Returns the number of the first query that is to be answered otherwise, or ``rows``.
    insert(graph, edges, done, start, stop, ef, alpha, beam, visited)
        Nodes start..stop get their edges into the graph of nodes below ``done``.
    link(graph, edges, destinations, sources, start, stop, alpha, memory)
        Adds pairs start..stop, sorted by destination, as edges destination -> source.
    order(edges, entries, places, visited, lost)
        Nodes in breadth-first order from the entries, to ``places``. Returns how many, written to
        ``lost``, no edge led to from those before.
    """
    search, traverse, apart = make_search(variant)
    search_asking, _, _ = make_search(variant, asks=True)

    @njit(nogil=True)
    def sketch(codes, constants, bits, width, sketches):  # type: ignore[no-untyped-def]
        start, bytes_ = address_of(sketches), codes.shape[1] // bits
        for node in range(codes.shape[0]):
            total, row = np.int64(0), address_of(codes) + node * codes.shape[1]
            for byte in range(bytes_):
                signs = np.uint8(0)
                for i in range(8):
                    code = code_of(row, 8 * byte + i, bits)
                    total += abs(code) if 8 * byte + i < width else 0
                    signs |= np.uint8(np.uint8(code >= 0) << np.uint8(i))
                sketches[node, byte] = signs
            square, sizes = constants[node, 0], constants[node, 1] * np.float32(total)
            factor = square / sizes if total > 0 else np.float32(0)
            lost = max(factor * factor * np.float32(width) - square, np.float32(0))
            spread = np.sqrt(lost / np.float32(max(width - 1, 1)))
            at = start + node * sketches.shape[1] + bytes_
            put_real(at, 0, square)
            put_real(at, 1, constants[node, 1])
            put_real(at, 2, factor)
            put_real(at, 3, spread)

    @linked
    def prune(rows, width, node, found, count, degree, alpha, chosen, turned, offsets, factors):  # type: ignore[no-untyped-def]
        """Choose at most ``degree`` of sorted candidates; return how many.

        A candidate is dropped when one chosen before is ``alpha`` times nearer to it than it is to
        the node. ``found`` has entries whose keys are squared distances to the node; ``turned``
        int8 (degree, padded) is memory for the chosen rows, each in the form of a query.
        """
        size, place, padded = 0, address_of(turned), turned.shape[1]
        for i in range(count):
            other = node_of(read_long(found, i))
            if other == node:
                continue
            key, keep = key_of(read_long(found, i)), True
            for j in range(size):
                by = apart(rows, other, place + j * padded, factors[j], offsets[j])
                if alpha * (by + _square(rows, np.int64(chosen[j]))) < key:
                    keep = False
                    break
            if keep:
                chosen[size] = other
                offsets[size], factors[size] = _turn(rows, other, width, turned, size)
                size += 1
                if size == degree:
                    break
        return size

    @njit(nogil=True)
    def insert(graph, edges, done, start, stop, ef, alpha, beam, visited):  # type: ignore[no-untyped-def]
        degree, rows, width = edges.shape[1], rows_of(graph), read_long(graph, WIDTH)
        query, turned = np.empty((1, rows[4]), np.int8), np.empty((degree, rows[4]), np.int8)
        offsets, factors = np.empty(degree, np.int64), np.empty(degree, np.float32)
        near = np.empty(max(TOGETHER * degree, START), np.int32)
        chosen = np.empty(degree, np.int32)
        for node in range(start, stop):
            offset, factor = _turn(rows, node, width, query, 0)
            size = traverse(
                graph, done, address_of(query), factor, offset, 0, 0, 0, address_of(beam), ef,
                address_of(visited), address_of(near),
            )  # fmt: skip
            found = address_of(beam) + 8
            for i in range(size):  # keys become squared distances
                entry = read_long(found, i)
                put_long(found, i, pack(key_of(entry) + _square(rows, node), node_of(entry)))
            count = prune(
                rows, width, node, found, size, degree, alpha, chosen, turned, offsets, factors
            )
            for i in range(count):
                edges[node, i] = chosen[i]

    @njit(nogil=True)
    def link(graph, edges, destinations, sources, start, stop, alpha, memory):  # type: ignore[no-untyped-def]
        degree, rows, width = edges.shape[1], rows_of(graph), read_long(graph, WIDTH)
        query, turned = np.empty((1, rows[4]), np.int8), np.empty((degree, rows[4]), np.int8)
        offsets, factors = np.empty(degree, np.int64), np.empty(degree, np.float32)
        chosen = np.empty(degree, np.int32)
        at = start
        while at < stop:
            node = np.int64(destinations[at])
            end = at
            while end < stop and destinations[end] == node:
                end += 1
            size = 0
            while size < degree and edges[node, size] >= 0:
                size += 1
            if size + end - at <= degree:
                for i in range(at, end):
                    edges[node, size + i - at] = sources[i]
                at = end
                continue
            offset, factor = _turn(rows, node, width, query, 0)
            total, count = size + end - at, 0
            found = start_list(address_of(memory), total)
            for i in range(total):
                other = np.int64(edges[node, i] if i < size else sources[at + i - size])
                key = _square(rows, node) + apart(rows, other, address_of(query), factor, offset)
                insert_into(found, count, total, pack(key, other))
                count += 1
            most = degree - degree // SLACK  # room for a few more before the next pruning
            size = prune(
                rows, width, node, found, count, most, alpha, chosen, turned, offsets, factors
            )
            for i in range(degree):
                edges[node, i] = chosen[i] if i < size else -1
            at = end

    @njit(nogil=True)
    def order(edges, entries, places, visited, lost):  # type: ignore[no-untyped-def]
        count = apart = 0
        for node in entries:
            if not visited[node]:
                visited[node] = 1
                places[count] = node
                count += 1
        at = root = 0
        while True:
            while at < count:
                node = places[at]
                at += 1
                for i in range(edges.shape[1]):
                    other = edges[node, i]
                    if other < 0:
                        break
                    if not visited[other]:
                        visited[other] = 1
                        places[count] = other
                        count += 1
            while root < visited.shape[0] and visited[root]:
                root += 1
            if root == visited.shape[0]:
                return apart
            visited[root] = 1
            places[count] = lost[apart] = root
            count += 1
            apart += 1

    return {
        "sketch": sketch, "search": search, "search_asking": search_asking, "ask": make_ask(),
        "nearest": make_nearest(search), "insert": insert, "link": link, "order": order,
    }  # fmt: skip
