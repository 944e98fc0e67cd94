"""Weights as whole numbers with scales, coded on the processor for a device.

int8 shares a scale along an output, int4 in groups of 32 inputs. Activations are not coded: what a
device saves is reading weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

GROUP = 32
"""Inputs that share a scale of int4 codes."""


def quantised(
    weight: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], int]:
    """Code a matrix by rounding to the nearest.

    Parameters
    ----------
    weight : (outputs, inputs) float32
        Inputs are a multiple of :data:`GROUP`.
    bits : int
        8, or 4.

    Returns
    -------
    codes : (outputs, inputs * bits / 32) int32
        The first code of a word in its lowest bits, in two's complement.
    scales : (outputs, groups) float32
    group : int
        Inputs that share a scale.
    """
    outputs, inputs = weight.shape
    group = GROUP if bits == 4 else inputs
    highest = (1 << (bits - 1)) - 1
    grouped = weight.reshape(outputs, -1, group)
    scales = np.abs(grouped).max(axis=2) / np.float32(highest)
    safe = np.where(scales > 0, scales, np.float32(1))[:, :, None]
    codes = np.rint(grouped / safe).astype(np.int64).reshape(outputs, -1, 32 // bits)
    places: Any = np.arange(0, 32, bits)
    words = ((codes & ((1 << bits) - 1)) << places).sum(axis=2)
    return words.astype(np.uint32).view(np.int32), scales, group
