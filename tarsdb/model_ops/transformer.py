"""The forward pass of an encoder over one panel of packed texts.

A panel is a few hundred tokens of whole texts, one after another: every matrix product runs over
real tokens only. All layers are one compiled call where the kernel is ready; NumPy computes the
same where it is not, and is the reference. Knows no tokenizer, threads or pooling.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import encoder as kernels
from tarsdb.kernels import gemm_reference
from tarsdb.kernels import transformer_reference as reference
from tarsdb.kernels.forms import form_of
from tarsdb.model_ops import proofs
from tarsdb.model_ops.architecture import EncoderSpec, tensor_shapes
from tarsdb.model_ops.panels import PANEL_TOKENS
from tarsdb.model_ops.weights import EncoderWeights, LayerWeights, load_weights

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_SCORES = 1 << 19  # attention scores NumPy computes at a time: 2 MB, about an L2 cache
_SMALL = EncoderSpec(
    family="bert", layers=2, hidden=40, heads=2, intermediate=72, vocabulary=11, positions=24,
    position_offset=0, token_types=0, relative_buckets=0, epsilon=1e-6, activation=reference.GELU,
)  # fmt: skip
"""What kernels are tried on: no size is a multiple of a register."""
_LN2 = np.float32(math.log(2.0))
_ACTIVATIONS = {
    reference.GELU: gemm_reference.GELU,
    reference.GELU_TANH: gemm_reference.GELU_TANH,
    reference.RELU: gemm_reference.RELU,
}


class Panel(NamedTuple):
    """Whole texts computed together, n tokens in all.

    Attributes
    ----------
    ids : (n,) int32
        Token ids, each below the vocabulary's size.
    offsets : (texts + 1,) int64
        Where each text starts; no text is empty or longer than ``spec.max_tokens``.
    types : (n,) int32, optional
        Token types, each below ``spec.token_types``; all 0 where absent.
    """

    ids: npt.NDArray[np.int32]
    offsets: I64
    types: npt.NDArray[np.int32] | None = None


class Transformer:
    """The layers of a model. Several threads may call it at once.

    Parameters
    ----------
    spec : EncoderSpec
    tensors : mapping of str to ndarray
        As :func:`load_weights` takes them.
    kind : str
        Of the weights: ``f32``, ``bf16``, ``int8`` or ``int4``.
    """

    panel_tokens = PANEL_TOKENS
    """Tokens to compute together, about."""

    def __init__(
        self, spec: EncoderSpec, tensors: Mapping[str, npt.NDArray[Any]], kind: str
    ) -> None:
        self._spec, self._kind = spec, kind
        self._form = form_of(kind)
        if self._form is not None:
            kernels.prepare(kind)  # while the weights are read
        portable = None if kind == "f32" else f"{kind}/avx2"
        self._weights = load_weights(spec, tensors, self._form or portable)
        self._model = None if self._form is None else model_table(spec, self._weights)
        self._memories: deque[kernels.Memory] = deque(maxlen=os.cpu_count() or 1)

    def forward(self, panel: Panel) -> F32:
        """Return the last layer's token vectors of a panel, float32 (n, hidden)."""
        kernel = None if self._form is None else kernels.current(self._kind)
        usable = kernel is not None and kernel.variant == self._form and is_proven(kernel)
        if kernel is None or self._model is None or not usable:
            return forward(self._spec, self._weights, panel)
        memory = self._borrow(self._model, kernel.variant, len(panel.ids))
        try:
            return compiled_forward(kernel, self._model, self._weights, panel, memory)
        finally:
            self._memories.append(memory)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of memory kept for the next calls: at most one panel's for each core."""
        return sum(memory.nbytes for memory in tuple(self._memories))

    def _borrow(self, model: kernels.ModelTable, form: str, tokens: int) -> kernels.Memory:
        """Take memory for this many tokens; the caller puts it back."""
        try:
            memory = self._memories.pop()
        except IndexError:
            return kernels.Memory(model.shape, max(tokens, PANEL_TOKENS), form)
        return memory if memory.tokens >= tokens else kernels.Memory(model.shape, tokens, form)


def is_proven(kernel: kernels.EncoderKernel) -> bool:
    """Return whether a kernel computes a small encoder as NumPy does."""

    def try_out() -> tuple[F32, F32]:
        weights = load_weights(_SMALL, proofs.random_tensors(tensor_shapes(_SMALL)), kernel.variant)
        offsets = np.cumsum([0, 1, 19, 5])
        panel = Panel((np.arange(offsets[-1]) % _SMALL.vocabulary).astype(np.int32), offsets)
        model = model_table(_SMALL, weights)
        memory = kernels.Memory(model.shape, len(panel.ids), kernel.variant)
        return (
            forward(_SMALL, weights, panel),
            compiled_forward(kernel, model, weights, panel, memory),
        )

    return proofs.is_proven(kernel, kernel.variant.partition("/")[0], try_out)


def model_table(spec: EncoderSpec, weights: EncoderWeights) -> kernels.ModelTable:
    """Return the addresses of packed weights, as the kernel wants them."""
    shape = kernels.EncoderShape(
        spec.layers, spec.hidden, spec.heads, weights.head_size, spec.intermediate,
        _ACTIVATIONS[spec.activation], spec.epsilon,
    )  # fmt: skip
    layers = [
        (layer.qkv.matrix, layer.qkv.bias, layer.context.matrix, layer.context.bias,
         *layer.context_norm, layer.expand.matrix, layer.expand.bias, layer.reduce.matrix,
         layer.reduce.bias, *layer.output_norm)
        for layer in weights.layers
    ]  # fmt: skip
    return kernels.ModelTable(shape, weights.norm, weights.relative, layers)


def compiled_forward(
    kernel: kernels.EncoderKernel, model: kernels.ModelTable, weights: EncoderWeights,
    panel: Panel, memory: kernels.Memory,
) -> F32:  # fmt: skip
    """Do the same by one call of a kernel; the memory holds at least the panel's tokens."""
    count, width = len(panel.ids), model.shape.hidden
    _embed(weights, panel, memory.hidden[:count, :width], memory.update[:count, :width])
    kernels.encode(kernel, model, panel.offsets, memory)
    return memory.hidden[:count, :width].copy()


def forward(spec: EncoderSpec, weights: EncoderWeights, panel: Panel) -> F32:
    """Return the last layer's token vectors of a panel, float32 (n, hidden), by NumPy."""
    hidden, update = (np.empty((len(panel.ids), spec.hidden), np.float32) for _ in range(2))
    _embed(weights, panel, hidden, update)
    nothing = np.zeros(spec.hidden, np.float32)
    reference.residual_norm(hidden, update, nothing, *weights.norm, spec.epsilon)
    for layer in weights.layers:
        _layer(spec, weights, layer, hidden, panel.offsets)
    return hidden


def _embed(weights: EncoderWeights, panel: Panel, hidden: F32, update: F32) -> None:
    """Look up words into ``hidden``, positions and token types into ``update``."""
    ids, offsets, types = panel
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    hidden[:] = weights.words[ids]
    update[:] = weights.positions[np.arange(len(ids)) - starts]
    if types is not None:
        update += weights.types[types]


def _layer(
    spec: EncoderSpec, weights: EncoderWeights, layer: LayerWeights, hidden: F32, offsets: I64
) -> None:
    qkv = layer.qkv.product(hidden)
    reference.add_bias(qkv, layer.qkv.bias)
    context = _attention(qkv, offsets, spec.heads, weights.relative)
    update = layer.context.product(context)
    reference.residual_norm(hidden, update, layer.context.bias, *layer.context_norm, spec.epsilon)
    expanded = layer.expand.product(hidden)
    reference.bias_activation(expanded, layer.expand.bias, spec.activation)
    update = layer.reduce.product(expanded)
    reference.residual_norm(hidden, update, layer.reduce.bias, *layer.output_norm, spec.epsilon)


def _attention(qkv: F32, offsets: I64, heads: int, relative: F32 | None) -> F32:
    """Multi-head self-attention inside each text; queries come already scaled.

    Texts of one length, neighbours after sorting, are computed together as stacks of small
    products: qkv (n, 3 * width) and the result (n, width) are only looked at in other shapes.
    """
    out = np.empty((len(qkv), qkv.shape[1] // 3), np.float32)
    size = out.shape[1] // heads
    text = 0
    for length, group in itertools.groupby(np.diff(offsets).tolist()):
        count = len(list(group))
        step = max(1, _SCORES // (heads * length * length))
        bias = None if relative is None else _bias_matrix(relative, length)
        for first in range(text, text + count, step):
            last = min(first + step, text + count)
            rows = slice(int(offsets[first]), int(offsets[last]))
            parts = qkv[rows].reshape(last - first, length, 3, heads, size)
            query, key, value = (parts[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
            scores = np.matmul(key, query.transpose(0, 1, 3, 2))  # keys x queries
            if bias is not None:
                np.add(scores, bias, out=scores)
            np.multiply(scores, _LN2, out=scores)  # from powers of two
            reference.softmax_columns(scores.reshape(-1, length, length))
            context = out[rows].reshape(last - first, length, heads, size).transpose(0, 2, 1, 3)
            np.matmul(scores.transpose(0, 1, 3, 2), value, out=context)
        text += count
    return out


def _bias_matrix(relative: F32, length: int) -> F32:
    """Spread the bias by distance key - query over keys x queries: (heads, length, length)."""
    place = np.arange(length)
    distance = place[:, None] - place[None, :]
    return np.ascontiguousarray(relative[:, distance + relative.shape[1] // 2])
