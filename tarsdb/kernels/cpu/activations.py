"""Rows quantised before a product of quantised weights, and sums turned back after it.

bfloat16 is the nearest, ties to even, 0 below 2^-50. Of integers, a scale is the largest absolute
value / 127 (float32) of a row or of a group of 32 of its values, a code the nearest whole number,
ties to even, of the value times 127 / largest. Where the largest value is below 2^-100 all are
zero; NaN and infinity give NaN. Arguments are addresses, counts and byte strides.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import (
    FLOAT,
    I32,
    I64,
    LANES,
    lane_mask,
    load,
    load_some,
    splat,
    store,
)
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_real
from tarsdb.kernels.cpu.vector_math import from_bfloat16, to_bfloat16, tree

SMALLEST = np.float32(2.0**-100)
_MOST, _ZERO = np.float32(127), np.float32(0)
_I8, _I16 = ir.IntType(8), ir.IntType(16)
_F16, _W16 = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
_ROUNDER = 1.5 * 2.0**23  # added, it leaves a whole number in the lowest bits


@intrinsic
def _largest(typingctx, row, depth):  # type: ignore[no-untyped-def]
    """Return the largest absolute value of ``depth`` floats, 0 of none; NaN if one is."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, depth = args
        lanes = cgutils.alloca_once(b, _W16)
        b.store(ir.Constant(_W16, None), lanes)

        def take(value: Any) -> None:
            bits = b.and_(b.bitcast(value, _W16), ir.Constant(_W16, [0x7FFFFFFF] * LANES))
            b.store(_greater(b, bits, b.load(lanes)), lanes)  # as integers: NaN is the largest

        with cgutils.for_range(b, b.lshr(depth, ir.Constant(I64, 4))) as loop:
            take(load(b, b.add(row, b.shl(loop.index, ir.Constant(I64, 6))), _F16))
        done = b.and_(depth, ir.Constant(I64, -LANES))
        rest = b.add(row, b.shl(done, ir.Constant(I64, 2)))
        take(load_some(b, rest, lane_mask(b, b.sub(depth, done))))
        return b.bitcast(tree(b, b.load(lanes), partial(_greater, b)), FLOAT)

    return types.float32(types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def _codes(typingctx, size, offset, row, depth, padded, inverse, codes):  # type: ignore[no-untyped-def]
    """Write codes, of ``size`` bytes and plus ``offset``, both literal; those past depth are 0."""
    width, added = size.literal_value, offset.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, _, row, depth, padded, inverse, codes = args
        factor, rounder = splat(b, inverse), ir.Constant(_F16, [_ROUNDER] * LANES)

        def put(line: Any, value: Any) -> None:
            whole = b.bitcast(b.fadd(b.fmul(value, factor), rounder), _W16)
            whole = b.add(whole, ir.Constant(_W16, [added] * LANES))
            short = b.trunc(whole, ir.VectorType(_I8 if width == 1 else _I16, LANES))
            store(b, short, b.add(codes, b.mul(line, ir.Constant(I64, width * LANES))))

        _each_line(b, row, depth, padded, put)
        return context.get_dummy_value()

    kinds = [types.int64, types.int64, types.int64, types.float32, types.int64]
    return types.void(size, offset, *kinds), codegen


@intrinsic(prefer_literal=True)
def _halves(typingctx, size, row, depth, padded, codes):  # type: ignore[no-untyped-def]
    """Write bfloat16, of ``size`` bytes, a literal: with 4, as floats; those past depth are 0."""
    width = size.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, row, depth, padded, codes = args

        def put(line: Any, value: Any) -> None:
            found = to_bfloat16(b, value)
            found = found if width == 2 else from_bfloat16(b, found)
            store(b, found, b.add(codes, b.mul(line, ir.Constant(I64, width * LANES))))

        _each_line(b, row, depth, padded, put)
        return context.get_dummy_value()

    return types.void(size, *[types.int64] * 4), codegen


def _each_line(b: Any, row: Any, depth: Any, padded: Any, put: Any) -> None:
    """Emit ``put(line, values)`` for every 16 of ``padded`` floats; those past depth are 0."""
    whole_lines = b.lshr(depth, ir.Constant(I64, 4))
    with cgutils.for_range(b, whole_lines) as loop:
        at = b.add(row, b.shl(loop.index, ir.Constant(I64, 6)))
        put(loop.index, load(b, at, _F16))
    lines = b.lshr(padded, ir.Constant(I64, 4))
    with cgutils.for_range(b, b.sub(lines, whole_lines)) as loop:
        line = b.add(whole_lines, loop.index)
        here = b.sub(depth, b.shl(line, ir.Constant(I64, 4)))
        at = b.add(row, b.shl(line, ir.Constant(I64, 6)))
        put(line, load_some(b, at, lane_mask(b, here)))


@intrinsic
def _group(typingctx, row, here, out):  # type: ignore[no-untyped-def]
    """Write 32 codes of the first ``here`` values, their scale, 8 times the sum of the codes."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, here, out = args
        halves = [
            load_some(
                b, b.add(row, ir.Constant(I64, 64 * half)),
                lane_mask(b, b.sub(here, ir.Constant(I64, LANES * half))),
            )
            for half in range(2)
        ]  # fmt: skip
        found = None
        for half in halves:
            bits = b.and_(b.bitcast(half, _W16), ir.Constant(_W16, [0x7FFFFFFF] * LANES))
            found = bits if found is None else _greater(b, bits, found)
        largest = b.bitcast(tree(b, found, partial(_greater, b)), FLOAT)
        small = b.fcmp_ordered("<", largest, ir.Constant(FLOAT, SMALLEST))
        zero, most = ir.Constant(FLOAT, 0.0), ir.Constant(FLOAT, 127.0)
        store(b, b.select(small, zero, b.fdiv(largest, most)), out, 32)
        factor = splat(b, b.select(small, zero, b.fdiv(most, largest)))
        rounder = ir.Constant(_F16, [_ROUNDER] * LANES)
        total = ir.Constant(_W16, None)
        for number, half in enumerate(halves):
            whole = b.bitcast(b.fadd(b.fmul(half, factor), rounder), _W16)
            short = b.trunc(whole, ir.VectorType(_I8, LANES))
            store(b, short, out, LANES * number)
            total = b.add(total, b.sext(short, _W16))
        added = tree(b, total, b.add)
        store(b, b.shl(added, ir.Constant(I32, 3)), out, 36)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _greater(b: Any, one: Any, two: Any) -> Any:
    return b.select(b.icmp_signed(">", one, two), one, two)


@intrinsic(prefer_literal=True)
def _dequantize(typingctx, offset, sums, sums_stride, rows, scales, constants):  # type: ignore[no-untyped-def]
    added = offset.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, sums, sums_stride, rows, scales, constants = args
        column = load(b, constants, _F16)
        with cgutils.for_range(b, rows) as loop:
            at = b.add(sums, b.mul(loop.index, sums_stride))
            whole = load(b, at, _W16)
            if added:
                whole = b.sub(whole, load(b, constants, _W16, 64))
            row = load(b, b.add(scales, b.shl(loop.index, ir.Constant(I64, 2))), FLOAT)
            value = b.fmul(b.fmul(b.sitofp(whole, _F16), splat(b, row)), column)
            store(b, value, at)
        return context.get_dummy_value()

    return types.void(offset, *[types.int64] * 5), codegen


@linked
def dequantize(offset, sums, sums_stride, rows, scales, constants):  # type: ignore[no-untyped-def]
    """Turn int32 sums of 16 columns into float32 in place: (sum * row's scale) * column's.

    ``constants`` are float32 (16,) scales and, if ``offset`` is not 0, int32 (16,) numbers to be
    taken from the sums before.
    """
    if offset:
        _dequantize(128, sums, sums_stride, rows, scales, constants)
    else:
        _dequantize(0, sums, sums_stride, rows, scales, constants)


def make_quantize(target: str | None) -> Any:
    """Return the kernel that writes codes and scales of float32 rows.

    ``target`` is ``int16``, ``uint8`` (plus 128), ``bfloat16``, ``rounded`` (to bfloat16, but kept
    as float32), which both have no scales, or ``groups``: of 32 values 32 signed bytes,
    their scale, float32, and 8 times the sum of the codes, int32. Codes past the depth, up to the
    stride, are those of 0. The kernel takes address, stride, rows, depth, address and stride of
    the codes, and the address of the scales, which groups do not use.
    """
    if target == "groups":

        @linked
        def quantize_groups(a, a_stride, rows, depth, codes, codes_stride, scales):  # type: ignore[no-untyped-def]
            for r in range(rows):
                for group in range((depth + 31) // 32):
                    _group(a + r * a_stride + 128 * group, depth - 32 * group,
                           codes + r * codes_stride + 40 * group)  # fmt: skip

        return quantize_groups
    if target in ("bfloat16", "rounded"):
        bytes_each = 2 if target == "bfloat16" else 4

        @linked
        def round_rows(a, a_stride, rows, depth, codes, codes_stride, scales):  # type: ignore[no-untyped-def]
            for r in range(rows):
                _halves(bytes_each, a + r * a_stride, depth, codes_stride // bytes_each,
                        codes + r * codes_stride)  # fmt: skip

        return round_rows
    size, offset = (1, 128) if target == "uint8" else (2, 0)

    @linked(error_model="numpy")
    def quantize(a, a_stride, rows, depth, codes, codes_stride, scales):  # type: ignore[no-untyped-def]
        for r in range(rows):
            row = a + r * a_stride
            largest = _largest(row, depth)
            inverse = _ZERO if largest < SMALLEST else _MOST / largest
            put_real(scales, r, _ZERO if largest < SMALLEST else largest / _MOST)
            _codes(size, offset, row, depth, codes_stride // size, inverse,
                   codes + r * codes_stride)  # fmt: skip

    return quantize
