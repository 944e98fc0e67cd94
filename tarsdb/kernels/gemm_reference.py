"""Matrix products with packed weights in NumPy: the definition, kind by kind.

Slow: sums are made as the compiled kernels make them, a step of k at a time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import transformer_reference
from tarsdb.kernels.packing import GROUP, PackedMatrix, from_bfloat16, to_bfloat16

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

LINEAR, GELU, GELU_TANH, RELU, SILU, RESIDUAL = range(6)
SMALLEST = np.float32(2.0**-100)
GATED = 8
"""Added to an activation: activation(gate) * up."""


def gemm(
    a: F32,
    weights: PackedMatrix,
    epilogue: int = LINEAR,
    bias: F32 | None = None,
    residual: F32 | None = None,
) -> F32:
    """Return ``a @ weights.T``, finished.

    Parameters
    ----------
    a : float32 (rows, depth)
    weights : PackedMatrix
    epilogue : int
        LINEAR: sum + bias; an activation of it; RESIDUAL: sum + bias + residual; GATED + an
        activation: activation(gate + bias) * (up + bias).
    bias : float32 (columns,), or (2, columns) of gate and up
    residual : float32 (rows, columns)

    Returns
    -------
    float32 (rows, columns)
    """
    parts = [product(a, weights, part) for part in range(2 if weights.gated else 1)]
    if bias is not None:
        parts = [x + line for x, line in zip(parts, np.atleast_2d(bias), strict=True)]
    found = activation(parts[0], epilogue & ~GATED)
    if epilogue & GATED:
        found = found * parts[1]
    return found + residual if epilogue == RESIDUAL and residual is not None else found


def activation(x: F32, code: int) -> F32:
    """Return an activation of float32 values, (rows, columns)."""
    if code in (LINEAR, RESIDUAL):
        return x
    if code == SILU:
        with np.errstate(over="ignore"):  # exp overflows to infinity where silu is 0
            found: F32 = (x / (1 + np.exp(-x))).astype(np.float32, copy=False)
        return found
    known = {
        GELU: transformer_reference.GELU,
        GELU_TANH: transformer_reference.GELU_TANH,
        RELU: transformer_reference.RELU,
    }
    copy = np.array(x, np.float32)
    transformer_reference.bias_activation(copy, np.zeros(x.shape[1], np.float32), known[code])
    return copy


def product(a: F32, weights: PackedMatrix, part: int = 0) -> F32:
    """Return the sums before bias, float32 (rows, columns); ``part`` 1 is up of a gated matrix.

    ``f32``: one chain of fused multiply-adds over k in order.
    ``bf16``: rows rounded to bfloat16; the same chain, but of each pair of k the odd one first.
    ``int8``: codes of rows times codes of weights, exact (in float64, below 2^53);
    (sum * row's scale) * column's scale.
    ``int4``: the same in groups of 32 k, which have scales of their own in rows and columns; then
    total = fma(sum, row's scale * column's scale, total) over the groups in order.
    """
    if weights.kind == "int4":
        return _by_groups(a, weights, part)
    if weights.kind == "int8":
        codes, scales = quantized_rows(a)
        exact = codes.astype(np.float64) @ weights.elements(part).T.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # rows of NaN or infinity
            return exact.astype(np.float32) * scales[:, None] * weights.scales(part)
    w = weights.unpack()
    w = w[part] if weights.gated else w
    total = np.zeros((len(a), len(w)), np.float32)
    order = list(range(weights.depth))
    if weights.kind == "bf16":
        a = rounded_rows(a, "bf16")
        order.sort(key=lambda k: (k // 2, -k))
    for k in order:
        total = fma(a[:, k, None], w[None, :, k], total)
    return total


def product_by_tiles(a: F32, weights: PackedMatrix, part: int = 0) -> F32:
    """Return the sums of bfloat16 as tile registers make them, float32 (rows, columns).

    Of each 32 k in turn, the products of even and of odd k are two chains from 0, whose sum is
    added.
    """
    w = weights.unpack()
    w, a = w[part] if weights.gated else w, rounded_rows(a, "bf16")
    total = np.zeros((len(a), len(w)), np.float32)
    for start in range(0, weights.depth, 32):
        chains = np.zeros((2, *total.shape), np.float32)
        for k in range(start, min(start + 32, weights.depth)):
            chains[k % 2] = fma(a[:, k, None], w[None, :, k], chains[k % 2])
        total += chains[0] + chains[1]
    return total


def _by_groups(a: F32, weights: PackedMatrix, part: int) -> F32:
    # sums of a group are whole numbers below 2^15, which float32 holds in any order
    codes, scales = weights.elements(part).astype(np.float32), weights.scales(part)
    total = np.zeros((len(a), weights.columns), np.float32)
    for group in range(scales.shape[1]):
        here = slice(group * GROUP, (group + 1) * GROUP)
        rows, factors = quantized_rows(np.ascontiguousarray(a[:, here]))
        exact = rows.astype(np.float32) @ codes[:, here].T
        with np.errstate(over="ignore", invalid="ignore"):  # rows of NaN or infinity
            total = fma(exact, factors[:, None] * scales[None, :, group], total)
    return total


def quantized_rows(a: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """Return codes, int8 (rows, depth), and scales, float32 (rows,), of a product's rows.

    A scale is the largest absolute value / 127; a code the nearest whole number, ties to even, of
    the value times 127 / largest. A row whose largest value is below 2^-100 is zero; one with NaN
    or infinity has a scale that is no finite number, and gives none.
    """
    largest = np.abs(a).max(axis=1, initial=0)
    small = largest < SMALLEST
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(small, np.float32(0), np.float32(127) / largest)
        whole = np.rint(a * inverse[:, None])
    scales = np.where(small, np.float32(0), largest / np.float32(127))
    return np.where(np.isfinite(whole), whole, 0).astype(np.int8), scales


def rounded_rows(a: F32, kind: str) -> F32:
    """Return the rows that products of a kind compute with: rounded or coded, all but float32."""
    if kind == "f32":
        return a
    if kind == "bf16":
        return from_bfloat16(to_bfloat16(np.ascontiguousarray(a)))
    group = GROUP if kind == "int4" else a.shape[1]
    found = np.empty_like(a)
    for start in range(0, a.shape[1], group):
        codes, scales = quantized_rows(np.ascontiguousarray(a[:, start : start + group]))
        found[:, start : start + group] = codes * scales[:, None]
    return found


def fma(x: F32, y: F32, z: F32) -> F32:
    """Return x * y + z, rounded once.

    The product is exact in float64; the sum is rounded to odd there, so that rounding it to
    float32 is rounding the exact sum. Boldo and Melquiond, Emulation of FMA and correctly rounded
    sums, 2008.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are what they are
        p, c = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)
        s = p + c
        back = s - p
        lost = (p - (s - back)) + (c - back)
        even = (s.view(np.int64) & 1) == 0
        moved = np.nextafter(s, np.where(lost > 0, np.inf, -np.inf))
        odd = np.where((lost != 0) & even & np.isfinite(s), moved, s)
        return odd.astype(np.float32)
