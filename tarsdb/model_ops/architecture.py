"""What a ``config.json`` says about an encoder: its sizes, its tensors' names and shapes.

One table per model family turns the family's names into the encoder's own. Numbers are untrusted
and bounded here, so that nothing downstream allocates by a number nobody checked. Knows no
weights and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.kernels.transformer_reference import GELU, GELU_TANH, RELU
from tarsdb.model_ops.config_values import short, whole

_ACTIVATIONS = {
    "gelu": GELU, "gelu_new": GELU_TANH, "gelu_pytorch_tanh": GELU_TANH, "relu": RELU,
}  # fmt: skip
_LIMITS = {
    "layers": 256, "hidden": 16_384, "heads": 1024, "intermediate": 131_072, "vocabulary": 4 << 20,
    "positions": 1 << 20, "token_types": 64, "relative_buckets": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class EncoderSpec:
    """Sizes of a post-norm transformer encoder.

    Parameters
    ----------
    family : str
        Row of the naming table: 'bert', 'distilbert' or 'mpnet'.
    position_offset : int
        Position of the first token (RoBERTa and MPNet keep the first rows for padding).
    relative_buckets : int
        Rows of the relative position bias, 0 where the model has none.
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

    @property
    def max_tokens(self) -> int:
        """Longest sequence the position table allows."""
        return self.positions - self.position_offset


@dataclass(frozen=True)
class _Family:
    """Where one family keeps its numbers and its tensors."""

    keys: Mapping[str, str]
    layer: str  # prefix of layer i
    parts: Mapping[str, str]  # our name -> the family's, inside a layer
    naming: str = ""
    padding_positions: bool = False  # positions start behind pad_token_id
    relative: bool = False


_BERT_KEYS = {
    "layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads",
    "intermediate": "intermediate_size", "vocabulary": "vocab_size",
    "positions": "max_position_embeddings", "token_types": "type_vocab_size",
    "activation": "hidden_act",
}  # fmt: skip
_BERT_PARTS = {
    "query": "attention.self.query", "key": "attention.self.key",
    "value": "attention.self.value", "context": "attention.output.dense",
    "context_norm": "attention.output.LayerNorm", "expand": "intermediate.dense",
    "reduce": "output.dense", "output_norm": "output.LayerNorm",
}  # fmt: skip
_BERT = _Family(_BERT_KEYS, "encoder.layer.{}.", _BERT_PARTS, "bert")
_ROBERTA = _Family(_BERT_KEYS, "encoder.layer.{}.", _BERT_PARTS, "bert", padding_positions=True)
_MPNET = _Family(
    {**_BERT_KEYS, "token_types": ""}, "encoder.layer.{}.",
    {**_BERT_PARTS, "query": "attention.attn.q", "key": "attention.attn.k",
     "value": "attention.attn.v", "context": "attention.attn.o",
     "context_norm": "attention.LayerNorm"},
    "mpnet", padding_positions=True, relative=True,
)  # fmt: skip
_DISTILBERT = _Family(
    {"layers": "n_layers", "hidden": "dim", "heads": "n_heads", "intermediate": "hidden_dim",
     "vocabulary": "vocab_size", "positions": "max_position_embeddings", "token_types": "",
     "activation": "activation"},
    "transformer.layer.{}.",
    {"query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin",
     "context": "attention.out_lin", "context_norm": "sa_layer_norm", "expand": "ffn.lin1",
     "reduce": "ffn.lin2", "output_norm": "output_layer_norm"},
    "distilbert",
)  # fmt: skip
_FAMILIES = {
    "bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA, "camembert": _ROBERTA,
    "mpnet": _MPNET, "distilbert": _DISTILBERT,
}  # fmt: skip
_BY_NAMING = {"bert": _BERT, "mpnet": _MPNET, "distilbert": _DISTILBERT}


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
    family = _FAMILIES.get(model_type)
    if family is None:
        raise NotSupportedError(
            f"models of type {model_type[:60]!r} are not supported",
            "supported encoders: " + ", ".join(sorted(_FAMILIES)),
        )
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
        epsilon=_epsilon(config),
        activation=_activation(config, family.keys["activation"]),
        **sizes,
    )
    if spec.max_tokens < 4:
        raise ModelFormatError(f"config.json: {spec.positions} positions are too few for a text")
    return spec


def tensor_shapes(spec: EncoderSpec) -> dict[str, tuple[int, ...]]:
    """Return name (without the model's prefix) and shape of every tensor the encoder reads."""
    family, hidden = _BY_NAMING[spec.family], spec.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (spec.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (spec.positions, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    if spec.token_types:
        shapes["embeddings.token_type_embeddings.weight"] = (spec.token_types, hidden)
    if spec.relative_buckets:
        shapes["encoder.relative_attention_bias.weight"] = (spec.relative_buckets, spec.heads)
    widths = {"expand": (spec.intermediate, hidden), "reduce": (hidden, spec.intermediate)}
    for layer in range(spec.layers):
        for part in family.parts:
            weight, bias = (layer_tensor(spec, layer, part, kind) for kind in ("weight", "bias"))
            matrix = widths.get(part, (hidden, hidden))
            shapes[weight] = (hidden,) if part.endswith("norm") else matrix
            shapes[bias] = matrix[:1]
    return shapes


def layer_tensor(spec: EncoderSpec, layer: int, part: str, kind: str) -> str:
    """Return the name of one tensor of a layer, without the model's prefix."""
    family = _BY_NAMING[spec.family]
    return f"{family.layer.format(layer)}{family.parts[part]}.{kind}"


def _size(config: Mapping[str, Any], key: str, field: str) -> int:
    if not key:
        return 0
    return whole(config, key, None, _LIMITS[field], lowest=0 if field == "token_types" else 1)


def _offset(config: Mapping[str, Any], family: _Family) -> int:
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


def _epsilon(config: Mapping[str, Any]) -> float:
    value = config.get("layer_norm_eps", 1e-12)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 0.1:
        raise ModelFormatError(f"config.json: layer_norm_eps is {short(value)}, outside 0 to 0.1")
    return float(value)


def _activation(config: Mapping[str, Any], key: str) -> int:
    name = config.get(key, "gelu")
    code = _ACTIVATIONS.get(name) if isinstance(name, str) else None
    if code is None:
        raise NotSupportedError(
            f"config.json: activation {short(name)} is not supported",
            "supported: " + ", ".join(_ACTIVATIONS),
        )
    return code


def _refuse_variants(config: Mapping[str, Any]) -> None:
    kind = config.get("position_embedding_type", "absolute")
    if kind not in ("absolute", None):
        raise NotSupportedError(f"config.json: position_embedding_type {short(kind)}")
    for flag in ("is_decoder", "add_cross_attention"):
        if config.get(flag):
            raise NotSupportedError(f"config.json: {flag} makes this a decoder, not an encoder")
    if config.get("quantization_config"):
        raise NotSupportedError(
            "config.json: the weights are quantised by another tool", "use the float model"
        )
