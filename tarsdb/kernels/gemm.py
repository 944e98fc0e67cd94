"""Products with packed weights: the compiled kernel where there is one, else its definition."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import gemm_reference
from tarsdb.kernels.forms import CompiledKinds
from tarsdb.kernels.native import address
from tarsdb.kernels.packing import PackedMatrix, aligned, layout_of, pack, pack_bias
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]
SCRATCH = 128 + 128 * 96
"""Bytes of scratch memory of a float32 product, as in kernels/cpu/gemm, which also says how much
other kinds need."""


@dataclass(frozen=True)
class GemmKernel:
    """The compiled product of a kind; ``kernels/cpu/gemm.py`` says what it does."""

    variant: str
    gemm: Callable[..., None]


def is_proven(kernel: GemmKernel) -> bool:
    """Return True if a kernel gives its definition's sums to the last bit, on small products."""
    kind, form = kernel.variant.split("/")
    numbers = np.random.default_rng(0)
    for rows, depth, columns in ((1, 130, 70), (13, 65, 33)):
        a = numbers.standard_normal((rows, depth)).astype(np.float32)
        w = numbers.standard_normal((columns, depth)).astype(np.float32)
        weights = pack(w, kind, form)
        define = gemm_reference.product_by_tiles if (kind, form) == ("bf16", "amx") else (
            gemm_reference.product)  # fmt: skip
        exact = define(a, weights)
        if not np.array_equal(_call(kernel, a, weights), exact):
            return False
    return True


_compiled = CompiledKinds("gemm", GemmKernel, is_proven)
current, wait = _compiled.current, _compiled.wait
_scratch = threading.local()


def gemm(
    a: F32,
    weights: PackedMatrix,
    epilogue: int = gemm_reference.LINEAR,
    bias: F32 | None = None,
    residual: F32 | None = None,
) -> F32:
    """Return ``a @ weights.T``, finished; ``gemm_reference.gemm`` defines it.

    Parameters
    ----------
    a : float32 (rows, depth)
    weights : PackedMatrix
    epilogue : int
    bias : float32 (columns,), or (2, columns) of gate and up
    residual : float32 (rows, columns)

    Returns
    -------
    float32 (rows, columns)

    Raises
    ------
    ValueError
        Where shapes disagree.
    """
    _check(a, weights, bias, residual)
    kernel = current(weights.kind)
    if kernel is None or weights.layout.name != layout_of(*kernel.variant.split("/")):
        return gemm_reference.gemm(a, weights, epilogue, bias, residual)
    return _call(kernel, a, weights, epilogue, bias, residual)


def _call(
    kernel: GemmKernel, a: F32, weights: PackedMatrix, epilogue: int = gemm_reference.LINEAR,
    bias: F32 | None = None, residual: F32 | None = None,
) -> F32:  # fmt: skip
    rows = np.ascontiguousarray(a, np.float32)
    out = np.empty((len(rows), weights.columns), np.float32)
    added = None if bias is None else pack_bias(*np.atleast_2d(bias))
    rest = None if residual is None else np.ascontiguousarray(residual, np.float32)
    kernel.gemm(
        address(rows), 4 * weights.depth, len(rows), weights.address, weights.depth,
        weights.columns, epilogue, 0 if added is None else address(added),
        0 if rest is None else address(rest), address(out), 4 * weights.columns,
        address(_memory(kernel.variant, weights.depth)),
    )  # fmt: skip
    return out


def _check(a: F32, weights: PackedMatrix, bias: F32 | None, residual: F32 | None) -> None:
    parts = (2,) if weights.gated else ()
    for name, array, shape in (
        ("a", a, (len(a), weights.depth)),
        ("bias", bias, (*parts, weights.columns)),
        ("residual", residual, (len(a), weights.columns)),
    ):
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, the product needs {shape}")


def _memory(variant: str, depth: int) -> npt.NDArray[np.uint8]:
    from tarsdb.kernels.cpu.gemm import scratch_bytes

    kind, form = variant.split("/")
    size = scratch_bytes(kind, form, depth)
    if not hasattr(_scratch, "memory") or len(_scratch.memory) < size:
        _scratch.memory = aligned(size)
    found: npt.NDArray[np.uint8] = _scratch.memory
    return found
