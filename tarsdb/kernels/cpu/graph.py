"""Graph over int8 codes: search, insertion in batches, reverse edges, an order for locality.

Rows are coded as bytes (code + 128), padded to a multiple of 64, with two constants: squared norm
and scale. The distance of a coded query and a row is ``square - factor * scale * dot``; integers
are exact on every level. A search keeps one sorted list of packed (distance, node, expanded)
entries (Malkov & Yashunin 2018, Algorithm 2, without layers). Before a row's code is read, its
distance is estimated by the signs alone, as RaBitQ does (Gao & Long 2024, without a rotation): one
cache line instead of seven, and most rows are told apart by it. Insertion prunes as Subramanya et
al. 2019 (Algorithm 2, RobustPrune) do, on squared distances.

Insertion reads the graph of earlier batches only and reverse edges are added per destination, so
the result does not depend on the number of threads. Arrays belong to the caller; nothing is locked.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load
from tarsdb.kernels.cpu.memory import (
    address_of,
    bits_of,
    float_of,
    prefetch,
    put_real,
    read_byte,
    read_real,
    read_signed,
)

VARIANTS = ("vnni", "avx2", "plain")
"""How inner products are made: 512-bit VNNI, 256-bit multiply-add, a plain loop."""
_SIGN = np.uint8(128)

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_W16, _B64 = ir.VectorType(_I32, 16), ir.VectorType(_I8, 64)
_W8, _H16, _B16 = ir.VectorType(_I32, 8), ir.VectorType(_I16, 16), ir.VectorType(_I8, 16)


def _vnni(b: Any, sums: Any, row: Any, query: Any) -> Any:
    codes, signed = load(b, row, _B64), load(b, query, _B64)
    if llvm.llvm_version_info[0] < 22:
        codes, signed = b.bitcast(codes, _W16), b.bitcast(signed, _W16)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", _W16, sums, codes, signed)


def _avx2(b: Any, sums: Any, row: Any, query: Any) -> Any:
    codes = b.zext(load(b, row, _B16), _H16)
    signed = b.sext(load(b, query, _B16), _H16)
    return b.add(sums, call(b, "llvm.x86.avx2.pmadd.wd", _W8, codes, signed))


_SHAPES = {0: (_vnni, _W16, 64), 1: (_avx2, _W8, 16)}


@intrinsic(prefer_literal=True)
def _simd_dot(typingctx, variant, row, query, padded):  # type: ignore[no-untyped-def]
    """Inner product of unsigned bytes and signed bytes, int64."""
    add, sums, step = _SHAPES[variant.literal_value]

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, row, query, padded = args
        accs = [cgutils.alloca_once_value(b, ir.Constant(sums, None)) for _ in range(2)]
        whole = ir.Constant(_I64, 2 * step)

        def one(offset: Any, acc: Any) -> None:
            b.store(add(b, b.load(acc), b.add(row, offset), b.add(query, offset)), acc)

        with cgutils.for_range(b, b.udiv(padded, whole)) as loop:
            at = b.mul(loop.index, whole)
            one(at, accs[0])
            one(b.add(at, ir.Constant(_I64, step)), accs[1])
        left = b.urem(padded, whole)
        with b.if_then(b.icmp_unsigned("!=", left, ir.Constant(_I64, 0))):
            one(b.sub(padded, left), accs[0])
        total = b.add(b.load(accs[0]), b.load(accs[1]))
        name = f"llvm.vector.reduce.add.v{sums.count}i32"
        return b.sext(call(b, name, _I32, total), _I64)

    return types.int64(variant, types.int64, types.int64, types.int64), codegen


_PICKS = {0: (_W16, 64), 1: (_W8, 16)}


@intrinsic(prefer_literal=True)
def _simd_pick(typingctx, variant, bits, query, padded):  # type: ignore[no-untyped-def]
    """Sum of the signed bytes whose bit is set, int64."""
    number = variant.literal_value
    sums, step = _PICKS[number]
    signed, mask = ir.VectorType(_I8, step), ir.VectorType(ir.IntType(1), step)
    word = ir.IntType(step)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, bits, query, padded = args
        acc = cgutils.alloca_once_value(b, ir.Constant(sums, None))
        with cgutils.for_range(b, b.udiv(padded, ir.Constant(_I64, step))) as loop:
            place = b.add(bits, b.mul(loop.index, ir.Constant(_I64, step // 8)))
            at = b.add(query, b.mul(loop.index, ir.Constant(_I64, step)))
            chosen = b.bitcast(load(b, place, word), mask)
            picked = b.select(chosen, load(b, at, signed), ir.Constant(signed, None))
            if number == 0:
                ones = ir.Constant(_B64, [1] * 64)
                if llvm.llvm_version_info[0] < 22:
                    ones, picked = b.bitcast(ones, _W16), b.bitcast(picked, _W16)
                name = "llvm.x86.avx512.vpdpbusd.512"
                b.store(call(b, name, _W16, b.load(acc), ones, picked), acc)
            else:
                wide, ones = b.sext(picked, _H16), ir.Constant(_H16, [1] * 16)
                pairs = call(b, "llvm.x86.avx2.pmadd.wd", _W8, wide, ones)
                b.store(b.add(b.load(acc), pairs), acc)
        name = f"llvm.vector.reduce.add.v{sums.count}i32"
        return b.sext(call(b, name, _I32, b.load(acc)), _I64)

    return types.int64(variant, types.int64, types.int64, types.int64), codegen


@njit(nogil=True)
def _pack(key, node):  # type: ignore[no-untyped-def]
    """Return an entry that orders by distance, then node; the lowest bit says expanded."""
    bits = bits_of(key)
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (np.int64(node) << 1)


@njit(nogil=True)
def _node(entry):  # type: ignore[no-untyped-def]
    return (entry & 0xFFFFFFFF) >> 1


@njit(nogil=True)
def _key(entry):  # type: ignore[no-untyped-def]
    bits = entry >> 32
    return float_of(bits ^ ((bits >> 31) & 0x7FFFFFFF))


@njit(nogil=True)
def _insert(entries, size, limit, entry):  # type: ignore[no-untyped-def]
    """Put an entry into a sorted list of at most ``limit``; return where, or ``limit``."""
    if size == limit and entry >= entries[size - 1]:
        return limit
    low, high = 0, size
    while low < high:
        middle = (low + high) >> 1
        if entries[middle] < entry:
            low = middle + 1
        else:
            high = middle
    for at in range(min(size, limit - 1), low, -1):
        entries[at] = entries[at - 1]
    entries[low] = entry
    return low


@njit(nogil=True)
def _correction(query):  # type: ignore[no-untyped-def]
    """Return what codes + 128 add to every inner product with a query."""
    total = np.int64(0)
    for value in query:
        total += value
    return 128 * total


@njit(nogil=True)
def _norm(query):  # type: ignore[no-untyped-def]
    """Return the norm of a coded query, float32."""
    square = np.int64(0)
    for value in query:
        square += np.int64(value) * np.int64(value)
    return np.float32(np.sqrt(np.float64(square)))


@njit(nogil=True)
def _turn(codes, row, scratch):  # type: ignore[no-untyped-def]
    """Bring a row's bytes into the signed form of a query."""
    for i in range(scratch.shape[0]):
        scratch[i] = np.int8(codes[row, i] ^ _SIGN)


@njit(nogil=True)
def _code_query(query, mean, kind, code):  # type: ignore[no-untyped-def]
    """Code a query as ``index/hnsw/codes.py`` says; return twice its scale."""
    factor = np.float32(1)
    if kind == 2:
        square = np.float32(0)
        for value in query:
            square += value * value
        factor = np.float32(1) / np.sqrt(square) if square > 0 else np.float32(0)
    top = np.float32(0)
    for i in range(mean.shape[0]):
        value = (query[i] * factor if i < query.shape[0] else np.float32(0)) - mean[i]
        top = max(top, abs(value))
    scale = top / np.float32(127) if top > 0 else np.float32(1)
    inverse = np.float32(1) / scale
    code[mean.shape[0] :] = 0
    for i in range(mean.shape[0]):
        value = (query[i] * factor if i < query.shape[0] else np.float32(0)) - mean[i]
        code[i] = np.int8(max(min(np.rint(value * inverse), np.float32(127)), np.float32(-127)))
    return np.float32(2) * scale


SLACK = 8
"""A full node is pruned to leave this part of its room free."""
START = 8
"""Entries whose distance is taken: the nearest by their signs."""
SCREEN = np.float32(1.0)
"""Standard deviations that an estimate by signs may be wrong before a node is left out."""

_U8, _I4, _I8A, _F4 = types.uint8, types.int32, types.int64, types.float32
_CODES, _EDGES, _CONSTANTS = _U8[:, ::1], _I4[:, ::1], _F4[:, ::1]
_LIST, _NODES, _MARKS = _I8A[::1], _I4[::1], _U8[::1]
SIGNATURES = {
    "sketch": types.void(_CODES, _CONSTANTS, types.int64, _CODES),
    "search": types.int64(
        _CODES, _CODES, _EDGES, _NODES, _F4[::1], _F4[::1], types.int64, types.int8[::1], _MARKS,
        _LIST, _LIST, _MARKS, _NODES, _NODES,
    ),
    "insert": types.void(
        _CODES, _CONSTANTS, _CODES, _EDGES, _NODES, *[types.int64] * 4, _F4, _LIST, _MARKS,
    ),
    "link": types.void(
        _CODES, _CONSTANTS, _EDGES, _NODES, _NODES, types.int64, types.int64, _F4, _LIST
    ),
    "order": types.int64(_EDGES, _NODES, _NODES, _MARKS),
}  # fmt: skip


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the (not yet compiled) kernels of a variant by name; ``SIGNATURES`` has their types.

    sketch(codes, constants, width, sketches)
        Writes of each node the signs of its codes, a bit each, then float32 squared norm, scale,
        factor of the estimate and its standard deviation a unit of the query's norm.
    search(codes, sketches, edges, entries, query, mean, kind, code, allowed, beam, best, visited,
           near, out)
        ``query`` float32 (dim,), ``mean`` float32 (d',), ``kind`` 0 for ``<->``, 1 for ``<#>``, 2
        for ``<=>``; ``allowed`` uint8 (n,) or empty; scratch: ``code`` int8 (padded,), ``beam``
        int64 (ef,), ``visited`` uint8 (n // 8 + 1,), ``near`` int32 (degree,). ``out`` int32
        (wanted,) gets nodes in order. Returns how many. With ``allowed`` ``best`` int64 (ef,)
        holds the nearest allowed ones, the search goes on until what is left is farther, and
        ``beam`` bounds its work: -1 when that did not suffice.
    insert(codes, constants, sketches, edges, entries, done, start, stop, degree, alpha, beam,
           visited)
        Nodes start..stop get their edges into the graph of nodes below ``done``.
    link(codes, constants, edges, destinations, sources, start, stop, alpha, scratch)
        Adds pairs start..stop, sorted by destination, as edges destination -> source.
    order(edges, entries, places, visited)
        Nodes in breadth-first order from the entries, to ``places``.
    """
    number = VARIANTS.index(variant)
    dot = _plain_dot if variant == "plain" else _make_dot(number)
    pick = _plain_pick if variant == "plain" else _make_pick(number)

    @njit(nogil=True)
    def distance(codes, constants, row, query, factor, correction):  # type: ignore[no-untyped-def]
        padded = codes.shape[1]
        product = dot(codes, row, query, padded) - correction
        return constants[row, 0] - factor * constants[row, 1] * np.float32(product)

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
    def traverse(  # type: ignore[no-untyped-def]
        codes, sketches, edges, entries, limit, query, factor, correction, allowed, beam, best,
        visited, near,
    ):  # fmt: skip
        """Search from the entries among nodes below ``limit``; return the sizes of both lists."""
        lines, base, at_query = codes.shape[1], address_of(codes), address_of(query)
        signs, stride = address_of(sketches), sketches.shape[1]
        rows, degree = address_of(edges), edges.shape[1]
        total, margin = correction // 128, SCREEN * factor * _norm(query)
        numbers = signs + lines // 8
        visited[:] = 0
        size = taken = current = count = 0
        most = min(START, beam.shape[0], near.shape[0])
        for entry in entries:  # the nearest by their signs
            if entry < limit:
                line = signs + np.int64(entry) * stride
                apart = 2 * pick(line, at_query, lines) - total
                line += lines // 8
                key = read_real(line, 0) - factor * read_real(line, 2) * np.float32(apart)
                _insert(beam, count, most, _pack(key, entry))
                count = min(count + 1, most)
        for i in range(count):
            near[i] = _node(beam[i])
        while True:
            for i in range(count):
                visited[near[i] >> 3] |= np.uint8(1 << (near[i] & 7))
            is_bounded = size == beam.shape[0]
            worst = _key(beam[size - 1]) if is_bounded else np.float32(0)
            if allowed.shape[0]:
                is_bounded = taken > 0 and taken == best.shape[0]
                worst = _key(best[taken - 1]) if is_bounded else np.float32(0)
            if is_bounded:
                kept = 0
                for i in range(count):
                    line = np.int64(near[i]) * stride
                    apart = pick(signs + line, at_query, lines)
                    low = (read_real(numbers + line, 0)
                           - factor * read_real(numbers + line, 2) * np.float32(2 * apart - total)
                           - margin * read_real(numbers + line, 3))  # fmt: skip
                    if low <= worst:
                        near[kept] = near[i]
                        kept += 1
                count = kept
            for i in range(count):
                place = base + np.int64(near[i]) * lines
                for offset in range(0, lines, 64):
                    prefetch(place + offset)
            following = 0  # what is likely expanded next: its edges were asked for before
            for ahead in range(current + 1, size):
                if not beam[ahead] & 1:
                    other = _node(beam[ahead])
                    following += 1
                    if following == 2:
                        for offset in range(0, 4 * degree, 64):
                            prefetch(rows + 4 * degree * other + offset)
                        break
                    for i in range(degree):
                        node = edges[other, i]
                        if node < 0:
                            break
                        if not visited[node >> 3] >> (node & 7) & 1:
                            prefetch(signs + np.int64(node) * stride)
            lowest = size
            for i in range(count):
                node = near[i]
                product = dot(codes, node, query, lines) - correction
                place = numbers + np.int64(node) * stride
                key = read_real(place, 0) - factor * read_real(place, 1) * np.float32(product)
                entry = _pack(key, node)
                if allowed.shape[0] and allowed[node]:
                    at = _insert(best, taken, best.shape[0], entry)
                    taken = min(taken + (at < best.shape[0]), best.shape[0])
                # farther than all of a full list of answers: it would never be expanded
                if taken and taken == best.shape[0] and entry >> 1 > best[taken - 1] >> 1:
                    continue
                at = _insert(beam, size, beam.shape[0], entry)
                if at < beam.shape[0]:
                    size = min(size + 1, beam.shape[0])
                    lowest = min(lowest, at)
            if taken and taken == best.shape[0]:
                while size and beam[size - 1] >> 1 > best[taken - 1] >> 1:
                    size -= 1
            current = min(current, lowest, size)
            while current < size and beam[current] & 1:
                current += 1
            if current == size:
                if allowed.shape[0] and size == beam.shape[0]:
                    return -1, taken  # there may be nearer ones beyond what the list holds
                return size, taken
            if taken and taken == best.shape[0] and beam[current] >> 1 > best[taken - 1] >> 1:
                return size, taken
            node = _node(beam[current])
            beam[current] |= 1
            count = 0
            for i in range(degree):
                other = edges[node, i]
                if other < 0:
                    break
                if other < limit and not visited[other >> 3] >> (other & 7) & 1:
                    prefetch(signs + np.int64(other) * stride)
                    near[count] = other
                    count += 1

    @njit(nogil=True)
    def search(  # type: ignore[no-untyped-def]
        codes, sketches, edges, entries, query, mean, kind, code, allowed, beam, best, visited,
        near, out,
    ):  # fmt: skip
        factor = _code_query(query, mean, kind, code)
        correction = _correction(code)
        size, taken = traverse(
            codes, sketches, edges, entries, codes.shape[0], code, factor, correction, allowed,
            beam, best, visited, near,
        )  # fmt: skip
        if size < 0:
            return -1
        if allowed.shape[0]:
            taken = min(taken, out.shape[0])
            for i in range(taken):
                out[i] = _node(best[i])
            return taken
        size = min(size, out.shape[0])
        for i in range(size):
            out[i] = _node(beam[i])
        return size

    @njit(nogil=True)
    def prune(  # type: ignore[no-untyped-def]
        codes, constants, node, found, count, degree, alpha, chosen, turned, corrections,
    ):  # fmt: skip
        """Choose at most ``degree`` of sorted candidates; return how many.

        A candidate is dropped when one chosen before is ``alpha`` times nearer to it than it is to
        the node. ``found`` holds entries whose keys are squared distances to the node; ``turned``
        int8 (degree, padded) is memory for the chosen rows, each in the signed form of a query.
        """
        size, padded = 0, codes.shape[1]
        for i in range(count):
            other = _node(found[i])
            if other == node:
                continue
            key, keep = _key(found[i]), True
            square, factor = constants[other, 0], np.float32(2) * constants[other, 1]
            for j in range(size):
                by = chosen[j]
                product = dot(codes, other, turned[j], padded) - corrections[j]
                apart = square + (
                    constants[by, 0] - factor * constants[by, 1] * np.float32(product)
                )
                if alpha * apart < key:
                    keep = False
                    break
            if keep:
                chosen[size] = other
                _turn(codes, other, turned[size])
                corrections[size] = _correction(turned[size])
                size += 1
                if size == degree:
                    break
        return size

    @njit(nogil=True)
    def insert(  # type: ignore[no-untyped-def]
        codes, constants, sketches, edges, entries, done, start, stop, degree, alpha, beam, visited,
    ):  # fmt: skip
        query = np.empty(codes.shape[1], np.int8)
        turned = np.empty((degree, codes.shape[1]), np.int8)
        corrections = np.empty(degree, np.int64)
        near = np.empty(max(edges.shape[1], entries.shape[0]), np.int32)
        chosen = np.empty(degree, np.int32)
        nobody, none = np.empty(0, np.uint8), np.empty(0, np.int64)
        for node in range(start, stop):
            _turn(codes, node, query)
            correction = _correction(query)
            factor = np.float32(2) * constants[node, 1]
            size, _ = traverse(
                codes, sketches, edges, entries, done, query, factor, correction, nobody, beam,
                none, visited, near,
            )  # fmt: skip
            for i in range(size):  # keys become squared distances
                beam[i] = _pack(_key(beam[i]) + constants[node, 0], _node(beam[i]))
            count = prune(
                codes, constants, node, beam, size, degree, alpha, chosen, turned, corrections
            )
            for i in range(count):
                edges[node, i] = chosen[i]

    @njit(nogil=True)
    def link(codes, constants, edges, destinations, sources, start, stop, alpha, found):  # type: ignore[no-untyped-def]
        degree = edges.shape[1]
        query = np.empty(codes.shape[1], np.int8)
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
            _turn(codes, node, query)
            correction = _correction(query)
            factor = np.float32(2) * constants[node, 1]
            count = 0
            for i in range(size + end - at):
                other = edges[node, i] if i < size else sources[at + i - size]
                key = constants[node, 0] + distance(
                    codes, constants, other, query, factor, correction
                )
                _insert(found, count, found.shape[0], _pack(key, other))
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


def _make_dot(number: int) -> Any:
    @njit(nogil=True)
    def dot(codes, row, query, padded):  # type: ignore[no-untyped-def]
        start = address_of(codes) + np.int64(row) * padded
        return _simd_dot(number, start, address_of(query), padded)

    return dot


def _make_pick(number: int) -> Any:
    @njit(nogil=True)
    def pick(bits, query, padded):  # type: ignore[no-untyped-def]
        return _simd_pick(number, bits, query, padded)

    return pick


@njit(nogil=True)
def _plain_pick(bits, query, padded):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for i in range(padded):
        if read_byte(bits, i >> 3) >> (i & 7) & 1:
            total += np.int64(read_signed(query, i))
    return total


@njit(nogil=True)
def _plain_dot(codes, row, query, padded):  # type: ignore[no-untyped-def]
    total = np.int32(0)
    for i in range(padded):
        total += np.int32(codes[row, i]) * np.int32(query[i])
    return np.int64(total)
