"""Self-attention of whole texts that lie packed one after another.

Every token sees its text, or what is near in it.

Per text and head, keys are transposed into tiles of 16; scores of a block of queries with all keys
are a product with these tiles, context is a product with the value rows where they lie. Memory is
block x keys. Scores are powers of two: the caller scales queries by log2(e) / sqrt(head size).
Sums have a fixed order, so a text's result does not depend on its neighbours. Heads are multiples
of 16 wide. Arguments are addresses, counts and byte strides.

Vaswani et al., Attention is all you need, 2017, section 3.2.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tarsdb.kernels.cpu.emit import FLOAT, I32, I64, LANES, load, splat, store
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import keep_apart, put_real, read_real
from tarsdb.kernels.cpu.vector_math import exp2, greatest, largest, total

QUERIES = 48
"""Queries whose scores are computed at a time; a multiple of what the micro-kernels take."""
_F16, _W16 = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
_NEGATIVE = ir.Constant(_F16, [float("-inf")] * LANES)


@linked
def transpose_keys(keys, stride, count, size, tiles):  # type: ignore[no-untyped-def]
    """Write ``count`` rows of ``size`` floats as tiles (size, 16), the last filled with zeros."""
    for first in range(0, count, 16):
        tile = tiles + 4 * first * size
        here = min(16, count - first)
        for lane in range(here):
            row = keys + (first + lane) * stride
            for i in range(size):
                put_real(tile, 16 * i + lane, read_real(row, i))
        for lane in range(here, 16):
            for i in range(size):
                put_real(tile, 16 * i + lane, 0.0)


@intrinsic
def softmax_terms(typingctx, scores, stride, rows, keys, bias, factors):  # type: ignore[no-untyped-def]
    """Replace scores by powers of two of their distance to the row's largest.

    ``scores`` float32 (rows, 16 * tiles): what lies behind ``keys`` is filler. ``bias``, where it
    is not 0, is added first; that of the next row lies 4 bytes in front of a row's. 1 / sum of each
    row goes to ``factors``.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        scores, stride, rows, keys, bias, factors = args
        tiles = b.lshr(b.add(keys, ir.Constant(I64, 15)), ir.Constant(I64, 4))
        numbers = ir.Constant(_W16, list(range(LANES)))
        top, sums = cgutils.alloca_once(b, _F16), cgutils.alloca_once(b, _F16)

        def mask(row: Any, added: Any) -> None:
            with cgutils.for_range(b, tiles) as loop:
                at = b.shl(loop.index, ir.Constant(I64, 6))
                place = b.add(row, at)
                value = load(b, place, _F16)
                if added is not None:
                    value = b.fadd(value, load(b, b.add(added, at), _F16))
                left = b.sub(keys, b.shl(loop.index, ir.Constant(I64, 4)))
                known = b.icmp_signed("<", numbers, splat(b, b.trunc(left, I32)))
                value = b.select(known, value, _NEGATIVE)
                store(b, value, place)
                b.store(greatest(b, value, b.load(top)), top)

        with cgutils.for_range(b, rows) as loop:
            row = b.add(scores, b.mul(loop.index, stride))
            b.store(_NEGATIVE, top)
            b.store(ir.Constant(_F16, None), sums)
            has_bias = b.icmp_signed("!=", bias, ir.Constant(I64, 0))
            with b.if_else(has_bias) as (then, otherwise):
                with then:
                    mask(row, b.sub(bias, b.shl(loop.index, ir.Constant(I64, 2))))
                with otherwise:
                    mask(row, None)
            highest = splat(b, largest(b, b.load(top)))
            with cgutils.for_range(b, tiles) as inner:
                place = b.add(row, b.shl(inner.index, ir.Constant(I64, 6)))
                # filler becomes 2^-126, nothing beside the largest's 1
                term = exp2(b, b.fsub(load(b, place, _F16), highest))
                store(b, term, place)
                b.store(b.fadd(b.load(sums), term), sums)
            factor = b.fdiv(ir.Constant(FLOAT, 1.0), total(b, b.load(sums)))
            store(b, factor, b.add(factors, b.shl(loop.index, ir.Constant(I64, 2))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def scale_rows(typingctx, rows_in_place, stride, rows, tiles, factors):  # type: ignore[no-untyped-def]
    """Multiply each row, 16 * ``tiles`` floats, by its factor."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        first, stride, rows, tiles, factors = args
        with cgutils.for_range(b, rows) as loop:
            row = b.add(first, b.mul(loop.index, stride))
            at = b.add(factors, b.shl(loop.index, ir.Constant(I64, 2)))
            factor = splat(b, load(b, at, FLOAT))
            with cgutils.for_range(b, tiles) as inner:
                place = b.add(row, b.shl(inner.index, ir.Constant(I64, 6)))
                store(b, b.fmul(load(b, place, _F16), factor), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


def make_attention(multiply: Any) -> Any:
    """Return the attention of one text by ``gemm.make_multiply``, to be called by other kernels.

    Parameters of the kernel
    ------------------------
    qkv, stride, tokens : address, bytes, int
        float32 rows of queries, keys and values, each (heads, size). The context replaces the
        queries.
    heads, size : int
        ``size`` is a multiple of 16.
    bias, bias_step : address, bytes
        0, or for each head a row whose element ``key - query`` is added to a score: the address of
        the first head's element 0. 16 floats behind the last element may be read.
    reach : int
        Keys further from a block's queries are not looked at; 0: all are. What is further than
        ``reach`` from one of the queries only, the bias has to hide.
    keys, scores, factors : addresses
        Scratch: 4 * size * (tokens to the next 16), 4 * QUERIES * (tokens to the next 16) and
        4 * QUERIES bytes.
    """

    @linked
    def attention(qkv, stride, tokens, heads, size, bias, bias_step, reach, keys, scores, factors):  # type: ignore[no-untyped-def] # fmt: skip
        keep_apart()
        part, reach = 4 * heads * size, reach if reach else tokens
        for head in range(heads):
            queries = qkv + 4 * head * size
            transpose_keys(queries + part, stride, tokens, size, keys)
            for first in range(0, tokens, QUERIES):
                count, here = min(QUERIES, tokens - first), queries + first * stride
                near = max(0, first - reach) // 16 * 16
                seen = min(tokens, first + count + reach) - near
                tiles, values = (seen + 15) // 16, queries + 2 * part + near * stride
                multiply(here, stride, count, keys + 4 * near * size, np.int64(64), 64 * size,
                         tiles, size, scores, 64 * tiles, np.int64(1), 0)  # fmt: skip
                relative = bias + head * bias_step + 4 * (near - first) if bias else 0
                softmax_terms(scores, 64 * tiles, count, seen, relative, factors)
                multiply(scores, 64 * tiles, count, values, stride, np.int64(64),
                         size // 16, seen, here, stride, np.int64(1), 0)  # fmt: skip
                scale_rows(here, stride, count, size // 16, factors)

    return attention
