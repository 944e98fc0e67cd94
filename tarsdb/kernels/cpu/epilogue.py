"""What follows a matrix product while its sums are in the cache: bias, activation, residual, gate.

Sums are float32 in lines of 16 columns. Arguments are addresses, counts and byte strides.
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

from tarsdb.kernels.cpu import vector_math
from tarsdb.kernels.cpu.emit import (
    FLOAT,
    I64,
    LANES,
    lane_mask,
    load,
    load_some,
    store,
    store_some,
)
from tarsdb.kernels.cpu.linked import linked

LINEAR, GELU, GELU_TANH, RELU, SILU, RESIDUAL = range(6)
GATED = 8
"""A gate's activation is added to it: the output is activation(gate) * up."""
_ACTIVATIONS = {
    GELU: vector_math.gelu,
    GELU_TANH: vector_math.gelu_tanh,
    RELU: vector_math.relu,
    SILU: vector_math.silu,
}
EPILOGUES = (LINEAR, *_ACTIVATIONS, RESIDUAL, *(GATED | code for code in _ACTIVATIONS))
_F16 = ir.VectorType(FLOAT, LANES)


class _Line:
    """Loads and stores of the first lanes of a line; of all 16 where there is no mask."""

    def __init__(self, b: Any, mask: Any) -> None:
        self.b, self.mask = b, mask

    def load(self, address: Any) -> Any:
        if self.mask is None:
            return load(self.b, address, _F16)
        return load_some(self.b, address, self.mask)

    def store(self, value: Any, address: Any) -> None:
        if self.mask is None:
            store(self.b, value, address)
        else:
            store_some(self.b, value, address, self.mask)


def _finished(
    b: Any, code: int, sums: list[Any], bias: list[Any], residual: Callable[[], Any]
) -> Any:
    """Emit the result of a line (of two, gate and up, where gated)."""
    first, *up = [b.fadd(each, added) for each, added in zip(sums, bias, strict=True)]
    if code == RESIDUAL:
        return b.fadd(first, residual())
    emit = _ACTIVATIONS.get(code & ~GATED)
    first = emit(b, first) if emit else first
    return b.fmul(first, up[0]) if up else first


@intrinsic
def _finish(typingctx, epilogue, sums, sums_stride, rows, bias, residual, out, out_stride, lanes):  # type: ignore[no-untyped-def] # fmt: skip
    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        epilogue, sums, sums_stride, rows, bias, residual, out, out_stride, lanes = args
        mask = lane_mask(b, lanes)

        def every(code: int, line: _Line) -> None:
            parts = range(2 if code & GATED else 1)
            added = [load(b, bias, _F16, 64 * part) for part in parts]
            with cgutils.for_range(b, rows) as loop:
                place = b.mul(loop.index, out_stride)
                at = b.add(sums, b.mul(loop.index, sums_stride))
                values = [load(b, at, _F16, 64 * part) for part in parts]
                rest = b.add(residual, place)
                found = _finished(b, code, values, added, lambda: line.load(rest))
                line.store(found, b.add(out, place))

        whole = b.icmp_signed(">=", lanes, ir.Constant(I64, LANES))
        for code in EPILOGUES:
            is_meant = b.icmp_signed("==", epilogue, ir.Constant(I64, code))
            with b.if_then(is_meant), b.if_else(whole, likely=True) as (then, otherwise):
                with then:
                    every(code, _Line(b, None))
                with otherwise:
                    every(code, _Line(b, mask))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), codegen


@linked
def finish(epilogue, sums, sums_stride, rows, bias, residual, out, out_stride, lanes):  # type: ignore[no-untyped-def]
    """Turn sums of 16 columns (of gate and up, 32) into results.

    Parameters
    ----------
    epilogue : int
        LINEAR: sum + bias; an activation of it; RESIDUAL: sum + bias + residual; GATED + an
        activation: activation(gate + bias) * (up + bias).
    sums, sums_stride : address, bytes
        float32 (rows, 16), or (rows, 32).
    rows : int
    bias : address
        float32 (16,), or (32,).
    residual, out, out_stride : addresses, bytes
        float32 (rows, lanes); they may be the same.
    lanes : int
        Columns that exist; 16 and more are 16.
    """
    _finish(epilogue, sums, sums_stride, rows, bias, residual, out, out_stride, lanes)
