"""Transformer encoder kernels in NumPy: the definition, and the portable path.

Every function works on *packed* float32 rows: the tokens of many texts one after another, no
padding. ``offsets`` (int64, texts + 1) says where each text starts. All of them write into arrays
the caller owns. They know nothing of models, tokens or threads.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

GELU = 0
GELU_TANH = 1
RELU = 2

# gelu(x) = x * Phi(x), and Phi(x) = 1 / (1 + exp(-x P(x^2))). P is a minimax fit on |x| <= 6 of
# the logit of the normal distribution; the error of gelu is below 1e-7 before float32 rounding.
GELU_LOGIT = (
    1.5957684516906738, 0.07266856729984283, -6.625999230891466e-05, -0.00011048031592508778,
    7.938218914205208e-06, -2.668928118509939e-07, 3.6112324242054683e-09,
)  # fmt: skip
GELU_LIMIT = 36.0  # x^2 is clamped here: the tail of gelu is 0 or x to within 1e-7
TANH_LOGIT = (1.5957691216057308, 0.07135481282837474)  # 2 sqrt(2/pi) (1 + 0.044715 x^2)

_BLOCK = 1 << 16  # elements worked on at a time, so that temporaries stay in the L2 cache
_SCORES = 1 << 20  # elements of one attention score block


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


def attention(
    qkv: F32, offsets: I64, heads: int, out: F32, relative_bias: F32 | None = None
) -> None:
    """Multi-head self-attention inside each text; queries come already scaled.

    Parameters
    ----------
    qkv : (n, 3 * width) float32
        Query, key and value of each token, side by side.
    out : (n, width) float32
    relative_bias : (heads, 2 * longest - 1) float32, optional
        Added to the score of key j for query i at column ``j - i + longest - 1``.
    """
    width = out.shape[1]
    lengths = np.diff(offsets)
    text = 0
    for length, group in itertools.groupby(lengths.tolist()):
        count = len(list(group))
        batch = max(1, _SCORES // max(1, heads * length * length))
        bias = None if relative_bias is None else _bias_matrix(relative_bias, length)
        for first in range(text, text + count, batch):
            last = min(first + batch, text + count)
            rows = slice(int(offsets[first]), int(offsets[last]))
            shape = (last - first, length, 3, heads, width // heads)
            _attend(qkv[rows].reshape(shape), out[rows].reshape(shape[:2] + shape[3:]), bias)
        text += count


def _attend(qkv: F32, out: F32, bias: F32 | None) -> None:
    query, key, value = (qkv[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
    scores = np.matmul(query, key.transpose(0, 1, 3, 2))  # (texts, heads, length, length)
    if bias is not None:
        scores += bias
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    context = np.matmul(scores, value)
    context /= scores.sum(axis=-1, keepdims=True)
    out[:] = context.transpose(0, 2, 1, 3)


def _bias_matrix(relative_bias: F32, length: int) -> F32:
    centre = relative_bias.shape[1] // 2
    position = np.arange(length)
    return np.ascontiguousarray(relative_bias[:, position[None, :] - position[:, None] + centre])
