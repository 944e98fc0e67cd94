"""Sieve over int8 codes: which rows can be among the k nearest, with proof.

Rows are coded in tiles of 16: four bytes of one row, then of the next, so that a register holds
four elements of 16 rows and one instruction adds to 16 inner products. Integers are exact; what a
code leaves out is bounded by constants of the row and of the query, which ``index/coded`` derives.
All arguments are integers (addresses and counts). ``encode`` makes the codes.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, fma, load, pointer, splat, store
from tarsdb.kernels.cpu.memory import (
    emit_prefetch,
    prefetch,
    put_long,
    put_real,
    read_byte,
    read_long,
    read_real,
)

L2, IP, COSINE = range(3)  # as in reference.py
TILE = 16  # rows of a tile
CONSTANTS = 5  # float32 lines of a tile's constants: scale, square, coded norm, residual, 1 / norm
PARAMETERS = 8  # 4-byte numbers of a query
GROUP = 32  # queries that tile registers take at once
AHEAD = 4096  # bytes in advance that one query asks memory for
VNNI, MADDUBS, AMX = "vnni", "maddubs", "amx"
SEVERAL = {VNNI: 8, AMX: 8, MADDUBS: 4}
SIEVE_SIGNATURE = types.int64(*[types.int64] * 14)
_PREPARED = 384  # bytes of a tile's prepared constants; places in the scratch memory follow
_BOUNDS, _SHAPES, _LIMITS, _HITS, _DOTS = 768, 896, 960, 1088, 1600
SCRATCH = _DOTS + 4 * GROUP * 2 * TILE

_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_F16, _D16, _W16 = (ir.VectorType(kind, TILE) for kind in (_FLOAT, _DOUBLE, _I32))
_VARIANTS = (VNNI, MADDUBS, AMX)


# --- inner products of one tile --------------------------------------------------------------


def _dpbusd(b: Any, sums: Any, codes: Any, query: Any) -> Any:
    """Add products of unsigned bytes and signed bytes, four to a lane."""
    if llvm.llvm_version_info[0] < 22:
        codes, query = (b.bitcast(value, _W16) for value in (codes, query))
    return call(b, "llvm.x86.avx512.vpdpbusd.512", _W16, sums, codes, query)


def _maddubs(b: Any, sums: Any, codes: Any, query: Any) -> Any:
    """Do the same for half a tile; exact while the query's bytes stay within 63."""
    pairs, quads = ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
    half = call(b, "llvm.x86.avx2.pmadd.ub.sw", pairs, codes, query)
    ones = ir.Constant(pairs, [1] * 16)
    return b.add(sums, call(b, "llvm.x86.avx2.pmadd.wd", quads, half, ones))


@intrinsic(prefer_literal=True)
def _dots(typingctx, variant, several, tile, queries, padded, out):  # type: ignore[no-untyped-def]
    """Inner products of a tile and some queries, int32 (queries, 16), to ``out``."""
    wide = _VARIANTS[variant.literal_value] != MADDUBS
    count = several.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, _, tile, queries, padded, out = args
        parts, lanes = (1, 16) if wide else (2, 8)
        chains = 4 if count == 1 else 1
        zero = ir.Constant(ir.VectorType(_I32, lanes), None)
        sums = [
            [[cgutils.alloca_once_value(b, zero) for _ in range(chains)] for _ in range(parts)]
            for _ in range(count)
        ]
        number = ir.VectorType(_I8, 4 * lanes)
        rows = [b.add(queries, b.mul(padded, ir.Constant(_I64, j))) for j in range(count)]
        with cgutils.for_range(b, b.lshr(padded, ir.Constant(_I64, 4))) as loop:
            line = b.add(tile, b.shl(loop.index, ir.Constant(_I64, 8)))
            at = b.shl(loop.index, ir.Constant(_I64, 4))
            for step in range(4):
                if count == 1:
                    emit_prefetch(b, b.add(line, ir.Constant(_I64, AHEAD + 64 * step)))
                codes = [load(b, line, number, 64 * step + 32 * p) for p in range(parts)]
                for j, row in enumerate(rows):
                    word = load(b, b.add(row, at), _I32, 4 * step)
                    query = b.bitcast(splat(b, word, lanes), number)
                    for part, code in enumerate(codes):
                        chain = sums[j][part][step % chains]
                        add = _dpbusd if wide else _maddubs
                        b.store(add(b, b.load(chain), code, query), chain)
        for j in range(count):
            for part in range(parts):
                total = b.load(sums[j][part][0])
                for chain in sums[j][part][1:]:
                    total = b.add(total, b.load(chain))
                store(b, total, out, 64 * j + 32 * part)
        return context.get_dummy_value()

    return types.void(variant, several, *[types.int64] * 4), codegen


# --- tile registers: 0..3 sums, 4 and 5 queries, 6 and 7 rows ---------------------------------


def amx_allowed() -> bool:
    """Ask the kernel to let this process use tile registers; False where it cannot."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    try:
        return bool(ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0)  # arch_prctl, tile data
    except (OSError, AttributeError):
        return False


def _tile_number(value: int) -> Any:
    return ir.Constant(_I8, value)


@intrinsic
def _open_tiles(typingctx, memory):  # type: ignore[no-untyped-def]
    """Shape all tile registers as 16 rows of 64 bytes, with 64 bytes of memory to say so."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        shape = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        store(b, ir.Constant(ir.VectorType(_I8, 64), shape), args[0])
        call(b, "llvm.x86.ldtilecfg", ir.VoidType(), pointer(b, args[0], _I8))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _close_tiles(typingctx):  # type: ignore[no-untyped-def]
    """Give the tile registers back."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        call(b, "llvm.x86.tilerelease", ir.VoidType())
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _square(typingctx, first, second, queries, padded, out):  # type: ignore[no-untyped-def]
    """Inner products of two tiles and 32 queries, int32 (32, 32), to ``out``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        first, second, queries, padded, out = args
        lower = b.add(queries, b.shl(padded, ir.Constant(_I64, 4)))
        line = ir.Constant(_I64, 64)

        def move(name: str, tile: int, address: Any, stride: Any) -> None:
            call(b, f"llvm.x86.{name}", ir.VoidType(), _tile_number(tile),
                  pointer(b, address, _I8), stride)  # fmt: skip

        for tile in range(4):
            call(b, "llvm.x86.tilezero", ir.VoidType(), _tile_number(tile))
        with cgutils.for_range(b, b.lshr(padded, ir.Constant(_I64, 6))) as loop:
            down = b.shl(loop.index, ir.Constant(_I64, 10))
            move("tileloadd64", 4, b.add(queries, down), line)
            move("tileloadd64", 6, b.add(first, down), line)
            move("tileloadd64", 7, b.add(second, down), line)
            move("tileloadd64", 5, b.add(lower, down), line)
            for tile in range(4):
                numbers = (tile, 4 + tile // 2, 6 + tile % 2)
                call(b, "llvm.x86.tdpbsud", ir.VoidType(), *map(_tile_number, numbers))
        for tile in range(4):
            place = ir.Constant(_I64, 2048 * (tile // 2) + 64 * (tile % 2))
            move("tilestored64", tile, b.add(out, place), ir.Constant(_I64, 128))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


# --- bounds and candidates -------------------------------------------------------------------


@intrinsic
def _prepare(typingctx, metric, constants, out):  # type: ignore[no-untyped-def]
    """Write scale, base, coded norm, residual, square of a tile as the metric needs them."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        metric, constants, out = args
        scale, square, coded, residual, inverse = (
            load(b, constants, _F16, 64 * line) for line in range(CONSTANTS)
        )
        zero = ir.Constant(_F16, None)
        is_l2 = b.icmp_signed("==", metric, ir.Constant(_I64, L2))
        is_cosine = b.icmp_signed("==", metric, ir.Constant(_I64, COSINE))
        factor = b.select(is_cosine, inverse, ir.Constant(_F16, [1.0] * TILE))
        without = b.fcmp_ordered("==", factor, zero)  # a zero vector: NaN, after everything
        infinite = ir.Constant(_F16, [float("inf")] * TILE)
        base = b.select(is_l2, square, b.select(without, infinite, zero))
        lines = (b.fmul(scale, factor), base, b.fmul(coded, factor), b.fmul(residual, factor),
                 b.select(is_l2, square, zero))  # fmt: skip
        for line, value in enumerate(lines):
            store(b, value, out, 64 * line)
        for number, value in enumerate(lines[2:]):
            largest = call(b, "llvm.vector.reduce.fmax.v16f32", _FLOAT, value)
            store(b, largest, out, 64 * CONSTANTS + 4 * number)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def _screen(typingctx, prepared, dots, numbers, pitch, limits, hits):  # type: ignore[no-untyped-def]
    """Mark what may pass among two tiles and 32 queries; returns how many queries are marked.

    The tiles' largest constants stand for those of each row, a little more for the rounding. Pairs
    of a query's number and its 32 bits, int64, go to ``hits``.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        prepared, dots, numbers, pitch, limits, hits = args
        number = lambda value: ir.Constant(_I64, value)  # noqa: E731
        tops = []
        for line in range(3):
            one, two = (
                load(b, prepared, _FLOAT, tile * _PREPARED + 64 * CONSTANTS + 4 * line)
                for tile in range(2)
            )
            tops.append(splat(b, b.select(b.fcmp_ordered(">", one, two), one, two)))
        lines = [b.add(numbers, b.mul(pitch, number(line))) for line in range(7)]
        for part in range(2):
            half = load(b, lines[4], _F16, 64 * part)
            for line, top in enumerate(tops):
                half = fma(b, load(b, lines[1 + line], _F16, 64 * part), top, half)
            limit = load(b, lines[5], _F16, 64 * part)
            size = b.fadd(call(b, "llvm.fabs.v16f32", _F16, limit), half)
            more = b.fmul(size, ir.Constant(_F16, [2.0**-20] * TILE))
            store(b, b.fadd(b.fadd(limit, half), more), limits, 64 * part)
        tiles = [[load(b, prepared, _F16, tile * _PREPARED + 64 * i) for i in range(2)]
                 for tile in range(2)]  # fmt: skip
        found = cgutils.alloca_once_value(b, number(0))
        with cgutils.for_range(b, number(GROUP // 4)) as loop:
            for step in range(4):
                query = b.add(b.shl(loop.index, number(2)), number(step))
                at = b.shl(query, number(2))
                of_dot = splat(b, load(b, b.add(lines[0], at), _FLOAT))
                correction = splat(b, load(b, b.add(lines[6], at), _I32))
                limit = splat(b, load(b, b.add(limits, at), _FLOAT))
                masks = []
                for tile, (scale, base) in enumerate(tiles):
                    dot = load(b, b.add(dots, b.shl(query, number(7))), _W16, 64 * tile)
                    value = b.sitofp(b.sub(dot, correction), _F16)
                    low = fma(b, b.fneg(of_dot), b.fmul(scale, value), base)
                    bits = b.bitcast(b.fcmp_unordered("<=", low, limit), _I16)
                    masks.append(b.zext(bits, _I64))
                marked = b.or_(masks[0], b.shl(masks[1], number(16)))
                count = b.load(found)
                place = b.add(hits, b.shl(count, number(4)))
                store(b, query, place)
                store(b, marked, place, 8)
                any_ = b.zext(b.icmp_unsigned("!=", marked, number(0)), _I64)
                b.store(b.add(count, any_), found)
        return b.load(found)

    return types.int64(*[types.int64] * 6), codegen


@intrinsic
def _passing(typingctx, prepared, dots, query, pitch, out):  # type: ignore[no-untyped-def]
    """Return a bit per row whose lower bound is within the query's limit.

    If any is, lower and upper bounds, float32 (2, 16), go to ``out``. The numbers lie ``pitch``
    bytes apart: factors of inner product, coded norm, residual and square, a constant, the limit,
    the correction.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        prepared, dots, query, pitch, out = args
        scale, base, coded, residual, square = (
            load(b, prepared, _F16, 64 * line) for line in range(CONSTANTS)
        )
        of_dot, of_coded, of_residual, of_square, always, limit = (
            splat(b, load(b, b.add(query, b.mul(pitch, ir.Constant(_I64, i))), _FLOAT))
            for i in range(6)
        )
        sixth = b.add(query, b.mul(pitch, ir.Constant(_I64, 6)))
        correction = splat(b, load(b, sixth, _I32))
        dot = b.sitofp(b.sub(load(b, dots, _W16), correction), _F16)
        middle = b.fsub(base, b.fmul(of_dot, b.fmul(scale, dot)))
        half = fma(b, of_square, square, always)
        half = fma(b, of_residual, residual, half)
        half = fma(b, of_coded, coded, half)
        low = b.fsub(middle, half)
        bits = b.bitcast(b.fcmp_unordered("<=", low, limit), _I16)
        with b.if_then(b.icmp_unsigned("!=", bits, ir.Constant(_I16, 0)), likely=False):
            store(b, low, out)
            store(b, b.fadd(middle, half), out, 64)
        return b.zext(bits, _I64)

    return types.int64(*[types.int64] * 5), codegen


@njit(nogil=True)
def _offer(heap, size, k, value):  # type: ignore[no-untyped-def]
    """Offer an upper bound to the max-heap of the k smallest; returns the heap's size."""
    if size < k:
        at = size
        while at > 0:
            parent = (at - 1) // 2
            above = read_real(heap, parent)
            if value <= above:
                break
            put_real(heap, at, above)
            at = parent
        put_real(heap, at, value)
        return size + 1
    if value < read_real(heap, 0):
        at = 0
        while True:
            child = 2 * at + 1
            if child >= k:
                break
            top = read_real(heap, child)
            if child + 1 < k and read_real(heap, child + 1) > top:
                child += 1
                top = read_real(heap, child)
            if value >= top:
                break
            put_real(heap, at, top)
            at = child
        put_real(heap, at, value)
    return size


@njit(nogil=True)
def _kept(places, lows, count, limit):  # type: ignore[no-untyped-def]
    """Drop candidates whose lower bound is beyond the limit; returns how many stay."""
    stay = 0
    for i in range(count):
        low = read_real(lows, i)
        if not low > limit:
            put_long(places, stay, read_long(places, i))
            put_real(lows, stay, low)
            stay += 1
    return stay


@njit(nogil=True)
def _keep(bits, bounds, row, block, limit_at, k, heap, places, lows, cap, state):  # type: ignore[no-untyped-def]
    """Take the marked rows of a tile among a query's candidates and lower its limit."""
    rows, live, first = read_long(block, 2), read_long(block, 3), read_long(block, 4)
    size, count = read_long(state, 0), read_long(state, 1)
    limit = read_real(limit_at, 0)
    for lane in range(TILE):
        at = row + lane
        if not bits >> lane & 1 or at >= rows or count < 0:
            continue
        if live != 0 and read_byte(live, at) == 0:
            continue
        low = read_real(bounds, lane)
        if low > limit:
            continue
        if count == cap:
            count = _kept(places, lows, count, limit)
            if count > cap - cap // 4:  # too few dropped: it would not end
                count = -1
                put_real(limit_at, 0, -3.0e38)
                continue
        put_long(places, count, first + at)
        put_real(lows, count, low)
        count += 1
        size = _offer(heap, size, k, read_real(bounds, TILE + lane))
        if size == k:
            limit = read_real(heap, 0)
            put_real(limit_at, 0, limit)
    put_long(state, 0, size)
    put_long(state, 1, count)


@njit(nogil=True)
def _finish(limits, count, places, lows, cap, state):  # type: ignore[no-untyped-def]
    """Drop the candidates that the last limits leave out."""
    for q in range(count):
        size = read_long(state, 2 * q + 1)
        if size > 0:
            size = _kept(places + 8 * cap * q, lows + 4 * cap * q, size, read_real(limits, q))
            put_long(state, 2 * q + 1, size)


def make_sieve(variant: str) -> Any:
    """Return the (not yet compiled) sieve for a set of instructions.

    Parameters of the sieve, all int64
    ----------------------------------
    table, blocks : address of (blocks, 5) int64: codes, constants, rows, live mask (0: all),
        first position; number of blocks
    queries, count, padded : address of int8 codes, (count, padded); the padding is zero
    numbers : address of (8, count) float32 and int32, see :func:`_passing`; limits come back
    k : rows wanted; heaps : address of (count, k) float32
    metric : L2, IP or COSINE
    places, lows, cap : candidates of a query: (count, cap) int64 positions in order, float32
        lower bounds
    state : address of (count, 2) int64, zeros: size of the heap, number of candidates; -1 of
        them: more than ``cap``
    scratch : SCRATCH bytes of memory

    ``amx`` takes a multiple of 32 queries, 16 side by side: (count / 16, padded / 64, 16, 64), at
    an address that 64 divides. Returns the number of tiles seen.
    """
    return _by_tile_registers() if variant == AMX else _by_vectors(variant)


def _by_vectors(variant: str) -> Any:
    code, several = _VARIANTS.index(variant), SEVERAL[variant]

    @njit(nogil=True)
    def sieve(  # type: ignore[no-untyped-def]
        table, blocks, queries, count, padded, numbers, k, heaps, metric, places, lows, cap, state,
        scratch,
    ):  # fmt: skip
        bounds, dots, pitch = scratch + _BOUNDS, scratch + _DOTS, 4 * count
        seen = 0
        for number in range(blocks):
            block = table + 40 * number
            tiles = (read_long(block, 2) + TILE - 1) // TILE
            line, constants = read_long(block, 0), read_long(block, 1)
            for tile in range(tiles):
                _prepare(metric, constants, scratch)
                done = 0
                while done < count:
                    taken = several if count - done >= several else 1
                    if taken == 1:
                        _dots(code, 1, line, queries + done * padded, padded, dots)
                    else:
                        _dots(code, several, line, queries + done * padded, padded, dots)
                    for q in range(done, done + taken):
                        bits = _passing(scratch, dots + 64 * (q - done), numbers + 4 * q, pitch,
                                        bounds)  # fmt: skip
                        if bits:
                            _keep(bits, bounds, tile * TILE, block, numbers + 5 * pitch + 4 * q, k,
                                  heaps + 4 * k * q, places + 8 * cap * q, lows + 4 * cap * q,
                                  cap, state + 16 * q)  # fmt: skip
                    done += taken
                line += padded * TILE
                constants += 4 * CONSTANTS * TILE
            seen += tiles
        _finish(numbers + 5 * pitch, count, places, lows, cap, state)
        return seen

    return sieve


def _by_tile_registers() -> Any:
    @njit(nogil=True)
    def sieve(  # type: ignore[no-untyped-def]
        table, blocks, queries, count, padded, numbers, k, heaps, metric, places, lows, cap, state,
        scratch,
    ):  # fmt: skip
        bounds, dots, pitch = scratch + _BOUNDS, scratch + _DOTS, 4 * count
        hits, size = scratch + _HITS, 4 * CONSTANTS * TILE
        part = (2 * padded * TILE * GROUP // count + 63) // 64 * 64
        seen = 0
        _open_tiles(scratch + _SHAPES)
        for number in range(blocks):
            block = table + 40 * number
            tiles = (read_long(block, 2) + TILE - 1) // TILE
            codes, constants = read_long(block, 0), read_long(block, 1)
            for tile in range(0, tiles, 2):
                here = min(2, tiles - tile)  # the last tile may stand for its neighbour too
                first = codes + tile * padded * TILE
                second = first + (here - 1) * padded * TILE
                _prepare(metric, constants + tile * size, scratch)
                _prepare(metric, constants + (tile + here - 1) * size, scratch + _PREPARED)
                for done in range(0, count, GROUP):
                    # what comes next, a part at a time: tile loads alone do not reach ahead
                    ahead = second + padded * TILE + done // GROUP * part
                    for offset in range(0, part, 64):
                        prefetch(ahead + offset)
                    _square(first, second, queries + done * padded, padded, dots)
                    marked = _screen(scratch, dots, numbers + 4 * done, pitch, scratch + _LIMITS,
                                     hits)  # fmt: skip
                    for hit in range(marked):
                        at, mask = read_long(hits, 2 * hit), read_long(hits, 2 * hit + 1)
                        q = done + at
                        for j in range(here):
                            if not mask >> 16 * j & 65535:
                                continue
                            bits = _passing(scratch + _PREPARED * j, dots + 128 * at + 64 * j,
                                            numbers + 4 * q, pitch, bounds)  # fmt: skip
                            if bits:
                                _keep(bits, bounds, (tile + j) * TILE, block,
                                      numbers + 5 * pitch + 4 * q, k, heaps + 4 * k * q,
                                      places + 8 * cap * q, lows + 4 * cap * q, cap,
                                      state + 16 * q)  # fmt: skip
            seen += tiles
        _close_tiles()
        _finish(numbers + 5 * pitch, count, places, lows, cap, state)
        return seen

    return sieve
