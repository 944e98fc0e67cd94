"""Tiles of 16 rows: inner products with a query, and the keys of the rows, in registers.

Codes lie in tiles of 16 rows, four bytes (or one float) of a row beside those of the next, so that
one register adds to the inner products of 16 rows. Rows of a tile have two constants: squared norm
and scale. Float steps are the same on every level, so all levels give the same answers. Arguments
are addresses and counts. Knows no list and no index.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import call, load, splat, store
from tarsdb.kernels.cpu.memory import emit_prefetch

_FLOAT = ir.FloatType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _W16, _B64 = (ir.VectorType(kind, n) for kind, n in ((_FLOAT, 16), (_I32, 16), (_I8, 64)))
_W8, _H16, _B16 = ir.VectorType(_I32, 8), ir.VectorType(_I16, 16), ir.VectorType(_I8, 16)


# --- inner products of one tile --------------------------------------------------------------


def emit_vnni(b: Any, sums: Any, codes: Any, word: Any) -> Any:
    """Emit sums of 16 rows and the products of four unsigned codes of each with a word's bytes."""
    query = b.bitcast(splat(b, word), _B64)
    if llvm.llvm_version_info[0] < 22:
        codes, query = b.bitcast(codes, _W16), b.bitcast(query, _W16)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", _W16, sums, codes, query)


def _avx2(b: Any, sums: Any, codes: Any, word: Any) -> Any:
    """Add for four rows, two sums each."""
    query = b.sext(b.bitcast(splat(b, word, 4), _B16), _H16)
    return b.add(sums, call(b, "llvm.x86.avx2.pmadd.wd", _W8, b.zext(codes, _H16), query))


def _pairs(b: Any, one: Any, two: Any) -> Any:
    """Add neighbours of two registers."""
    halves = [
        b.shuffle_vector(one, two, ir.Constant(_W8, [2 * i + odd for i in range(8)]))
        for odd in range(2)
    ]
    return b.add(*halves)


@intrinsic(prefer_literal=True)
def tile_dots(typingctx, variant, several, tile, queries, padded, out, ahead):  # type: ignore[no-untyped-def]
    """Inner products of a tile and some queries, int32 (queries, 16), to ``out``.

    For one query, what lies ``ahead`` bytes behind the tile is asked for.
    """
    wide = variant.literal_value == 0
    count = several.literal_value
    parts, sums_type, codes_type = (1, _W16, _B64) if wide else (4, _W8, _B16)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, _, tile, queries, padded, out, ahead = args
        chains = 4 if wide and count == 1 else 1
        zero = ir.Constant(sums_type, None)
        sums = [
            [[cgutils.alloca_once_value(b, zero) for _ in range(chains)] for _ in range(parts)]
            for _ in range(count)
        ]
        rows = [b.add(queries, b.mul(padded, ir.Constant(_I64, j))) for j in range(count)]
        for each in (s for query in sums for part in query for s in part):
            b.store(zero, each)
        with cgutils.for_range(b, b.lshr(padded, ir.Constant(_I64, 4))) as loop:
            line = b.add(tile, b.shl(loop.index, ir.Constant(_I64, 8)))
            at = b.shl(loop.index, ir.Constant(_I64, 4))
            for step in range(4):
                if count == 1:
                    emit_prefetch(b, b.add(line, b.add(ahead, ir.Constant(_I64, 64 * step))))
                codes = [load(b, line, codes_type, 64 * step + 16 * p) for p in range(parts)]
                for j, row in enumerate(rows):
                    word = load(b, b.add(row, at), _I32, 4 * step)
                    for part, code in enumerate(codes):
                        chain = sums[j][part][step % chains]
                        b.store((emit_vnni if wide else _avx2)(b, b.load(chain), code, word), chain)
        for j in range(count):
            totals = [[b.load(chain) for chain in part] for part in sums[j]]
            if wide:
                total = totals[0][0]
                for more in totals[0][1:]:
                    total = b.add(total, more)
                store(b, total, out, 64 * j)
            else:
                for half in range(2):
                    both = _pairs(b, totals[2 * half][0], totals[2 * half + 1][0])
                    store(b, both, out, 64 * j + 32 * half)
        return context.get_dummy_value()

    return types.void(variant, several, *[types.int64] * 5), codegen


@intrinsic
def float_dots(typingctx, tile, query, width, out):  # type: ignore[no-untyped-def]
    """Inner products of a tile of float32 rows and a query, float32 (16,), to ``out``.

    Products are rounded before they are added, so that all levels agree.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        tile, query, width, out = args
        zero = ir.Constant(_F16, None)
        sums = [cgutils.alloca_once_value(b, zero) for _ in range(4)]
        for each in sums:
            b.store(zero, each)

        def one(at: Any, chain: Any) -> None:
            line = b.add(tile, b.shl(at, ir.Constant(_I64, 6)))
            value = splat(b, load(b, b.add(query, b.shl(at, ir.Constant(_I64, 2))), _FLOAT))
            b.store(b.fadd(b.load(chain), b.fmul(load(b, line, _F16), value)), chain)

        with cgutils.for_range(b, b.lshr(width, ir.Constant(_I64, 2))) as loop:
            first = b.shl(loop.index, ir.Constant(_I64, 2))
            for step, chain in enumerate(sums):
                one(b.add(first, ir.Constant(_I64, step)), chain)
        done = b.and_(width, ir.Constant(_I64, -4))
        with cgutils.for_range(b, b.sub(width, done)) as loop:
            one(b.add(done, loop.index), sums[0])
        first, second = (b.fadd(b.load(sums[i]), b.load(sums[i + 1])) for i in (0, 2))
        store(b, b.fadd(first, second), out)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


# --- keys ------------------------------------------------------------------------------------


def _keys(b: Any, dots: Any, constants: Any, factor: Any, correction: Any) -> Any:
    """Return the 16 keys of integer inner products."""
    square, scale = load(b, constants, _F16), load(b, constants, _F16, 64)
    dot = b.sub(load(b, dots, _W16), splat(b, b.trunc(correction, _I32)))
    return b.fsub(square, b.fmul(b.fmul(splat(b, factor), scale), b.sitofp(dot, _F16)))


@intrinsic
def passing(typingctx, dots, constants, factor, correction, limit, keys):  # type: ignore[no-untyped-def]
    """Write the keys of a tile; return a bit for each that is at most ``limit``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        dots, constants, factor, correction, limit, keys = args
        found = _keys(b, dots, constants, factor, correction)
        store(b, found, keys)
        bits = b.bitcast(b.fcmp_ordered("<=", found, splat(b, limit)), _I16)
        return b.zext(bits, _I64)

    kinds = [types.int64, types.int64, types.float32, types.int64, types.float32, types.int64]
    return types.int64(*kinds), codegen


@intrinsic
def float_passing(typingctx, dots, constants, limit, keys):  # type: ignore[no-untyped-def]
    """Do the same for float inner products."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        dots, constants, limit, keys = args
        twice = b.fmul(ir.Constant(_F16, [2.0] * 16), load(b, dots, _F16))
        found = b.fsub(load(b, constants, _F16), twice)
        store(b, found, keys)
        bits = b.bitcast(b.fcmp_ordered("<=", found, splat(b, limit)), _I16)
        return b.zext(bits, _I64)

    return types.int64(types.int64, types.int64, types.float32, types.int64), codegen


@intrinsic
def improve(typingctx, dots, constants, factor, correction, tile, best, names):  # type: ignore[no-untyped-def]
    """Keep in each of 16 lanes the smallest key so far, and the number of its tile."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        dots, constants, factor, correction, tile, best, names = args
        found = _keys(b, dots, constants, factor, correction)
        known = load(b, best, _F16)
        better = b.fcmp_ordered("<", found, known)
        store(b, b.select(better, found, known), best)
        number = splat(b, b.trunc(tile, _I32))
        store(b, b.select(better, number, load(b, names, _W16)), names)
        return context.get_dummy_value()

    kinds = [types.int64, types.int64, types.float32, *[types.int64] * 4]
    return types.void(*kinds), codegen
