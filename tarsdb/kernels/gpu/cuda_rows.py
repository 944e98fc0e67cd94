"""CUDA kernels on rows: norms with their residuals, activations, rotation into the KV cache.

A block of threads works on a row; sums are made in a tree whose order does not change. What they
compute is defined in ``model_arrays``.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba.cuda
from numba import float32

from tarsdb.kernels.decoder_reference import BLOCK_TOKENS
from tarsdb.kernels.decoder_reference import GELU_TANH as GATE_TANH
from tarsdb.kernels.transformer_reference import GELU, GELU_TANH, SILU, TANH_LOGIT

cuda: Any = numba.cuda  # its names are not all declared
_ROOT_HALF = math.sqrt(0.5)
_LINEAR, _CUBIC = TANH_LOGIT
_HIGHEST = 80.0  # exp of more is beyond float32; less than 1e-34 is lost


@cache
def block_sum(threads: int) -> Any:
    """Return the sum over a block of ``threads`` threads, a power of two; all get it."""

    @cuda.jit(device=True)
    def total(shared, value, lane):  # type: ignore[no-untyped-def]
        shared[lane] = value
        cuda.syncthreads()
        apart = threads >> 1
        while apart > 0:
            if lane < apart:
                shared[lane] += shared[lane + apart]
            cuda.syncthreads()
            apart >>= 1
        found = shared[0]
        cuda.syncthreads()  # all have read it before it is written again
        return found

    return total


@cache
def residual_norm(threads: int) -> Any:
    """Return the kernel of ``ArrayKernels.residual_norm``."""
    add_up = block_sum(threads)

    @cuda.jit
    def kernel(values, update, bias, scale, shift, epsilon):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(threads, float32)
        row, lane = cuda.blockIdx.x, cuda.threadIdx.x
        width = values.shape[1]
        part = float32(0)
        for at in range(lane, width, threads):
            value = values[row, at] + update[row, at] + bias[at]
            values[row, at] = value
            part += value
        mean = add_up(shared, part, lane) / float32(width)
        part = float32(0)
        for at in range(lane, width, threads):
            apart = values[row, at] - mean
            part += apart * apart
        variance = add_up(shared, part, lane) / float32(width)
        factor = float32(1) / math.sqrt(variance + float32(epsilon))
        for at in range(lane, width, threads):
            values[row, at] = (values[row, at] - mean) * factor * scale[at] + shift[at]

    return kernel


@cache
def rms_norm(threads: int, adding: bool) -> Any:
    """Return the kernel of ``rms_norm``, or of ``add_rms_norm``; the result goes to ``out``."""
    add_up = block_sum(threads)

    @cuda.jit
    def kernel(rows, update, scale, epsilon, out):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(threads, float32)
        row, lane = cuda.blockIdx.x, cuda.threadIdx.x
        width = rows.shape[1]
        part = float32(0)
        for at in range(lane, width, threads):
            value = rows[row, at]
            if adding:
                value += update[row, at]
                rows[row, at] = value
            part += value * value
        mean = add_up(shared, part, lane) / float32(width)
        factor = float32(1) / math.sqrt(mean + float32(epsilon))
        for at in range(lane, width, threads):
            out[row, at] = rows[row, at] * factor * scale[at]

    return kernel


@cache
def bias_activation(activation: int) -> Any:
    """Return the kernel of ``bias_activation``; a thread an element."""
    exact, by_tanh = activation == GELU, activation == GELU_TANH
    is_silu = activation == SILU

    @cuda.jit
    def kernel(values, bias):  # type: ignore[no-untyped-def]
        row, at = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if at >= values.shape[1]:
            return
        value = values[row, at] + bias[at]
        if exact:
            half = float32(0.5) * value
            values[row, at] = half * (float32(1) + math.erf(value * float32(_ROOT_HALF)))
        elif by_tanh:
            logit = value * (float32(_LINEAR) + float32(_CUBIC) * value * value)
            values[row, at] = value / (float32(1) + math.exp(min(-logit, float32(_HIGHEST))))
        elif is_silu:
            values[row, at] = value / (float32(1) + math.exp(min(-value, float32(_HIGHEST))))
        else:
            values[row, at] = max(value, float32(0))

    return kernel


@cache
def gated(activation: int) -> Any:
    """Return the kernel of ``gated``; a thread an element."""
    by_tanh = activation == GATE_TANH

    @cuda.jit
    def kernel(gate_up, out):  # type: ignore[no-untyped-def]
        row, at = cuda.blockIdx.x, cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        width = out.shape[1]
        if at >= width:
            return
        gate = gate_up[row, at]
        logit = gate
        if by_tanh:
            logit = gate * (float32(_LINEAR) + float32(_CUBIC) * gate * gate)
        out[row, at] = (
            gate
            / (float32(1) + math.exp(min(-logit, float32(_HIGHEST))))
            * gate_up[row, width + at]
        )

    return kernel


@cache
def turn_and_store(threads: int, normed: bool) -> Any:
    """Return the kernel of ``turn_and_store``: a block turns a head of a row."""
    add_up, block_tokens = block_sum(threads), BLOCK_TOKENS

    @cuda.jit(device=True)
    def factor_of(qkv, epsilon, shared):  # type: ignore[no-untyped-def]
        row, head, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        size = qkv.shape[2]
        part = float32(0)
        for at in range(lane, size, threads):
            part += qkv[row, head, at] * qkv[row, head, at]
        mean = add_up(shared, part, lane) / float32(size)
        return float32(1) / math.sqrt(mean + float32(epsilon))

    @cuda.jit
    def kernel(qkv, angles, query_norm, key_norm, epsilon, rows, keys, values, queries):  # type: ignore[no-untyped-def]
        shared = cuda.shared.array(threads, float32)
        row, head, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        heads, kv_heads, size = queries.shape[1], keys.shape[1], qkv.shape[2]
        half = size // 2
        block, slot = rows[row, 1] // block_tokens, rows[row, 1] % block_tokens
        if head >= heads + kv_heads:
            for at in range(lane, size, threads):
                values[block, head - heads - kv_heads, slot, at] = qkv[row, head, at]
            return
        factor = float32(1)
        if normed:
            factor = factor_of(qkv, epsilon, shared)
        for at in range(lane, half, threads):
            first, second = qkv[row, head, at] * factor, qkv[row, head, at + half] * factor
            if normed and head < heads:
                first *= query_norm[at]
                second *= query_norm[at + half]
            elif normed:
                first *= key_norm[at]
                second *= key_norm[at + half]
            cosine, sine = angles[row, at], angles[row, at + half]
            low, high = first * cosine - second * sine, second * cosine + first * sine
            if head < heads:
                queries[row, head, at], queries[row, head, at + half] = low, high
            else:
                keys[block, head - heads, at, slot] = low
                keys[block, head - heads, at + half, slot] = high

    return kernel
