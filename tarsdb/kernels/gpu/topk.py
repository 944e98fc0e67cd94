"""The smallest keys of each row, by a CUDA kernel: one block of threads a row.

The block holds the list so far, in order, and a buffer in shared memory. A key below the last of
the list goes to the buffer; when that may overflow, both are sorted together (Batcher's bitonic
network, 1968). As the list grows better few keys pass, and the rest is one read of the keys.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba.cuda
import numpy as np
from numba import float32, int32, int64

cuda: Any = numba.cuda  # its names are not all declared
THREADS = 128
BLOCKS = 128
"""Blocks at least, as Numba warns of fewer; those beyond the rows end at once."""
MAX_SIZE = 1024
"""Keys kept at most: list and buffer take 24 KiB of a block's shared memory."""


class TopK:
    """Merges on the device; see :data:`tarsdb.kernels.gpu.select.Merge`.

    The number of keys kept is a power of two up to :data:`MAX_SIZE`.
    """

    def __init__(self, threads: int = THREADS, blocks: int = BLOCKS) -> None:
        self._threads, self._blocks = threads, blocks

    def __call__(self, found: Any, first: int, keys: Any, places: Any) -> tuple[Any, Any]:
        """Merge in place; returns ``keys`` and ``places``."""
        kernel = _kernel(keys.shape[1], self._threads)
        kernel[max(self._blocks, len(found)), self._threads](found, first, keys, places)
        return keys, places


@cache
def _kernel(size: int, threads: int) -> Any:
    """Return the kernel of a list of ``size`` keys, a power of two as ``threads`` is."""
    total = 2 * max(size, threads)
    room = total - size

    @cuda.jit(device=True)
    def sort(key, place, lane):  # type: ignore[no-untyped-def]
        width = 2
        while width <= total:
            apart = width >> 1
            while apart > 0:
                for at in range(lane, total, threads):
                    other = at ^ apart
                    if other > at and (key[at] > key[other]) == ((at & width) == 0):
                        key[at], key[other] = key[other], key[at]
                        place[at], place[other] = place[other], place[at]
                cuda.syncthreads()
                apart >>= 1
            width <<= 1

    @cuda.jit
    def merge(found, first, keys, places):  # type: ignore[no-untyped-def]
        key = cuda.shared.array(total, float32)  # a line each: the simulator tells them by it
        place = cuda.shared.array(total, int64)
        waiting = cuda.shared.array(1, int32)
        row, lane = cuda.blockIdx.x, cuda.threadIdx.x
        if row >= found.shape[0]:
            return
        for at in range(lane, total, threads):
            key[at] = keys[row, at] if at < size else float32(np.inf)
            place[at] = places[row, at] if at < size else -1
        if lane == 0:
            waiting[0] = 0
        cuda.syncthreads()
        sort(key, place, lane)
        for start in range(0, found.shape[1], threads):
            at = start + lane
            if at < found.shape[1]:
                value = found[row, at]
                if value < key[size - 1]:
                    slot = size + cuda.atomic.add(waiting, 0, 1)
                    key[slot], place[slot] = value, first + at
            cuda.syncthreads()
            held = waiting[0]
            cuda.syncthreads()  # all have read it before anyone adds to it
            if held + threads > room or (held > 0 and start + threads >= found.shape[1]):
                sort(key, place, lane)
                for old in range(size + lane, total, threads):
                    key[old] = float32(np.inf)
                if lane == 0:
                    waiting[0] = 0
                cuda.syncthreads()
        for at in range(lane, size, threads):
            keys[row, at], places[row, at] = key[at], place[at]

    return merge
