"""What encoders and decoders on a device share: the device, their weights, and how many bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.model_arrays import ArrayKernels
from tarsdb.model_ops.on_device.matrices import Matrices


class DeviceModel:
    """A model on a device. Several threads may call it; they take turns.

    Parameters
    ----------
    device : Device
    kernels : ArrayKernels
        See :func:`kernels_on`.
    kind : str
        See ``matrices.KINDS``.
    """

    def __init__(self, device: Device, kernels: ArrayKernels, kind: str) -> None:
        self._device, self._kernels, self._kind = device, kernels, kind
        self._matrices = Matrices(device, kernels, kind)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the device the weights take."""
        return self._matrices.nbytes

    def _working(self, task: Callable[[], str]) -> AbstractContextManager[None]:
        """Keep the device for one caller; DeviceError, which says the task, where it fails."""
        return self._device.working(task)

    def _bringing(self) -> AbstractContextManager[None]:
        """Keep the device while weights are brought to it."""
        return self._working(lambda: f"weights, {self.weight_bytes} bytes of them brought")
