"""Encoders and decoders on a device: the forward passes of the processor over its namespace.

Weights are brought there once; products are the namespace's, what lies between them the kernels'.
Activations are float32. Nothing here decides whether a device is used.
"""

from typing import Any

from tarsdb.kernels.gpu.model_arrays import ArrayKernels
from tarsdb.model_ops.on_device.decoder import DeviceDecoder
from tarsdb.model_ops.on_device.encoder import DeviceEncoder

__all__ = ["DeviceDecoder", "DeviceEncoder", "kernels_on"]


def kernels_on(xp: Any) -> ArrayKernels:
    """Return the fastest kernels that work on a device: of CUDA, or of the namespace."""
    try:
        from tarsdb.kernels.gpu.model_cuda import CudaKernels

        found = CudaKernels(xp)
        found.gated(xp.zeros((1, 2), xp.float32), 0)
    except Exception:  # Numba's CUDA target is absent, or cannot compile for this device
        return ArrayKernels(xp)
    return found
