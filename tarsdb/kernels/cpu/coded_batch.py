"""Sieve over int8 codes for many queries: two tiles of rows at a time, eight bits at once.

The two planes of a pair of tiles are put together once, in memory that stays in the L1 cache: four
bytes of one row, then of the next. Against it go the queries, 32 at a time in tile registers, or
eight at a time with all sums in vector registers. Which rows the bounds let pass is written down
without a branch; after every 64 queries these rows are looked at one by one. Where the planes hold
but the heads of codes, that reads the rest. Arguments are integers (addresses and counts).
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
    CORRECTION,
    ENTRY,
    HEAD_CORRECTION,
    LIMIT,
    NEVER,
    NORM,
    PREPARED,
    RESIDUAL,
    SCALE,
    SQUARE,
    TAIL,
    TILE,
    emit_correction,
    emit_of_tail,
    finish,
    half_width,
    is_live,
    keep,
    prepare,
)
from tarsdb.kernels.cpu.coded import SIEVE_SIGNATURE, VNNI, dpbusd, nibbles
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
TURN = 64  # queries whose marks are made before the first of them is looked at
_HALF = PREPARED + 64  # bytes of a tile's prepared constants and their maxima
_LIMITS = 2 * _HALF  # places in the scratch memory
_SHAPES, _MASKS = _LIMITS + 128, _LIMITS + 192
_DOTS = _MASKS + 4 * TURN
SCRATCH = _DOTS + 4 * TURN * 2 * TILE
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


class _Rows:
    """Emits the test of two tiles' products, less that of zero, against a query's limit."""

    def __init__(self, b: Any, prepared: Any) -> None:
        self.b = b
        self.lines = [
            [load(b, prepared, _F16, tile * _HALF + 64 * line) for line in (SCALE, BASE, TAIL)]
            for tile in range(2)
        ]

    def mark(self, dots: list[Any], query: tuple[Any, Any, Any], out: Any, offset: int) -> None:
        """Write a bit for each row within the limit, 32 of them.

        ``query`` is its factors of product and tail, and its limit.
        """
        b, (of_dot, of_tail, limit) = self.b, query
        for tile, (dot, (scale, base, tail)) in enumerate(zip(dots, self.lines, strict=True)):
            nearest = fma(b, b.fneg(of_tail), tail, base)
            low = fma(b, b.fneg(of_dot), b.fmul(scale, b.sitofp(dot, _F16)), nearest)
            within = b.fcmp_unordered("<=", low, limit)
            store(b, b.bitcast(within, _I16), out, offset + 2 * tile)


@intrinsic
def _screen(typingctx, prepared, dots, numbers, pitch, limits, masks):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and 32 queries, and take that of zero from products."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        prepared, dots, numbers, pitch, limits, masks = args
        _emit_limits(b, prepared, numbers, pitch, GROUP, limits)
        rows = _Rows(b, prepared)
        with cgutils.for_range(b, ir.Constant(_I64, GROUP)) as loop:
            at = b.shl(loop.index, ir.Constant(_I64, 2))
            query, line = b.add(numbers, at), b.add(dots, b.shl(loop.index, ir.Constant(_I64, 7)))
            correction = emit_correction(b, query, pitch, HEAD_CORRECTION)
            limit = splat(b, load(b, b.add(limits, at), _FLOAT))
            own = splat(b, load(b, query, _FLOAT)), emit_of_tail(b, query, pitch), limit
            pair = [b.sub(load(b, line, _W16, 64 * tile), correction) for tile in range(2)]
            for tile, each in enumerate(pair):
                store(b, each, line, 64 * tile)
            rows.mark(pair, own, b.add(masks, at), 0)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def _mark(typingctx, first, queries, head, prepared, numbers, pitch, dots, limits, masks):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and eight queries.

    The second tile follows the first. Inner products less that of zero, int32 (8, 32), go to
    ``dots``.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        first, queries, head, prepared, numbers, pitch, dots, limits, masks = args
        second = b.add(first, b.shl(head, ir.Constant(_I64, 4)))
        at = [b.add(numbers, ir.Constant(_I64, 4 * j)) for j in range(AT_ONCE)]
        sums = [[cgutils.alloca_once(b, _W16) for _ in range(2)] for _ in range(AT_ONCE)]
        for query, pair in zip(at, sums, strict=True):
            for each in pair:
                b.store(b.neg(emit_correction(b, query, pitch, HEAD_CORRECTION)), each)
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
        rows = _Rows(b, prepared)
        for j, pair in enumerate(sums):
            limit = splat(b, load(b, limits, _FLOAT, 4 * j))
            own = splat(b, load(b, at[j], _FLOAT)), emit_of_tail(b, at[j], pitch), limit
            done = [b.load(each) for each in pair]
            rows.mark(done, own, masks, 4 * j)
            for tile, each in enumerate(done):
                store(b, each, dots, 128 * j + 64 * tile)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


@intrinsic
def _marked(typingctx, masks):  # type: ignore[no-untyped-def]
    """Return a bit for each of 64 queries of which a row is marked."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_I32, TURN)
        some = b.icmp_unsigned("!=", load(b, args[0], kind), ir.Constant(kind, None))
        return b.bitcast(some, _I64)

    return types.int64(types.int64), codegen


# --- the sieve -------------------------------------------------------------------------------


@linked
def _by_tile_registers(codes, queries, done, padded, head, numbers, pitch, scratch):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and the next 32 queries."""
    turn = done % TURN
    dots = scratch + _DOTS + 128 * turn
    multiply_tiles("codes", 2, 2, queries + done * padded, np.int64(64), np.int64(1024),
                   TILE * padded, codes, TILE * head, head // 64, dots, np.int64(128),
                   np.int64(1))  # fmt: skip
    _screen(scratch, dots, numbers + 4 * done, pitch, scratch + _LIMITS,
            scratch + _MASKS + 4 * turn)  # fmt: skip


@linked
def _by_vectors(codes, queries, done, padded, head, numbers, pitch, scratch):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and the next eight queries."""
    laid, turn = queries + done // TILE * TILE * padded + done % TILE * 64, done % TURN
    _mark(codes, laid, head, scratch, numbers + 4 * done, pitch, scratch + _DOTS + 128 * turn,
          scratch + _LIMITS, scratch + _MASKS + 4 * turn)  # fmt: skip


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


@intrinsic
def _rest_dot(typingctx, row, query, count):  # type: ignore[no-untyped-def]
    """Inner product of the bytes behind a row's head and those of a query, 64 of every 1024."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, query, count = args
        total = cgutils.alloca_once_value(b, ir.Constant(_W16, None))
        b.store(ir.Constant(_W16, None), total)
        with cgutils.for_range(b, b.lshr(count, ir.Constant(_I64, 6))) as loop:
            codes = load(b, b.add(row, b.shl(loop.index, ir.Constant(_I64, 6))), _W16)
            own = load(b, b.add(query, b.shl(loop.index, ir.Constant(_I64, 10))), _W16)
            b.store(dpbusd(b, b.load(total), codes, own), total)
        return b.sext(call(b, "llvm.vector.reduce.add.v16i32", _I32, b.load(total)), _I64)

    return types.int64(*[types.int64] * 3), codegen


@linked
def prefetch_part(block, tile, count, turn, turns, padded, head):  # type: ignore[no-untyped-def]
    """Ask for one of so many parts of some tiles: of their planes, then of the rest."""
    tile_bytes, rest_bytes = head * TILE // 2, (padded - head) * TILE
    plane = count * tile_bytes
    part = ((2 * plane + count * rest_bytes) // turns + 63) // 64 * 64
    for offset in range(turn * part, turn * part + part, 64):
        if offset < plane:
            prefetch(read_long(block, 0) + tile * tile_bytes + offset)
        elif offset < 2 * plane:
            prefetch(read_long(block, 1) + tile * tile_bytes + offset - plane)
        else:
            prefetch(read_long(block, 6) + tile * rest_bytes + offset - 2 * plane)


@linked
def _keep_marked(bits, dots, row, block, query, padded, head, number, pitch, k, heap, places, lows, cap, state, scratch):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Bound the marked rows of two tiles by their whole codes; keep the candidates."""
    left, limit_at = padded - head, number + LIMIT * pitch
    behind = read_int(number + CORRECTION * pitch, 0)
    behind -= read_int(number + HEAD_CORRECTION * pitch, 0)
    while bits:
        lane = lowest_bit(bits)
        bits &= bits - 1
        if not is_live(row + lane, block):
            continue
        dot, here = read_int(dots, lane), scratch + lane // TILE * _HALF + lane % TILE * 4
        if left > 0:
            rest = read_long(block, 6) + (row + lane) * left
            dot += _rest_dot(rest, query + head * TILE, left) - behind
        slope = read_real(number, 0) * read_real(here, SCALE * TILE)
        middle = read_real(here, BASE * TILE) - slope * np.float32(dot)
        half = half_width(number, pitch, here)
        half += read_real(number + 2 * pitch, 0) * read_real(here, RESIDUAL * TILE)
        if not middle - half > read_real(limit_at, 0):
            keep(middle - half, middle + half, read_long(block, 5) + row + lane, limit_at, k, heap,
                 places, lows, cap, state)  # fmt: skip


@linked
def _keep_all(first, row, block, queries, padded, head, numbers, pitch, k, heaps, places, lows, cap, state, scratch):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
    """Keep the candidates among what is marked, of the queries from the first of a turn on."""
    marked = _marked(scratch + _MASKS)
    while marked:
        at = lowest_bit(marked)
        marked &= marked - 1
        q = first + at
        bits = read_int(scratch + _MASKS, at) & 0xFFFFFFFF
        put_int(scratch + _MASKS, at, 0)  # a last turn may be of fewer queries
        query = queries + q // TILE * TILE * padded + q % TILE * 64
        _keep_marked(bits, scratch + _DOTS + 128 * at, row, block, query, padded, head,
                     numbers + 4 * q, pitch, k, heaps + 4 * k * q, places + 8 * cap * q,
                     lows + 4 * cap * q, cap, state + 16 * q, scratch)  # fmt: skip


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
        for at in range(TURN):
            put_int(scratch + _MASKS, at, 0)
        turns = (asked + at_once - 1) // at_once
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
                    prefetch_part(block, tile + 2, 2, done // at_once, turns, padded, head)
                    mark(codes, queries, done, padded, head, numbers, pitch, scratch)
                    after = done + at_once
                    if after % TURN == 0 or after >= asked:
                        _keep_all(done // TURN * TURN, tile * TILE, block, queries, padded, head,
                                  numbers, pitch, k, heaps, places, lows, cap, state,
                                  scratch)  # fmt: skip
        finish(numbers + LIMIT * pitch, count, places, lows, cap, state)
        return count

    return sieve_many
