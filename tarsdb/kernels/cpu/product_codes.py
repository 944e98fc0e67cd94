"""Product codes of four bits: the tables of a query, and the codes of rows.

A row is a number of parts, each the nearest of 16 centroids; a query's inner products with all of
these are cut to bytes, so that the tables of a part fit a register and sums of their entries are
looked up as those of sign bits are (``sign_bits.py``; Andre, Kermarrec and Le Scouarnec, VLDB
2015). Centroids lie element by element, float32 (parts, width, 16). Float steps are the same on
every level. Arguments are addresses and counts. Knows no list and no index.
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

from tarsdb.kernels.cpu.emit import call, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_real, read_real

MOST = 255
"""Largest entry of a table."""
CENTROIDS = 16
"""Of each part; registers of so many floats hold what is known of them."""

_FLOAT = ir.FloatType()
_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _W16, _B16 = (ir.VectorType(kind, 16) for kind in (_FLOAT, _I32, _I8))


def _products(b: Any, turned: Any, centroids: Any, width: Any) -> Any:
    """Emit inner products of one part's elements with its 16 centroids."""
    total = cgutils.alloca_once_value(b, ir.Constant(_F16, None))
    b.store(ir.Constant(_F16, None), total)
    with cgutils.for_range(b, width) as loop:
        element = load(b, b.add(turned, b.shl(loop.index, ir.Constant(_I64, 2))), _FLOAT)
        line = load(b, b.add(centroids, b.shl(loop.index, ir.Constant(_I64, 6))), _F16)
        b.store(b.fadd(b.load(total), b.fmul(splat(b, element), line)), total)
    return b.load(total)


@intrinsic
def _table(typingctx, turned, centroids, width, out, ends):  # type: ignore[no-untyped-def]
    """Write a part's 16 inner products, less the least; least and reach go to ``ends``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        turned, centroids, width, out, ends = args
        found = _products(b, turned, centroids, width)
        least = call(b, "llvm.vector.reduce.fmin.v16f32", _FLOAT, found)
        above = b.fsub(found, splat(b, least))
        store(b, above, out)
        store(b, least, ends)
        store(b, call(b, "llvm.vector.reduce.fmax.v16f32", _FLOAT, above), ends, 4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def _cut(typingctx, floats, inverse, out):  # type: ignore[no-untyped-def]
    """Write the nearest bytes to 16 floats times ``inverse``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        floats, inverse, out = args
        least, most = (ir.Constant(_F16, [value] * 16) for value in (0.5, MOST + 0.5))
        values = b.fadd(b.fmul(load(b, floats, _F16), splat(b, inverse)), least)
        values = b.select(b.fcmp_ordered(">", values, least), values, least)  # no number: 0
        values = b.select(b.fcmp_ordered("<", values, most), values, most)
        store(b, b.trunc(b.fptosi(values, _W16), _B16), out)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), codegen


@intrinsic
def _nearest(typingctx, turned, centroids, halves, width):  # type: ignore[no-untyped-def]
    """Return the first nearest of a part's centroids; ``halves`` are half their squared norms."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        turned, centroids, halves, width = args
        scores = b.fsub(_products(b, turned, centroids, width), load(b, halves, _F16))
        top = call(b, "llvm.vector.reduce.fmax.v16f32", _FLOAT, scores)
        bits = b.bitcast(b.fcmp_ordered("==", scores, splat(b, top)), _I16)
        bits = b.or_(bits, ir.Constant(_I16, -32768))  # what is no number has no nearest
        return b.zext(call(b, "llvm.cttz.i16", _I16, bits, ir.Constant(ir.IntType(1), 0)), _I64)

    return types.int64(*[types.int64] * 4), codegen


@intrinsic
def _put_name(typingctx, out, at, name):  # type: ignore[no-untyped-def]
    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        out, at, name = args
        store(b, b.trunc(name, _I8), b.add(out, at))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@linked
def tabulate_products(turned, centroids, parts, width, floats, numbers, tables):  # type: ignore[no-untyped-def]
    """Write a query's tables, bytes (parts / 8, 2, 4, 16), and what keys want of them.

    Of the 8 parts of a line the even ones come first. ``numbers`` are as ``bit_passing`` takes
    them: an inner product is about step times the sum of entries, plus what is always there.
    ``floats`` is room for float32 (parts + 1, 16).
    """
    ends, always, reach = floats + 64 * parts, np.float32(0), np.float32(0)
    for part in range(parts):
        _table(turned + 4 * part * width, centroids + 64 * part * width, width,
               floats + 64 * part, ends)  # fmt: skip
        always += read_real(ends, 0)
        reach = max(reach, read_real(ends, 1))
    step = reach / np.float32(MOST)
    inverse = np.float32(1) / step if step > 0 else np.float32(0)
    for part in range(parts):
        at = 128 * (part // 8) + 64 * (part % 2) + 16 * (part % 8 // 2)
        _cut(floats + 64 * part, inverse, tables + at)
    put_real(numbers, 0, step)
    put_real(numbers, 1, np.float32(0))
    put_real(numbers, 2, always)


def make_name() -> Any:
    """Return the (not yet compiled) coder of rows.

    name(turned, count, parts, width, centroids, halves, out)
        Writes the nearest centroid of each part, bytes (count, parts), of float32
        (count, parts * width); ``halves`` float32 (parts, 16).
    """

    @njit(nogil=True)
    def name(turned, count, parts, width, centroids, halves, out):  # type: ignore[no-untyped-def]
        for row in range(count):
            for part in range(parts):
                found = _nearest(
                    turned + 4 * width * (row * parts + part), centroids + 64 * part * width,
                    halves + 64 * part, width,
                )  # fmt: skip
                _put_name(out, row * parts + part, found)

    return name
