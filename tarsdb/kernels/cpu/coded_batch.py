"""Sieve over int8 codes for many queries: two tiles of rows at a time, eight bits at once.

The two planes of a pair of tiles are put together once, in memory that stays in the L1 cache: four
bytes of one row, then of the next. Against it go the queries, 32 at a time in tile registers, or
eight at a time with all sums in vector registers. Where the planes hold but the heads of codes,
rows that the bound of the head lets pass are looked at one by one. Arguments are integers
(addresses and counts).
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.candidates import (
    BASE,
    CONSTANTS,
    ENTRY,
    HEAD_CORRECTION,
    LIMIT,
    NEVER,
    NORM,
    PREPARED,
    SCALE,
    SQUARE,
    TAIL,
    TILE,
    emit_correction,
    emit_of_tail,
    finish,
    is_live,
    keep,
    passing,
    prepare,
)
from tarsdb.kernels.cpu.coded import SIEVE_SIGNATURE, VNNI, dpbusd, nibbles, rest_dot
from tarsdb.kernels.cpu.emit import call, fma, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import (
    lowest_bit,
    prefetch,
    put_int,
    read_int,
    read_long,
    read_real,
)
from tarsdb.kernels.cpu.tile_registers import close_tiles, multiply_tiles, open_tiles

__all__ = ["AMX", "GROUP", "SCRATCH", "SIEVE_SIGNATURE", "make_sieve_many"]

AMX = "amx"
GROUP = 32  # queries are given in multiples of it; tile registers take as many at once
AT_ONCE = 8  # queries that vector registers take at once
_HALF = PREPARED + 64  # bytes of a tile's prepared constants and their maxima
_LIMITS = 2 * _HALF  # places in the scratch memory
_SHAPES, _BOUNDS, _HITS = _LIMITS + 128, _LIMITS + 192, _LIMITS + 320
_DOTS = _HITS + 16 * GROUP
SCRATCH = _DOTS + 4 * GROUP * 2 * TILE
"""Bytes of scratch memory before the codes of two tiles."""

_FLOAT = ir.FloatType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _W16, _W8 = ir.VectorType(_FLOAT, TILE), ir.VectorType(_I32, TILE), ir.VectorType(_I32, 8)


# --- whole codes of a tile -------------------------------------------------------------------


def _shuffled(b: Any, one: Any, two: Any, order: list[int]) -> Any:
    return b.shuffle_vector(one, two, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _transposed(b: Any, rows: list[Any]) -> list[Any]:
    """Turn 16 rows of eight words into eight registers of the 16 rows' words, in order."""
    lines = [_shuffled(b, rows[i], rows[i + 8], list(range(16))) for i in range(8)]
    for width in (1, 2, 4):  # words exchanged between registers `width` apart
        first, second = [], []
        for start in range(0, 16, 2 * width):
            first += [*range(start, start + width), *range(start + 16, start + 16 + width)]
            second += [i + width for i in first[-2 * width :]]
        done = list(lines)
        for i in range(8):
            if not i & width:
                done[i] = _shuffled(b, lines[i], lines[i + width], first)
                done[i + width] = _shuffled(b, lines[i], lines[i + width], second)
        lines = done
    return lines


def emit_whole_codes(b: Any, planes: tuple[Any, Any], head: Any, out: Any, changed: Any) -> None:
    """Emit the putting together of a tile's planes, (head / 4, 16, 4) bytes, to ``out``.

    ``changed`` is given each register of codes, 16 rows of four bytes, and returns what is stored.
    """
    row_bytes = b.lshr(head, ir.Constant(_I64, 1))
    above = ir.Constant(_W16, [0xF0F0F0F0 - (1 << 32)] * 16)
    four = ir.Constant(_W16, [4] * 16)
    with cgutils.for_range(b, b.lshr(head, ir.Constant(_I64, 6))) as loop:
        at = b.add(planes[1], b.shl(loop.index, ir.Constant(_I64, 5)))
        rows = [
            load(b, b.add(at, b.mul(row_bytes, ir.Constant(_I64, row))), _W8) for row in range(TILE)
        ]
        line = b.add(planes[0], b.shl(loop.index, ir.Constant(_I64, 9)))
        target = b.add(out, b.shl(loop.index, ir.Constant(_I64, 10)))
        words = _transposed(b, rows)
        for word in range(16):
            upper = load(b, line, _W16, 64 * (word // 2))
            if word % 2 == 0:
                upper = b.shl(upper, four)
            under = nibbles(b, words[word % 8], high=word >= 8)
            store(b, changed(b.or_(b.and_(upper, above), under)), target, 64 * word)


@intrinsic
def _whole_codes(typingctx, high, low, head, out):  # type: ignore[no-untyped-def]
    """Put the planes of a tile together, (head / 4, 16, 4) bytes, to ``out``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        high, low, head, out = args
        emit_whole_codes(b, (high, low), head, out, lambda codes: codes)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _maxima(typingctx, prepared):  # type: ignore[no-untyped-def]
    """Write the largest norm, residual and square of a prepared tile behind it."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        for number, line in enumerate(range(NORM, SQUARE + 1)):
            value = load(b, args[0], _F16, 64 * line)
            largest = call(b, "llvm.vector.reduce.fmax.v16f32", _FLOAT, value)
            store(b, largest, args[0], PREPARED + 4 * number)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# --- which pairs of rows and queries may pass ------------------------------------------------


def _emit_limits(b: Any, prepared: Any, numbers: Any, pitch: Any, count: int, limits: Any) -> None:
    """Emit limits that hold for all rows of two tiles, of ``count`` queries, to ``limits``.

    The tiles' largest constants stand for those of each row, a little more for the rounding.
    """
    lanes = ir.VectorType(_FLOAT, min(count, TILE))
    tops = []
    for line in range(3):
        one, two = (
            load(b, prepared, _FLOAT, tile * _HALF + PREPARED + 4 * line) for tile in range(2)
        )
        tops.append(splat(b, b.select(b.fcmp_ordered(">", one, two), one, two), lanes.count))
    lines = [b.add(numbers, b.mul(pitch, ir.Constant(_I64, line))) for line in range(LIMIT + 1)]
    for start in range(0, 4 * count, 4 * lanes.count):
        half = load(b, lines[4], lanes, start)
        for line, top in enumerate(tops):
            half = fma(b, load(b, lines[1 + line], lanes, start), top, half)
        limit = load(b, lines[LIMIT], lanes, start)
        size = b.fadd(call(b, f"llvm.fabs.v{lanes.count}f32", lanes, limit), half)
        more = b.fmul(size, ir.Constant(lanes, [2.0**-20] * lanes.count))
        store(b, b.fadd(b.fadd(limit, half), more), limits, start)


class _Marks:
    """Emits the test of two tiles' products against a query's limit, and the list of marks.

    Pairs of a query's number and its 32 bits, int64, go to ``hits``.
    """

    def __init__(self, b: Any, prepared: Any, hits: Any) -> None:
        self.b, self.hits = b, hits
        self.rows = [
            [load(b, prepared, _F16, tile * _HALF + 64 * line) for line in (SCALE, BASE, TAIL)]
            for tile in range(2)
        ]
        self.found = cgutils.alloca_once_value(b, ir.Constant(_I64, 0))
        b.store(ir.Constant(_I64, 0), self.found)

    def within(self, dot: Any, tile: int, query: tuple[Any, Any, Any]) -> Any:
        """Return which rows of a tile are within the limit, by their corrected products.

        ``query`` is its factors of product and tail, and its limit.
        """
        b, (scale, base, tail), (of_dot, of_tail, limit) = self.b, self.rows[tile], query
        nearest = fma(b, b.fneg(of_tail), tail, base)
        low = fma(b, b.fneg(of_dot), b.fmul(scale, b.sitofp(dot, _F16)), nearest)
        return b.fcmp_unordered("<=", low, limit)

    def add(self, query: Any, masks: list[Any]) -> None:
        """List a query if any of its rows is marked, without a branch."""
        b = self.b
        low, high = (b.zext(b.bitcast(mask, _I16), _I64) for mask in masks)
        marked = b.or_(low, b.shl(high, ir.Constant(_I64, 16)))
        count = b.load(self.found)
        place = b.add(self.hits, b.shl(count, ir.Constant(_I64, 4)))
        store(b, query, place)
        store(b, marked, place, 8)
        any_ = b.zext(b.icmp_unsigned("!=", marked, ir.Constant(_I64, 0)), _I64)
        b.store(b.add(count, any_), self.found)


@intrinsic
def _screen(typingctx, prepared, dots, numbers, pitch, limits, hits):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and 32 queries; returns how many queries are marked."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        prepared, dots, numbers, pitch, limits, hits = args
        _emit_limits(b, prepared, numbers, pitch, GROUP, limits)
        marks = _Marks(b, prepared, hits)
        with cgutils.for_range(b, ir.Constant(_I64, GROUP // 4)) as loop:
            for step in range(4):
                query = b.add(b.shl(loop.index, ir.Constant(_I64, 2)), ir.Constant(_I64, step))
                at = b.shl(query, ir.Constant(_I64, 2))
                of_dot = splat(b, load(b, b.add(numbers, at), _FLOAT))
                of_tail = emit_of_tail(b, b.add(numbers, at), pitch)
                correction = emit_correction(b, b.add(numbers, at), pitch, HEAD_CORRECTION)
                own = of_dot, of_tail, splat(b, load(b, b.add(limits, at), _FLOAT))
                line = b.add(dots, b.shl(query, ir.Constant(_I64, 7)))
                marks.add(query, [
                    marks.within(b.sub(load(b, line, _W16, 64 * tile), correction), tile, own)
                    for tile in range(2)
                ])  # fmt: skip
        return b.load(marks.found)

    return types.int64(*[types.int64] * 6), codegen


@intrinsic
def _mark(typingctx, first, queries, head, prepared, numbers, pitch, dots, limits, hits):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and eight queries; returns how many are marked.

    The second tile follows the first. Inner products, int32 (8, 32), go to ``dots`` if any is.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        first, queries, head, prepared, numbers, pitch, dots, limits, hits = args
        second = b.add(first, b.shl(head, ir.Constant(_I64, 4)))
        at = [b.add(numbers, ir.Constant(_I64, 4 * j)) for j in range(AT_ONCE)]
        corrections = [emit_correction(b, each, pitch, HEAD_CORRECTION) for each in at]
        sums = [[cgutils.alloca_once(b, _W16) for _ in range(2)] for _ in range(AT_ONCE)]
        for correction, pair in zip(corrections, sums, strict=True):
            for each in pair:
                b.store(b.neg(correction), each)
        with cgutils.for_range(b, b.lshr(head, ir.Constant(_I64, 6))) as loop:
            down = b.shl(loop.index, ir.Constant(_I64, 10))
            tiles, query = [b.add(each, down) for each in (first, second)], b.add(queries, down)
            for step in range(16):
                codes = [load(b, tile, _W16, 64 * step) for tile in tiles]
                for j, pair in enumerate(sums):
                    word = splat(b, load(b, query, _I32, 64 * j + 4 * step))
                    for code, each in zip(codes, pair, strict=True):
                        b.store(dpbusd(b, b.load(each), code, word), each)
        _emit_limits(b, prepared, numbers, pitch, AT_ONCE, limits)
        marks = _Marks(b, prepared, hits)
        masks = []
        for j, pair in enumerate(sums):
            limit = splat(b, load(b, limits, _FLOAT, 4 * j))
            own = splat(b, load(b, at[j], _FLOAT)), emit_of_tail(b, at[j], pitch), limit
            masks.append([marks.within(b.load(each), tile, own) for tile, each in enumerate(pair)])
        every = masks[0][0]
        for mask in (mask for pair in masks for mask in pair):
            every = b.or_(every, mask)
        some = b.icmp_unsigned("!=", b.bitcast(every, _I16), ir.Constant(_I16, 0))
        with b.if_then(some, likely=False):
            for j, pair in enumerate(sums):
                for tile, each in enumerate(pair):
                    whole = b.add(b.load(each), corrections[j])
                    store(b, whole, dots, 128 * j + 64 * tile)
                marks.add(ir.Constant(_I64, j), masks[j])
        return b.load(marks.found)

    return types.int64(*[types.int64] * 9), codegen


# --- the sieve -------------------------------------------------------------------------------


@linked
def _by_tile_registers(codes, queries, done, padded, head, numbers, pitch, scratch):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and the next 32 queries; returns how many are marked."""
    dots = scratch + _DOTS
    multiply_tiles("codes", 2, 2, queries + done * padded, np.int64(64), np.int64(1024),
                   TILE * padded, codes, TILE * head, head // 64, dots, np.int64(128),
                   np.int64(1))  # fmt: skip
    return _screen(scratch, dots, numbers + 4 * done, pitch, scratch + _LIMITS, scratch + _HITS)


@linked
def _by_vectors(codes, queries, done, padded, head, numbers, pitch, scratch):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and the next eight queries."""
    laid = queries + done // TILE * TILE * padded + done % TILE * 64
    return _mark(codes, laid, head, scratch, numbers + 4 * done, pitch, scratch + _DOTS,
                 scratch + _LIMITS, scratch + _HITS)  # fmt: skip


def make_sieve_many(variant: str) -> Any:
    """Return the (not yet compiled) sieve of many queries, ``vnni`` or ``amx``.

    Parameters are those of ``coded.make_sieve``, but queries come in multiples of 32, laid 16
    side by side: (count / 16, padded / 64, 16, 64), at an address that 64 divides, as is that of
    the scratch memory, SCRATCH + 32 * head bytes. Returns the number of queries.
    """
    inner = _marking(_by_vectors, AT_ONCE) if variant == VNNI else _marking(
        _by_tile_registers, GROUP)  # fmt: skip
    if variant == VNNI:
        return inner

    @njit(nogil=True)
    def sieve_many(  # type: ignore[no-untyped-def]
        table, blocks, queries, count, padded, head, numbers, k, heaps, metric, places, lows, cap,
        state, scratch,
    ):  # fmt: skip
        open_tiles(scratch + _SHAPES)
        inner(table, blocks, queries, count, padded, head, numbers, k, heaps, metric, places, lows,
              cap, state, scratch)  # fmt: skip
        close_tiles()
        return count

    return sieve_many


@linked
def _add_rests(bits, dots, row, block, queries, q, padded, head):  # type: ignore[no-untyped-def]
    """Add what is behind the heads to the products of the marked rows of a tile."""
    left, rows = padded - head, read_long(block, 3)
    query = queries + q // TILE * TILE * padded + q % TILE * 64 + TILE * head
    rest = read_long(block, 6) + row * left
    while bits:
        lane = lowest_bit(bits)
        bits &= bits - 1
        if row + lane < rows:
            more = rest_dot(rest + lane * left, query, left, 64 * TILE)
            put_int(dots, lane, read_int(dots, lane) + more)


@linked
def _keep_marked(marked, row, here, block, queries, done, padded, head, numbers, pitch, k, heaps, places, lows, cap, state, scratch):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Bound the marked rows one by one and keep the candidates."""
    hits, bounds, first = scratch + _HITS, scratch + _BOUNDS, read_long(block, 5)
    for hit in range(marked):
        at, mask = read_long(hits, 2 * hit), read_long(hits, 2 * hit + 1)
        q = done + at
        for tile in range(here):
            bits, dots = mask >> TILE * tile & 65535, scratch + _DOTS + 128 * at + 64 * tile
            if bits == 0:
                continue
            if padded > head:
                _add_rests(bits, dots, row + TILE * tile, block, queries, q, padded, head)
            bits &= passing(scratch + _HALF * tile, dots, numbers + 4 * q, pitch, bounds)
            while bits:
                lane = lowest_bit(bits)
                bits &= bits - 1
                place = row + TILE * tile + lane
                if is_live(place, block):
                    keep(read_real(bounds, lane), read_real(bounds, TILE + lane), first + place,
                         numbers + LIMIT * pitch + 4 * q, k, heaps + 4 * k * q,
                         places + 8 * cap * q, lows + 4 * cap * q, cap, state + 16 * q)  # fmt: skip


def _marking(mark: Any, at_once: int) -> Any:
    @njit(nogil=True)
    def sieve_many(  # type: ignore[no-untyped-def]
        table, blocks, queries, count, padded, head, numbers, k, heaps, metric, places, lows, cap,
        state, scratch,
    ):  # fmt: skip
        pitch, size, tile_bytes = 4 * count, 4 * CONSTANTS * TILE, head * TILE // 2
        codes = scratch + SCRATCH
        asked = count  # without the last ones, which no row can pass
        while asked > 0 and read_real(numbers + LIMIT * pitch, asked - 1) == NEVER:
            asked -= 1
        turns = (asked + at_once - 1) // at_once
        part = (4 * tile_bytes // max(1, turns) + 63) // 64 * 64
        for number in range(blocks):
            block = table + ENTRY * number
            tiles = (read_long(block, 3) + TILE - 1) // TILE
            high, low, constants = read_long(block, 0), read_long(block, 1), read_long(block, 2)
            for tile in range(0, tiles, 2):
                here = min(2, tiles - tile)  # the last tile may stand for its neighbour too
                for j in range(2):
                    this = tile + min(j, here - 1)
                    _whole_codes(high + this * tile_bytes, low + this * tile_bytes, head,
                                 codes + j * head * TILE)  # fmt: skip
                    prepare(metric, constants + this * size, scratch + _HALF * j)
                    _maxima(scratch + _HALF * j)
                for done in range(0, asked, at_once):
                    # what comes next, a part at a time, of the one plane and then of the other
                    ahead = done // at_once * part
                    for offset in range(ahead, ahead + part, 64):
                        plane = high if offset < 2 * tile_bytes else low - 2 * tile_bytes
                        prefetch(plane + (tile + 2) * tile_bytes + offset)
                    marked = mark(codes, queries, done, padded, head, numbers, pitch, scratch)
                    if marked:
                        _keep_marked(marked, tile * TILE, here, block, queries, done, padded, head,
                                     numbers, pitch, k, heaps, places, lows, cap, state,
                                     scratch)  # fmt: skip
        finish(numbers + LIMIT * pitch, count, places, lows, cap, state)
        return count

    return sieve_many
