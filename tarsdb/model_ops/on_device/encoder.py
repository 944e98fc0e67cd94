"""The layers of an encoder on a device."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.model_arrays import ArrayKernels
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.on_device.device_model import DeviceModel
from tarsdb.model_ops.on_device.matrices import Product
from tarsdb.model_ops.transformer import Panel
from tarsdb.model_ops.weights import EncoderWeights, LayerWeights, Linear
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

_LN2 = math.log(2.0)  # weights give scores in powers of two


@dataclass(frozen=True)
class _Linear:
    """A product and a bias of the device."""

    product: Product
    bias: Any


@dataclass(frozen=True)
class _Sight:
    """What tokens of a layer see: texts, turns (n, size of a head) of the device, and how far."""

    offsets: npt.NDArray[np.int64]
    turns: Any = None
    reach: int = 0


class DeviceEncoder(DeviceModel):
    """The layers of an encoder on a device.

    Parameters
    ----------
    device, kernels, kind
        Of :class:`DeviceModel`.
    spec : EncoderSpec
    weights : EncoderWeights
        Copied to the device.

    Raises
    ------
    DeviceError
        The device failed: the message says how many bytes were there already.
    NotSupportedError
        As ``Matrices.product``.
    """

    panel_tokens = 1 << 14
    """Tokens to compute together: not measured yet."""

    def __init__(
        self, device: Device, kernels: ArrayKernels, spec: EncoderSpec, weights: EncoderWeights,
        kind: str = "f32",
    ) -> None:  # fmt: skip
        super().__init__(device, kernels, kind)
        self._spec = spec
        with self._bringing():
            self._weights: EncoderWeights = self._brought(weights)
            self._words = self._matrices.words(weights.words)
            self._weights = replace(self._weights, words=self._words)  # the host's are let go of
            self._nothing = device.xp.zeros(spec.hidden, device.xp.float32)
            self._no_bias = device.xp.zeros(spec.intermediate, device.xp.float32)

    def forward(self, panel: Panel) -> F32:
        """Return the last layer's token vectors of a panel, float32 (n, hidden).

        Raises
        ------
        DeviceError
            The device failed.
        """
        with self._working(lambda: f"{len(panel.ids)} tokens"):
            return self._device.host(self._forward(panel))

    def _forward(self, panel: Panel) -> Any:
        xp, spec, weights, kernels = self._device.xp, self._spec, self._weights, self._kernels
        starts = np.repeat(panel.offsets[:-1], np.diff(panel.offsets))
        hidden = self._words[xp.asarray(panel.ids)].astype(xp.float32)
        places = np.arange(len(panel.ids)) - starts
        positions: Any = weights.positions
        update = xp.zeros_like(hidden) if positions is None else positions[xp.asarray(places)]
        if panel.types is not None:
            update += weights.types[xp.asarray(panel.types)]
        kernels.residual_norm(hidden, update, self._nothing, *weights.norm, spec.epsilon)
        read = hidden.copy() if spec.pre_norm else hidden
        angles = None if weights.angles is None else xp.asarray(weights.angles.at(places))
        for number, layer in enumerate(weights.layers):
            sight = _Sight(panel.offsets)
            if spec.rotary is not None and angles is not None:
                turns, reach = angles[spec.rotary.kinds[number]], spec.rotary.reaches[number]
                sight = _Sight(panel.offsets, turns, reach)
            self._layer(layer, hidden, read, sight)
        return read

    def _layer(self, layer: LayerWeights, hidden: Any, read: Any, sight: _Sight) -> None:
        """Pass rows through one layer: sums in ``hidden``, what products read in ``read``.

        Of a post-norm encoder both are the same rows.
        """
        spec, kernels = self._spec, self._kernels
        qkv = layer.qkv.product(read)
        qkv += layer.qkv.bias
        if sight.turns is not None:
            self._turn(qkv, sight.turns)
        context = kernels.self_attention(
            qkv, sight.offsets, spec.heads, self._weights.relative, _LN2, sight.reach
        )
        update = layer.context.product(context)
        self._add_norm(hidden, read, update, layer.context.bias, layer.context_norm)
        expanded = layer.expand.product(read)
        if spec.gated:
            expanded = self._gated(expanded, layer.expand.bias)
        else:
            kernels.bias_activation(expanded, layer.expand.bias, spec.activation)
        update = layer.reduce.product(expanded)
        self._add_norm(hidden, read, update, layer.reduce.bias, layer.output_norm)

    def _add_norm(
        self, hidden: Any, read: Any, update: Any, bias: Any, norm: tuple[Any, Any]
    ) -> None:
        """``hidden += update + bias; read = layer_norm(hidden)``."""
        if read is not hidden:
            read[...] = hidden
            hidden += update
            hidden += bias
        self._kernels.residual_norm(read, update, bias, *norm, self._spec.epsilon)

    def _gated(self, rows: Any, bias: Any) -> Any:
        """Return ``activation(gate) * up`` of gates beside ups (n, 2 * width)."""
        rows += bias.reshape(-1)
        gate, up = self._device.xp.split(rows, 2, axis=1)
        gate = self._device.xp.ascontiguousarray(gate)
        self._kernels.bias_activation(gate, self._no_bias, self._spec.activation)
        gate *= up
        return gate

    def _turn(self, qkv: Any, turns: Any) -> None:
        """Turn queries and keys in place; heads are at least as wide as the angles."""
        half = turns.shape[1] // 2
        both = qkv.reshape(len(qkv), 3, self._spec.heads, -1)[:, :2]
        first, second = both[..., :half].copy(), both[..., half : 2 * half].copy()
        cosines, sines = turns[:, None, None, :half], turns[:, None, None, half:]
        both[..., :half] = first * cosines - second * sines
        both[..., half : 2 * half] = second * cosines + first * sines

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
