"""A transformer encoder over packed texts, all layers in one call.

Rows (tokens) go through a layer in blocks that stay in the L2 cache: between the attention of one
layer and that of the next, a block's context, feed-forward network and norms follow each other.
Norms come behind each sum, in place, or in front of what reads it, beside it (pre-norm).
Rows are as wide as the next multiple of 16 floats. Addresses come in tables of int64, which
``kernels/encoder.py`` fills in the order of the names below. Knows no model.
"""

# Numba's decorators tell mypy nothing true of what is compiled.
# mypy: disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from tarsdb.kernels.cpu.attention import make_attention
from tarsdb.kernels.cpu.epilogue import LINEAR
from tarsdb.kernels.cpu.gemm import make_gemm, make_multiply
from tarsdb.kernels.cpu.layer_norm import add_and_norm
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import read_long, read_real
from tarsdb.kernels.cpu.rows import rotate, scale

SIGNATURES = {"encode": types.void(*[types.int64] * 7)}
# The model: sizes, then addresses; ``width`` is that of all heads together.
(LAYERS, HIDDEN, HEADS, HEAD_SIZE, INTERMEDIATE, ACTIVATION, EPSILON, PRE_NORM, TURNED, NORM_SCALE,
 NORM_SHIFT, LAYER_TABLE) = range(12)  # fmt: skip
# A layer: addresses of packed weights, biases and norms; what tokens see, and which angles.
(QKV, QKV_BIAS, CONTEXT, CONTEXT_BIAS, CONTEXT_SCALE, CONTEXT_SHIFT, EXPAND, EXPAND_BIAS, REDUCE,
 REDUCE_BIAS, OUTPUT_SCALE, OUTPUT_SHIFT, BIAS, BIAS_STEP, REACH, ANGLES,
 LAYER_SIZE) = range(17)  # fmt: skip
# Memory of a call; the last two of rows have them for a block only. Marks are for ``stages``.
(HIDDEN_ROWS, QKV_ROWS, KEYS, SCORES, FACTORS, PRODUCT, UPDATE_ROWS, EXPANDED_ROWS,
 MARKS) = range(9)  # fmt: skip
BLOCK = 48
"""Rows of a block."""


def make_encode(variant: str, kind: str) -> Any:
    """Return the (not yet compiled) encoder of a variant and a kind of weights.

    Parameters of the kernel, all int64
    -----------------------------------
    model : address of the table of a model
    offsets, texts : address of int64 (texts + 1,), where each text's rows start; their number
    angles : address of float32 (kinds, rows, TURNED): cosines, then sines
    memory : address of the table of memory; its hidden rows hold the sum of the embeddings and
        receive the result
    update : address of rows as wide as the hidden ones, added to these first; where norms come
        first, the rows that layers read, and the result
    block : rows of a block, at most what the memory has
    """
    gemm, attention = make_gemm(variant, kind), make_attention(make_multiply(variant))

    @linked
    def rest_of_layer(model, layer, memory, normed, first, rows, qkv_stride):  # type: ignore[no-untyped-def]
        """Context, feed-forward network and norms of a block of rows."""
        hidden, intermediate = read_long(model, HIDDEN), read_long(model, INTERMEDIATE)
        width = read_long(model, HEADS) * read_long(model, HEAD_SIZE)
        stride, wide = (hidden + 15) // 16 * 64, (intermediate + 15) // 16 * 64
        epsilon = read_real(model + 8 * EPSILON, 0)
        values = read_long(memory, HIDDEN_ROWS) + first * stride
        read = normed + first * stride
        context = read_long(memory, QKV_ROWS) + first * qkv_stride
        update, expanded = read_long(memory, UPDATE_ROWS), read_long(memory, EXPANDED_ROWS)
        scratch = read_long(memory, PRODUCT)
        gemm(context, qkv_stride, rows, read_long(layer, CONTEXT), width, stride // 4, LINEAR,
             read_long(layer, CONTEXT_BIAS), update, update, stride, scratch)  # fmt: skip
        # stage: context
        add_and_norm(values, update, read, stride, rows, hidden, read_long(layer, CONTEXT_SCALE),
                     read_long(layer, CONTEXT_SHIFT), epsilon)  # fmt: skip
        # stage: norm
        gemm(read, stride, rows, read_long(layer, EXPAND), hidden, wide // 4,
             read_long(model, ACTIVATION), read_long(layer, EXPAND_BIAS), expanded, expanded, wide,
             scratch)  # fmt: skip
        # stage: expand
        gemm(expanded, wide, rows, read_long(layer, REDUCE), intermediate, stride // 4, LINEAR,
             read_long(layer, REDUCE_BIAS), update, update, stride, scratch)  # fmt: skip
        # stage: reduce
        add_and_norm(values, update, read, stride, rows, hidden, read_long(layer, OUTPUT_SCALE),
                     read_long(layer, OUTPUT_SHIFT), epsilon)  # fmt: skip
        # stage: norm

    @linked
    def turn(qkv, qkv_stride, rows, heads, size, angles, turned):  # type: ignore[no-untyped-def]
        """Turn queries and keys of all heads by the angles of their rows."""
        for row in range(rows):
            for head in range(2 * heads):
                rotate(qkv + row * qkv_stride + 4 * head * size, angles + 4 * row * turned,
                       turned // 2)  # fmt: skip

    @njit(nogil=True)
    def encode(model, offsets, texts, angles, memory, update, block):  # type: ignore[no-untyped-def] # fmt: skip
        hidden, heads = read_long(model, HIDDEN), read_long(model, HEADS)
        size, layer = read_long(model, HEAD_SIZE), read_long(model, LAYER_TABLE)
        turned = read_long(model, TURNED)
        stride, qkv_stride = (hidden + 15) // 16 * 64, 12 * heads * size
        rows, values = read_long(offsets, texts), read_long(memory, HIDDEN_ROWS)
        qkv, normed = read_long(memory, QKV_ROWS), values
        # stage outside layers: call
        add_and_norm(values, update, values, stride, rows, hidden, read_long(model, NORM_SCALE),
                     read_long(model, NORM_SHIFT), read_real(model + 8 * EPSILON, 0))  # fmt: skip
        if read_long(model, PRE_NORM):
            normed = update
            scale(normed, values, np.float32(1.0), rows * stride // 4)
        # stage outside layers: embedding norm
        for _ in range(read_long(model, LAYERS)):
            # layer
            gemm(normed, stride, rows, read_long(layer, QKV), hidden, qkv_stride // 4, LINEAR,
                 read_long(layer, QKV_BIAS), qkv, qkv, qkv_stride,
                 read_long(memory, PRODUCT))  # fmt: skip
            # stage: qkv
            if turned:
                turn(qkv, qkv_stride, rows, heads, size,
                     angles + 4 * rows * turned * read_long(layer, ANGLES), turned)  # fmt: skip
                # stage: rotary
            for text in range(texts):
                first = read_long(offsets, text)
                attention(qkv + first * qkv_stride, qkv_stride,
                          read_long(offsets, text + 1) - first, heads, size,
                          read_long(layer, BIAS), read_long(layer, BIAS_STEP),
                          read_long(layer, REACH), read_long(memory, KEYS),
                          read_long(memory, SCORES), read_long(memory, FACTORS))  # fmt: skip
            # stage: attention
            for first in range(0, rows, block):
                rest_of_layer(model, layer, memory, normed, first, min(block, rows - first),
                              qkv_stride)  # fmt: skip
            layer += 8 * LAYER_SIZE

    return encode


def make_kernels(variant: str) -> dict[str, Any]:
    """Return the kernels of SIGNATURES, not yet compiled; ``variant`` is KIND/VARIANT."""
    kind, form = variant.split("/")
    return {"encode": make_encode(form, kind)}
