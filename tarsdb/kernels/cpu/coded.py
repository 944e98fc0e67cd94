"""Sieve over int8 codes for few queries: which rows can be among the k nearest, with proof.

A code is an unsigned byte, kept as two planes of four bits. The high plane lies in tiles of 16
rows: eight elements of one row in four bytes, then of the next, so that a register holds eight
elements of 16 rows. It is read for every row, and bounds the distance roughly. The low plane lies
row by row, 32 elements and the next 32 in 32 bytes; it is read for rows that the rough bound lets
pass, or for all where these are too many to be taken one by one. The planes may hold but the head
of a code, its first elements; the bytes of the rest lie row by row, and are read with the low
plane. Integers are exact; what codes
leave out is bounded by constants of the row and of the query, which ``index/sieve`` derives. All
arguments are integers (addresses and counts). ``encode`` makes the codes.
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

from tarsdb.kernels.cpu.candidates import (
    BASE,
    CONSTANTS,
    CORRECTION,
    ENTRY,
    HEAD_CORRECTION,
    LIMIT,
    NORM,
    PREPARED,
    RESIDUAL,
    ROUGH,
    ROUGH_CORRECTION,
    SCALE,
    SQUARE,
    TAIL,
    TILE,
    emit_correction,
    emit_numbers,
    emit_of_tail,
    finish,
    is_live,
    keep,
    offer,
    passing,
    prepare,
)
from tarsdb.kernels.cpu.emit import call, fma, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    emit_prefetch,
    lowest_bit,
    prefetch,
    put_int,
    put_long,
    read_int,
    read_long,
    read_real,
)

SEVERAL = 4  # queries that share what is read of a tile
AHEAD = 8192  # bytes in advance that one query asks memory for; measured
FIRST = 32  # rows per query that wait at first
WAITING, WAITING_ALL = 4096, 256  # at most: of one query, of several together
TOGETHER = 32  # rows whose codes are asked for before the first of them is looked at
STRETCH = 16  # tiles after which to choose again whether rough bounds pay
LONGEST = 32  # stretches without them at most, before they are tried again
DENSE = 5  # they do not pay if one of so many rows has to be looked at
VNNI, MADDUBS = "vnni", "maddubs"
SIEVE_SIGNATURE = types.int64(*[types.int64] * 15)
_BOUNDS = PREPARED  # places in the scratch memory
_DOTS = _BOUNDS + 5 * 64
_PICKED = _DOTS + 64 * SEVERAL
_PIVOT = _PICKED + 8 * TOGETHER
_MOST = 512  # neighbours for which the best rows are looked at first
_QUEUE = _PIVOT + 4 * _MOST
_ITEM = 32  # query, row (-1: done), product: int32; five lines of float32
_Q, _ROW, _DOT, _LOW, _BASE, _SLOPE, _HALF, _TAIL = range(8)  # words of an item
_LINES = 5  # lines for each row of a tile, in the order of the words from _LOW on
SCRATCH = _QUEUE + _ITEM * (WAITING + TILE)

_FLOAT = ir.FloatType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _W16, _B64 = (ir.VectorType(kind, n) for kind, n in ((_FLOAT, 16), (_I32, 16), (_I8, 64)))
_W8, _H16, _B32 = ir.VectorType(_I32, 8), ir.VectorType(_I16, 16), ir.VectorType(_I8, 32)
_VARIANTS = (VNNI, MADDUBS)


# --- inner products --------------------------------------------------------------------------


def dpbusd(b: Any, sums: Any, codes: Any, query: Any) -> Any:
    """Add products of unsigned bytes and signed bytes, four to a lane of 16."""
    kind = _W16 if llvm.llvm_version_info[0] < 22 else _B64
    codes, query = b.bitcast(codes, kind), b.bitcast(query, kind)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", _W16, sums, codes, query)


def emit_maddubs(b: Any, codes: Any, query: Any) -> Any:
    """Return sums of two products of unsigned 4-bit numbers and signed bytes; at most 3810."""
    codes, query = b.bitcast(codes, _B32), b.bitcast(query, _B32)
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", _H16, codes, query)


def emit_widened(b: Any, halves: Any) -> Any:
    """Emit sums of two neighbours of 16 bits, in 32 bits."""
    return call(b, "llvm.x86.avx2.pmadd.wd", _W8, halves, ir.Constant(_H16, [1] * 16))


def nibbles(b: Any, line: Any, high: bool) -> Any:
    """Emit the lower or the higher four bits of every byte of a register of int32."""
    if high:
        line = b.lshr(line, ir.Constant(line.type, [4] * line.type.count))
    return b.and_(line, ir.Constant(line.type, [0x0F0F0F0F] * line.type.count))


class _Sums:
    """Emits inner products of a tile's high plane and some queries."""

    def __init__(self, b: Any, tile: Any, queries: list[Any]) -> None:
        self.b, self.tile, self.queries = b, tile, queries

    def accumulators(self, kind: ir.Type, count: int) -> list[Any]:
        zero = ir.Constant(kind, None)
        found = [cgutils.alloca_once_value(self.b, zero) for _ in range(count)]
        for each in found:
            self.b.store(zero, each)
        return found

    def add(self, pointer: Any, value: Any) -> None:
        self.b.store(self.b.add(self.b.load(pointer), value), pointer)

    def word(self, query: Any, at: Any, number: int, lanes: int) -> Any:
        """Return four bytes of a query in all lanes."""
        return splat(self.b, load(self.b, self.b.add(query, at), _I32, 4 * number), lanes)

    def by_vnni(self, head: Any, out: Any) -> None:
        """Sum 64 elements a turn; the higher four bits stay where they are, 16 times as much."""
        b, count = self.b, len(self.queries)
        lower, higher = (self.accumulators(_W16, 2 * count) for _ in range(2))
        mask = ir.Constant(_W16, [0xF0F0F0F0 - (1 << 32)] * 16)
        with cgutils.for_range(b, b.lshr(head, ir.Constant(_I64, 6))) as loop:
            line = b.add(self.tile, b.shl(loop.index, ir.Constant(_I64, 9)))
            at = b.shl(loop.index, ir.Constant(_I64, 6))
            for step in range(8):
                if count == 1:
                    emit_prefetch(b, b.add(line, ir.Constant(_I64, AHEAD + 64 * step)))
                codes = load(b, line, _W16, 64 * step)
                parts = nibbles(b, codes, high=False), b.and_(codes, mask)
                for j, query in enumerate(self.queries):
                    for half, (sums, part) in enumerate(zip((lower, higher), parts, strict=True)):
                        chain = sums[2 * j + step % 2]
                        word = self.word(query, at, 2 * step + half, 16)
                        b.store(dpbusd(b, b.load(chain), part, word), chain)
        for j in range(count):
            low, high = (
                b.add(*(b.load(chain) for chain in sums[2 * j : 2 * j + 2]))
                for sums in (lower, higher)
            )
            store(b, b.add(low, b.ashr(high, ir.Constant(_W16, [4] * 16))), out, 64 * j)

    def by_maddubs(self, head: Any, out: Any) -> None:
        """Sum 32 elements a turn in 16 bits (eight times 3810 fit), half a tile to a register."""
        b, count = self.b, len(self.queries)
        wide = self.accumulators(_W8, 2 * count)
        with cgutils.for_range(b, b.lshr(head, ir.Constant(_I64, 5))) as loop:
            line = b.add(self.tile, b.shl(loop.index, ir.Constant(_I64, 8)))
            at = b.shl(loop.index, ir.Constant(_I64, 5))
            narrow = self.accumulators(_H16, 2 * count)
            for step in range(4):
                if count == 1:
                    emit_prefetch(b, b.add(line, ir.Constant(_I64, AHEAD + 64 * step)))
                codes = [load(b, line, _W8, 64 * step + 32 * side) for side in range(2)]
                for half in range(2):
                    parts = [nibbles(b, code, high=half == 1) for code in codes]
                    for j, query in enumerate(self.queries):
                        word = self.word(query, at, 2 * step + half, 8)
                        for side, part in enumerate(parts):
                            self.add(narrow[2 * j + side], emit_maddubs(b, part, word))
            for total, few in zip(wide, narrow, strict=True):
                self.add(total, emit_widened(b, b.load(few)))
        for number, total in enumerate(wide):
            store(b, b.load(total), out, 32 * number)


@intrinsic(prefer_literal=True)
def _high_dots(typingctx, variant, several, tile, queries, padded, head, out):  # type: ignore[no-untyped-def]
    """Inner products of a tile's high plane and some queries, int32 (queries, 16), to ``out``."""
    by_vnni, count = _VARIANTS[variant.literal_value] == VNNI, several.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, _, tile, queries, padded, head, out = args
        rows = [b.add(queries, b.mul(padded, ir.Constant(_I64, j))) for j in range(count)]
        sums = _Sums(b, tile, rows)
        (sums.by_vnni if by_vnni else sums.by_maddubs)(head, out)
        return context.get_dummy_value()

    return types.void(variant, several, *[types.int64] * 5), codegen


def _dot(plane: bool, of_five: bool = False) -> Any:
    """Return the inner product of a row's bytes and a query; of 4-bit numbers if in a plane.

    Or of what five bits, rounded, leave of these: -4 to 3, and 4 more.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, query, count, stride = args
        zero = ir.Constant(_W8, None)
        totals = [cgutils.alloca_once_value(b, zero) for _ in range(2)]
        for total in totals:
            b.store(zero, total)
        with cgutils.for_range(b, b.lshr(count, ir.Constant(_I64, 6))) as loop:
            lines = [load(b, b.add(query, b.mul(loop.index, stride)), _B32, at) for at in (0, 32)]
            if plane:
                codes = load(b, b.add(row, b.shl(loop.index, ir.Constant(_I64, 5))), _W8)
                if of_five:
                    codes = b.xor(codes, ir.Constant(_W8, [0x44444444] * 8))
                    codes = b.and_(codes, ir.Constant(_W8, [0x77777777] * 8))
                pairs = [[(nibbles(b, codes, high=half == 1), lines[half]) for half in range(2)]]
            else:
                at = b.add(row, b.shl(loop.index, ir.Constant(_I64, 6)))
                codes = [load(b, at, _W8, offset) for offset in (0, 32)]
                pairs = [
                    [
                        (nibbles(b, code, high), line)
                        for code, line in zip(codes, lines, strict=True)
                    ]
                    for high in (False, True)
                ]
            for total, both in zip(totals, pairs, strict=False):
                found = b.add(*(emit_maddubs(b, code, line) for code, line in both))
                b.store(b.add(b.load(total), emit_widened(b, found)), total)
        low, high = (b.load(total) for total in totals)
        if not plane:
            low = b.add(low, b.shl(high, ir.Constant(_W8, [4] * 8)))
        return b.sext(call(b, "llvm.vector.reduce.add.v8i32", _I32, low), _I64)

    return types.int64(*[types.int64] * 4), codegen


@intrinsic
def low_dot(typingctx, row, query, head, stride):  # type: ignore[no-untyped-def]
    """Inner product of a row's low plane and a query, ``stride`` from 64 elements to the next."""
    return _dot(plane=True)


@intrinsic
def left_of_five(typingctx, row, query, head, stride):  # type: ignore[no-untyped-def]
    """Inner product of a query and what five bits leave of a row's head, four more each."""
    return _dot(plane=True, of_five=True)


@intrinsic
def rest_dot(typingctx, row, query, count, stride):  # type: ignore[no-untyped-def]
    """Inner product of the bytes behind a row's head and those of a query."""
    return _dot(plane=False)


@linked
def _remaining(block, row, query, head, padded):  # type: ignore[no-untyped-def]
    """Return the inner product of what the high plane leaves of a row's code and a query."""
    found = low_dot(read_long(block, 1) + row * (head // 2), query, head, 64)
    if padded > head:
        left = padded - head
        found += rest_dot(read_long(block, 6) + row * left, query + head, left, 64)
    return found


# --- rows that pass the rough bound ----------------------------------------------------------


@intrinsic
def _rough_passing(typingctx, prepared, dots, query, pitch, out):  # type: ignore[no-untyped-def]
    """Return a bit per row whose rough lower bound is within the query's limit.

    If any is, five lines go to ``out``: that bound, and of which whole codes make bounds: base,
    slope of the inner product, half the width, what a tail may add to that.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        prepared, dots, query, pitch, out = args
        scale, base, norm, residual, square, rough = (
            load(b, prepared, _F16, 64 * line)
            for line in (SCALE, BASE, NORM, RESIDUAL, SQUARE, ROUGH)
        )
        of_dot, of_norm, of_residual, of_square, always, limit = emit_numbers(b, query, pitch)
        steps = b.shl(load(b, dots, _W16), ir.Constant(_W16, [4] * 16))
        dot = b.sitofp(b.sub(steps, emit_correction(b, query, pitch, ROUGH_CORRECTION)), _F16)
        slope = b.fmul(of_dot, scale)
        half = fma(b, of_norm, norm, fma(b, of_square, square, always))
        tail = b.fmul(emit_of_tail(b, query, pitch), load(b, prepared, _F16, 64 * TAIL))
        width = b.fadd(fma(b, of_residual, rough, half), tail)
        low = b.fsub(b.fsub(base, b.fmul(slope, dot)), width)
        bits = b.bitcast(b.fcmp_unordered("<=", low, limit), _I16)
        with b.if_then(b.icmp_unsigned("!=", bits, ir.Constant(_I16, 0)), likely=False):
            whole = fma(b, of_residual, residual, half)
            for line, value in enumerate((low, base, slope, whole, tail)):
                store(b, value, out, 64 * line)
        return b.zext(bits, _I64)

    return types.int64(*[types.int64] * 5), codegen


@linked
def _enqueue(bits, query, row, block, dots, lines, queue, waiting):  # type: ignore[no-untyped-def]
    """Let the marked rows of a tile wait for their low plane and rest; returns how many wait."""
    while bits:
        lane = lowest_bit(bits)
        bits &= bits - 1
        if not is_live(row + lane, block):
            continue
        item = queue + _ITEM * waiting
        put_int(item, _Q, query)
        put_int(item, _ROW, row + lane)
        put_int(item, _DOT, read_int(dots, lane))
        for line in range(_LINES):
            put_int(item, _LOW + line, read_int(lines, TILE * line + lane))
        waiting += 1
    return waiting


@linked
def _pivot(queue, waiting, k, heap):  # type: ignore[no-untyped-def]
    """Return the k-th smallest rough bound of the waiting rows of one query."""
    size = 0
    for number in range(waiting):
        size = offer(heap, size, k, read_real(queue + _ITEM * number, _LOW))
    return read_real(heap, 0)


@linked
def _pick(queue, at, waiting, most, limits, low_plane, head, picked):  # type: ignore[no-untyped-def]
    """List some waiting rows within the limits and ask for their low plane.

    Returns how many, and where to go on.
    """
    found = 0
    while at < waiting and found < TOGETHER:
        item = queue + _ITEM * at
        low, row = read_real(item, _LOW), read_int(item, _ROW)
        at += 1
        if row < 0 or low > most or low > read_real(limits, read_int(item, _Q)):
            continue
        start = low_plane + row * (head // 2)
        for offset in range(0, head // 2, 64):
            prefetch(start + offset)
        put_long(picked, found, item)
        found += 1
    return found, at


@linked
def _narrow(found, picked, block, queries, padded, head, numbers, pitch):  # type: ignore[no-untyped-def]
    """Keep of the picked rows those that the whole head lets pass, and ask for their rest.

    Returns how many.
    """
    stay, left, limits = 0, padded - head, numbers + LIMIT * pitch
    for number in range(found):
        item = read_long(picked, number)
        q, row = read_int(item, _Q), read_int(item, _ROW)
        dot = 16 * read_int(item, _DOT)
        dot += low_dot(read_long(block, 1) + row * (head // 2), queries + q * padded, head, 64)
        put_int(item, _ROW, -1 - row)
        put_int(item, _DOT, dot)
        of_head = np.float32(dot - read_int(numbers + HEAD_CORRECTION * pitch, q))
        low = read_real(item, _BASE) - read_real(item, _SLOPE) * of_head
        if low - read_real(item, _HALF) - read_real(item, _TAIL) > read_real(limits, q):
            continue
        for offset in range(0, left, 64):
            prefetch(read_long(block, 6) + row * left + offset)
        put_long(picked, stay, item)
        stay += 1
    return stay


@linked
def _settle(queue, waiting, most, block, queries, padded, head, numbers, pitch, k, heaps, places, lows, cap, state, picked):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Bound waiting rows, of rough bounds up to ``most``, by whole codes; keep the candidates.

    Returns how many rows were looked at.
    """
    at, looked, left, limits = 0, 0, padded - head, numbers + LIMIT * pitch
    while at < waiting:
        found, at = _pick(queue, at, waiting, most, limits, read_long(block, 1), head, picked)
        looked += found
        for number in range(_narrow(found, picked, block, queries, padded, head, numbers, pitch)):
            item = read_long(picked, number)
            q, row = read_int(item, _Q), -1 - read_int(item, _ROW)
            dot = read_int(item, _DOT) - read_int(numbers + CORRECTION * pitch, q)
            if left > 0:
                rest = read_long(block, 6) + row * left
                dot += rest_dot(rest, queries + q * padded + head, left, 64)
            middle = read_real(item, _BASE) - read_real(item, _SLOPE) * np.float32(dot)
            half = read_real(item, _HALF)
            keep(middle - half, middle + half, read_long(block, 5) + row, limits + 4 * q, k,
                 heaps + 4 * k * q, places + 8 * cap * q, lows + 4 * cap * q, cap,
                 state + 16 * q)  # fmt: skip
    return looked


@linked
def _settle_all(queue, waiting, block, queries, count, padded, head, numbers, pitch, k, heaps, places, lows, cap, state, scratch):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Settle all that wait, of one query the most promising first; returns how many looked at."""
    looked, picked, infinite = 0, scratch + _PICKED, np.float32(np.inf)
    if count == 1 and k <= _MOST and waiting > 2 * k:
        most = _pivot(queue, waiting, k, scratch + _PIVOT)
        looked = _settle(queue, waiting, most, block, queries, padded, head, numbers, pitch, k,
                         heaps, places, lows, cap, state, picked)  # fmt: skip
    return looked + _settle(queue, waiting, infinite, block, queries, padded, head, numbers, pitch,
                            k, heaps, places, lows, cap, state, picked)  # fmt: skip


@linked
def _look_at_all(query, q, row, block, padded, head, prepared, dots, bounds, numbers, pitch, k, heaps, places, lows, cap, state):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Bound all rows of a tile by their whole codes and keep the candidates."""
    first, rows = read_long(block, 5), read_long(block, 3)
    for lane in range(min(TILE, rows - row)):
        more = _remaining(block, row + lane, query, head, padded)
        put_int(dots, lane, 16 * read_int(dots, lane) + more)
    bits = passing(prepared, dots, numbers + 4 * q, pitch, bounds)
    while bits:
        lane = lowest_bit(bits)
        bits &= bits - 1
        if is_live(row + lane, block):
            keep(read_real(bounds, lane), read_real(bounds, TILE + lane), first + row + lane,
                 numbers + LIMIT * pitch + 4 * q, k, heaps + 4 * k * q, places + 8 * cap * q,
                 lows + 4 * cap * q, cap, state + 16 * q)  # fmt: skip


def make_sieve(variant: str) -> Any:
    """Return the (not yet compiled) sieve for a set of instructions.

    Parameters of the sieve, all int64
    ----------------------------------
    table, blocks : address of (blocks, 7) int64: high plane, low plane, constants, rows, live mask
        (0: all), first position, rest; number of blocks
    queries, count, padded : address of int8 codes, (count, padded); the padding is zero
    head : elements in planes, a multiple of 64, at most ``padded``
    numbers : address of (10, count) float32 and int32, see ``candidates``; limits come back
    k : rows wanted; heaps : address of (count, k) float32
    metric : L2, IP or COSINE
    places, lows, cap : candidates of a query: (count, cap) int64 positions in order, float32
        lower bounds in the order in which rows were looked at
    state : address of (count, 2) int64, zeros: size of the heap, number of candidates; -1 of
        them: more than ``cap``
    scratch : SCRATCH bytes of memory

    Returns the number of queries.
    """
    code = _VARIANTS.index(variant)

    @njit(nogil=True)
    def sieve(  # type: ignore[no-untyped-def]
        table, blocks, queries, count, padded, head, numbers, k, heaps, metric, places, lows, cap,
        state, scratch,
    ):  # fmt: skip
        lines, dots, queue, pitch = scratch + _BOUNDS, scratch + _DOTS, scratch + _QUEUE, 4 * count
        dense, left, length, looked, since = False, 0, 1, 0, 0
        most = WAITING if count == 1 else WAITING_ALL
        room = min(FIRST * count, most)
        for number in range(blocks):
            block = table + ENTRY * number
            tiles = (read_long(block, 3) + TILE - 1) // TILE
            high, constants, waiting = read_long(block, 0), read_long(block, 2), 0
            for tile in range(tiles):
                if dense and left == 0:  # try again
                    dense = False
                left, since = left - 1, since + 1
                prepare(metric, constants, scratch)
                done = 0
                while done < count:
                    taken = SEVERAL if count - done >= SEVERAL else 1
                    if taken == 1:
                        _high_dots(code, 1, high, queries + done * padded, padded, head, dots)
                    else:
                        _high_dots(code, SEVERAL, high, queries + done * padded, padded, head, dots)
                    for q in range(done, done + taken):
                        here = dots + 64 * (q - done)
                        if dense:
                            _look_at_all(queries + q * padded, q, tile * TILE, block, padded, head,
                                         scratch, here, lines, numbers, pitch, k, heaps, places,
                                         lows, cap, state)  # fmt: skip
                            continue
                        bits = _rough_passing(scratch, here, numbers + 4 * q, pitch, lines)
                        if bits:
                            waiting = _enqueue(bits, q, tile * TILE, block, here, lines, queue,
                                               waiting)  # fmt: skip
                            if waiting >= room:
                                looked += _settle_all(queue, waiting, block, queries, count, padded,
                                                      head, numbers, pitch, k, heaps, places, lows,
                                                      cap, state, scratch)  # fmt: skip
                                waiting, room = 0, min(2 * room, most)
                    done += taken
                if not dense and since >= STRETCH and (waiting == 0 or looked > 0):
                    dense = DENSE * looked > since * TILE * count
                    left, length = STRETCH * length, min(2 * length, LONGEST) if dense else 1
                    looked = since = 0
                high += head * TILE // 2
                constants += 4 * CONSTANTS * TILE
            looked += _settle_all(queue, waiting, block, queries, count, padded, head, numbers,
                                  pitch, k, heaps, places, lows, cap, state, scratch)  # fmt: skip
        finish(numbers + LIMIT * pitch, count, places, lows, cap, state)
        return count

    return sieve
