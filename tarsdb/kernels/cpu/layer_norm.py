"""Sum and normalisation of rows of float32, 16 lanes at a time.

Ba, Kiros and Hinton, Layer normalization, 2016.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import FLOAT, I32, I64, LANES, call, fma, load, splat, store
from tarsdb.kernels.cpu.vector_math import total

_F16, _W16 = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)


class _Row:
    """Emits passes over the lines of a row, with a sum of what a pass returns."""

    def __init__(self, b: Any, width: Any) -> None:
        self.b = b
        self.width = width
        self.lines = b.lshr(b.add(width, ir.Constant(I64, LANES - 1)), ir.Constant(I64, 4))
        self.sums = cgutils.alloca_once(b, _F16)

    def sweep(self, line: Callable[[Any], Any]) -> Any:
        """Emit ``line(offset)`` for each line; return the total of its results over the row."""
        b = self.b
        b.store(ir.Constant(_F16, None), self.sums)
        numbers = ir.Constant(_W16, list(range(LANES)))
        with cgutils.for_range(b, self.lines) as loop:
            value = line(b.shl(loop.index, ir.Constant(I64, 6)))
            left = b.sub(self.width, b.shl(loop.index, ir.Constant(I64, 4)))
            known = b.icmp_signed("<", numbers, splat(b, b.trunc(left, I32)))
            value = b.select(known, value, ir.Constant(_F16, None))
            b.store(b.fadd(b.load(self.sums), value), self.sums)
        return total(b, b.load(self.sums))


@intrinsic
def add_and_norm(typingctx, values, update, out, stride, rows, width, scale, shift, epsilon):  # type: ignore[no-untyped-def] # fmt: skip
    """``values += update; out = layer_norm(values)`` row by row; ``out`` may be ``values``.

    Rows, ``scale`` and ``shift`` are filled up with zeros to a multiple of 16 floats.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        values, update, out, stride, rows, width, scale, shift, epsilon = args
        row = _Row(b, width)
        count = b.sitofp(width, FLOAT)
        with cgutils.for_range(b, rows) as loop:
            at = b.mul(loop.index, stride)
            here, there, result = b.add(values, at), b.add(update, at), b.add(out, at)

            def added(offset: Any) -> Any:
                place = b.add(here, offset)
                value = b.fadd(load(b, place, _F16), load(b, b.add(there, offset), _F16))
                store(b, value, place)
                return value

            mean = splat(b, b.fdiv(row.sweep(added), count))

            def squared(offset: Any) -> Any:
                deviation = b.fsub(load(b, b.add(here, offset), _F16), mean)
                return b.fmul(deviation, deviation)

            variance = b.fadd(b.fdiv(row.sweep(squared), count), epsilon)
            deviation = call(b, "llvm.sqrt.f32", FLOAT, variance)
            factor = splat(b, b.fdiv(ir.Constant(FLOAT, 1.0), deviation))
            with cgutils.for_range(b, row.lines) as inner:
                offset = b.shl(inner.index, ir.Constant(I64, 6))
                value = b.fmul(b.fsub(load(b, b.add(here, offset), _F16), mean), factor)
                weight, bias = (load(b, b.add(each, offset), _F16) for each in (scale, shift))
                store(b, fma(b, value, weight, bias), b.add(result, offset))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 8, types.float32), codegen
