"""Inner products of a graph's codes with a coded query, and sums of a query by a row's signs.

Queries are signed bytes. Codes of 8 bits are bytes (code + 128), padded to a multiple of 64. Of
codes of 4 bits byte j of each 64 holds element j of a run of 128 in its low half and element 64 + j
in its high half, so that a query stays as it is. Exact integers on every level.
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

from tarsdb.kernels.cpu.emit import call, load
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import read_byte, read_signed

VARIANTS = ("vnni", "avx2", "plain")
"""512-bit VNNI, 256-bit multiply-add, a plain loop."""

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_W16, _B64 = ir.VectorType(_I32, 16), ir.VectorType(_I8, 64)
_W8, _H16, _B32 = ir.VectorType(_I32, 8), ir.VectorType(_I16, 16), ir.VectorType(_I8, 32)
_RUN, _STEP = 64, 32  # elements of which 16 bits hold the sums, and bytes of a register


def _vnni(b: Any, sums: Any, codes: Any, signed: Any) -> Any:
    if llvm.llvm_version_info[0] < 22:
        codes, signed = b.bitcast(codes, _W16), b.bitcast(signed, _W16)
    return call(b, "llvm.x86.avx512.vpdpbusd.512", _W16, sums, codes, signed)


def _avx2(b: Any, sums: Any, codes: Any, signed: Any) -> Any:
    wide = b.zext(codes, _H16), b.sext(signed, _H16)
    return b.add(sums, call(b, "llvm.x86.avx2.pmadd.wd", _W8, *wide))


_SHAPES = {0: (_vnni, _W16, 64), 1: (_avx2, _W8, 16)}


def _pairs(b: Any, unsigned: Any, signed: Any) -> Any:
    """Emit the sums of two neighbouring products, in 16 bits."""
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", _H16, unsigned, signed)


def _widened(b: Any, sums: Any, pairs: list[Any]) -> Any:
    """Add sums of 16 bits, few and small enough for these, to sums of 32 bits."""
    total = pairs[0]
    for other in pairs[1:]:
        total = b.add(total, other)
    return b.add(sums, call(b, "llvm.x86.avx2.pmadd.wd", _W8, total, ir.Constant(_H16, [1] * 16)))


@intrinsic(prefer_literal=True)
def _simd_halves(typingctx, variant, row, query, padded):  # type: ignore[no-untyped-def]
    """Inner product of codes of 4 bits and signed bytes, int64."""
    number = variant.literal_value
    sums, step = (_W16, 64) if number == 0 else (_W8, _STEP)
    codes = ir.VectorType(_I8, step)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, row, query, padded = args
        acc = cgutils.alloca_once_value(b, ir.Constant(sums, None))
        with cgutils.for_range(b, b.udiv(padded, ir.Constant(_I64, 128))) as loop:
            line = b.add(row, b.mul(loop.index, ir.Constant(_I64, 64)))
            signed = b.add(query, b.mul(loop.index, ir.Constant(_I64, 128)))
            halves = []
            for at in range(0, 64, step):
                both = load(b, line, codes, at)
                low = b.and_(both, ir.Constant(codes, [15] * step))
                high = b.lshr(both, ir.Constant(codes, [4] * step))
                halves += [(low, load(b, signed, codes, at))]
                halves += [(high, load(b, signed, codes, 64 + at))]
            total = b.load(acc)
            if number == 0:
                for half, other in halves:
                    total = _vnni(b, total, half, other)
            else:  # four times two products of 15 and 128 at most
                total = _widened(b, total, [_pairs(b, half, other) for half, other in halves])
            b.store(total, acc)
        name = f"llvm.vector.reduce.add.v{sums.count}i32"
        return b.sext(call(b, name, _I32, b.load(acc)), _I64)

    return types.int64(variant, types.int64, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def _simd_dot(typingctx, variant, row, query, padded):  # type: ignore[no-untyped-def]
    """Inner product of unsigned bytes and signed bytes, int64."""
    add, sums, step = _SHAPES[variant.literal_value]
    whole_step = ir.VectorType(_I8, step)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, row, query, padded = args
        accs = [cgutils.alloca_once_value(b, ir.Constant(sums, None)) for _ in range(2)]
        whole = ir.Constant(_I64, 2 * step)

        def one(offset: Any, acc: Any) -> None:
            codes = load(b, b.add(row, offset), whole_step)
            signed = load(b, b.add(query, offset), whole_step)
            b.store(add(b, b.load(acc), codes, signed), acc)

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


@intrinsic(prefer_literal=True)
def _simd_pick(typingctx, variant, bits, query, padded):  # type: ignore[no-untyped-def]
    """Sum of the signed bytes whose bit is set, int64."""
    number = variant.literal_value
    sums, step = (_W16, 64) if number == 0 else (_W8, _STEP)
    signed, mask = ir.VectorType(_I8, step), ir.VectorType(ir.IntType(1), step)
    word, ones = ir.IntType(step), ir.Constant(signed, [1] * step)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, bits, query, padded = args
        acc = cgutils.alloca_once_value(b, ir.Constant(sums, None))
        with cgutils.for_range(b, b.udiv(padded, ir.Constant(_I64, _RUN))) as loop:
            place = b.add(bits, b.mul(loop.index, ir.Constant(_I64, _RUN // 8)))
            start = b.add(query, b.mul(loop.index, ir.Constant(_I64, _RUN)))
            picked = []
            for at in range(0, _RUN, step):
                chosen = b.bitcast(load(b, place, word, at // 8), mask)
                taken = load(b, start, signed, at)
                picked.append(b.select(chosen, taken, ir.Constant(signed, None)))
            if number == 0:
                total = _vnni(b, b.load(acc), ones, picked[0])
            else:
                total = _widened(b, b.load(acc), [_pairs(b, ones, one) for one in picked])
            b.store(total, acc)
        name = f"llvm.vector.reduce.add.v{sums.count}i32"
        return b.sext(call(b, name, _I32, b.load(acc)), _I64)

    return types.int64(variant, types.int64, types.int64, types.int64), codegen


def make_products(variant: str) -> tuple[Any, Any]:
    """Return ``dot(row, query, padded, bits)`` and ``pick(bits, query, padded)``, int64.

    Rows and queries are addresses, ``padded`` elements of a query. ``dot`` is of the codes as they
    stand in memory: :func:`offset_of` says what that adds.
    """
    if variant == "plain":
        return _plain_dot, _plain_pick
    number = VARIANTS.index(variant)

    @linked
    def dot(row, query, padded, bits):  # type: ignore[no-untyped-def]
        if bits == 4:
            return 2 * _simd_halves(number, row, query, padded)
        return _simd_dot(number, row, query, padded)

    @linked
    def pick(bits, query, padded):  # type: ignore[no-untyped-def]
        return _simd_pick(number, bits, query, padded)

    return dot, pick


@linked
def code_of(row, i, bits):  # type: ignore[no-untyped-def]
    """Return element i of a row's code: -128..127, or an odd number of -15..15."""
    if bits == 8:
        return read_byte(row, i) - 128
    byte = read_byte(row, (i >> 7 << 6) + (i & 63))
    return 2 * (byte >> 4 if i & 64 else byte & 15) - 15


@linked
def offset_of(query, padded, bits):  # type: ignore[no-untyped-def]
    """Return what ``dot`` is too large by: codes stand in memory without a sign."""
    total = np.int64(0)
    for i in range(padded):
        total += read_signed(query, i)
    return (15 if bits == 4 else 128) * total


@linked
def _plain_dot(row, query, padded, bits):  # type: ignore[no-untyped-def]
    total, offset = np.int64(0), 15 if bits == 4 else 128
    for i in range(padded):
        total += (code_of(row, i, bits) + offset) * read_signed(query, i)
    return total


@linked
def _plain_pick(bits, query, padded):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for i in range(padded):
        if read_byte(bits, i >> 3) >> (i & 7) & 1:
            total += read_signed(query, i)
    return total
