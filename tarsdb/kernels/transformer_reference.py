"""Transformer encoder kernels in NumPy: the definition, and the portable path.

All of them work on float32 rows in place, in arrays the caller owns. What a row is, a token of some
text, and which thread runs is the caller's: they know nothing of models, texts or threads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

GELU = 0
GELU_TANH = 1
RELU = 2
SILU = 3

# gelu(x) = x * Phi(x), and Phi(x) = 1 / (1 + exp(-x P(x^2))). P is a minimax fit on |x| <= 6 of
# the logit of the normal distribution; the error of gelu is below 1e-7 before float32 rounding.
GELU_LOGIT = (
    1.5957684516906738, 0.07266856729984283, -6.625999230891466e-05, -0.00011048031592508778,
    7.938218914205208e-06, -2.668928118509939e-07, 3.6112324242054683e-09,
)  # fmt: skip
GELU_LIMIT = 36.0  # x^2 is clamped here: the tail of gelu is 0 or x to within 1e-7
TANH_LOGIT = (1.5957691216057308, 0.07135481282837474)  # 2 sqrt(2/pi) (1 + 0.044715 x^2)

_BLOCK = 1 << 16  # elements worked on at a time, so that temporaries stay in the L2 cache


def add_bias(values: F32, bias: F32) -> None:
    """``values += bias`` row by row. values (n, width), bias (width,)."""
    np.add(values, bias, out=values)


def bias_activation(values: F32, bias: F32, activation: int) -> None:
    """``values = activation(values + bias)`` in place. values (n, width), bias (width,)."""
    step = max(1, _BLOCK // max(1, values.shape[1]))
    square = np.empty((min(step, len(values)), values.shape[1]), np.float32)
    logit = np.empty_like(square)
    with np.errstate(over="ignore"):  # exp overflows to infinity where gelu is 0, as it should
        for start in range(0, len(values), step):
            block = values[start : start + step]
            np.add(block, bias, out=block)
            if activation == RELU:
                np.maximum(block, 0.0, out=block)
            elif activation == SILU:
                np.divide(block, 1.0 + np.exp(-block), out=block)
            else:
                _gelu(block, square[: len(block)], logit[: len(block)], activation)


def _gelu(block: F32, square: F32, logit: F32, activation: int) -> None:
    coefficients = GELU_LOGIT if activation == GELU else TANH_LOGIT
    np.multiply(block, block, out=square)
    if activation == GELU:
        np.minimum(square, GELU_LIMIT, out=square)
    logit.fill(-coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        np.multiply(logit, square, out=logit)
        np.subtract(logit, np.float32(coefficient), out=logit)
    np.multiply(logit, block, out=logit)
    np.exp(logit, out=logit)
    np.add(logit, 1.0, out=logit)
    np.divide(block, logit, out=block)


def residual_norm(
    values: F32, update: F32, bias: F32, scale: F32, shift: F32, epsilon: float
) -> None:
    """``values = layer_norm(values + update + bias)`` in place.

    values, update (n, width); bias, scale, shift (width,). ``update`` is used as scratch.
    """
    np.add(values, update, out=values)
    np.add(values, bias, out=values)
    layer_norm(values, update, scale, shift, epsilon)


def layer_norm(values: F32, scratch: F32, scale: F32, shift: F32, epsilon: float) -> None:
    """Normalise each row to mean 0 and variance 1, then scale and shift, in place."""
    width = np.float32(values.shape[1])
    mean = values.sum(axis=1, keepdims=True) / width
    np.subtract(values, mean, out=values)
    np.multiply(values, values, out=scratch)
    variance = scratch.sum(axis=1, keepdims=True) / width
    np.multiply(values, 1.0 / np.sqrt(variance + np.float32(epsilon)), out=values)
    np.multiply(values, scale, out=values)
    np.add(values, shift, out=values)


def softmax_columns(scores: F32) -> None:
    """``scores = softmax(scores)`` over axis 1, in place. scores (matrices, keys, queries).

    Along the columns every pass is elementwise over the contiguous axis, which is what vector
    units like; attention computes its scores transposed for it.
    """
    if scores.size == 0:
        return
    np.subtract(scores, scores.max(axis=1, keepdims=True), out=scores)
    np.exp(scores, out=scores)
    np.divide(scores, scores.sum(axis=1, keepdims=True), out=scores)
