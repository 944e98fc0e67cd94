"""What a build may use."""

from __future__ import annotations

from tarsdb.kernels.gpu.device import Device
from tarsdb.records import dataclass


@dataclass(frozen=True)
class Resources:
    """Threads of the processor, and a device for what it does faster."""

    threads: int = 1
    device: Device | None = None
