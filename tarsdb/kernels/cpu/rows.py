"""Rows of float32: norms, rotation, softmax; one row at a time, each sum in a fixed order.

A row is taken 16 elements at a time, what is left one by one, with the same instructions, so a
row may have any width. Arguments are addresses and counts.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import FLOAT, I64, LANES, fma, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.vector_math import (
    LOG2E,
    constant,
    exp2,
    from_bfloat16,
    greatest,
    largest,
    to_bfloat16,
)
from tarsdb.kernels.cpu.vector_math import total as total_of

_LOWEST = -3.0e38  # what is masked lies below


def _sweep(b: Any, count: Any, body: Callable[[Any, ir.Type], None]) -> None:
    """Emit ``body(element, type)`` for 16 elements at a time, then for one at a time."""
    with cgutils.for_range(b, b.lshr(count, ir.Constant(I64, 4))) as loop:
        body(b.shl(loop.index, ir.Constant(I64, 4)), ir.VectorType(FLOAT, LANES))
    done = b.and_(count, ir.Constant(I64, -LANES))
    with cgutils.for_range(b, b.sub(count, done)) as loop:
        body(b.add(done, loop.index), ir.VectorType(FLOAT, 1))


def _at(b: Any, address: Any, element: Any) -> Any:
    return b.add(address, b.shl(element, ir.Constant(I64, 2)))


def _read(b: Any, address: Any, element: Any, kind: ir.Type) -> Any:
    return load(b, _at(b, address, element), kind)


def _write(b: Any, value: Any, address: Any, element: Any) -> None:
    store(b, value, _at(b, address, element))


def _each(emit: Callable[..., Any], reads: int, numbers: int) -> Any:
    """Return a row operation: (out, rows read..., numbers..., count), element by element."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        out, rows, count = args[0], args[1 : 1 + reads], args[-1]

        def body(element: Any, kind: ir.Type) -> None:
            values = [_read(b, row, element, kind) for row in rows]
            factors = [splat(b, number, kind.count) for number in args[1 + reads : -1]]
            _write(b, emit(b, *values, *factors), out, element)

        _sweep(b, count, body)
        return context.get_dummy_value()

    signature = [*[types.int64] * (1 + reads), *[types.float32] * numbers, types.int64]
    return types.void(*signature), codegen


@intrinsic
def scale(typingctx, out, row, factor, count):  # type: ignore[no-untyped-def]
    """``out = row * factor``."""
    return _each(lambda b, x, f: b.fmul(x, f), 1, 1)


@intrinsic
def scale_by(typingctx, out, row, weight, factor, count):  # type: ignore[no-untyped-def]
    """``out = row * factor * weight``."""
    return _each(lambda b, x, w, f: b.fmul(b.fmul(x, f), w), 2, 1)


@intrinsic
def add_scaled_by(typingctx, out, row, weight, base, factor, count):  # type: ignore[no-untyped-def]
    """``out = base + row * factor * weight``."""
    return _each(lambda b, x, w, z, f: b.fadd(z, b.fmul(b.fmul(x, f), w)), 3, 1)


def _capped(b: Any, x: Any, scaling: Any, cap: Any) -> Any:
    """Emit cap * tanh(x * scaling / cap)."""
    twice = b.fmul(b.fdiv(b.fmul(x, scaling), cap), constant(x, 2.0 * LOG2E))
    power = b.fadd(exp2(b, twice), constant(x, 1.0))
    return b.fmul(cap, b.fsub(constant(x, 1.0), b.fdiv(constant(x, 2.0), power)))


@intrinsic
def soft_cap(typingctx, out, row, scaling, cap, count):  # type: ignore[no-untyped-def]
    """``out = cap * tanh(row * scaling / cap)``."""
    return _each(_capped, 1, 2)


@intrinsic
def widen_scaled(typingctx, out, row, factor, count):  # type: ignore[no-untyped-def]
    """``out = row * factor`` of a bfloat16 row."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        out, row, factor, count = args

        def body(element: Any, kind: ir.Type) -> None:
            bits = ir.VectorType(ir.IntType(16), kind.count)
            value = load(b, b.add(row, b.shl(element, ir.Constant(I64, 1))), bits)
            wide = b.fmul(from_bfloat16(b, value), splat(b, factor, kind.count))
            _write(b, wide, out, element)

        _sweep(b, count, body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64), codegen


@intrinsic
def sum_of_squares(typingctx, row, count):  # type: ignore[no-untyped-def]
    """Return the sum of a row's squares."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, count = args
        sums = {lanes: cgutils.alloca_once(b, ir.VectorType(FLOAT, lanes)) for lanes in (LANES, 1)}
        for lanes, place in sums.items():
            b.store(ir.Constant(ir.VectorType(FLOAT, lanes), None), place)

        def body(element: Any, kind: ir.Type) -> None:
            value, place = _read(b, row, element, kind), sums[kind.count]
            b.store(fma(b, value, value, b.load(place)), place)

        _sweep(b, count, body)
        first, rest = (total_of(b, b.load(place)) for place in sums.values())
        return b.fadd(first, rest)

    return types.float32(types.int64, types.int64), codegen


@linked(error_model="numpy")
def norm_factor(row, count, epsilon):  # type: ignore[no-untyped-def]
    """Return what scales a row to mean square 1."""
    mean = sum_of_squares(row, count) / np.float32(count)
    return np.float32(1.0) / np.sqrt(mean + epsilon)


@intrinsic
def rotate(typingctx, head, angles, half):  # type: ignore[no-untyped-def]
    """Turn the pairs (i, i + half) of a head by angles: half cosines, half sines."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        head, angles, half = args
        far = b.shl(half, ir.Constant(I64, 2))

        def body(element: Any, kind: ir.Type) -> None:
            x, y = (_read(b, start, element, kind) for start in (head, b.add(head, far)))
            cosine = _read(b, angles, element, kind)
            sine = _read(b, b.add(angles, far), element, kind)
            _write(b, b.fsub(b.fmul(x, cosine), b.fmul(y, sine)), head, element)
            _write(b, b.fadd(b.fmul(y, cosine), b.fmul(x, sine)), b.add(head, far), element)

        _sweep(b, half, body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def softmax_terms(typingctx, scores, count, scaling):  # type: ignore[no-untyped-def]
    """Replace 16 * ``count`` scores by ``exp(scaling * (score - largest))``; return their sum.

    Minus infinity becomes 0. Sums go lane by lane in the order of the scores, then over the lanes,
    so scores of minus infinity in front or behind change nothing.
    """
    kind = ir.VectorType(FLOAT, LANES)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        scores, count, scaling = args
        top, sums = cgutils.alloca_once(b, kind), cgutils.alloca_once(b, kind)
        b.store(ir.Constant(kind, [_LOWEST] * LANES), top)
        b.store(ir.Constant(kind, None), sums)
        with cgutils.for_range(b, count) as loop:
            line = b.shl(loop.index, ir.Constant(I64, 4))
            b.store(greatest(b, b.load(top), _read(b, scores, line, kind)), top)
        highest = splat(b, largest(b, b.load(top)))
        factor = splat(b, b.fmul(scaling, ir.Constant(FLOAT, LOG2E)))
        with cgutils.for_range(b, count) as loop:
            line = b.shl(loop.index, ir.Constant(I64, 4))
            value = _read(b, scores, line, kind)
            seen = b.fcmp_unordered(">=", value, ir.Constant(kind, [_LOWEST] * LANES))
            term = exp2(b, b.fmul(b.fsub(value, highest), factor))
            term = b.select(seen, term, ir.Constant(kind, None))
            _write(b, term, scores, line)
            b.store(b.fadd(b.load(sums), term), sums)
        return total_of(b, b.load(sums))

    return types.float32(types.int64, types.int64, types.float32), codegen


@intrinsic
def fill(typingctx, row, value, count):  # type: ignore[no-untyped-def]
    """Write one number ``count`` times; none if that is negative."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        row, value, count = args
        some = b.icmp_signed(">", count, ir.Constant(I64, 0))
        count = b.select(some, count, ir.Constant(I64, 0))
        _sweep(b, count, lambda at, kind: _write(b, splat(b, value, kind.count), row, at))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), codegen


@intrinsic
def narrow(typingctx, out, row, count):  # type: ignore[no-untyped-def]
    """Write a row as bfloat16."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        out, row, count = args

        def body(element: Any, kind: ir.Type) -> None:
            bits = to_bfloat16(b, _read(b, row, element, kind))
            store(b, bits, b.add(out, b.shl(element, ir.Constant(I64, 1))))

        _sweep(b, count, body)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen


@intrinsic
def scatter(typingctx, column, row, count):  # type: ignore[no-untyped-def]
    """Write a row's elements 64 bytes apart: one token of a transposed block."""
    return _scattering(lambda b, value: value, 6)


@intrinsic
def scatter_narrow(typingctx, column, row, count):  # type: ignore[no-untyped-def]
    """Write a row's elements as bfloat16, 32 bytes apart."""
    return _scattering(to_bfloat16, 5)


def _scattering(emit: Callable[..., Any], shift: int) -> Any:
    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        column, row, count = args
        with cgutils.for_range(b, count) as loop:
            value = load(b, _at(b, row, loop.index), ir.VectorType(FLOAT, 1))
            place = b.add(column, b.shl(loop.index, ir.Constant(I64, shift)))
            store(b, emit(b, value), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), codegen
