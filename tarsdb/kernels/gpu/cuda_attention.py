"""CUDA kernels of attention, with an online softmax (Milakov and Gimelshein 2018).

No score leaves its block of threads (Dao et al. 2022). What they compute is defined in
``model_arrays``.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba.cuda
import numpy as np
from numba import float32, int32

from tarsdb.kernels.decoder_reference import BLOCK_TOKENS
from tarsdb.kernels.gpu.cuda_rows import block_sum

cuda: Any = numba.cuda  # its names are not all declared
LEAST = -1e30
"""Stands for a score of nothing: finite, so that no difference of two is NaN."""


@cache
def self_attention(threads: int, size: int, tile: int, biased: bool) -> Any:
    """Return the kernel of ``self_attention``: each thread has a query of heads of ``size``.

    A block takes ``threads`` queries of one text, ``tiles`` (blocks, 3) int32 names the first and
    the text's bounds, and passes over its keys and values, ``tile`` at a time.
    """

    @cuda.jit
    def kernel(qkv, tiles, relative, scale, reach, out):  # type: ignore[no-untyped-def]
        keys = cuda.shared.array((tile, size), float32)
        values = cuda.shared.array((tile, size), float32)
        query = cuda.local.array(size, float32)
        total = cuda.local.array(size, float32)
        head, lane = cuda.blockIdx.y, cuda.threadIdx.x
        row = tiles[cuda.blockIdx.x, 0] + lane
        first, last = tiles[cuda.blockIdx.x, 1], tiles[cuda.blockIdx.x, 2]
        width, column = out.shape[1], head * size
        for at in range(size):
            total[at] = float32(0)
            query[at] = qkv[row, column + at] if row < last else float32(0)
        highest, weight = float32(LEAST), float32(0)
        for start in range(first, last, tile):
            count = min(tile, last - start)
            for at in range(lane, count * size, threads):
                key, element = at // size, at % size
                keys[key, element] = qkv[start + key, width + column + element]
                values[key, element] = qkv[start + key, 2 * width + column + element]
            cuda.syncthreads()
            for key in range(count):
                if reach > 0 and abs(start + key - row) > reach:
                    continue
                score = float32(0)
                for at in range(size):
                    score += query[at] * keys[key, at]
                if biased and row < last:
                    score += relative[head, start + key - row + relative.shape[1] // 2]
                score *= float32(scale)
                if score > highest:
                    shrunk = math.exp(highest - score)
                    highest, weight = score, weight * shrunk
                    for at in range(size):
                        total[at] *= shrunk
                share = math.exp(score - highest)
                weight += share
                for at in range(size):
                    total[at] += share * values[key, at]
            cuda.syncthreads()
        if row < last:
            for at in range(size):
                out[row, column + at] = total[at] / weight

    return kernel


def query_tiles(offsets: np.ndarray, threads: int) -> np.ndarray:
    """Return the blocks of :func:`self_attention`: int32 (blocks, 3), see there."""
    lengths = np.diff(offsets)
    counts = -(-lengths // threads)
    text = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    tiles = np.stack([offsets[text] + number * threads, offsets[text], offsets[text + 1]], axis=1)
    return np.ascontiguousarray(tiles, np.int32)


@cache
def paged_attention(threads: int, size: int) -> Any:
    """Return the kernel of ``paged_attention``: a block has one head of a row.

    Its threads take a token each for the scores, then an element each for the sum of values.
    """
    add_up, block_tokens = block_sum(threads), BLOCK_TOKENS

    @cuda.jit
    def kernel(queries, rows, keys, values, scale, window, cap, out):  # type: ignore[no-untyped-def]
        query = cuda.shared.array(size, float32)
        total = cuda.shared.array(size, float32)
        shares = cuda.shared.array(threads, float32)
        shared = cuda.shared.array(threads, float32)
        places = cuda.shared.array(threads, int32)
        row, head, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        group = head * keys.shape[1] // queries.shape[1]
        stop = rows[row, 0] + 1
        start = max(0, stop - window) if window > 0 else 0
        for at in range(lane, size, threads):
            query[at], total[at] = queries[row, head, at], float32(0)
        cuda.syncthreads()
        highest, weight = float32(LEAST), float32(0)
        for tile in range(start, stop, threads):
            token, score = tile + lane, float32(LEAST)
            if token < stop:
                block, slot = rows[row, 2 + token // block_tokens], token % block_tokens
                places[lane] = block * block_tokens + slot
                score = float32(0)
                for at in range(size):
                    score += query[at] * float32(keys[block, group, at, slot])
                score *= float32(scale)
                if cap > 0:
                    score = math.tanh(score / float32(cap)) * float32(cap)
            shares[lane] = score
            cuda.syncthreads()
            count, before = min(threads, stop - tile), highest
            for other in range(count):
                highest = max(highest, shares[other])
            cuda.syncthreads()  # all know the highest before scores become shares
            share = math.exp(score - highest) if token < stop else float32(0)
            shares[lane] = share
            shrunk = math.exp(before - highest)
            weight = weight * shrunk + add_up(shared, share, lane)
            for at in range(lane, size, threads):
                found = total[at] * shrunk
                for other in range(count):
                    place = places[other]
                    block, slot = place // block_tokens, place % block_tokens
                    found += shares[other] * float32(values[block, group, slot, at])
                total[at] = found
            cuda.syncthreads()
        for at in range(lane, size, threads):
            out[row, head * size + at] = total[at] / weight

    return kernel
