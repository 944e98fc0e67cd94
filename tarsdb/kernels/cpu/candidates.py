"""Candidates of a search through int8 codes: bounds of 16 rows, the k smallest, what stays.

Shared by the sieve for few queries (``coded``) and the one for many (``coded_batch``).
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import fma, load, splat, store
from tarsdb.kernels.cpu.heap import order
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import put_long, put_real, read_byte, read_long, read_real

L2, IP, COSINE = range(3)  # as in reference.py
TILE = 16  # rows of a tile
CONSTANTS = 7
"""float32 lines of a tile: scale, square, norm, rough residual, residual, tail's norm, 1 / norm"""
PARAMETERS = 10  # 4-byte numbers of a query
ENTRY = 56  # bytes of a block in the table
LIMIT, CORRECTION, ROUGH_CORRECTION, HEAD_CORRECTION, OF_TAIL = 5, 6, 7, 8, 9
"""Lines among a query's numbers, after those that ``emit_numbers`` names."""
SCALE, BASE, NORM, RESIDUAL, SQUARE, ROUGH, TAIL = range(7)  # lines of a prepared tile
PREPARED = 64 * 7
NEVER = -(2.0**127)  # a limit that no row is within

_FLOAT = ir.FloatType()
_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_F16, _W16 = ir.VectorType(_FLOAT, TILE), ir.VectorType(_I32, TILE)


@intrinsic
def prepare(typingctx, metric, constants, out):  # type: ignore[no-untyped-def]
    """Write a tile's scale, base, norms, residuals and square as the metric needs them."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        metric, constants, out = args
        scale, square, norm, rough, residual, tail, inverse = (
            load(b, constants, _F16, 64 * line) for line in range(CONSTANTS)
        )
        zero = ir.Constant(_F16, None)
        is_l2 = b.icmp_signed("==", metric, ir.Constant(_I64, L2))
        is_cosine = b.icmp_signed("==", metric, ir.Constant(_I64, COSINE))
        factor = b.select(is_cosine, inverse, ir.Constant(_F16, [1.0] * TILE))
        without = b.fcmp_ordered("==", factor, zero)  # a zero vector: NaN, after everything
        infinite = ir.Constant(_F16, [float("inf")] * TILE)
        lines = {
            SCALE: b.fmul(scale, factor),
            BASE: b.select(is_l2, square, b.select(without, infinite, zero)),
            NORM: b.fmul(norm, factor),
            RESIDUAL: b.fmul(residual, factor),
            SQUARE: b.select(is_l2, square, zero),
            ROUGH: b.fmul(rough, factor),
            TAIL: b.fmul(tail, factor),
        }
        for line, value in lines.items():
            store(b, value, out, 64 * line)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


def emit_numbers(b: Any, query: Any, pitch: Any) -> list[Any]:
    """Emit a query's factors of product, norm, residual, square, its constant and its limit."""
    return [
        splat(b, load(b, b.add(query, b.mul(pitch, ir.Constant(_I64, line))), _FLOAT))
        for line in range(LIMIT + 1)
    ]


def emit_of_tail(b: Any, query: Any, pitch: Any) -> Any:
    """Emit a query's factor of the norms of tails."""
    return splat(b, load(b, b.add(query, b.mul(pitch, ir.Constant(_I64, OF_TAIL))), _FLOAT))


def emit_correction(b: Any, query: Any, pitch: Any, line: int) -> Any:
    """Emit what to take from a query's integer products with unsigned codes."""
    return splat(b, load(b, b.add(query, b.mul(pitch, ir.Constant(_I64, line))), _I32))


@intrinsic
def passing(typingctx, prepared, dots, query, pitch, out):  # type: ignore[no-untyped-def]
    """Return a bit per row whose lower bound is within the query's limit.

    If any is, lower and upper bounds, float32 (2, 16), go to ``out``. A query's numbers lie
    ``pitch`` bytes apart: factors of inner product, norm, residual and square, a constant, the
    limit, the corrections of whole codes, of rough ones and of heads, the factor of the tail.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        prepared, dots, query, pitch, out = args
        scale, base, norm, residual, square = (
            load(b, prepared, _F16, 64 * line) for line in range(SQUARE + 1)
        )
        of_dot, of_norm, of_residual, of_square, always, limit = emit_numbers(b, query, pitch)
        correction = emit_correction(b, query, pitch, CORRECTION)
        dot = b.sitofp(b.sub(load(b, dots, _W16), correction), _F16)
        middle = b.fsub(base, b.fmul(of_dot, b.fmul(scale, dot)))
        half = fma(b, of_norm, norm, fma(b, of_square, square, always))
        half = fma(b, of_residual, residual, half)
        low = b.fsub(middle, half)
        bits = b.bitcast(b.fcmp_unordered("<=", low, limit), _I16)
        with b.if_then(b.icmp_unsigned("!=", bits, ir.Constant(_I16, 0)), likely=False):
            store(b, low, out)
            store(b, b.fadd(middle, half), out, 64)
        return b.zext(bits, _I64)

    return types.int64(*[types.int64] * 5), codegen


@linked
def half_width(number, pitch, here):  # type: ignore[no-untyped-def]
    """Return how wide a query's bounds of a row are on either side, but for the residual."""
    half = read_real(number + pitch, 0) * read_real(here, NORM * TILE)
    half += read_real(number + 3 * pitch, 0) * read_real(here, SQUARE * TILE)
    return half + read_real(number + 4 * pitch, 0)


@linked
def offer(heap, size, k, value):  # type: ignore[no-untyped-def]
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


@linked
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


@linked
def is_live(row, block):  # type: ignore[no-untyped-def]
    """Tell whether a block has a row of this number, and it is live."""
    live = read_long(block, 4)
    return row < read_long(block, 3) and (live == 0 or read_byte(live, row) != 0)


@linked
def keep(low, high, place, limit_at, k, heap, places, lows, cap, state):  # type: ignore[no-untyped-def]
    """Take a row among a query's candidates, if its bounds allow, and lower the query's limit."""
    size, count, limit = read_long(state, 0), read_long(state, 1), read_real(limit_at, 0)
    if low > limit or count < 0:
        return
    if count == cap:
        count = _kept(places, lows, count, limit)
        if count > cap - cap // 4:  # too few dropped: it would not end
            put_long(state, 1, -1)
            put_real(limit_at, 0, NEVER)
            return
    put_long(places, count, place)
    put_real(lows, count, low)
    size = offer(heap, size, k, high)
    put_long(state, 0, size)
    put_long(state, 1, count + 1)
    if size == k and read_real(heap, 0) < limit:
        put_real(limit_at, 0, read_real(heap, 0))


@linked
def finish(limits, count, places, lows, cap, state):  # type: ignore[no-untyped-def]
    """Drop the candidates that the last limits leave out, and put the others in order."""
    for q in range(count):
        size = read_long(state, 2 * q + 1)
        if size > 0:
            size = _kept(places + 8 * cap * q, lows + 4 * cap * q, size, read_real(limits, q))
            put_long(state, 2 * q + 1, size)
            order(places + 8 * cap * q, size)
