"""Weights on a device, in the form a model is to be kept in, and products with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import NotSupportedError
from tarsdb.kernels.gpu.coded import GROUP, quantised
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.model_arrays import ArrayKernels

F32 = npt.NDArray[np.float32]

Product = Callable[[Any], Any]
"""Rows (n, inputs) float32 of the device to (n, outputs) float32."""
KINDS = ("f32", "bf16", "int8", "int4")
"""How matrices are kept: as they are, in half precision, or as whole numbers with scales.

Half precision is float16 here: array namespaces have no bfloat16.
"""
_BITS = {"int8": 8, "int4": 4}
_STEPS = {"int8": 4, "int4": GROUP}  # inputs that fill a word, or share a scale


class Matrices:
    """Brings the weights of one model to a device.

    Parameters
    ----------
    device : Device
    kernels : ArrayKernels
    kind : str
        See :data:`KINDS`.

    Attributes
    ----------
    nbytes : int
        Of what was brought so far.
    """

    def __init__(self, device: Device, kernels: ArrayKernels, kind: str) -> None:
        self._xp, self._kernels, self._kind = device.xp, kernels, kind
        self.nbytes = 0

    def array(self, values: npt.NDArray[Any]) -> Any:
        """Copy an array to the device."""
        self.nbytes += values.nbytes
        return self._xp.asarray(values)

    def words(self, values: F32) -> Any:
        """Copy vectors of tokens: half precision unless all is float32."""
        return self.array(values if self._kind == "f32" else values.astype(np.float16))

    def product(self, weight: F32) -> Product:
        """Bring a matrix (outputs, inputs) to the device; rows times it.

        Raises
        ------
        NotSupportedError
            int4 of a matrix whose inputs are no multiple of 32, int8 of 4.
        """
        kernels, bits = self._kernels, _BITS.get(self._kind)
        if self._kind == "bf16":
            return self.half_product(self.array(weight.astype(np.float16)), longest_row(weight))
        if bits is None:
            return self.plain_product(self.array(weight))
        if weight.shape[1] % _STEPS[self._kind]:
            raise NotSupportedError(
                f"{self._kind} of a matrix of {weight.shape[1]} inputs on a device: no multiple of "
                f"{_STEPS[self._kind]}",
                "keep this model's weights in another form, or SET device = 'cpu'",
            )
        codes, scales, group = quantised(weight, bits)
        there, there_scales = self.array(codes), self.array(scales)
        return lambda rows: kernels.coded_product(rows, there, there_scales, group)

    def plain_product(self, there: Any) -> Product:
        """Return the product with float32 (outputs, inputs) of the device."""
        xp = self._xp
        return lambda rows: xp.matmul(rows, there.T)

    def half_product(self, there: Any, longest: float) -> Product:
        """Return the product with float16 (outputs, inputs) of the device."""
        kernels = self._kernels
        return lambda rows: kernels.half_product(rows, there, longest)


def longest_row(weight: F32) -> float:
    """Return the largest norm of a row of a matrix (outputs, inputs)."""
    return float(np.sqrt(np.einsum("ij,ij->i", weight, weight, dtype=np.float64).max()))
