"""Encoders and decoders on a device: the forward passes of the processor over its namespace.

Weights are brought there once; products are the namespace's, what lies between them the kernels'.
Activations are float32. Nothing here decides whether a device is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import NotSupportedError
from tarsdb.kernels.decoder_reference import BLOCK_TOKENS, AttentionSpec
from tarsdb.kernels.gpu.coded import GROUP, quantised
from tarsdb.kernels.gpu.device import Device
from tarsdb.kernels.gpu.model_arrays import ArrayKernels, Paged
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.decoder_forward import StepBatch
from tarsdb.model_ops.decoder_spec import DecoderSpec
from tarsdb.model_ops.decoder_weights import DecoderLayer, DecoderWeights
from tarsdb.model_ops.kv_cache import KVCache
from tarsdb.model_ops.transformer import Panel
from tarsdb.model_ops.weights import EncoderWeights, LayerWeights, Linear

F32 = npt.NDArray[np.float32]

KINDS = ("f32", "int8", "int4")
"""How matrices of a decoder are kept: as they are, or as whole numbers with scales."""
_LN2 = math.log(2.0)  # weights give scores in powers of two
_BITS = {"int8": 8, "int4": 4}

Product = Callable[[Any], Any]


def kernels_on(xp: Any) -> ArrayKernels:
    """Return the fastest kernels that work on a device: of CUDA, or of the namespace."""
    try:
        from tarsdb.kernels.gpu.model_cuda import CudaKernels

        found = CudaKernels(xp)
        found.gated(xp.zeros((1, 2), xp.float32), 0)
    except Exception:  # Numba's CUDA target is absent, or cannot compile for this device
        return ArrayKernels(xp)
    return found


class DeviceEncoder:
    """The layers of an encoder on a device, in float32.

    Parameters
    ----------
    device : Device
    kernels : ArrayKernels
        See :func:`kernels_on`.
    spec : EncoderSpec
    weights : EncoderWeights
        Copied to the device.
    """

    def __init__(
        self, device: Device, kernels: ArrayKernels, spec: EncoderSpec, weights: EncoderWeights
    ) -> None:
        self._device, self._kernels, self._spec = device, kernels, spec
        with device.working():
            self._weights: EncoderWeights = _brought(device.xp, weights)
            self._nothing = device.xp.zeros(spec.hidden, device.xp.float32)

    def forward(self, panel: Panel) -> F32:
        """Return the last layer's token vectors of a panel, float32 (n, hidden).

        Raises
        ------
        DeviceError
            The device failed.
        """
        with self._device.working():
            return self._device.host(self._forward(panel))

    def _forward(self, panel: Panel) -> Any:
        xp, spec, weights, kernels = self._device.xp, self._spec, self._weights, self._kernels
        starts = np.repeat(panel.offsets[:-1], np.diff(panel.offsets))
        hidden = weights.words[xp.asarray(panel.ids)]
        update = weights.positions[xp.asarray(np.arange(len(panel.ids)) - starts)]
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


@dataclass(frozen=True)
class _Step:
    """Arrays of a step on the device: rows as in :class:`Paged`, angles of each kind of layer."""

    rows: Any
    angles: Any
    cache: KVCache


class DeviceDecoder:
    """The layers of a decoder on a device.

    Parameters
    ----------
    device : Device
    kernels : ArrayKernels
        See :func:`kernels_on`.
    spec : DecoderSpec
    weights : DecoderWeights
        Copied to the device.
    kind : str
        See :data:`KINDS`; vectors of tokens stay float32.

    Raises
    ------
    NotSupportedError
        int4 of matrices whose inputs are no multiple of 32, int8 of 4.
    """

    def __init__(
        self, device: Device, kernels: ArrayKernels, spec: DecoderSpec, weights: DecoderWeights,
        kind: str = "f32",
    ) -> None:  # fmt: skip
        self._device, self._kernels, self._spec, self._kind = device, kernels, spec, kind
        _check_kind(kind, weights)
        with device.working():
            self._words = device.xp.asarray(weights.words)
            self._norm = device.xp.asarray(weights.norm)
            head = self._words if kind == "f32" and spec.tied else weights.head
            self._head = self._product(head)
            self._layers = [self._brought(layer) for layer in weights.layers]

    def new_cache(self, blocks: int) -> KVCache:
        """Allocate a KV cache on the device, in the layout of the processor's."""
        shaped = KVCache.for_model(self._spec, 1)
        with self._device.working():
            zeros = self._device.xp.zeros
            return KVCache(*(
                zeros((each.shape[0], blocks, *each.shape[2:]), np.float32)
                for each in (shaped.keys, shaped.values)
            ))  # fmt: skip

    def logits(
        self, batch: StepBatch, positions: npt.NDArray[np.int64], angles: F32, cache: KVCache
    ) -> F32:
        """Compute the rows of a checked batch.

        Parameters
        ----------
        batch : StepBatch
        positions : (n,) int64
            Of each row in its sequence.
        angles : (kinds, n, head_dim) float32
            Of each row; see ``rope.Angles``.
        cache : KVCache
            Of :meth:`new_cache`.

        Returns
        -------
        (w, vocabulary) float32
            Of the wanted rows.

        Raises
        ------
        DeviceError
            The device failed.
        """
        xp = self._device.xp
        tables = np.repeat(batch.block_tables, np.diff(batch.offsets), axis=0)
        blocks = tables[np.arange(len(tables)), positions // BLOCK_TOKENS]
        places = blocks * BLOCK_TOKENS + positions % BLOCK_TOKENS
        rows = np.concatenate([positions[:, None], places[:, None], tables], axis=1)
        with self._device.working():
            step = _Step(xp.asarray(rows.astype(np.int32)), xp.asarray(angles), cache)
            hidden = self._words[xp.asarray(batch.tokens)]
            hidden *= xp.float32(self._spec.embedding_scale)
            for number, layer in enumerate(self._layers):
                self._layer(number, layer, hidden, step)
            wanted = hidden[xp.asarray(batch.wanted)]
            logits = self._head(self._kernels.rms_norm(wanted, self._norm, self._spec.epsilon))
            cap = xp.float32(self._spec.logit_cap)
            return self._device.host(xp.tanh(logits / cap) * cap if cap else logits)

    def _layer(self, number: int, layer: DecoderLayer, hidden: Any, step: _Step) -> None:
        """Pass rows through one layer, in place."""
        spec, kernels, own = self._spec, self._kernels, self._spec.layers[number]
        normed = kernels.rms_norm(hidden, layer.attention_norm, spec.epsilon)
        qkv = _linear(layer.qkv, layer.qkv_bias, normed).reshape(len(hidden), -1, spec.head_dim)
        paged = Paged(step.rows, step.cache.keys[number], step.cache.values[number])
        norms = None
        if layer.query_norm is not None and layer.key_norm is not None:
            norms = (layer.query_norm, layer.key_norm)
        queries = kernels.turn_and_store(qkv, step.angles[own.rope], norms, spec.epsilon, paged)
        scoring = AttentionSpec(spec.query_scale, own.window, spec.score_cap)
        context = kernels.paged_attention(queries, paged, scoring)
        update = _linear(layer.context, layer.context_bias, context)
        update = self._normalised(update, layer.context_norm)
        normed = kernels.add_rms_norm(hidden, update, layer.mlp_norm, spec.epsilon)
        gate_up = _linear(layer.gate_up, layer.gate_up_bias, normed)
        update = _linear(layer.down, layer.down_bias, kernels.gated(gate_up, spec.activation))
        hidden += self._normalised(update, layer.down_norm)

    def _normalised(self, rows: Any, scale: Any) -> Any:
        return rows if scale is None else self._kernels.rms_norm(rows, scale, self._spec.epsilon)

    def _brought(self, layer: DecoderLayer) -> DecoderLayer:
        """Return a layer whose matrices are products on the device."""
        found: dict[str, Any] = {}
        for name, array in vars(layer).items():
            whole = array is None or array.ndim == 1
            found[name] = _brought(self._device.xp, array) if whole else self._product(array)
        return DecoderLayer(**found)

    def _product(self, weight: Any) -> Product:
        """Bring a matrix (outputs, inputs) to the device; rows times it."""
        xp, bits = self._device.xp, _BITS.get(self._kind)
        if bits is None:
            there = xp.asarray(weight)
            return lambda rows: xp.matmul(rows, there.T)
        codes, scales, group = quantised(weight, bits)
        there_codes, there_scales = xp.asarray(codes), xp.asarray(scales)
        return lambda rows: self._kernels.coded_product(rows, there_codes, there_scales, group)


def _check_kind(kind: str, weights: DecoderWeights) -> None:
    """Refuse to code matrices whose inputs fill no words, or no groups that share a scale."""
    step = {"f32": 1, "int8": 4, "int4": GROUP}[kind]
    matrices = [weights.head, *(each for layer in weights.layers for each in vars(layer).values())]
    for matrix in matrices:
        if matrix is not None and matrix.ndim == 2 and matrix.shape[1] % step:
            raise NotSupportedError(
                f"{kind} of a matrix of {matrix.shape[1]} inputs: no multiple of {step}",
                "keep this model's weights in another form",
            )


def _linear(weight: Any, bias: Any, rows: Any) -> Any:
    out = weight(rows)
    if bias is not None:
        out += bias
    return out


def _brought(xp: Any, value: Any) -> Any:
    """Copy arrays to a device, and the tuples and records they are in."""
    if isinstance(value, np.ndarray):
        return xp.asarray(value)
    if isinstance(value, Linear):
        return Linear(xp.asarray(value.dense()), xp.asarray(value.bias))
    if isinstance(value, tuple):
        return tuple(_brought(xp, each) for each in value)
    if isinstance(value, EncoderWeights | LayerWeights):
        return type(value)(**{name: _brought(xp, each) for name, each in vars(value).items()})
    return value
