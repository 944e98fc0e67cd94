"""Sign bits of rotated rows: keys of 16 rows in registers, and a query in small whole numbers.

RaBitQ (Gao & Long 2024) wants the sum of a rotated query's elements, cut to six bits, where a
row's bits are set. The bits lie in tiles of 16 rows, 32 of a row beside those of the next. The sum
is made of bit planes of the query, or, where bytes of a register can be looked up, four bits at a
time; all are exact. The rotation is one of few additions. Arguments are addresses and
counts. Knows no list and no index.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import emit_prefetch, put_real, read_byte, read_real
from tarsdb.kernels.cpu.tiles import emit_vnni

PLANES = 6
"""Bits of a rotated query's element."""
BLOCK, ROUNDS = 64, 3
"""Elements that a Hadamard matrix mixes, and how often; between, blocks are dealt out anew."""
_PARTS = range(0, 4 * BLOCK, 64)

_FLOAT = ir.FloatType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _W16, _B64 = (ir.VectorType(kind, n) for kind, n in ((_FLOAT, 16), (_I32, 16), (_I8, 64)))
_B16, _B32, _H16, _W8, _L4 = (
    ir.VectorType(kind, n) for kind, n in ((_I8, 16), (_I8, 32), (_I16, 16), (_I32, 8), (_I64, 4))
)
PLANES_OF_QUERY, TABLES, WIDE_TABLES, SINGLE_BYTES = range(4)
"""Ways to sums: by bit planes, by tables of 16 bytes in 256-bit registers, of 64 in one of 512, of
16 in memory."""
_CHUNK = 128
_ORDER = [*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]
_BY_PLACE = [[16 * lane + 4 * row + at for row in range(4)] for lane in (0, 1) for at in range(4)]


def tables_way_of(variant: str) -> int:
    """Return the fastest way to sums of entries of any tables."""
    way = way_of(variant)
    return SINGLE_BYTES if way == PLANES_OF_QUERY else way


def way_of(variant: str) -> int:
    """Return the fastest way to sums that a variant of kernels has on this processor."""
    if variant == "vnni" and llvm.get_host_cpu_features().get("avx512vbmi"):
        return WIDE_TABLES
    return PLANES_OF_QUERY if variant == "plain" else TABLES


@intrinsic(prefer_literal=True)
def bit_passing(  # type: ignore[no-untyped-def]
    typingctx, way, tile, constants, query, lines, numbers, limit, keys, ahead
):
    """Write the keys of 16 rows of sign bits; return a bit for each that is at most ``limit``.

    ``query`` is :func:`tabulate`'s or other such tables, by bit planes :func:`cut`'s. ``numbers``
    float32 (4,): step and least element of the rotated query, minus half the sum of its elements,
    and the key of the rows' centroid. What lies ``ahead`` bytes behind the tile is asked for.
    """
    common_bits = (_by_planes, _by_tables, _by_wide_tables, _by_single_bytes)[way.literal_value]

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, tile, constants, query, lines, numbers, limit, keys, ahead = args
        common = b.sitofp(common_bits(b, tile, query, lines, ahead), _F16)
        base, slope, ones = (load(b, constants, _F16, 64 * line) for line in range(3))
        step, low, always, of_list = (splat(b, load(b, numbers, _FLOAT, 4 * at)) for at in range(4))
        product = b.fadd(b.fadd(b.fmul(step, common), b.fmul(low, ones)), always)
        found = b.fadd(b.fadd(base, of_list), b.fmul(slope, product))
        store(b, found, keys)
        bits = b.bitcast(b.fcmp_ordered("<=", found, splat(b, limit)), _I16)
        return b.zext(bits, _I64)

    kinds = [*[types.int64] * 5, types.float32, *[types.int64] * 2]
    return types.int64(way, *kinds), codegen


def _by_planes(b: Any, tile: Any, planes: Any, lines: Any, ahead: Any) -> Any:
    """Emit sums over planes j of 2^j times the bits common to row and plane, for 16 rows."""
    zero = ir.Constant(_W16, None)
    sums = [cgutils.alloca_once_value(b, zero) for _ in range(PLANES)]
    for each in sums:
        b.store(zero, each)
    with cgutils.for_range(b, lines) as loop:
        line = b.add(tile, b.shl(loop.index, ir.Constant(_I64, 6)))
        emit_prefetch(b, b.add(line, ahead))
        codes = load(b, line, _W16)
        at = b.add(planes, b.mul(loop.index, ir.Constant(_I64, 4 * PLANES)))
        for j, each in enumerate(sums):
            common = b.and_(codes, splat(b, load(b, at, _I32, 4 * j)))
            b.store(b.add(b.load(each), call(b, "llvm.ctpop.v16i32", _W16, common)), each)
    total = b.load(sums[0])
    for j, each in enumerate(sums[1:], 1):
        total = b.add(total, b.shl(b.load(each), ir.Constant(_W16, [j] * 16)))
    return total


def _by_tables(b: Any, tile: Any, tables: Any, lines: Any, ahead: Any) -> Any:
    """Emit the same sums, four bits at a time looked up, as Andre et al. 2015 do in registers.

    Two bytes of each row are looked up at once, each in its half of a register. Sums of 16 bits
    hold those of two rows: the later one's, in the upper half, are summed apart and taken away.
    """
    whole = cgutils.alloca_once_value(b, ir.Constant(_W16, None))
    b.store(ir.Constant(_W16, None), whole)
    pairs = [cgutils.alloca_once_value(b, ir.Constant(_H16, None)) for _ in range(2)]
    later = [cgutils.alloca_once_value(b, ir.Constant(_H16, None)) for _ in range(2)]
    eight = ir.Constant(_H16, [8] * 16)
    chunks = b.lshr(b.add(lines, ir.Constant(_I64, _CHUNK - 1)), ir.Constant(_I64, 7))
    with cgutils.for_range(b, chunks) as chunk:  # of as many lines as 16 bits have room for
        for each in (*pairs, *later):
            b.store(ir.Constant(_H16, None), each)
        first = b.shl(chunk.index, ir.Constant(_I64, 7))
        left, most = b.sub(lines, first), ir.Constant(_I64, _CHUNK)
        taken = b.select(b.icmp_signed("<", left, most), left, most)
        with cgutils.for_range(b, taken) as loop:
            at = b.add(first, loop.index)
            line = b.add(tile, b.shl(at, ir.Constant(_I64, 6)))
            emit_prefetch(b, b.add(line, ahead))
            table = b.add(tables, b.shl(at, ir.Constant(_I64, 7)))
            for half, codes in enumerate(_two_bytes_of_each(b, line)):
                for upper, places in enumerate(_nibbles(b, codes)):
                    entries = load(b, table, _B32, 64 * upper + 32 * half)
                    found = call(b, "llvm.x86.avx2.pshuf.b", _B32, entries, places)
                    found = b.bitcast(found, _H16)
                    b.store(b.add(b.load(pairs[half]), found), pairs[half])
                    b.store(b.add(b.load(later[half]), b.lshr(found, eight)), later[half])
        total = b.load(whole)
        for pair, odd in zip(map(b.load, pairs), map(b.load, later), strict=True):
            total = b.add(total, _by_row(b, b.sub(pair, b.shl(odd, eight)), odd))
        b.store(total, whole)
    return b.load(whole)


def _two_bytes_of_each(b: Any, line: Any) -> list[Any]:
    """Emit a line's bytes 0 and 1 of each of 16 rows, then 2 and 3, the rows as in ``_ORDER``."""
    order = ir.Constant(ir.VectorType(_I32, 32), [at for four in _BY_PLACE for at in four])
    rows = [load(b, line, _B32, at) for at in (0, 32)]
    low, high = (b.bitcast(b.shuffle_vector(part, part, order), _W8) for part in rows)
    found = []
    for places in ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]):
        four = b.bitcast(b.shuffle_vector(low, high, ir.Constant(_W8, places)), _L4)
        apart = b.shuffle_vector(four, four, ir.Constant(ir.VectorType(_I32, 4), [0, 2, 1, 3]))
        found.append(b.bitcast(apart, _B32))
    return found


def _nibbles(b: Any, codes: Any) -> tuple[Any, Any]:
    low, words = ir.Constant(_B32, [15] * 32), b.bitcast(codes, _H16)
    upper = b.bitcast(b.lshr(words, ir.Constant(_H16, [4] * 16)), _B32)
    return b.and_(codes, low), b.and_(upper, low)


def _by_row(b: Any, even: Any, odd: Any) -> Any:
    """Emit the sums of both bytes, 32 bits each, of what ``_by_tables`` has of every second row."""
    parts = []
    for sums in (even, odd):
        ends = (
            b.shuffle_vector(sums, sums, ir.Constant(_W8, list(range(at, at + 8)))) for at in (0, 8)
        )
        first, second = (b.zext(end, _W8) for end in ends)
        parts.append(b.add(first, second))
    places = [8 * (_ORDER.index(row) % 2) + _ORDER.index(row) // 2 for row in range(16)]
    return b.shuffle_vector(*parts, ir.Constant(_W16, places))


def _by_wide_tables(b: Any, tile: Any, tables: Any, lines: Any, ahead: Any) -> Any:
    """Emit the same, four bytes of each row looked up at once in a register of 64 entries."""
    zero, ones = ir.Constant(_W16, None), ir.Constant(_I32, 0x01010101)
    groups = ir.Constant(_B64, [16 * (at & 3) for at in range(64)])
    low = ir.Constant(_B64, [15] * 64)
    sums = [cgutils.alloca_once_value(b, zero) for _ in range(4)]
    for each in sums:
        b.store(zero, each)
    with cgutils.for_range(b, b.lshr(lines, ir.Constant(_I64, 1))) as loop:
        line = b.add(tile, b.shl(loop.index, ir.Constant(_I64, 7)))
        table = b.add(tables, b.shl(loop.index, ir.Constant(_I64, 8)))
        for step in range(4):
            codes = load(b, line, _W16, 64 * (step // 2))
            if step % 2:
                codes = b.lshr(codes, ir.Constant(_W16, [4] * 16))
            else:
                emit_prefetch(b, b.add(line, b.add(ahead, ir.Constant(_I64, 32 * step))))
            places = b.or_(b.and_(b.bitcast(codes, _B64), low), groups)
            entries = load(b, table, _B64, 64 * step)
            looked_up = call(b, "llvm.x86.avx512.permvar.qi.512", _B64, entries, places)
            b.store(emit_vnni(b, b.load(sums[step]), looked_up, ones), sums[step])
    first, second = (b.add(b.load(sums[i]), b.load(sums[i + 1])) for i in (0, 2))
    return b.add(first, second)


def _by_single_bytes(b: Any, tile: Any, tables: Any, lines: Any, ahead: Any) -> Any:
    """Emit the same, a byte looked up at a time."""
    total = cgutils.alloca_once_value(b, ir.Constant(_W16, None))
    b.store(ir.Constant(_W16, None), total)
    low = ir.Constant(_W16, [15] * 16)
    with cgutils.for_range(b, lines) as loop:
        codes = load(b, b.add(tile, b.shl(loop.index, ir.Constant(_I64, 6))), _W16)
        table = b.add(tables, b.shl(loop.index, ir.Constant(_I64, 7)))
        for four in range(8):
            places = b.and_(b.lshr(codes, ir.Constant(_W16, [4 * four] * 16)), low)
            entries = b.add(table, ir.Constant(_I64, 64 * (four % 2) + 16 * (four // 2)))
            found = ir.Constant(_W16, None)
            for row in range(16):
                lane = ir.Constant(_I32, row)
                place = b.zext(b.extract_element(places, lane), _I64)
                byte = load(b, b.add(entries, place), _I8)
                found = b.insert_element(found, b.zext(byte, _I32), lane)
            b.store(b.add(b.load(total), found), total)
    return b.load(total)


# --- a rotated query in small numbers --------------------------------------------------------


@intrinsic
def mix(typingctx, row, signs, out):  # type: ignore[no-untyped-def]
    """Write 64 floats times their signs, times the Hadamard matrix of order 64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, signs, out = args
        parts = [b.fmul(load(b, row, _F16, at), load(b, signs, _F16, at)) for at in _PARTS]
        for bit in (1, 2):
            parts = [
                b.fsub(parts[p ^ bit], part) if p & bit else b.fadd(part, parts[p ^ bit])
                for p, part in enumerate(parts)
            ]
        for bit in (1, 2, 4, 8):
            order = ir.Constant(_W16, [i ^ bit for i in range(16)])
            minus = ir.Constant(_F16, [-1.0 if i & bit else 1.0 for i in range(16)])
            parts = [
                b.fadd(b.shuffle_vector(part, part, order), b.fmul(part, minus)) for part in parts
            ]
        for part, at in zip(parts, _PARTS, strict=True):
            store(b, part, out, at)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def spread(typingctx, row, width, out):  # type: ignore[no-untyped-def]
    """Write smallest and largest of every 16th element, float32 (2, 16); 16 divides ``width``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, width, out = args
        first = load(b, row, _F16)
        ends = [cgutils.alloca_once_value(b, first) for _ in range(2)]
        for each in ends:
            b.store(first, each)
        with cgutils.for_range(b, b.lshr(width, ir.Constant(_I64, 4))) as loop:
            values = load(b, b.add(row, b.shl(loop.index, ir.Constant(_I64, 6))), _F16)
            for sign, each in zip("<>", ends, strict=True):
                known = b.load(each)
                b.store(b.select(b.fcmp_ordered(sign, values, known), values, known), each)
        for at, each in enumerate(ends):
            store(b, b.load(each), out, 64 * at)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def levels(typingctx, row, width, low, inverse, out):  # type: ignore[no-untyped-def]
    """Write the nearest of 0..63 to each (element - low) * inverse, bytes; 16 divides ``width``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, width, low, inverse, out = args
        least, most = (ir.Constant(_F16, [value] * 16) for value in (0.5, 2.0**PLANES - 0.5))
        with cgutils.for_range(b, b.lshr(width, ir.Constant(_I64, 4))) as loop:
            values = load(b, b.add(row, b.shl(loop.index, ir.Constant(_I64, 6))), _F16)
            values = b.fmul(b.fsub(values, splat(b, low)), splat(b, inverse))
            values = b.fadd(values, least)  # what is no number becomes 0 below
            values = b.select(b.fcmp_ordered(">", values, least), values, least)
            values = b.select(b.fcmp_ordered("<", values, most), values, most)
            numbers = b.trunc(b.fptosi(values, _W16), _B16)
            store(b, numbers, b.add(out, b.shl(loop.index, ir.Constant(_I64, 4))))
        return context.get_dummy_value()

    kinds = [types.int64, types.int64, types.float32, types.float32, types.int64]
    return types.void(*kinds), codegen


@intrinsic
def cut(typingctx, numbers, lines, planes):  # type: ignore[no-untyped-def]
    """Cut bytes (lines, 32) into bit planes, uint32 (lines, PLANES)."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        numbers, lines, planes = args
        whole = ir.VectorType(_I8, 32)
        with cgutils.for_range(b, lines) as loop:
            given = load(b, b.add(numbers, b.shl(loop.index, ir.Constant(_I64, 5))), whole)
            out = b.add(planes, b.mul(loop.index, ir.Constant(_I64, 4 * PLANES)))
            for j in range(PLANES):
                plane = b.and_(given, ir.Constant(whole, [1 << j] * 32))
                bits = b.icmp_unsigned("!=", plane, ir.Constant(whole, None))
                store(b, b.bitcast(bits, _I32), out, 4 * j)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def tabulate(typingctx, numbers, lines, tables):  # type: ignore[no-untyped-def]
    """Write the sums of all subsets of each four of bytes (lines, 32), bytes (lines, 2, 4, 16).

    Of byte i of a line's four bytes the lower four bits are at (0, i), the upper at (1, i).
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        numbers, lines, tables = args
        subsets = [
            ir.Constant(_B16, [255 if at >> j & 1 else 0 for at in range(16)]) for j in range(4)
        ]
        with cgutils.for_range(b, lines) as loop:
            line = b.add(numbers, b.shl(loop.index, ir.Constant(_I64, 5)))
            table = b.add(tables, b.shl(loop.index, ir.Constant(_I64, 7)))
            for four in range(8):
                total = ir.Constant(_B16, None)
                for j, subset in enumerate(subsets):
                    number = splat(b, load(b, line, _I8, 4 * four + j))
                    total = b.add(total, b.and_(number, subset))
                store(b, total, table, 64 * (four % 2) + 16 * (four // 2))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@linked
def rotate(row, signs, padded, scratch):  # type: ignore[no-untyped-def]
    """Rotate float32 (padded,) in place; ``signs`` are float32 (ROUNDS, padded).

    Random signs and Hadamard matrices in turn mix nearly as a random rotation does (Ailon &
    Chazelle 2009; Andoni et al. 2015 for three rounds).
    """
    blocks = padded // BLOCK
    for turn in range(ROUNDS):
        for block in range(blocks):
            at = 4 * BLOCK * block
            mix(row + at, signs + 4 * padded * turn + at, scratch + at)
        for at in range(BLOCK):
            for block in range(blocks):
                put_real(row, at * blocks + block, read_real(scratch, BLOCK * block + at))


@linked
def number(turned, padded, out, numbers, scratch):  # type: ignore[no-untyped-def]
    """Cut a rotated query to whole numbers, bytes (padded,); write what keys want of it."""
    spread(turned, padded, scratch)
    low, high = read_real(scratch, 0), read_real(scratch, 16)
    for at in range(1, 16):
        low, high = min(low, read_real(scratch, at)), max(high, read_real(scratch, 16 + at))
    step = (high - low) / np.float32((1 << PLANES) - 1)
    levels(turned, padded, low, np.float32(1) / step if step > 0 else np.float32(0), out)
    total = np.int64(0)
    for at in range(padded):
        total += read_byte(out, at)
    put_real(numbers, 0, step)
    put_real(numbers, 1, low)
    put_real(numbers, 2, np.float32(-0.5) * (np.float32(padded) * low + step * np.float32(total)))
