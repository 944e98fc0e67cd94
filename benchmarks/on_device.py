"""The device of a benchmark, and how fast it multiplies and copies; nothing where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tarsdb.errors import DeviceError
from tarsdb.kernels.gpu.device import Device, choose

SIDE, COPIED = 8192, 1 << 30
"""Side of the product and bytes of the copy that tell the device's speed."""


def device_or_none() -> Device | None:
    """Return the device; where there is none, say so."""
    try:
        return choose("gpu")
    except DeviceError as error:
        print(f"no device, nothing measured: {error}")
        return None


def synchronize(device: Device) -> None:
    """Wait for what was launched."""
    cuda = getattr(device.xp, "cuda", None)
    if cuda is not None:
        cuda.Device().synchronize()


def speed(device: Device, side: int = SIDE, copied: int = COPIED) -> dict[str, float]:
    """Return what products of float32 and float16, and a copy, reach on a device."""
    xp = device.xp
    square, source = xp.ones((side, side), xp.float32), xp.ones(copied // 4, xp.float32)
    half, target = square.astype(xp.float16), xp.empty_like(source)

    def best(work: Callable[[], Any]) -> float:
        taken = []
        for _ in range(5):
            synchronize(device)
            start = time.perf_counter()
            work()
            synchronize(device)
            taken.append(time.perf_counter() - start)
        return min(taken[1:])

    return {
        "flop_per_s": 2 * side**3 / best(lambda: xp.matmul(square, square)),
        "half_flop_per_s": 2 * side**3 / best(lambda: xp.matmul(half, half)),
        "bytes_per_s": 2 * copied / best(lambda: xp.copyto(target, source)),
    }
