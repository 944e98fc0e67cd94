"""A decoder's tensors, checked and copied into the layout it computes with.

Matrices keep the file's (outputs, inputs); query, key and value lie one below the other, as gate
and up do. Norms that scale by one plus their weight have the one added. Every array is this
module's own copy, made one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError
from tarsdb.model_ops.decoder_spec import DecoderSpec, decoder_tensors
from tarsdb.model_ops.weights import read_tensor
from tarsdb.records import dataclass

F32 = npt.NDArray[np.float32]

_NAMED = 8  # missing tensors spelled out in an error


@dataclass(frozen=True)
class DecoderLayer:
    """One layer; what a family does not have is None."""

    attention_norm: F32
    qkv: F32
    qkv_bias: F32 | None
    query_norm: F32 | None
    key_norm: F32 | None
    context: F32
    context_bias: F32 | None
    context_norm: F32 | None
    mlp_norm: F32
    gate_up: F32
    gate_up_bias: F32 | None
    down: F32
    down_bias: F32 | None
    down_norm: F32 | None


@dataclass(frozen=True)
class DecoderWeights:
    """All weights. ``words`` (vocabulary, hidden); ``head`` is the same array if they are tied."""

    words: F32
    layers: tuple[DecoderLayer, ...]
    norm: F32
    head: F32


def check_decoder_tensors(
    spec: DecoderSpec, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Check names and shapes against the config.

    Raises
    ------
    ModelFormatError
        Names the missing tensors, or the tensor and the two shapes that disagree.
    """
    missing = []
    for name, expected in decoder_tensors(spec).items():
        found = shapes.get(name)
        if found is None:
            missing.append(name)
        elif tuple(found) != expected:
            raise ModelFormatError(
                f"tensor {name!r} of {where} has shape {tuple(found)}, "
                f"config.json asks for {expected}"
            )
    if missing:
        listed = ", ".join(missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelFormatError(
            f"{where} lacks {len(missing)} tensors: {listed}{more}",
            "the weights are incomplete or belong to another config.json",
        )


class DecoderReader:
    """Reads checked float32 copies of what a decoder needs, one part of it at a time.

    Raises
    ------
    ModelFormatError
        A tensor is missing, has another shape or type, or holds NaN or infinity.
    """

    def __init__(self, spec: DecoderSpec, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        self._spec, self._tensors = spec, tensors
        self._shapes = decoder_tensors(spec)
        self._offset = np.float32(1.0 if spec.unit_offset else 0.0)
        if any(name not in tensors for name in self._shapes):
            check_decoder_tensors(
                spec, {name: tensors[name].shape for name in tensors}, "the model"
            )

    def weights(self) -> DecoderWeights:
        """Return everything."""
        words = self.words()
        return DecoderWeights(
            words=words,
            layers=tuple(self.layer(number) for number in range(len(self._spec.layers))),
            norm=self.final_norm(),
            head=words if self._spec.tied else self.head(),
        )

    def words(self) -> F32:
        """Return the vectors of tokens (vocabulary, hidden)."""
        return self._read("model.embed_tokens.weight")

    def head(self) -> F32:
        """Return the matrix of the logits (vocabulary, hidden), where it is not tied."""
        return self._read("lm_head.weight")

    def final_norm(self) -> F32:
        """Return the scale of the last norm (hidden,)."""
        return self._norm("model.norm")

    def layer(self, number: int) -> DecoderLayer:
        """Return one layer."""
        spec, prefix = self._spec, f"model.layers.{number}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        qkv = [f"{attention}{part}_proj" for part in "qkv"]
        after, before = f"{prefix}post_attention_layernorm", f"{prefix}pre_feedforward_layernorm"
        return DecoderLayer(
            attention_norm=self._norm(f"{prefix}input_layernorm"),
            qkv=self._stacked(*qkv),
            qkv_bias=self._bias_if(spec.qkv_bias, *qkv),
            query_norm=self._norm_if(spec.query_norm, f"{attention}q_norm"),
            key_norm=self._norm_if(spec.query_norm, f"{attention}k_norm"),
            context=self._read(f"{attention}o_proj.weight"),
            context_bias=self._bias_if(spec.context_bias, f"{attention}o_proj"),
            context_norm=self._norm_if(spec.post_norms, after),
            mlp_norm=self._norm(before if spec.post_norms else after),
            gate_up=self._stacked(f"{mlp}gate_proj", f"{mlp}up_proj"),
            gate_up_bias=self._bias_if(spec.mlp_bias, f"{mlp}gate_proj", f"{mlp}up_proj"),
            down=self._read(f"{mlp}down_proj.weight"),
            down_bias=self._bias_if(spec.mlp_bias, f"{mlp}down_proj"),
            down_norm=self._norm_if(spec.post_norms, f"{prefix}post_feedforward_layernorm"),
        )

    def _read(self, name: str) -> F32:
        return read_tensor(self._tensors, name, self._shapes[name])

    def _norm(self, name: str) -> F32:
        return self._read(f"{name}.weight") + self._offset

    def _norm_if(self, wanted: bool, name: str) -> F32 | None:
        return self._norm(name) if wanted else None

    def _bias_if(self, wanted: bool, *names: str) -> F32 | None:
        return np.concatenate([self._read(f"{name}.bias") for name in names]) if wanted else None

    def _stacked(self, *names: str) -> F32:
        return np.concatenate([self._read(f"{name}.weight") for name in names])
