"""What models do between matrix products, fused into CUDA kernels of Numba."""

from __future__ import annotations

import warnings
from typing import Any

import numba.cuda
import numpy as np

from tarsdb.kernels.decoder_reference import AttentionSpec
from tarsdb.kernels.gpu import cuda_attention, cuda_product, cuda_rows
from tarsdb.kernels.gpu.model_arrays import ArrayKernels, Paged

cuda: Any = numba.cuda  # its names are not all declared
THREADS = 128
"""Threads of a block that works on a row."""
QUERIES, KEYS = 64, 32
"""Queries of a block of self-attention, and keys it passes over at a time."""
MAX_CODED_ROWS = 8
"""More rows are multiplied by decoded weights."""
MAX_SELF_SIZE, MAX_PAGED_SIZE = 128, 1024
"""Elements of a head, at most: what shared and local memory of a block hold."""


class CudaKernels(ArrayKernels):
    """Kernels with the results of :class:`ArrayKernels`, launched on the namespace's stream.

    Products of few rows in half precision keep the rows in float32.

    Parameters
    ----------
    xp : module
        CuPy, or NumPy in Numba's simulator.
    threads : int
        Of a block, a power of two.
    queries : int
        Threads of a block of self-attention.
    """

    recordable = True

    def __init__(self, xp: Any, threads: int = THREADS, queries: int = QUERIES) -> None:
        super().__init__(xp)
        # Numba says of every small launch that it fills no device.
        warnings.filterwarnings("ignore", "Grid size .* low occupancy")
        self._threads, self._queries = threads, queries

    def residual_norm(
        self, values: Any, update: Any, bias: Any, scale: Any, shift: Any, epsilon: float
    ) -> None:
        """See :class:`ArrayKernels`."""
        kernel = cuda_rows.residual_norm(self._threads)
        self._launch(kernel, (len(values), 1), values, update, bias, scale, shift, epsilon)

    def bias_activation(self, values: Any, bias: Any, activation: int) -> None:
        """See :class:`ArrayKernels`."""
        kernel = cuda_rows.bias_activation(activation)
        self._launch(kernel, (len(values), self._parts(values.shape[1])), values, bias)

    def self_attention(
        self, qkv: Any, offsets: np.ndarray, heads: int, relative: Any, scale: float,
        reach: int = 0,
    ) -> Any:  # fmt: skip
        """See :class:`ArrayKernels`."""
        width = qkv.shape[1] // 3
        size = width // heads
        if size > MAX_SELF_SIZE:
            return super().self_attention(qkv, offsets, heads, relative, scale, reach)
        out = self._empty(len(qkv), width)
        tiles = self.xp.asarray(cuda_attention.query_tiles(offsets, self._queries))
        kernel = cuda_attention.self_attention(self._queries, size, KEYS, relative is not None)
        bias = self._empty(1, 1) if relative is None else relative
        grid = (len(tiles), heads)
        self._launch(kernel, grid, qkv, tiles, bias, scale, reach, out, threads=self._queries)
        return out

    def rms_norm(self, rows: Any, scale: Any, epsilon: float) -> Any:
        """See :class:`ArrayKernels`."""
        return self._rms_norm(rows, rows, scale, epsilon, False)

    def add_rms_norm(self, rows: Any, update: Any, scale: Any, epsilon: float) -> Any:
        """See :class:`ArrayKernels`."""
        return self._rms_norm(rows, update, scale, epsilon, True)

    def gated(self, gate_up: Any, activation: int) -> Any:
        """See :class:`ArrayKernels`."""
        out = self._empty(len(gate_up), gate_up.shape[1] // 2)
        kernel = cuda_rows.gated(activation)
        self._launch(kernel, (len(out), self._parts(out.shape[1])), gate_up, out)
        return out

    def turn_and_store(
        self, qkv: Any, angles: Any, norms: tuple[Any, Any] | None, epsilon: float, paged: Paged
    ) -> Any:
        """See :class:`ArrayKernels`."""
        count, every, size = qkv.shape
        queries = self._empty(count, every - 2 * paged.keys.shape[1], size)
        kernel = cuda_rows.turn_and_store(self._threads, norms is not None)
        scales = (angles[0], angles[0]) if norms is None else norms
        self._launch(
            kernel, (count, every), qkv, angles, *scales, epsilon, paged.rows, paged.keys,
            paged.values, queries,
        )  # fmt: skip
        return queries

    def paged_attention(self, queries: Any, paged: Paged, spec: AttentionSpec) -> Any:
        """See :class:`ArrayKernels`."""
        count, heads, size = queries.shape
        if size > MAX_PAGED_SIZE:
            return super().paged_attention(queries, paged, spec)
        out = self._empty(count, heads * size)
        kernel = cuda_attention.paged_attention(self._threads, size)
        self._launch(
            kernel, (count, heads), queries, paged.rows, paged.keys, paged.values, spec.scale,
            spec.window, spec.cap, out,
        )  # fmt: skip
        return out

    def half_product(self, rows: Any, weight: Any, longest: float) -> Any:
        """See :class:`ArrayKernels`."""
        if len(rows) > MAX_CODED_ROWS:
            return super().half_product(rows, weight, longest)
        out = self._empty(len(rows), len(weight))
        kernel = cuda_product.half_product(self._threads, len(rows))
        self._launch(kernel, (len(weight), 1), rows, weight, out)
        return out

    def coded_product(self, rows: Any, codes: Any, scales: Any, group: int) -> Any:
        """See :class:`ArrayKernels`."""
        if len(rows) > MAX_CODED_ROWS:
            return super().coded_product(rows, codes, scales, group)
        out = self._empty(len(rows), len(codes))
        words = group * codes.shape[1] // rows.shape[1]
        kernel = cuda_product.coded_product(
            self._threads, len(rows), 32 * codes.shape[1] // rows.shape[1]
        )
        self._launch(kernel, (len(codes), 1), rows, codes, scales, words, out)
        return out

    def _rms_norm(self, rows: Any, update: Any, scale: Any, epsilon: float, adding: bool) -> Any:
        out = self._empty(*rows.shape)
        kernel = cuda_rows.rms_norm(self._threads, adding)
        self._launch(kernel, (len(rows), 1), rows, update, scale, epsilon, out)
        return out

    def _empty(self, *shape: int) -> Any:
        return self.xp.empty(shape, self.xp.float32)

    def _parts(self, width: int) -> int:
        return -(-width // self._threads)

    def _launch(
        self, kernel: Any, grid: tuple[int, int], *args: Any, threads: int | None = None
    ) -> None:
        """Launch on CuPy's stream, behind what it was given before: nothing has to wait."""
        if not grid[0]:
            return
        stream: Any = 0
        if self.xp is not np:
            stream = cuda.external_stream(self.xp.cuda.get_current_stream().ptr)
            args = tuple(
                cuda.as_cuda_array(arg, sync=False) if hasattr(arg, "shape") else arg
                for arg in args
            )
        kernel[grid, threads or self._threads, stream](*args)
