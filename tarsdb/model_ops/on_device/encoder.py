"""The layers of an encoder on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import NotSupportedError
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.model_arrays import ArrayKernels
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.on_device.matrices import Matrices, Product
from tarsdb.model_ops.transformer import Panel
from tarsdb.model_ops.weights import EncoderWeights, LayerWeights, Linear

F32 = npt.NDArray[np.float32]

_LN2 = math.log(2.0)  # weights give scores in powers of two


@dataclass(frozen=True)
class _Linear:
    """A product and a bias of the device."""

    product: Product
    bias: Any


class DeviceEncoder:
    """The layers of an encoder on a device. Several threads may call it; they take turns.

    Parameters
    ----------
    device : Device
    kernels : ArrayKernels
        See :func:`kernels_on`.
    spec : EncoderSpec
    weights : EncoderWeights
        Copied to the device.
    kind : str
        See ``matrices.KINDS``.

    Raises
    ------
    DeviceError
        The device failed: the message says how many bytes were there already.
    NotSupportedError
        An encoder that turns queries and keys by position; else as ``Matrices.product``.
    """

    panel_tokens = 1 << 14
    """Tokens to compute together: not measured yet."""

    def __init__(
        self, device: Device, kernels: ArrayKernels, spec: EncoderSpec, weights: EncoderWeights,
        kind: str = "f32",
    ) -> None:  # fmt: skip
        if spec.rotary is not None:
            raise NotSupportedError(f"encoders of the kind {spec.family} do not run on a device")
        self._device, self._kernels, self._spec = device, kernels, spec
        self._matrices = Matrices(device, kernels, kind)
        with device.working(lambda: f"weights, {self.weight_bytes} bytes of them brought"):
            self._weights: EncoderWeights = self._brought(weights)
            self._words = self._matrices.words(weights.words)
            self._weights = replace(self._weights, words=self._words)  # the host's are let go of
            self._nothing = device.xp.zeros(spec.hidden, device.xp.float32)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the device the weights take."""
        return self._matrices.nbytes

    def forward(self, panel: Panel) -> F32:
        """Return the last layer's token vectors of a panel, float32 (n, hidden).

        Raises
        ------
        DeviceError
            The device failed.
        """
        with self._device.working(lambda: f"{len(panel.ids)} tokens"):
            return self._device.host(self._forward(panel))

    def _forward(self, panel: Panel) -> Any:
        xp, spec, weights, kernels = self._device.xp, self._spec, self._weights, self._kernels
        starts = np.repeat(panel.offsets[:-1], np.diff(panel.offsets))
        hidden = self._words[xp.asarray(panel.ids)].astype(xp.float32)
        positions: Any = weights.positions
        update = positions[xp.asarray(np.arange(len(panel.ids)) - starts)]
        if panel.types is not None:
            update += weights.types[xp.asarray(panel.types)]
        kernels.residual_norm(hidden, update, self._nothing, *weights.norm, spec.epsilon)
        for layer in weights.layers:
            self._layer(layer, hidden, panel.offsets)
        return hidden

    def _layer(self, layer: LayerWeights, hidden: Any, offsets: npt.NDArray[np.int64]) -> None:
        spec, kernels = self._spec, self._kernels
        qkv = layer.qkv.product(hidden)
        qkv += layer.qkv.bias
        context = kernels.self_attention(qkv, offsets, spec.heads, self._weights.relative, _LN2)
        update = layer.context.product(context)
        kernels.residual_norm(hidden, update, layer.context.bias, *layer.context_norm, spec.epsilon)
        expanded = layer.expand.product(hidden)
        kernels.bias_activation(expanded, layer.expand.bias, spec.activation)
        update = layer.reduce.product(expanded)
        kernels.residual_norm(hidden, update, layer.reduce.bias, *layer.output_norm, spec.epsilon)

    def _brought(self, value: Any) -> Any:
        """Copy arrays to the device, and the tuples and records they are in; words apart."""
        if isinstance(value, np.ndarray):
            return self._matrices.array(value)
        if isinstance(value, Linear):
            weight = np.ascontiguousarray(value.dense().T)
            return _Linear(self._matrices.product(weight), self._matrices.array(value.bias))
        if isinstance(value, tuple):
            return tuple(self._brought(each) for each in value)
        if isinstance(value, EncoderWeights | LayerWeights):
            parts: dict[str, Any] = dict(vars(value))
            words = {"words": parts.pop("words")} if "words" in parts else {}
            return type(value)(**words, **{n: self._brought(each) for n, each in parts.items()})
        return value
