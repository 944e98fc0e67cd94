"""The forward pass of an encoder over one panel of packed texts.

A panel is a few hundred tokens of whole texts, one after another: every matrix product runs over
real tokens only. Knows no tokenizer, threads or pooling.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tarsdb.kernels.transformer import TransformerKernels
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.weights import EncoderWeights, LayerWeights

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_SCORES = 1 << 19  # attention scores computed at a time: 2 MB, about an L2 cache


class Workspace:
    """Scratch arrays for panels of up to ``tokens`` tokens; used by one thread at a time."""

    def __init__(self, spec: EncoderSpec, tokens: int) -> None:
        self.tokens = tokens
        self.heads = spec.heads
        self.hidden = np.empty((tokens, spec.hidden), np.float32)
        self.update = np.empty((tokens, spec.hidden), np.float32)
        self.context = np.empty((tokens, spec.hidden), np.float32)
        self.qkv = np.empty((tokens, 3 * spec.hidden), np.float32)
        self.expanded = np.empty((tokens, spec.intermediate), np.float32)
        self._scores = np.empty(0, np.float32)

    def scores(self, count: int) -> F32:
        """Return flat scratch for ``count`` attention scores."""
        if len(self._scores) < count:
            self._scores = np.empty(count, np.float32)
        return self._scores[:count]


class Panel(NamedTuple):
    """Whole texts computed together, n tokens in all.

    Attributes
    ----------
    ids : (n,) int32
        Token ids, each below the vocabulary's size.
    offsets : (texts + 1,) int64
        Where each text starts; no text longer than ``spec.max_tokens``.
    types : (n,) int32, optional
        Token types, each below ``spec.token_types``; all 0 where absent.
    """

    ids: npt.NDArray[np.int32]
    offsets: I64
    types: npt.NDArray[np.int32] | None = None


def forward(
    spec: EncoderSpec, weights: EncoderWeights, kernels: TransformerKernels, panel: Panel,
    workspace: Workspace,
) -> F32:  # fmt: skip
    """Return the last layer's token vectors of a panel; the workspace holds at least its tokens.

    Returns
    -------
    (n, hidden) float32
        A view of the workspace: it lives until the next panel.
    """
    ids, offsets, types = panel
    count = len(ids)
    hidden = workspace.hidden[:count]
    update = workspace.update[:count]
    np.take(weights.words, ids, axis=0, out=hidden, mode="clip")
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    np.take(weights.positions, np.arange(count) - starts, axis=0, out=update, mode="clip")
    if types is not None:
        update += weights.types[types]
    scale, shift = weights.norm
    nothing = np.zeros(spec.hidden, np.float32)
    kernels.residual_norm(hidden, update, nothing, scale, shift, spec.epsilon)
    for layer in weights.layers:
        _layer(spec, layer, kernels, workspace, offsets, weights.relative)
    return hidden


def _layer(
    spec: EncoderSpec, layer: LayerWeights, kernels: TransformerKernels,
    workspace: Workspace, offsets: I64, relative: F32 | None,
) -> None:  # fmt: skip
    count = int(offsets[-1])
    hidden, update, context = (
        array[:count] for array in (workspace.hidden, workspace.update, workspace.context)
    )
    qkv, expanded = workspace.qkv[:count], workspace.expanded[:count]
    np.matmul(hidden, layer.qkv, out=qkv)
    kernels.add_bias(qkv, layer.qkv_bias)
    _attention(qkv, offsets, context, workspace, kernels, relative)
    np.matmul(context, layer.context, out=update)
    scale, shift = layer.context_norm
    kernels.residual_norm(hidden, update, layer.context_bias, scale, shift, spec.epsilon)
    np.matmul(hidden, layer.expand, out=expanded)
    kernels.bias_activation(expanded, layer.expand_bias, spec.activation)
    np.matmul(expanded, layer.reduce, out=update)
    scale, shift = layer.output_norm
    kernels.residual_norm(hidden, update, layer.reduce_bias, scale, shift, spec.epsilon)


def _attention(
    qkv: F32, offsets: I64, out: F32, workspace: Workspace, kernels: TransformerKernels,
    relative: F32 | None,
) -> None:  # fmt: skip
    """Multi-head self-attention inside each text; queries come already scaled.

    Texts of one length, neighbours after sorting, are computed together as stacks of small
    products: qkv (n, 3 * hidden) and out (n, hidden) are only looked at in other shapes.
    """
    heads, size = workspace.heads, out.shape[1] // workspace.heads
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
            shape = (last - first, heads, length, length)
            scores = workspace.scores(math.prod(shape)).reshape(shape)  # keys x queries
            np.matmul(key, query.transpose(0, 1, 3, 2), out=scores)
            if bias is not None:
                np.add(scores, bias, out=scores)
            kernels.softmax_columns(scores.reshape(-1, length, length))
            context = out[rows].reshape(last - first, length, heads, size).transpose(0, 2, 1, 3)
            np.matmul(scores.transpose(0, 1, 3, 2), value, out=context)
        text += count


def _bias_matrix(relative: F32, length: int) -> F32:
    """Spread the bias by distance key - query over keys x queries: (heads, length, length)."""
    place = np.arange(length)
    distance = place[:, None] - place[None, :]
    return np.ascontiguousarray(relative[:, distance + relative.shape[1] // 2])
