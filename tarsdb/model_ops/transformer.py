"""The forward pass of an encoder over one panel of packed texts.

A panel is a few hundred tokens of whole texts, one after another: every matrix product runs over
real tokens only. Knows no tokenizer, threads or pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tarsdb.kernels import transformer_reference
from tarsdb.model_ops.architecture import EncoderSpec
from tarsdb.model_ops.weights import EncoderWeights, LayerWeights

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TransformerKernels:
    """The four kernels of a layer; see ``kernels/transformer_reference.py`` for what they do."""

    add_bias: Callable[[F32, F32], None]
    bias_activation: Callable[[F32, F32, int], None]
    residual_norm: Callable[[F32, F32, F32, F32, F32, float], None]
    attention: Callable[[F32, I64, int, F32, F32 | None], None]


REFERENCE = TransformerKernels(
    transformer_reference.add_bias,
    transformer_reference.bias_activation,
    transformer_reference.residual_norm,
    transformer_reference.attention,
)


class Workspace:
    """Scratch arrays for panels of up to ``tokens`` tokens; used by one thread at a time."""

    def __init__(self, spec: EncoderSpec, tokens: int) -> None:
        self.tokens = tokens
        self.hidden = np.empty((tokens, spec.hidden), np.float32)
        self.update = np.empty((tokens, spec.hidden), np.float32)
        self.context = np.empty((tokens, spec.hidden), np.float32)
        self.qkv = np.empty((tokens, 3 * spec.hidden), np.float32)
        self.expanded = np.empty((tokens, spec.intermediate), np.float32)


def forward(
    spec: EncoderSpec, weights: EncoderWeights, kernels: TransformerKernels,
    ids: npt.NDArray[np.int32], offsets: I64, workspace: Workspace,
) -> F32:  # fmt: skip
    """Return the last layer's token vectors of a panel.

    Parameters
    ----------
    ids : (n,) int32
        Token ids of whole texts, each below the vocabulary's size.
    offsets : (texts + 1,) int64
        Where each text starts; no text longer than ``spec.max_tokens``.
    workspace : Workspace
        Holds at least n tokens.

    Returns
    -------
    (n, hidden) float32
        A view of the workspace: it lives until the next panel.
    """
    count = len(ids)
    hidden = workspace.hidden[:count]
    update = workspace.update[:count]
    np.take(weights.words, ids, axis=0, out=hidden, mode="clip")
    starts = np.repeat(offsets[:-1], np.diff(offsets))
    np.take(weights.positions, np.arange(count) - starts, axis=0, out=update, mode="clip")
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
    kernels.attention(qkv, offsets, spec.heads, context, relative)
    np.matmul(context, layer.context, out=update)
    scale, shift = layer.context_norm
    kernels.residual_norm(hidden, update, layer.context_bias, scale, shift, spec.epsilon)
    np.matmul(hidden, layer.expand, out=expanded)
    kernels.bias_activation(expanded, layer.expand_bias, spec.activation)
    np.matmul(expanded, layer.reduce, out=update)
    scale, shift = layer.output_norm
    kernels.residual_norm(hidden, update, layer.reduce_bias, scale, shift, spec.epsilon)
