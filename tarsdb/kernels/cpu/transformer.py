"""Transformer encoder kernels for the CPU: one pass over the data each, no locks held.

Same contracts as ``kernels/transformer_reference.py``, which defines them. Loops run over packed
rows and are written so that LLVM vectorises them on any instruction set; every kernel releases the
GIL. ``kernels/transformer.py`` compiles them for SIGNATURES, in the background.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_GELU_0, _GELU_1, _GELU_2, _GELU_3, _GELU_4, _GELU_5, _GELU_6 = (
    np.float32(c)
    for c in (
        1.5957684516906738, 0.07266856729984283, -6.625999230891466e-05, -0.00011048031592508778,
        7.938218914205208e-06, -2.668928118509939e-07, 3.6112324242054683e-09,
    )
)  # fmt: skip
_GELU_LIMIT = np.float32(36.0)
_TANH_0 = np.float32(1.5957691216057308)
_TANH_1 = np.float32(0.07135481282837474)
_LOG2E = np.float32(1.4426950408889634)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)
_LOW = np.float32(-126.0)
_HIGH = np.float32(127.0)
# 2^f on [-0.5, 0.5], minimax, relative error 2e-8
_E1, _E2, _E3, _E4, _E5, _E6 = (
    np.float32(c)
    for c in (
        0.6931471805599453, 0.2402264923172690, 0.05550332471162809, 0.009618437357674640,
        0.001339887440266574, 0.0001535336188319500,
    )
)  # fmt: skip

_OPTIONS: dict[str, Any] = {
    "nogil": True, "boundscheck": False, "error_model": "numpy",
    "fastmath": {"nsz", "arcp", "contract", "reassoc"},  # NaN and infinity keep their meaning
}  # fmt: skip


@intrinsic
def _power_of_two(typing_context: Any, exponent: Any) -> Any:
    """2 ** exponent for a whole float32 from -126 to 127, by writing its exponent bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.fptosi(arguments[0], ir.IntType(32))
        biased = builder.add(whole, ir.Constant(ir.IntType(32), 127))
        bits = builder.shl(biased, ir.Constant(ir.IntType(32), 23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), generate


@numba.njit(inline="always", **_OPTIONS)
def _exp2(x: Any) -> Any:
    """2 ** x, relative error below 1e-7; x is clamped to the normal numbers."""
    x = min(max(x, _LOW), _HIGH)
    whole = np.floor(x + _HALF)
    f = x - whole
    p = _E6
    p = p * f + _E5
    p = p * f + _E4
    p = p * f + _E3
    p = p * f + _E2
    p = p * f + _E1
    p = p * f + _ONE
    return p * _power_of_two(whole)  # type: ignore[call-arg] # numba adds the typing context


@numba.njit(**_OPTIONS)
def add_bias(values: Any, bias: Any) -> None:
    """``values += bias`` row by row."""
    for row in range(values.shape[0]):
        line = values[row]
        for i in range(line.shape[0]):
            line[i] += bias[i]


@numba.njit(**_OPTIONS)
def bias_activation(values: Any, bias: Any, activation: int) -> None:
    """``values = activation(values + bias)`` in place; 0 gelu, 1 gelu by tanh, 2 relu."""
    for row in range(values.shape[0]):
        line = values[row]
        if activation == 0:
            for i in range(line.shape[0]):
                x = line[i] + bias[i]
                u = min(x * x, _GELU_LIMIT)
                p = _GELU_6
                p = p * u + _GELU_5
                p = p * u + _GELU_4
                p = p * u + _GELU_3
                p = p * u + _GELU_2
                p = p * u + _GELU_1
                p = p * u + _GELU_0
                line[i] = x / (_ONE + _exp2(-_LOG2E * p * x))
        elif activation == 1:
            for i in range(line.shape[0]):
                x = line[i] + bias[i]
                p = _TANH_1 * (x * x) + _TANH_0
                line[i] = x / (_ONE + _exp2(-_LOG2E * p * x))
        else:
            for i in range(line.shape[0]):
                line[i] = max(line[i] + bias[i], _ZERO)


@numba.njit(**_OPTIONS)
def residual_norm(
    values: Any, update: Any, bias: Any, scale: Any, shift: Any, epsilon: float
) -> None:
    """``values = layer_norm(values + update + bias)`` in place."""
    width = values.shape[1]
    for row in range(values.shape[0]):
        line = values[row]
        added = update[row]
        total = _ZERO
        for i in range(width):
            x = line[i] + added[i] + bias[i]
            line[i] = x
            total += x
        mean = total / np.float32(width)
        squares = _ZERO
        for i in range(width):
            x = line[i] - mean
            line[i] = x
            squares += x * x
        factor = _ONE / np.sqrt(squares / np.float32(width) + np.float32(epsilon))
        for i in range(width):
            line[i] = line[i] * factor * scale[i] + shift[i]


@numba.njit(**_OPTIONS)
def softmax_columns(scores: Any) -> None:
    """``scores = softmax(scores)`` over axis 1, in place; every loop runs along the last axis."""
    width = scores.shape[2]
    largest = np.empty(width, np.float32)
    total = np.empty(width, np.float32)
    for matrix_no in range(scores.shape[0]):
        matrix = scores[matrix_no]
        largest[:] = -np.inf
        total[:] = _ZERO
        for row in range(matrix.shape[0]):
            line = matrix[row]
            for i in range(width):
                largest[i] = max(largest[i], line[i])
        for row in range(matrix.shape[0]):
            line = matrix[row]
            for i in range(width):
                e = _exp2((line[i] - largest[i]) * _LOG2E)
                line[i] = e
                total[i] += e
        for i in range(width):
            total[i] = _ONE / total[i]
        for row in range(matrix.shape[0]):
            line = matrix[row]
            for i in range(width):
                line[i] *= total[i]


_MATRIX = types.float32[:, ::1]
_VECTOR = types.float32[::1]
SIGNATURES = {
    add_bias: types.void(_MATRIX, _VECTOR),
    bias_activation: types.void(_MATRIX, _VECTOR, types.int64),
    residual_norm: types.void(_MATRIX, _MATRIX, _VECTOR, _VECTOR, _VECTOR, types.float64),
    softmax_columns: types.void(types.float32[:, :, ::1]),
}
