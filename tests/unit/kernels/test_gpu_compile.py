"""CUDA kernels of models compile for a device; needs NVIDIA's compiler, but no device."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("pip install 'tarsdb[gpu]'", allow_module_level=True)

from numba import cuda, types
from numba.cuda import dispatcher

from tarsdb.kernels.gpu import cuda_attention, cuda_lists, cuda_product, cuda_rows

V, M, H = types.float32[::1], types.float32[:, ::1], types.float32[:, :, ::1]
I2, K4 = types.int32[:, ::1], types.float32[:, :, :, ::1]
F, N = types.float64, types.int64
HM, HK4 = types.float16[:, ::1], types.float16[:, :, :, ::1]

KERNELS = {
    "residual_norm": (cuda_rows.residual_norm(128), (M, M, V, V, V, F)),
    "rms_norm": (cuda_rows.rms_norm(128, True), (M, M, V, F, M)),
    "gelu": (cuda_rows.bias_activation(0), (M, V)),
    "gelu_tanh": (cuda_rows.bias_activation(1), (M, V)),
    "relu": (cuda_rows.bias_activation(2), (M, V)),
    "silu": (cuda_rows.bias_activation(3), (M, V)),
    "gated": (cuda_rows.gated(1), (M, M)),
    "turn": (cuda_rows.turn_and_store(128, True), (H, M, V, V, F, I2, K4, K4, H)),
    "turn_plain": (cuda_rows.turn_and_store(128, False), (H, M, V, V, F, I2, K4, K4, H)),
    "self_attention": (cuda_attention.self_attention(64, 64, 32, True), (M, I2, M, F, N, M)),
    "paged_attention": (
        cuda_attention.paged_attention(128, 64), (H, I2, K4, K4, F, N, F, M)
    ),
    "int8": (cuda_product.coded_product(128, 1, 8), (M, I2, M, N, M)),
    "int4": (cuda_product.coded_product(128, 8, 4), (M, I2, M, N, M)),
    "list_dots": (
        cuda_lists._kernel(128, 384),
        (types.int32[:, :, ::1], types.int8[:, ::1], I2, types.int32[:, :, ::1]),
    ),
    "half": (cuda_product.half_product(128, 8), (M, HM, M)),
    "turn_half": (cuda_rows.turn_and_store(128, False), (H, M, V, V, F, I2, HK4, HK4, H)),
    "paged_attention_half": (
        cuda_attention.paged_attention(128, 64), (H, I2, HK4, HK4, F, N, F, M)
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels call is compiled for the current device: name one."""
    named = SimpleNamespace(compute_capability=(8, 0))
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: named)


def compiled(kernel: Any, signature: Any) -> str:
    return str(cuda.compile_ptx(kernel.py_func, signature, cc=(8, 0))[0])


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_and_computes_in_float32(name: str) -> None:
    ptx = compiled(*KERNELS[name])
    assert ".entry" in ptx
    assert ptx.count(".f64") <= 9, ptx  # arguments are converted once; loops have none


def test_a_kernel_of_other_arrays_does_not_compile() -> None:
    kernel, signature = KERNELS["gelu"]
    with pytest.raises(Exception, match=r"(?i)typing|index"):
        compiled(kernel, signature[::-1])
