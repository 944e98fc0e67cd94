"""Sieve over int8 codes for few queries: which rows can be among the k nearest, with proof.

A code is an unsigned byte, kept as two planes of four bits. The high plane lies in tiles of 16
rows: eight elements of one row in four bytes, then of the next, so that a register holds eight
elements of 16 rows. It is read for every row, and bounds the distance roughly. The low plane lies
row by row, 32 elements and the next 32 in 32 bytes; it is read for rows that the rough bound lets
pass, or for all where these are too many to be taken one by one. Integers are exact; what codes
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
    LIMIT,
    NORM,
    PREPARED,
    RESIDUAL,
    ROUGH,
    ROUGH_CORRECTION,
    SCALE,
    SQUARE,
    TILE,
    emit_correction,
    emit_numbers,
    finish,
    is_live,
    keep,
    passing,
    prepare,
)
from tarsdb.kernels.cpu.emit import call, fma, load, splat, store
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
WAITING = 32  # rows whose low plane is asked for before the first of them is looked at
STRETCH = 16  # tiles after which to choose again whether rough bounds pay
LONGEST = 32  # stretches without them at most, before they are tried again
DENSE = 5  # they do not pay if one of so many rows passes
VNNI, MADDUBS = "vnni", "maddubs"
SIEVE_SIGNATURE = types.int64(*[types.int64] * 14)
_BOUNDS = PREPARED  # places in the scratch memory
_DOTS = _BOUNDS + 3 * 64
_QUEUE = _DOTS + 64 * SEVERAL
_ITEM = 32  # query, row: int64; product: int32; base, slope, width of the bound: float32
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


def _maddubs(b: Any, codes: Any, query: Any) -> Any:
    """Return sums of two products of unsigned 4-bit numbers and signed bytes; at most 3810."""
    codes, query = b.bitcast(codes, _B32), b.bitcast(query, _B32)
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", _H16, codes, query)


def _widened(b: Any, halves: Any) -> Any:
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

    def by_vnni(self, padded: Any, out: Any) -> None:
        """Sum 64 elements a turn; the higher four bits stay where they are, 16 times as much."""
        b, count = self.b, len(self.queries)
        lower, higher = (self.accumulators(_W16, 2 * count) for _ in range(2))
        mask = ir.Constant(_W16, [0xF0F0F0F0 - (1 << 32)] * 16)
        with cgutils.for_range(b, b.lshr(padded, ir.Constant(_I64, 6))) as loop:
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

    def by_maddubs(self, padded: Any, out: Any) -> None:
        """Sum 32 elements a turn in 16 bits (eight times 3810 fit), half a tile to a register."""
        b, count = self.b, len(self.queries)
        wide = self.accumulators(_W8, 2 * count)
        with cgutils.for_range(b, b.lshr(padded, ir.Constant(_I64, 5))) as loop:
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
                            self.add(narrow[2 * j + side], _maddubs(b, part, word))
            for total, few in zip(wide, narrow, strict=True):
                self.add(total, _widened(b, b.load(few)))
        for number, total in enumerate(wide):
            store(b, b.load(total), out, 32 * number)


@intrinsic(prefer_literal=True)
def _high_dots(typingctx, variant, several, tile, queries, padded, out):  # type: ignore[no-untyped-def]
    """Inner products of a tile's high plane and some queries, int32 (queries, 16), to ``out``."""
    by_vnni, count = _VARIANTS[variant.literal_value] == VNNI, several.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, _, tile, queries, padded, out = args
        rows = [b.add(queries, b.mul(padded, ir.Constant(_I64, j))) for j in range(count)]
        sums = _Sums(b, tile, rows)
        (sums.by_vnni if by_vnni else sums.by_maddubs)(padded, out)
        return context.get_dummy_value()

    return types.void(variant, several, *[types.int64] * 4), codegen


@intrinsic
def _low_dot(typingctx, row, query, padded):  # type: ignore[no-untyped-def]
    """Inner product of a row's low plane and a query; int64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, query, padded = args
        total = cgutils.alloca_once_value(b, ir.Constant(_W8, None))
        b.store(ir.Constant(_W8, None), total)
        with cgutils.for_range(b, b.lshr(padded, ir.Constant(_I64, 6))) as loop:
            codes = load(b, b.add(row, b.shl(loop.index, ir.Constant(_I64, 5))), _W8)
            at = b.add(query, b.shl(loop.index, ir.Constant(_I64, 6)))
            sums = [
                _maddubs(b, nibbles(b, codes, high=half == 1), load(b, at, _B32, 32 * half))
                for half in range(2)
            ]
            b.store(b.add(b.load(total), _widened(b, b.add(*sums))), total)
        found = call(b, "llvm.vector.reduce.add.v8i32", _I32, b.load(total))
        return b.sext(found, _I64)

    return types.int64(*[types.int64] * 3), codegen


# --- rows that pass the rough bound ----------------------------------------------------------


@intrinsic
def _rough_passing(typingctx, prepared, dots, query, pitch, out):  # type: ignore[no-untyped-def]
    """Return a bit per row whose rough lower bound is within the query's limit.

    If any is, three lines go to ``out``, of which whole codes make bounds: base, slope of the
    inner product, half the width.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        prepared, dots, query, pitch, out = args
        scale, base, norm, residual, square, rough = (
            load(b, prepared, _F16, 64 * line)
            for line in (SCALE, BASE, NORM, RESIDUAL, SQUARE, ROUGH)
        )
        of_dot, of_norm, of_residual, of_square, always, limit = emit_numbers(b, query, pitch)
        whole = b.shl(load(b, dots, _W16), ir.Constant(_W16, [4] * 16))
        dot = b.sitofp(b.sub(whole, emit_correction(b, query, pitch, ROUGH_CORRECTION)), _F16)
        slope = b.fmul(of_dot, scale)
        half = fma(b, of_norm, norm, fma(b, of_square, square, always))
        low = b.fsub(b.fsub(base, b.fmul(slope, dot)), fma(b, of_residual, rough, half))
        bits = b.bitcast(b.fcmp_unordered("<=", low, limit), _I16)
        with b.if_then(b.icmp_unsigned("!=", bits, ir.Constant(_I16, 0)), likely=False):
            for line, value in enumerate((base, slope, fma(b, of_residual, residual, half))):
                store(b, value, out, 64 * line)
        return b.zext(bits, _I64)

    return types.int64(*[types.int64] * 5), codegen


@njit(nogil=True)
def _enqueue(bits, query, row, block, plane_bytes, dots, lines, queue, waiting):  # type: ignore[no-untyped-def]
    """Let the marked rows of a tile wait for their low plane; returns how many wait."""
    while bits:
        lane = lowest_bit(bits)
        bits &= bits - 1
        if not is_live(row + lane, block):
            continue
        low = read_long(block, 1) + (row + lane) * plane_bytes
        for offset in range(0, plane_bytes, 64):
            prefetch(low + offset)
        item = queue + _ITEM * waiting
        put_long(item, 0, query)
        put_long(item, 1, row + lane)
        put_int(item, 4, read_int(dots, lane))
        for line in range(3):
            put_int(item, 5 + line, read_int(lines, TILE * line + lane))
        waiting += 1
    return waiting


@njit(nogil=True)
def _settle(queue, waiting, block, queries, padded, numbers, pitch, k, heaps, places, lows, cap, state):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Bound the waiting rows by their whole codes and keep the candidates; returns 0."""
    low_plane, first = read_long(block, 1), read_long(block, 5)
    for number in range(waiting):
        item = queue + _ITEM * number
        q, row = read_long(item, 0), read_long(item, 1)
        dot = 16 * read_int(item, 4) - read_int(numbers + CORRECTION * pitch, q)
        dot += _low_dot(low_plane + row * (padded // 2), queries + q * padded, padded)
        middle = read_real(item, 5) - read_real(item, 6) * np.float32(dot)
        half = read_real(item, 7)
        keep(middle - half, middle + half, first + row, numbers + LIMIT * pitch + 4 * q, k,
             heaps + 4 * k * q, places + 8 * cap * q, lows + 4 * cap * q, cap,
             state + 16 * q)  # fmt: skip
    return 0


@njit(nogil=True)
def _look_at_all(query, q, row, block, padded, prepared, dots, bounds, numbers, pitch, k, heaps, places, lows, cap, state):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Bound all rows of a tile by their whole codes and keep the candidates."""
    low, first, rows = read_long(block, 1), read_long(block, 5), read_long(block, 3)
    for lane in range(min(TILE, rows - row)):
        more = _low_dot(low + (row + lane) * (padded // 2), query, padded)
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
    table, blocks : address of (blocks, 6) int64: high plane, low plane, constants, rows, live mask
        (0: all), first position; number of blocks
    queries, count, padded : address of int8 codes, (count, padded); the padding is zero
    numbers : address of (8, count) float32 and int32, see ``candidates``; limits come back
    k : rows wanted; heaps : address of (count, k) float32
    metric : L2, IP or COSINE
    places, lows, cap : candidates of a query: (count, cap) int64 positions in order, float32
        lower bounds
    state : address of (count, 2) int64, zeros: size of the heap, number of candidates; -1 of
        them: more than ``cap``
    scratch : SCRATCH bytes of memory

    Returns the number of queries.
    """
    code = _VARIANTS.index(variant)

    @njit(nogil=True)
    def sieve(  # type: ignore[no-untyped-def]
        table, blocks, queries, count, padded, numbers, k, heaps, metric, places, lows, cap, state,
        scratch,
    ):  # fmt: skip
        lines, dots, queue, pitch = scratch + _BOUNDS, scratch + _DOTS, scratch + _QUEUE, 4 * count
        dense, left, length, passed = False, STRETCH, 1, 0
        for number in range(blocks):
            block = table + ENTRY * number
            tiles = (read_long(block, 3) + TILE - 1) // TILE
            high, constants, waiting = read_long(block, 0), read_long(block, 2), 0
            for tile in range(tiles):
                if left == 0:
                    if dense:  # try again
                        dense, left = False, STRETCH
                    else:
                        dense = DENSE * passed > STRETCH * TILE * count
                        length = min(2 * length, LONGEST) if dense else 1
                        left = STRETCH * length
                    passed = 0
                    waiting = _settle(queue, waiting, block, queries, padded, numbers, pitch, k,
                                      heaps, places, lows, cap, state)  # fmt: skip
                left -= 1
                prepare(metric, constants, scratch)
                done = 0
                while done < count:
                    taken = SEVERAL if count - done >= SEVERAL else 1
                    if taken == 1:
                        _high_dots(code, 1, high, queries + done * padded, padded, dots)
                    else:
                        _high_dots(code, SEVERAL, high, queries + done * padded, padded, dots)
                    for q in range(done, done + taken):
                        here = dots + 64 * (q - done)
                        if dense:
                            _look_at_all(queries + q * padded, q, tile * TILE, block, padded,
                                         scratch, here, lines, numbers, pitch, k, heaps, places,
                                         lows, cap, state)  # fmt: skip
                            continue
                        bits = _rough_passing(scratch, here, numbers + 4 * q, pitch, lines)
                        if bits:
                            before = waiting
                            waiting = _enqueue(bits, q, tile * TILE, block, padded // 2, here,
                                               lines, queue, waiting)  # fmt: skip
                            passed += waiting - before
                            if waiting >= WAITING:
                                waiting = _settle(queue, waiting, block, queries, padded, numbers,
                                                  pitch, k, heaps, places, lows, cap,
                                                  state)  # fmt: skip
                    done += taken
                high += padded * TILE // 2
                constants += 4 * CONSTANTS * TILE
            _settle(queue, waiting, block, queries, padded, numbers, pitch, k, heaps, places, lows,
                    cap, state)  # fmt: skip
        finish(numbers + LIMIT * pitch, count, places, lows, cap, state)
        return count

    return sieve
