"""Scans of quantised rows: sign bits against bit planes, and sums of 4-bit table look-ups.

Rows lie in tiles, so that one register serves 8 (bits) or 64 (nibbles) of them. Integer sums are
exact and the few float steps after them are neither fused nor reordered, so every level gives the
bits that ``kernels/quantized.py`` defines in NumPy. All arguments are addresses and counts.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load, splat, store

TILE = 16  # rows of a tile of sign bits, as in kernels/quantized.py; a test compares them
PLANES = 4  # bits of a query's element
FACTORS = 4  # float32 lines behind a tile's bits: base, slope, error, set bits
NUMBERS = 6  # float32 of a query
BLOCK = 64  # rows of a tile of nibbles
RABITQ_SIGNATURE = types.int64(*[types.int64] * 8)
FASTSCAN_SIGNATURE = types.int64(*[types.int64] * 6)

_FLOAT = ir.FloatType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16 = ir.VectorType(_FLOAT, TILE)


def _joined(b: Any, parts: list[Any]) -> Any:
    """Emit one vector of several of equal length."""
    while len(parts) > 1:
        lanes = parts[0].type.count
        order = ir.Constant(ir.VectorType(_I32, 2 * lanes), list(range(2 * lanes)))
        parts = [b.shuffle_vector(parts[i], parts[i + 1], order) for i in range(0, len(parts), 2)]
    return parts[0]


def _weighted_bits(b: Any, lanes: int, tile: Any, words: Any, planes: Any) -> Any:
    """Emit sums over planes j of 2^j times the bits common to row and plane, int32 (16,)."""
    whole = ir.VectorType(_I64, lanes)
    parts = []
    for first in range(0, TILE // lanes, 2):
        sums = [
            [cgutils.alloca_once_value(b, ir.Constant(whole, None)) for _ in range(PLANES)]
            for _ in range(2)
        ]
        with cgutils.for_range(b, words) as loop:
            line = b.add(tile, b.mul(loop.index, ir.Constant(_I64, 8 * TILE)))
            codes = [load(b, line, whole, 8 * lanes * (first + part)) for part in range(2)]
            for j in range(PLANES):
                place = b.add(b.mul(words, ir.Constant(_I64, j)), loop.index)
                word = splat(b, load(b, b.add(planes, b.shl(place, ir.Constant(_I64, 3))), _I64),
                             lanes)  # fmt: skip
                for part, code in enumerate(codes):
                    ones = call(b, f"llvm.ctpop.v{lanes}i64", whole, b.and_(code, word))
                    b.store(b.add(b.load(sums[part][j]), ones), sums[part][j])
        for part in range(2):
            total = b.load(sums[part][0])
            for j in range(1, PLANES):
                shift = ir.Constant(whole, [j] * lanes)
                total = b.add(total, b.shl(b.load(sums[part][j]), shift))
            parts.append(b.trunc(total, ir.VectorType(_I32, lanes)))
    return _joined(b, parts)


@intrinsic(prefer_literal=True)
def _estimate(typingctx, lanes, tile, words, planes, numbers, estimates, lows):  # type: ignore[no-untyped-def]
    """Write estimates and lower bounds of one tile and one query, float32 (16,) each."""
    width = lanes.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, tile, words, planes, numbers, estimates, lows = args
        common = b.sitofp(_weighted_bits(b, width, tile, words, planes), _F16)
        constants = b.add(tile, b.mul(words, ir.Constant(_I64, 8 * TILE)))
        base, slope, error, ones = (load(b, constants, _F16, 64 * i) for i in range(FACTORS))
        offset, of_common, of_ones, always, of_error, of_slope = (
            splat(b, load(b, numbers, _FLOAT, 4 * i)) for i in range(NUMBERS)
        )
        product = b.fadd(b.fadd(b.fmul(of_common, common), b.fmul(of_ones, ones)), always)
        estimate = b.fadd(b.fadd(base, offset), b.fmul(slope, product))
        size = call(b, "llvm.fabs.v16f32", _F16, slope)
        half = b.fadd(b.fmul(of_error, error), b.fmul(of_slope, size))
        store(b, estimate, estimates)
        store(b, b.fsub(estimate, half), lows)
        return context.get_dummy_value()

    return types.void(lanes, *[types.int64] * 6), codegen


def make_rabitq(level: str) -> Any:
    """Return the (not yet compiled) scan of sign bits for an instruction set level.

    Parameters of the scan, all int64
    ---------------------------------
    tiles, count, words : address of the tiles, each uint64 (words, 16) and float32 (4, 16);
        their number; 64-bit words of a row
    planes, numbers, queries : address of uint64 (queries, 4, words) and float32 (queries, 6);
        number of queries
    estimates, lows : address of float32 (queries, 16 * count) each
    """
    lanes = 8 if level == "avx512" else 4

    @njit(nogil=True)
    def rabitq(tiles, count, words, planes, numbers, queries, estimates, lows):  # type: ignore[no-untyped-def]
        size, pitch = 128 * words + 256, 64 * count
        for tile in range(count):
            for query in range(queries):
                place = query * pitch + 64 * tile
                _estimate(lanes, tiles + tile * size, words, planes + 32 * words * query,
                          numbers + 24 * query, estimates + place, lows + place)  # fmt: skip
        return count

    return rabitq


@intrinsic(prefer_literal=True)
def _table_sums(typingctx, lanes, tile, pairs, tables, out):  # type: ignore[no-untyped-def]
    """Write sums of table entries of 64 rows, uint16; a sum over 65,535 would wrap."""
    width = lanes.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, tile, pairs, tables, out = args
        for part in range(BLOCK // width):
            _sum_part(b, width, [tile, pairs, tables, out], part)
        return context.get_dummy_value()

    return types.void(lanes, *[types.int64] * 4), codegen


def _sum_part(b: Any, width: int, args: list[Any], part: int) -> None:
    tile, pairs, tables, out = args
    bytes_, halves = ir.VectorType(_I8, width), ir.VectorType(_I16, width // 2)
    name = "llvm.x86.avx512.pshuf.b.512" if width == 64 else "llvm.x86.avx2.pshuf.b"
    sums = [cgutils.alloca_once_value(b, ir.Constant(halves, None)) for _ in range(2)]
    low = ir.Constant(bytes_, [15] * width)
    eight, even = ir.Constant(halves, [8] * (width // 2)), ir.Constant(halves, [255] * (width // 2))
    repeat = ir.Constant(ir.VectorType(_I32, width), [i % 16 for i in range(width)])
    with cgutils.for_range(b, pairs) as loop:
        codes = load(b, b.add(tile, b.shl(loop.index, ir.Constant(_I64, 6))), bytes_, width * part)
        words = b.lshr(b.bitcast(codes, halves), ir.Constant(halves, [4] * (width // 2)))
        nibbles = (b.and_(codes, low), b.and_(b.bitcast(words, bytes_), low))
        for j, index in enumerate(nibbles):
            place = b.add(tables, b.shl(loop.index, ir.Constant(_I64, 5)))
            table = load(b, place, ir.VectorType(_I8, 16), 16 * j)
            table = b.shuffle_vector(table, ir.Constant(table.type, ir.Undefined), repeat)
            found = b.bitcast(call(b, name, bytes_, table, index), halves)
            b.store(b.add(b.load(sums[0]), b.and_(found, even)), sums[0])
            b.store(b.add(b.load(sums[1]), b.lshr(found, eight)), sums[1])
    order = [i // 2 + (i % 2) * (width // 2) for i in range(width)]
    both = b.shuffle_vector(
        b.load(sums[0]), b.load(sums[1]), ir.Constant(ir.VectorType(_I32, width), order)
    )
    store(b, both, out, 2 * width * part)


def make_fastscan(level: str) -> Any:
    """Return the (not yet compiled) scan of 4-bit codes for an instruction set level.

    The layout follows Andre, Kermarrec and Le Scouarnec (2015), tables in registers.

    Parameters of the scan, all int64
    ---------------------------------
    tiles, count, pairs : address of the tiles, uint8 (pairs, 64), the even sub-vector's code in
        the low bits; their number; pairs of sub-vectors
    tables, queries : address of uint8 (queries, 2 * pairs, 16); number of queries
    out : address of uint16 (queries, 64 * count), sums modulo 65,536
    """
    lanes = 64 if level == "avx512" else 32

    @njit(nogil=True)
    def fastscan(tiles, count, pairs, tables, queries, out):  # type: ignore[no-untyped-def]
        for tile in range(count):
            for query in range(queries):
                _table_sums(lanes, tiles + 64 * pairs * tile, pairs, tables + 32 * pairs * query,
                            out + 128 * (query * count + tile))  # fmt: skip
        return count

    return fastscan
