"""A CUDA kernel of inner products of coded queries and rows in tiles: a thread has a row.

What it computes is defined in ``lists.array_dots``. Sixteen rows lie side by side, so neighbouring
threads read neighbouring words.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba.cuda
import numpy as np
from numba import int32

from tarsdb.kernels.ivf import TILE

cuda: Any = numba.cuda  # its names are not all declared
THREADS = 128
MOST_WIDTH = 8192
"""Elements of a code, at most: the query takes four bytes each of a block's shared memory."""


class CudaDots:
    """See :data:`tarsdb.kernels.gpu.lists.Dots`; ``threads`` is a multiple of 16."""

    def __init__(self, xp: Any, threads: int = THREADS) -> None:
        self._xp, self._threads = xp, threads

    def __call__(self, words: Any, queries: Any, looked: Any) -> Any:
        """Return int32 (q, t, 16)."""
        out = self._xp.empty((*looked.shape, TILE), self._xp.int32)
        padded = queries.shape[1]
        if padded > MOST_WIDTH:
            from tarsdb.kernels.gpu.lists import array_dots

            return array_dots(self._xp)(words, queries, looked)
        if not out.size:
            return out
        stream: Any = 0
        args = (words, queries, looked, out)
        if self._xp is not np:
            stream = cuda.external_stream(self._xp.cuda.get_current_stream().ptr)
            args = tuple(cuda.as_cuda_array(each, sync=False) for each in args)
        blocks = -(-looked.shape[1] * TILE // self._threads)
        _kernel(self._threads, padded)[(len(looked), blocks), self._threads, stream](*args)
        return out


@cache
def _kernel(threads: int, padded: int) -> Any:
    tile_rows = TILE

    @cuda.jit
    def kernel(words, queries, looked, out):  # type: ignore[no-untyped-def]
        query = cuda.shared.array(padded, int32)
        number, lane = cuda.blockIdx.x, cuda.threadIdx.x
        for at in range(lane, padded, threads):
            query[at] = queries[number, at]
        cuda.syncthreads()
        slot = cuda.blockIdx.y * threads + lane
        place, row = slot // tile_rows, slot % tile_rows
        if place >= looked.shape[1]:
            return
        tile = looked[number, place]
        if tile < 0:
            return
        total = int32(0)
        for at in range(words.shape[1]):
            word = words[tile, at, row]
            for byte in range(4):
                code = int32((word >> (8 * byte)) & 255) - int32(128)
                total += code * query[4 * at + byte]
        out[number, place, row] = total

    return kernel
