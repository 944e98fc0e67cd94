"""The nearest rows of rows on a device, by float32 products; self among them."""

from __future__ import annotations

import numpy as np

from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.nearest import DeviceRows, smallest


def nearest_rows(device: Device, among: DeviceRows, queries: np.ndarray, wanted: int) -> np.ndarray:
    """Return the nearest of some rows to each query, in any order.

    Parameters
    ----------
    device : Device
        The caller works on it.
    among : DeviceRows
    queries : float32 (q, width)
        Finite, as the rows are.
    wanted : int
        Up to 1024.

    Returns
    -------
    int64 (q, w)
        Rows by their numbers, -1 where there are fewer; w is the next power of two.
    """
    power = 1 << (wanted - 1).bit_length()
    found = smallest(
        device, [(among.data, among.squares, None)], queries * np.float32(2), power
    )  # fmt: skip
    return found[1]
