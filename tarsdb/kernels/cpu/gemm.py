"""Matrix products with packed weights: the loops around the micro-kernels, and the float32 one.

Weights lie in tiles of 16 columns (``kernels/packing.py``), float32 line by line: [K][16]. A
micro-kernel keeps the sums of some rows and tiles in registers over all of K. An element of the
result is one chain of fused multiply-adds over k in order, however many rows and tiles a kernel
takes at a time, so a row's result depends on neither its batch nor the level. Arguments are
addresses, counts and byte strides.

Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.
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

from tarsdb.kernels.cpu.emit import FLOAT, I64, LANES, fma, load, splat, store
from tarsdb.kernels.cpu.epilogue import GATED, finish
from tarsdb.kernels.cpu.memory import keep_apart, put_real

SIGNATURE = types.void(*[types.int64] * 12)
SIGNATURES = {"gemm": SIGNATURE}
AVX2, AVX512 = "avx2", "avx512"
ROWS_AT_ONCE = 96
"""Rows whose sums of two tiles wait in scratch memory."""
DEPTH_AT_ONCE = 384
"""Lines of a tile that stay in the L1 cache while the rows pass by."""
SCRATCH = 128 + 128 * ROWS_AT_ONCE
"""Bytes of scratch memory of a product: a line of zeros, and sums."""
_UNROLLED = 4
_F16 = ir.VectorType(FLOAT, LANES)


def _emit_products(b: Any, count: int, width: int, args: Any) -> None:
    """Emit the micro-kernel of ``count`` rows and ``width`` tiles."""
    a, a_stride, weights, line, tile, depth, sums, sums_stride, fresh = args
    zero = ir.Constant(_F16, None)
    is_fresh = b.icmp_signed("!=", fresh, ir.Constant(I64, 0))
    places = [b.add(sums, b.mul(sums_stride, ir.Constant(I64, r))) for r in range(count)]
    totals = [[cgutils.alloca_once(b, _F16) for _ in range(width)] for _ in range(count)]
    for place, row in zip(places, totals, strict=True):
        for t, each in enumerate(row):
            b.store(b.select(is_fresh, zero, load(b, place, _F16, 64 * t)), each)
    starts = [b.add(a, b.mul(a_stride, ir.Constant(I64, r))) for r in range(count)]
    columns = [b.add(weights, b.mul(tile, ir.Constant(I64, t))) for t in range(width)]

    def step(k: Any) -> None:
        down, along = b.mul(k, line), b.shl(k, ir.Constant(I64, 2))
        values = [load(b, b.add(column, down), _F16) for column in columns]
        for start, row in zip(starts, totals, strict=True):
            scalar = splat(b, load(b, b.add(start, along), FLOAT))
            for value, each in zip(values, row, strict=True):
                b.store(fma(b, scalar, value, b.load(each)), each)

    with cgutils.for_range(b, b.lshr(depth, ir.Constant(I64, 2))) as loop:
        first = b.shl(loop.index, ir.Constant(I64, 2))
        for offset in range(_UNROLLED):
            step(b.add(first, ir.Constant(I64, offset)))
    done = b.and_(depth, ir.Constant(I64, -_UNROLLED))
    with cgutils.for_range(b, b.sub(depth, done)) as loop:
        step(b.add(done, loop.index))
    for place, row in zip(places, totals, strict=True):
        for t, each in enumerate(row):
            store(b, b.load(each), place, 64 * t)


@intrinsic(prefer_literal=True)
def accumulate(  # type: ignore[no-untyped-def]
    typingctx, most, tiles, rows, a, a_stride, weights, line, tile, depth, sums, sums_stride, fresh
):
    """Add the products of ``rows`` rows, 1 to the literal ``most``, and some tiles, a literal.

    Line k of tile t is 16 floats at ``weights + t * tile + k * line``; the sums of row r are
    floats at ``sums + r * sums_stride``, tile after tile. They start at zero if ``fresh`` is not 0.
    """
    counts, width = range(1, most.literal_value + 1), tiles.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        for count in counts:
            with b.if_then(b.icmp_signed("==", args[2], ir.Constant(I64, count))):
                _emit_products(b, count, width, args[3:])
        return context.get_dummy_value()

    return types.void(most, tiles, *[types.int64] * 10), codegen


def make_multiply(level: str) -> Any:
    """Return the product of some rows and some tiles, to be called by other kernels.

    Parameters of the kernel
    ------------------------
    a, a_stride, rows : address, bytes, int
        float32 (rows, depth).
    weights, line, tile, tiles, depth : address, bytes, bytes, int, int
        Line k of tile t is 16 floats at ``weights + t * tile + k * line``: 64 and 64 * K for
        packed weights; for a row-major matrix (K, 16 * tiles) its stride, and 64.
    sums, sums_stride : address, bytes
        float32 (rows, 16 * tiles), the result.
    fresh : int
        0 adds to what ``sums`` holds.
    """
    most, width = (12, 2) if level == AVX512 else (6, 1)

    @njit(nogil=True)
    def multiply(a, a_stride, rows, weights, line, tile, tiles, depth, sums, sums_stride, fresh):  # type: ignore[no-untyped-def] # fmt: skip
        keep_apart()
        done = 0
        while rows == 1 and done + 4 <= tiles:  # chains enough to keep the units busy
            accumulate(1, 4, 1, a, a_stride, weights + done * tile, line, tile, depth,
                       sums + 64 * done, sums_stride, fresh)  # fmt: skip
            done += 4
        while rows < 4 and done + 2 <= tiles:
            accumulate(3, 2, rows, a, a_stride, weights + done * tile, line, tile, depth,
                       sums + 64 * done, sums_stride, fresh)  # fmt: skip
            done += 2
        blocks = (rows + most - 1) // most
        while done < tiles:
            here = min(width, tiles - done)
            at, to = weights + done * tile, sums + 64 * done
            for block in range(blocks):
                first = rows * block // blocks
                count = rows * (block + 1) // blocks - first
                row, place = a + first * a_stride, to + first * sums_stride
                if here == width:
                    accumulate(most, width, count, row, a_stride, at, line, tile, depth, place,
                               sums_stride, fresh)  # fmt: skip
                else:
                    accumulate(most, 1, count, row, a_stride, at, line, tile, depth, place,
                               sums_stride, fresh)  # fmt: skip
            done += here

    return multiply


def make_gemm(level: str) -> Any:
    """Return the (not yet compiled) float32 product of a level, for SIGNATURE.

    Parameters of the kernel
    ------------------------
    a, a_stride, rows : address, bytes, int
        float32 (rows, depth).
    weights, depth, columns : address, int, int
        Packed weights; where gated, tiles of gate and up in turn, ``columns`` of each.
    epilogue, bias : int, address
        See ``epilogue.finish``; float32 (16 * tiles,), or 0 for none.
    residual, out, out_stride : addresses, bytes
        float32 (rows, columns); of one stride, and they may be the same.
    scratch : address
        SCRATCH bytes.
    """
    multiply = make_multiply(level)

    @njit(nogil=True)
    def gemm(a, a_stride, rows, weights, depth, columns, epilogue, bias, residual, out, out_stride, scratch):  # type: ignore[no-untyped-def] # fmt: skip # noqa: E501
        keep_apart()
        for i in range(32):
            put_real(scratch, i, 0.0)
        sums, tile = scratch + 128, 64 * depth
        paired = 2 if epilogue >= GATED else 1
        tiles = (columns + 15) // 16 * paired
        for top in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - top)
            group = 4 if count == 1 else 2
            for t in range(0, tiles, group):
                here = min(group, tiles - t)
                for k in range(0, max(depth, 1), DEPTH_AT_ONCE):
                    multiply(a + top * a_stride + 4 * k, a_stride, count,
                             weights + t * tile + 64 * k, np.int64(64), tile, here,
                             min(DEPTH_AT_ONCE, depth - k), sums, 64 * group, int(k == 0))  # fmt: skip
                for part in range(0, here, paired):
                    number = t + part
                    added = bias + 64 * number if bias else scratch
                    column = number // paired * 16
                    at = top * out_stride + 4 * column
                    finish(epilogue, sums + 64 * part, 64 * group, count, added, residual + at,
                           out + at, out_stride, columns - column)  # fmt: skip

    return gemm


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the kernels of SIGNATURES, not yet compiled."""
    return {"gemm": make_gemm(variant)}
