"""The forward pass of an encoder over one panel of packed texts.

A panel is a few hundred tokens of whole texts, one after another: every matrix product runs over
real tokens only. All layers are one compiled call where the kernel is ready; NumPy computes the
same where it is not, and is the reference. Knows no tokenizer, threads or pooling.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import encoder as kernels
from tarsdb.kernels import gemm_reference
from tarsdb.kernels import transformer_reference as reference
from tarsdb.kernels.decoder_reference import rotate
from tarsdb.kernels.forms import form_of
from tarsdb.model_ops import blas_threads, proofs
from tarsdb.model_ops.architecture import EncoderSpec, tensor_shapes
from tarsdb.model_ops.encoder_adapter import AdaptedProducts, EncoderAdapter
from tarsdb.model_ops.encoder_rotary import Rotary
from tarsdb.model_ops.panels import PANEL_TOKENS
from tarsdb.model_ops.rope import Rope
from tarsdb.model_ops.shelf import Shelf
from tarsdb.model_ops.weights import (
    EncoderWeights,
    LayerWeights,
    Linear,
    encoder_plan,
    load_weights,
)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_SCORES = 1 << 19  # attention scores NumPy computes at a time: 2 MB, about an L2 cache
_MOST_SCORES = 1 << 24  # of a longer text, queries are taken in turns: 64 MB
_SMALL = EncoderSpec(
    family="bert", layers=2, hidden=40, heads=2, intermediate=72, vocabulary=11, positions=24,
    position_offset=0, token_types=0, relative_buckets=0, epsilon=1e-6, activation=reference.GELU,
)  # fmt: skip
_SMALL_ROTARY = replace(
    _SMALL, family="modernbert", rotary=Rotary((Rope(100.0), Rope(10.0)), (0, 1), (0, 3)),
    unbiased=frozenset({"qkv", "context", "gate_up", "reduce"}),
)  # fmt: skip
"""What kernels are tried on: no size is a multiple of a register."""
_LN2 = np.float32(math.log(2.0))
_ACTIVATIONS = {
    reference.GELU: gemm_reference.GELU,
    reference.GELU_TANH: gemm_reference.GELU_TANH,
    reference.RELU: gemm_reference.RELU,
    reference.SILU: gemm_reference.SILU,
}


Multiply = Callable[[int, str, F32], F32]
"""Makes a product: number of a layer, name of its matrix, rows (n, inputs); no bias is added."""


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
    shelf : Shelf, optional
        Where packed weights may lie.
    """

    panel_tokens = PANEL_TOKENS
    """Tokens to compute together, about."""

    def __init__(
        self, spec: EncoderSpec, tensors: Mapping[str, npt.NDArray[Any]], kind: str,
        shelf: Shelf | None = None,
    ) -> None:  # fmt: skip
        self._spec, self._kind = spec, kind
        self._form = form_of(kind)
        if self._form is not None:
            kernels.prepare(kind)  # while the weights are read
        self._weights = load_weights(spec, tensors, _packed_form(kind), shelf)
        self._model = None if self._form is None else model_table(spec, self._weights)
        self._memories: deque[kernels.Memory] = deque(maxlen=os.cpu_count() or 1)

    def forward(self, panel: Panel, adapter: EncoderAdapter | None = None) -> F32:
        """Return the last layer's token vectors of a panel, float32 (n, hidden)."""
        if adapter is not None:
            products = AdaptedProducts(self._weights, adapter)
            with blas_threads.single_threaded():
                return forward(self._spec, self._weights, panel, products)
        kernel = None if self._form is None else kernels.current(self._kind)
        usable = kernel is not None and kernel.variant == self._form and is_proven(kernel)
        if kernel is None or self._model is None or not usable:
            with blas_threads.single_threaded():
                return forward(self._spec, self._weights, panel)
        memory = self._borrow(self._model, kernel.variant, len(panel.ids))
        try:
            return compiled_forward(kernel, self._model, self._spec, self._weights, panel, memory)
        finally:
            self._memories.append(memory)

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory the weights take."""
        return self._weights.nbytes

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


def _packed_form(kind: str) -> str | None:
    """Return the KIND/VARIANT that weights are packed in here; None where they are not."""
    return form_of(kind) or (None if kind == "f32" else f"{kind}/avx2")


def weigh_layers(spec: EncoderSpec, kind: str) -> int:
    """Return the ``weight_bytes`` of a :class:`Transformer` that is not there yet."""
    form = _packed_form(kind)
    if form is None:
        return encoder_plan(spec, "f32/avx2").dense_bytes
    return encoder_plan(spec, form).array_bytes


def is_proven(kernel: kernels.EncoderKernel) -> bool:
    """Return whether a kernel computes small encoders as NumPy does."""

    def try_out() -> tuple[F32, F32]:
        offsets = np.cumsum([0, 1, 19, 4])
        panel = Panel((np.arange(offsets[-1]) % _SMALL.vocabulary).astype(np.int32), offsets)
        found = []
        for spec in (_SMALL, _SMALL_ROTARY):
            tensors = proofs.random_tensors(tensor_shapes(spec))
            weights = load_weights(spec, tensors, kernel.variant)
            model = model_table(spec, weights)
            memory = kernels.Memory(model.shape, len(panel.ids), kernel.variant)
            computed = compiled_forward(kernel, model, spec, weights, panel, memory)
            found.append((forward(spec, weights, panel), computed))
        exact, computed = (np.concatenate(each) for each in zip(*found, strict=True))
        return exact, computed

    return proofs.is_proven(kernel, kernel.variant.partition("/")[0], try_out)


def model_table(spec: EncoderSpec, weights: EncoderWeights) -> kernels.ModelTable:
    """Return the addresses of packed weights, as the kernel wants them."""
    activation = _ACTIVATIONS[spec.activation]
    shape = kernels.EncoderShape(
        spec.layers, spec.hidden, spec.heads, weights.head_size, spec.intermediate,
        activation + gemm_reference.GATED * spec.gated, spec.epsilon, spec.pre_norm,
        spec.hidden // spec.heads if spec.rotary else 0,
    )  # fmt: skip
    layers = [
        (layer.qkv.matrix, layer.qkv.bias, layer.context.matrix, layer.context.bias,
         *layer.context_norm, layer.expand.matrix, layer.expand.bias, layer.reduce.matrix,
         layer.reduce.bias, *layer.output_norm)
        for layer in weights.layers
    ]  # fmt: skip
    kinds = reaches = (0,) * spec.layers
    if spec.rotary:
        kinds, reaches = spec.rotary.kinds, spec.rotary.reaches
    return kernels.ModelTable(shape, weights.norm, weights.relative, layers, (kinds, reaches))


def compiled_forward(
    kernel: kernels.EncoderKernel, model: kernels.ModelTable, spec: EncoderSpec,
    weights: EncoderWeights, panel: Panel, memory: kernels.Memory,
) -> F32:  # fmt: skip
    """Do the same by one call of a kernel; the memory holds at least the panel's tokens."""
    count, width = len(panel.ids), spec.hidden
    _embed(weights, panel, memory.hidden[:count, :width], memory.update[:count, :width])
    kernels.encode(kernel, model, panel.offsets, _angles(spec, weights, panel), memory)
    found = memory.update if spec.pre_norm else memory.hidden
    return found[:count, :width].copy()


def forward(
    spec: EncoderSpec, weights: EncoderWeights, panel: Panel, multiply: Multiply | None = None
) -> F32:
    """Return the last layer's token vectors of a panel, float32 (n, hidden), by NumPy.

    ``multiply`` makes the products with the layers' weights; NumPy does unless given.
    """
    multiply = multiply or _products(weights)
    hidden, update = (np.empty((len(panel.ids), spec.hidden), np.float32) for _ in range(2))
    _embed(weights, panel, hidden, update)
    nothing = np.zeros(spec.hidden, np.float32)
    reference.residual_norm(hidden, update, nothing, *weights.norm, spec.epsilon)
    read = hidden.copy() if spec.pre_norm else hidden
    angles = _angles(spec, weights, panel)
    for number, layer in enumerate(weights.layers):
        turns = None if spec.rotary is None else angles[spec.rotary.kinds[number]]
        reach = 0 if spec.rotary is None else spec.rotary.reaches[number]
        mask = AttentionMask(panel.offsets, weights.relative, turns, reach)
        _layer(spec, layer, (hidden, read), mask, functools.partial(multiply, number))
    return read


def _products(weights: EncoderWeights) -> Multiply:
    def multiply(number: int, name: str, rows: F32) -> F32:
        linear: Linear = getattr(weights.layers[number], name)
        return linear.product(rows)

    return multiply


def _embed(weights: EncoderWeights, panel: Panel, hidden: F32, update: F32) -> None:
    """Look up words into ``hidden``, positions and token types into ``update``."""
    hidden[:] = weights.words[panel.ids]
    update[:] = 0 if weights.positions is None else weights.positions[_places(panel)]
    if panel.types is not None:
        update += weights.types[panel.types]


def _places(panel: Panel) -> I64:
    """Return the position of each token in its text."""
    places = np.arange(len(panel.ids))
    if len(panel.offsets) > 2:
        places -= np.repeat(panel.offsets[:-1], panel.offsets[1:] - panel.offsets[:-1])
    return places


def _angles(spec: EncoderSpec, weights: EncoderWeights, panel: Panel) -> F32:
    """Return how far each token's queries and keys turn, (kinds, n, size of a head)."""
    if weights.angles is None:
        return np.zeros((0, len(panel.ids), 0), np.float32)
    return weights.angles.at(_places(panel))


class AttentionMask(NamedTuple):
    """What tokens see of their texts, and by what their distance tells.

    Attributes
    ----------
    offsets : (texts + 1,) int64
    relative : float32 (heads, 2 * longest - 1), optional
        Added to a score by distance key - query.
    turns : float32 (n, size of a head), optional
        Cosines and sines of the angles by which queries and keys are turned.
    reach : int
        Tokens to either side that are seen; 0: all.
    """

    offsets: I64
    relative: F32 | None
    turns: F32 | None = None
    reach: int = 0

    def bias(self, length: int, queries: slice) -> F32 | None:
        """Return what is added to scores, (heads or 1, length, queries)."""
        place = np.arange(length)
        distance = place[:, None] - place[None, queries]
        if self.relative is not None:
            return np.ascontiguousarray(self.relative[:, distance + self.relative.shape[1] // 2])
        if not 0 < self.reach < length - 1:
            return None
        unseen = np.abs(distance) > self.reach
        return np.where(unseen, np.float32(-np.inf), np.float32(0))[None]


def _layer(
    spec: EncoderSpec, layer: LayerWeights, rows: tuple[F32, F32], mask: AttentionMask,
    multiply: Callable[[str, F32], F32],
) -> None:  # fmt: skip
    """Pass rows through one layer: the sums, and what products read, in place.

    Of a post-norm encoder both are the same rows.
    """
    hidden, read = rows
    qkv = multiply("qkv", read)
    reference.add_bias(qkv, layer.qkv.bias)
    if mask.turns is not None:
        _turn(qkv, mask.turns, spec.heads)
    update = multiply("context", _attention(qkv, spec.heads, mask))
    _add_norm(hidden, read, update, layer.context.bias, layer.context_norm, spec.epsilon)
    expanded = multiply("expand", read)
    if spec.gated:
        expanded += layer.expand.bias.reshape(-1)
        gate, up = np.split(expanded, 2, axis=1)
        expanded = gemm_reference.activation(gate, _ACTIVATIONS[spec.activation]) * up
    else:
        reference.bias_activation(expanded, layer.expand.bias, spec.activation)
    update = multiply("reduce", expanded)
    _add_norm(hidden, read, update, layer.reduce.bias, layer.output_norm, spec.epsilon)


def _add_norm(
    hidden: F32, read: F32, update: F32, bias: F32, norm: tuple[F32, F32], epsilon: float
) -> None:
    """``hidden += update + bias; read = layer_norm(hidden)``."""
    if read is hidden:
        reference.residual_norm(hidden, update, bias, *norm, epsilon)
        return
    np.add(hidden, update, out=hidden)
    np.add(hidden, bias, out=hidden)
    np.copyto(read, hidden)
    reference.layer_norm(read, update, *norm, epsilon)


def _turn(qkv: F32, turns: F32, heads: int) -> None:
    """Turn queries and keys in place; heads are at least as wide as the angles."""
    size, half = qkv.shape[1] // (3 * heads), turns.shape[1] // 2
    both = qkv.reshape(len(qkv), 3, heads, size)[:, :2, :, : 2 * half]
    both[:] = rotate(both.reshape(len(qkv), 2 * heads, 2 * half), turns).reshape(both.shape)


def _attention(qkv: F32, heads: int, mask: AttentionMask) -> F32:
    """Multi-head self-attention inside each text; queries come already scaled.

    Texts of one length, neighbours after sorting, are computed together as stacks of small
    products: qkv (n, 3 * width) and the result (n, width) are only looked at in other shapes.
    """
    out, offsets = np.empty((len(qkv), qkv.shape[1] // 3), np.float32), mask.offsets
    size = out.shape[1] // heads
    text = 0
    for length, group in itertools.groupby(np.diff(offsets).tolist()):
        count = len(list(group))
        step = max(1, _SCORES // (heads * length * length))
        width = max(1, _MOST_SCORES // (heads * length))  # queries at a time: of most texts all
        for start in range(0, length, width):
            queries = slice(start, min(start + width, length))
            bias = mask.bias(length, queries)
            for first in range(text, text + count, step):
                last = min(first + step, text + count)
                rows = slice(int(offsets[first]), int(offsets[last]))
                parts = qkv[rows].reshape(last - first, length, 3, heads, size)
                query, key, value = (parts[:, :, part].transpose(0, 2, 1, 3) for part in range(3))
                context = out[rows].reshape(last - first, length, heads, size).transpose(0, 2, 1, 3)
                context[:, :, queries] = _attended(query[:, :, queries], key, value, bias)
        text += count
    return out


def _attended(query: F32, key: F32, value: F32, bias: F32 | None) -> F32:
    """Return the context of queries, (texts, heads, queries, size), of all of them like keys."""
    scores = np.matmul(key, query.transpose(0, 1, 3, 2))  # keys x queries
    if bias is not None:
        np.add(scores, bias, out=scores)
    np.multiply(scores, _LN2, out=scores)  # from powers of two
    reference.softmax_columns(scores.reshape(-1, *scores.shape[2:]))
    context: F32 = np.matmul(scores.transpose(0, 1, 3, 2), value)
    return context
