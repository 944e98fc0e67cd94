"""The CUDA device of this process: found when first asked for, or why there is none.

Knows arrays and memory; no queries.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import Any

import numpy as np

from tarsdb.errors import DeviceError, Error
from tarsdb.kernels.gpu.memory import DeviceArrays
from tarsdb.kernels.gpu.select import Merge, merging
from tarsdb.records import dataclass

CHOICES = ("cpu", "gpu", "auto")
_PROBED = 256  # rows and columns of a product that tells the precision of all


@dataclass(frozen=True)
class Device:
    """Where arrays of a namespace live and what works on them.

    Attributes
    ----------
    name : str
    xp : module
        The array namespace: CuPy, or NumPy where this is tested without a device.
    arrays : DeviceArrays
        What was brought to the device.
    merge : callable
        See :data:`tarsdb.kernels.gpu.select.Merge`.
    """

    name: str
    xp: Any
    arrays: DeviceArrays
    merge: Merge
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def working(self, task: Callable[[], str] | None = None) -> Iterator[None]:
        """Keep the device for one caller: a search or a part of a build fills it.

        Parameters
        ----------
        task : callable, optional
            Says, with its size, what is being done, for the message.

        Raises
        ------
        DeviceError
            In place of whatever failed: memory ran out, or the driver gave up. Errors of this
            package pass.
        """
        with self._lock:
            try:
                yield
            except Error:
                raise
            except Exception as error:
                at = f" at {task()}" if task is not None else ""
                raise DeviceError(
                    f"device {self.name}{at}: {type(error).__name__}: {error}{self._free()}",
                    "SET device = 'cpu'",
                ) from error

    def _free(self) -> str:
        """Return how much of its memory is free, in words; '' where nobody knows."""
        try:
            free, total = self.xp.cuda.Device().mem_info
        except Exception:  # NumPy has no such thing, a device that gave up does not answer
            return ""
        return f" ({free} of {total} bytes free)"

    def host(self, array: Any) -> np.ndarray:
        """Return an array of the device as one of NumPy."""
        return np.asarray(array if self.xp is np else self.xp.asnumpy(array))


def choose(choice: str) -> Device | None:
    """Return the device to use.

    Parameters
    ----------
    choice : str
        ``'cpu'``: none. ``'gpu'``: the current CUDA device. ``'auto'``: that, or none.

    Raises
    ------
    DeviceError
        ``'gpu'``, and there is no device, or it cannot be used.
    """
    global _found
    if choice == "cpu":
        return None
    with _finding:
        if _found is None:
            try:
                _found = _detected()
            except DeviceError as error:
                _found = error
        found = _found
    if isinstance(found, Device):
        return found
    if choice == "gpu":
        raise DeviceError(found.message, found.hint)
    return None


def _detected() -> Device:
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"device 'gpu': CuPy cannot be imported ({error})",
            "pip install 'tarsdb[gpu]', or SET device = 'cpu'",
        ) from error
    try:
        if not cupy.cuda.runtime.getDeviceCount():
            raise DeviceError("device 'gpu': CuPy finds no CUDA device", "SET device = 'cpu'")
        number = cupy.cuda.Device()
        name = cupy.cuda.runtime.getDeviceProperties(number.id)["name"].decode()
        free, _ = number.mem_info
        check_precision(cupy)
        return Device(name, cupy, DeviceArrays(free // 2), merging(cupy))
    except DeviceError:
        raise
    except Exception as error:  # the driver's, the runtime's and the compiler's are many
        raise DeviceError(
            f"device 'gpu': CuPy cannot use it ({type(error).__name__}: {error})",
            "SET device = 'cpu'",
        ) from error


def check_precision(xp: Any) -> None:
    """Raise DeviceError where matrix products of float32 round their factors (as TF32 does).

    The bounds of exact search are those of float32, whatever the order of its sums.
    """
    fine = np.float32(1 + 2.0**-20)
    ones = xp.eye(_PROBED, dtype=xp.float32)
    product = xp.matmul(xp.full((_PROBED, _PROBED), fine, dtype=xp.float32), ones)
    if not bool((product == fine).all()):
        raise DeviceError(
            "device 'gpu': its matrix products are less precise than float32",
            "unset CUPY_TF32, or SET device = 'cpu'",
        )


_found: Device | DeviceError | None = None
_finding = threading.Lock()


def _forget() -> None:
    """After fork: the device's context belongs to the parent."""
    global _found, _finding
    _finding = threading.Lock()
    if isinstance(_found, Device):
        _found = DeviceError(
            "device 'gpu': this process was forked from one that uses the device",
            "start the process anew (spawn), or SET device = 'cpu'",
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
