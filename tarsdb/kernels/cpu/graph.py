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

from tarsdb.kernels.cpu.graph_products import VARIANTS, make_products
from tarsdb.kernels.cpu.graph_search import (
    START,
    TOGETHER,
    correction_of,
    insert_into,
    key_of,
    make_search,
    node_of,
    pack,
)
from tarsdb.kernels.cpu.memory import address_of, put_real

__all__ = ["SIGNATURES", "VARIANTS", "make_kernels"]

_SIGN = np.uint8(128)
SLACK = 8
"""A full node is pruned to leave this part of its room free."""

_U8, _I4, _I8A, _F4 = types.uint8, types.int32, types.int64, types.float32
_CODES, _EDGES, _CONSTANTS = _U8[:, ::1], _I4[:, ::1], _F4[:, ::1]
_LIST, _NODES, _MARKS = _I8A[::1], _I4[::1], _U8[::1]
SIGNATURES = {
    "sketch": types.void(_CODES, _CONSTANTS, types.int64, _CODES),
    "search": types.int64(*[types.int64] * 9),
    "insert": types.void(
        types.int64, _CODES, _CONSTANTS, _EDGES, *[types.int64] * 3, _F4, _LIST, _MARKS,
    ),
    "link": types.void(
        _CODES, _CONSTANTS, _EDGES, _NODES, _NODES, types.int64, types.int64, _F4, _LIST
    ),
    "order": types.int64(_EDGES, _NODES, _NODES, _MARKS),
}  # fmt: skip


@njit(nogil=True)
def _turn(codes, row, scratch):  # type: ignore[no-untyped-def]
    """Bring a row's bytes into the signed form of a query."""
    for i in range(scratch.shape[0]):
        scratch[i] = np.int8(codes[row, i] ^ _SIGN)


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the (not yet compiled) kernels of a variant by name; ``SIGNATURES`` has their types.

    sketch(codes, constants, width, sketches)
        Writes of each node the signs of its codes, a bit each, then float32 squared norm, scale,
        factor of the estimate and its standard deviation a unit of the query's norm.
    search(graph, query, wanted, ef, room, allowed, places, out, scratch)
        ``graph`` is a table as ``graph_search.py`` says, ``query`` float32 (dim,), ``allowed``
        uint8 (n,) or 0, ``places`` int64 (n,) or 0. ``out`` int64 (wanted,) gets nodes in order, or
        their places. Returns how many. ``room`` is ``ef`` without ``allowed``; with it ``ef`` of
        the nearest allowed are looked for, the search goes on until what is left is farther, and
        ``room`` bounds its work: -1 when that did not suffice. ``scratch``: see ``Graph``.
    insert(graph, codes, constants, edges, done, start, stop, alpha, beam, visited)
        Nodes start..stop get their edges into the graph of nodes below ``done``.
    link(codes, constants, edges, destinations, sources, start, stop, alpha, scratch)
        Adds pairs start..stop, sorted by destination, as edges destination -> source.
    order(edges, entries, places, visited)
        Nodes in breadth-first order from the entries, to ``places``.
    """
    dot, _ = make_products(variant)
    search, traverse = make_search(variant)

    @njit(nogil=True)
    def product(codes, row, queries, number):  # type: ignore[no-untyped-def]
        padded = codes.shape[1]
        place = address_of(codes) + np.int64(row) * padded
        return dot(place, address_of(queries) + np.int64(number) * padded, padded)

    @njit(nogil=True)
    def sketch(codes, constants, width, sketches):  # type: ignore[no-untyped-def]
        start, bytes_ = address_of(sketches), codes.shape[1] // 8
        for node in range(codes.shape[0]):
            total = np.int64(0)
            for byte in range(bytes_):
                bits = np.uint8(0)
                for i in range(8):
                    code = np.int64(codes[node, 8 * byte + i]) - 128
                    total += abs(code)
                    bits |= np.uint8(np.uint8(code >= 0) << np.uint8(i))
                sketches[node, byte] = bits
            square, sizes = constants[node, 0], constants[node, 1] * np.float32(total)
            factor = square / sizes if total > 0 else np.float32(0)
            lost = max(factor * factor * np.float32(width) - square, np.float32(0))
            spread = np.sqrt(lost / np.float32(max(width - 1, 1)))
            at = start + node * sketches.shape[1] + bytes_
            put_real(at, 0, square)
            put_real(at, 1, constants[node, 1])
            put_real(at, 2, factor)
            put_real(at, 3, spread)

    @njit(nogil=True)
    def prune(  # type: ignore[no-untyped-def]
        codes, constants, node, found, count, degree, alpha, chosen, turned, corrections,
    ):  # fmt: skip
        """Choose at most ``degree`` of sorted candidates; return how many.

        A candidate is dropped when one chosen before is ``alpha`` times nearer to it than it is to
        the node. ``found`` holds entries whose keys are squared distances to the node; ``turned``
        int8 (degree, padded) is memory for the chosen rows, each in the signed form of a query.
        """
        size = 0
        for i in range(count):
            other = node_of(found[i])
            if other == node:
                continue
            key, keep = key_of(found[i]), True
            square, factor = constants[other, 0], np.float32(2) * constants[other, 1]
            for j in range(size):
                by = chosen[j]
                inner = product(codes, other, turned, j) - corrections[j]
                apart = square + (
                    constants[by, 0] - factor * constants[by, 1] * np.float32(inner)
                )
                if alpha * apart < key:
                    keep = False
                    break
            if keep:
                chosen[size] = other
                _turn(codes, other, turned[size])
                corrections[size] = correction_of(address_of(turned[size]), codes.shape[1])
                size += 1
                if size == degree:
                    break
        return size

    @njit(nogil=True)
    def insert(graph, codes, constants, edges, done, start, stop, alpha, beam, visited):  # type: ignore[no-untyped-def]
        degree, padded = edges.shape[1], codes.shape[1]
        query = np.empty((1, padded), np.int8)
        turned = np.empty((degree, padded), np.int8)
        corrections = np.empty(degree, np.int64)
        near = np.empty(max(TOGETHER * degree, START), np.int32)
        chosen = np.empty(degree, np.int32)
        for node in range(start, stop):
            _turn(codes, node, query[0])
            correction = correction_of(address_of(query), padded)
            factor = np.float32(2) * constants[node, 1]
            size, _ = traverse(
                graph, done, address_of(query), factor, correction, 0, address_of(beam),
                beam.shape[0], 0, 0, address_of(visited), address_of(near),
            )  # fmt: skip
            for i in range(size):  # keys become squared distances
                beam[i] = pack(key_of(beam[i]) + constants[node, 0], node_of(beam[i]))
            count = prune(
                codes, constants, node, beam, size, degree, alpha, chosen, turned, corrections
            )
            for i in range(count):
                edges[node, i] = chosen[i]

    @njit(nogil=True)
    def link(codes, constants, edges, destinations, sources, start, stop, alpha, found):  # type: ignore[no-untyped-def]
        degree = edges.shape[1]
        query = np.empty((1, codes.shape[1]), np.int8)
        turned = np.empty((degree, codes.shape[1]), np.int8)
        corrections = np.empty(degree, np.int64)
        chosen = np.empty(degree, np.int32)
        at = start
        while at < stop:
            node = destinations[at]
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
            _turn(codes, node, query[0])
            correction = correction_of(address_of(query), codes.shape[1])
            factor = np.float32(2) * constants[node, 1]
            count = 0
            for i in range(size + end - at):
                other = edges[node, i] if i < size else sources[at + i - size]
                inner = product(codes, other, query, 0) - correction
                key = constants[node, 0] + (
                    constants[other, 0] - factor * constants[other, 1] * np.float32(inner)
                )
                insert_into(address_of(found), count, found.shape[0], pack(key, other))
                count = min(count + 1, found.shape[0])
            most = degree - degree // SLACK  # room for a few more before the next pruning
            size = prune(
                codes, constants, node, found, count, most, alpha, chosen, turned, corrections
            )
            for i in range(degree):
                edges[node, i] = chosen[i] if i < size else -1
            at = end

    @njit(nogil=True)
    def order(edges, entries, places, visited):  # type: ignore[no-untyped-def]
        count = 0
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
                return count
            visited[root] = 1
            places[count] = root
            count += 1

    return {"sketch": sketch, "search": search, "insert": insert, "link": link, "order": order}
