"""What a ``config.json`` says about an encoder: its sizes, its tensors' names and shapes.

One table per model family turns the family's names into the encoder's own. Numbers are untrusted
and bounded here, so that nothing downstream allocates by a number nobody checked. Knows no
weights and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.kernels.transformer_reference import GELU, GELU_TANH, RELU, SILU
from tarsdb.model_ops.config_values import flag, short, whole
from tarsdb.model_ops.encoder_families import (
    BY_NAMING,
    FAMILIES,
    NOMIC_BY_TRANSFORMERS,
    Family,
)
from tarsdb.model_ops.encoder_rotary import Rotary, read_rotary
from tarsdb.records import dataclass

_ACTIVATIONS = {
    "gelu": GELU, "gelu_new": GELU_TANH, "gelu_pytorch_tanh": GELU_TANH, "relu": RELU,
    "silu": SILU, "swiglu": SILU, "geglu": GELU,
}  # fmt: skip
_LIMITS = {
    "layers": 256, "hidden": 16_384, "heads": 1024, "intermediate": 131_072, "vocabulary": 4 << 20,
    "positions": 1 << 20, "token_types": 64, "relative_buckets": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of a transformer encoder.

    Parameters
    ----------
    family : str
        Row of the naming table: 'bert', 'distilbert', 'mpnet', 'modernbert' or 'nomic'.
    position_offset : int
        Position of the first token (RoBERTa and MPNet keep the first rows for padding).
    relative_buckets : int
        Rows of the relative position bias, 0 where the model has none.
    rotary : Rotary, optional
        Positions by rotation, instead of a table of vectors.
    unbiased : frozenset of str
        Parts that have no bias; of norms, no shift.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    position_offset: int
    token_types: int
    relative_buckets: int
    epsilon: float
    activation: int
    rotary: Rotary | None = None
    unbiased: frozenset[str] = frozenset()

    @property
    def max_tokens(self) -> int:
        """Longest sequence the position table allows."""
        return self.positions - self.position_offset

    @property
    def pre_norm(self) -> bool:
        """Whether norms lie in front of what a layer computes, beside the sums they read."""
        return bool(BY_NAMING[self.family].last_norm)

    @property
    def gated(self) -> bool:
        """Whether the feed-forward network multiplies two products, one of them activated."""
        return BY_NAMING[self.family].gated


def read_spec(config: Mapping[str, Any]) -> EncoderSpec:
    """Read a model's sizes out of its parsed ``config.json``.

    Raises
    ------
    ModelFormatError
        A number is missing, of another type or out of bounds.
    NotSupportedError
        A model of another family, or with an option the encoder does not compute.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFormatError(
            "config.json names no model_type", "is this a Hugging Face model directory?"
        )
    family = FAMILIES.get(model_type)
    if family is None:
        raise NotSupportedError(
            f"models of type {model_type[:60]!r} are not supported",
            "supported encoders: " + ", ".join(sorted(FAMILIES)),
        )
    if family.naming == "nomic" and "n_embd" not in config:
        family = NOMIC_BY_TRANSFORMERS
    _refuse_variants(config)
    sizes = {field: _size(config, key, field) for field, key in family.keys.items()
             if field != "activation"}  # fmt: skip
    if sizes["hidden"] % sizes["heads"]:
        raise ModelFormatError(
            f"config.json: hidden size {sizes['hidden']} is no multiple of its "
            f"{sizes['heads']} heads"
        )
    spec = EncoderSpec(
        family=family.naming,
        position_offset=_offset(config, family),
        relative_buckets=_buckets(config) if family.relative else 0,
        epsilon=_epsilon(config, family.epsilon),
        activation=_activation(config, family),
        rotary=read_rotary(family.naming, config, sizes["layers"]),
        unbiased=_unbiased(config, family),
        **sizes,
    )
    if spec.rotary and spec.hidden // spec.heads % 2:
        raise ModelFormatError(f"config.json: heads of {spec.hidden // spec.heads} have no halves")
    if spec.max_tokens < 4:
        raise ModelFormatError(f"config.json: {spec.positions} positions are too few for a text")
    return spec


def tensor_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Return name (without the model's prefix) and shape of every tensor the encoder reads."""
    family, hidden = BY_NAMING[spec.family], spec.hidden
    shapes: dict[str, tuple[int, ...]] = {word_tensor(spec): (spec.vocabulary, hidden)}
    if spec.rotary is None:
        shapes["embeddings.position_embeddings.weight"] = (spec.positions, hidden)
    shapes[norm_tensor(spec, "weight")] = (hidden,)
    if "norm" not in spec.unbiased:
        shapes[norm_tensor(spec, "bias")] = (hidden,)
    if spec.token_types:
        shapes["embeddings.token_type_embeddings.weight"] = (spec.token_types, hidden)
    if spec.relative_buckets:
        shapes["encoder.relative_attention_bias.weight"] = (spec.relative_buckets, spec.heads)
    heights = {"qkv": 3 * hidden, "gate_up": 2 * spec.intermediate, "gate": spec.intermediate,
               "expand": spec.intermediate}  # fmt: skip
    for layer in range(spec.layers):
        for part in family.parts:
            weight, bias = (layer_tensor(spec, layer, part, kind) for kind in ("weight", "bias"))
            height = heights.get(part, hidden)
            matrix = (height, spec.intermediate if part == "reduce" else hidden)
            shapes[weight] = (hidden,) if part.endswith("norm") else matrix
            if part not in spec.unbiased:
                shapes[bias] = (height,)
    return shapes


def layer_tensor(spec: EncoderSpec, layer: int, part: str, kind: str) -> str:
    """Return the name of one tensor of a layer, without the model's prefix."""
    family = BY_NAMING[spec.family]
    if part == "output_norm" and family.last_norm:
        if layer == spec.layers - 1:
            return f"{family.last_norm}.{kind}"
        layer += 1  # what follows a layer is the norm in front of the next one
    return f"{family.layer.format(layer)}{family.parts[part]}.{kind}"


def word_tensor(spec: EncoderSpec) -> str:
    """Return the name of the vectors of tokens, without the model's prefix."""
    return f"{BY_NAMING[spec.family].words}.weight"


def norm_tensor(spec: EncoderSpec, kind: str) -> str:
    """Return the name of a tensor of the norm of the embeddings, without the model's prefix."""
    return f"{BY_NAMING[spec.family].norm}.{kind}"


def _size(config: Mapping[str, Any], key: str, field: str) -> int:
    if not key:
        return 0
    return whole(config, key, None, _LIMITS[field], lowest=0 if field == "token_types" else 1)


def _offset(config: Mapping[str, Any], family: Family) -> int:
    if not family.padding_positions:
        return 0
    if family.relative:
        return 2  # MPNet fixes its padding index to 1
    padding = config.get("pad_token_id", 1)
    if isinstance(padding, bool) or not isinstance(padding, int) or not 0 <= padding < 1024:
        raise ModelFormatError(f"config.json: pad_token_id is {short(padding)}")
    return padding + 1


def _buckets(config: Mapping[str, Any]) -> int:
    key = "relative_attention_num_buckets"
    buckets = _size({key: 32, **config}, key, "relative_buckets")
    if buckets % 4:
        raise ModelFormatError(f"config.json: {key} is {buckets}, not a multiple of 4")
    return buckets


def _epsilon(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key, 1e-5 if key == "norm_eps" else 1e-12)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 0.1:
        raise ModelFormatError(f"config.json: {key} is {short(value)}, outside 0 to 0.1")
    return float(value)


def _unbiased(config: Mapping[str, Any], family: Family) -> frozenset[str]:
    """Return the parts that have no bias: of most families none."""
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    attention, network = ("qkv", "context"), ("gate_up", "gate", "expand", "reduce")
    if family.naming == "modernbert":
        groups = (("attention_bias", attention), ("mlp_bias", network),
                  ("norm_bias", ("norm", "context_norm", "output_norm")))  # fmt: skip
    elif family.naming == "nomic":
        groups = (("qkv_proj_bias", attention), ("mlp_fc1_bias", ("gate", "expand")),
                  ("mlp_fc2_bias", ("reduce",)))  # fmt: skip
    return frozenset(
        part for key, parts in groups if not flag(config, key, False) for part in parts
    )


def _activation(config: Mapping[str, Any], family: Family) -> int:
    name = config.get(family.keys["activation"], "silu" if family.naming == "nomic" else "gelu")
    known = [each for each in _ACTIVATIONS if family.gated or _ACTIVATIONS[each] != SILU]
    code = _ACTIVATIONS[name] if name in known else None
    if code is None:
        raise NotSupportedError(
            f"config.json: activation {short(name)} is not supported",
            "supported: " + ", ".join(known),
        )
    return code


def _refuse_variants(config: Mapping[str, Any]) -> None:
    kind = config.get("position_embedding_type", "absolute")
    if kind not in ("absolute", None):
        raise NotSupportedError(f"config.json: position_embedding_type {short(kind)}")
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise NotSupportedError(f"config.json: {key} makes this a decoder, not an encoder")
    if config.get("quantization_config"):
        raise NotSupportedError(
            "config.json: the weights are quantised by another tool", "use the float model"
        )
