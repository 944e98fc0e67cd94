"""CUDA kernels of products of a few rows and weights that are not float32: each is read once.

What they compute is defined in ``model_arrays.ArrayKernels``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba.cuda
from numba import float32

from tarsdb.kernels.gpu.cuda_rows import block_sum

cuda: Any = numba.cuda  # its names are not all declared


@cache
def coded_product(threads: int, count: int, bits: int) -> Any:
    """Return the kernel for ``count`` rows and codes of ``bits``; a block has an output."""
    add_up = block_sum(threads)
    codes_a_word, sign = 32 // bits, 1 << (bits - 1)
    mask = 2 * sign - 1

    @cuda.jit
    def kernel(rows, codes, scales, words_a_group, out):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(threads, float32)
        parts = cuda.local.array(count, float32)
        output, lane = cuda.blockIdx.x, cuda.threadIdx.x
        for row in range(count):
            parts[row] = float32(0)
        for at in range(lane, codes.shape[1], threads):
            word, scale = codes[output, at], scales[output, at // words_a_group]
            for place in range(codes_a_word):
                code = (((word >> (place * bits)) & mask) ^ sign) - sign
                weight = float32(code) * scale
                for row in range(count):
                    parts[row] += weight * rows[row, at * codes_a_word + place]
        for row in range(count):
            found = add_up(shared, parts[row], lane)
            if lane == 0:
                out[row, output] = found

    return kernel


@cache
def half_product(threads: int, count: int) -> Any:
    """Return the kernel for ``count`` rows and float16 weights; a block has an output."""
    add_up = block_sum(threads)

    @cuda.jit
    def kernel(rows, weight, out):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(threads, float32)
        parts = cuda.local.array(count, float32)
        output, lane = cuda.blockIdx.x, cuda.threadIdx.x
        for row in range(count):
            parts[row] = float32(0)
        for at in range(lane, weight.shape[1], threads):
            value = float32(weight[output, at])
            for row in range(count):
                parts[row] += value * rows[row, at]
        for row in range(count):
            found = add_up(shared, parts[row], lane)
            if lane == 0:
                out[row, output] = found

    return kernel
