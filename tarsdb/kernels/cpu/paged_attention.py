"""Causal attention of some queries over a sequence's blocks of keys and values.

A block holds 16 tokens: keys [head_dim][16] and values [16][width] of one head, float32 or
bfloat16, which the products' micro-kernel reads as they lie; all sums are float32. Scores of all
keys are kept for a few queries, so memory is queries times keys. Sums go over the keys in their
order; a query's result depends neither on the queries beside it nor on how a prompt was cut. Kwon
et al. 2023. Arguments are addresses and counts.
"""

# Numba's decorators and llvmlite's builders tell mypy nothing true of what is compiled.
# mypy: disallow-untyped-calls=False, disable-error-code="call-arg, unreachable, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np

from tarsdb.kernels.cpu.gemm import make_multiply
from tarsdb.kernels.cpu.linked import linked
from tarsdb.kernels.cpu.memory import keep_apart, put_real, read_int, read_real
from tarsdb.kernels.cpu.rows import fill, scale, soft_cap, softmax_terms

GROUP = 16
"""Blocks of a group, as in ``decoder_reference.BLOCK_GROUP``."""
QUERIES = 24
"""Queries whose scores are kept at a time."""
_AHEAD = 4
"""Blocks whose keys are read at a time, and that memory is asked for ahead."""
_HIDDEN = np.float32(-np.inf)
_TILE = np.int64(1)  # no literal: Numba would compile for each of them
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


@linked
def piece(head, kv_heads, block):  # type: ignore[no-untyped-def]
    """Return the number of a head's block among the pieces of all heads, see ``KVCache``.

    ``head`` counts those of all groups before.
    """
    return (block // GROUP * kv_heads + head) * GROUP + block % GROUP


def make_attend(variant: str, size: int) -> Any:
    """Return the attention of a variant of processors, to be called by other kernels.

    ``size`` is the bytes of a key's or value's element: 4 of float32, 2 of bfloat16.

    Parameters of the kernel
    ------------------------
    queries, stride, count : address, bytes, int
        float32 (count, head_dim), at most QUERIES.
    position, step : int
        Query i is at ``position + i * step``: 1 for rows of one head, 0 for heads of one row.
    table, keys, values, kv_heads : addresses, int
        int32 blocks of the sequence; where the head's blocks begin, see :func:`piece`.
    head_dim, width : int
        ``width``: head_dim padded to a multiple of 16.
    window, scaling, cap : int, float, float
        See ``decoder_reference.AttentionSpec``.
    out, out_stride : address, bytes
        float32 (count, head_dim).
    scratch : address
        ``scratch_bytes``.
    """
    multiply = make_multiply(variant, "f32" if size == 4 else "halves", asks=True)
    line_bytes = np.int64(16 * size)

    @linked
    def soften(scores, lines, first, position, window, scaling, cap):  # type: ignore[no-untyped-def]
        """Turn a query's scores into weights; return their sum. ``first``: position of a score."""
        if cap != _ZERO:
            soft_cap(scores, scores, scaling, cap, 16 * lines)
            scaling = _ONE
        start = max(0, position - window + 1) if window else 0
        fill(scores, _HIDDEN, start - first)
        behind = position + 1 - first
        fill(scores + 4 * behind, _HIDDEN, 16 * lines - behind)
        return softmax_terms(scores, lines, scaling)

    @linked
    def neighbours(table, first, most):  # type: ignore[no-untyped-def]
        """Return how far apart the next blocks of a group lie, and how many of them lie so."""
        group, apart, alike = read_int(table, first) // GROUP, 0, 1
        while alike < most and read_int(table, first + alike) // GROUP == group:
            step = read_int(table, first + alike) - read_int(table, first + alike - 1)
            if alike == 1:
                apart = step
            if step != apart:
                break
            alike += 1
        return apart, alike

    @linked
    def place(number, table, lines, keys, values, kv_heads, key_bytes, value_bytes):  # type: ignore[no-untyped-def]
        """Return where a block lies of what is read: keys, values, then the next head's keys."""
        first, own = (keys, key_bytes) if number < lines else (values, value_bytes)
        number = number if number < lines else number - lines
        if number >= lines:
            first, own = keys + GROUP * key_bytes, key_bytes
            number = min(number - lines, lines - 1)
        return first + own * piece(0, kv_heads, read_int(table, number))

    @linked(error_model="numpy")
    def attend(queries, stride, count, position, step, table, keys, values, kv_heads, head_dim, width, window, scaling, cap, out, out_stride, scratch):  # type: ignore[no-untyped-def] # fmt: skip # noqa: E501
        keep_apart()
        last = position + (count - 1) * step
        begin = max(0, position - window + 1) // 16 if window else 0
        lines = last // 16 + 1 - begin
        table, key_bytes, value_bytes = (
            table + 4 * begin, line_bytes * head_dim, line_bytes * width
        )  # fmt: skip
        sums, context = scratch, scratch + 4 * QUERIES
        scores, scores_stride = context + 4 * QUERIES * width, 64 * lines
        line = 0
        while line < lines:
            apart, alike = neighbours(table, line, min(_AHEAD, lines - line))
            here, soon = (
                place(line, table, lines, keys, values, kv_heads, key_bytes, value_bytes),
                place(line + alike, table, lines, keys, values, kv_heads, key_bytes, value_bytes),
            )
            multiply(queries, stride, count, here, line_bytes, key_bytes * apart, alike, head_dim,
                     scores + 64 * line, scores_stride, _TILE, soon - here)  # fmt: skip
            line += alike
        for i in range(count):
            total = soften(scores + i * scores_stride, lines, 16 * begin, position + i * step,
                           window, scaling, cap)  # fmt: skip
            put_real(sums, i, total)
        for line in range(lines):
            at, later = lines + line, lines + line + _AHEAD
            here, soon = (
                place(at, table, lines, keys, values, kv_heads, key_bytes, value_bytes),
                place(later, table, lines, keys, values, kv_heads, key_bytes, value_bytes),
            )
            known = min(16, last + 1 - 16 * (begin + line))
            multiply(scores + 64 * line, scores_stride, count, here, size * width, line_bytes,
                     width // 16, known, context, 4 * width, int(line == 0),
                     soon - here)  # fmt: skip
        for i in range(count):
            scale(out + i * out_stride, context + i * 4 * width, _ONE / read_real(sums, i),
                       head_dim)  # fmt: skip

    return attend


@linked
def scratch_bytes(blocks, width):  # type: ignore[no-untyped-def]
    """Return the bytes of scratch memory for sequences of at most so many blocks."""
    return 4 * QUERIES * (1 + width) + 64 * QUERIES * blocks
