"""What a ``config.json`` says about a decoder: its sizes, its tensors' names and shapes.

One table row per model family says what it does differently from Llama. Numbers are untrusted and
bounded here. Knows no weights and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.kernels.decoder_reference import GELU_TANH, SILU
from tarsdb.model_ops.config_values import flag, real, short, whole
from tarsdb.model_ops.rope import Rope, read_rope
from tarsdb.records import dataclass

_ACTIVATIONS = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU_TANH, "gelu_new": GELU_TANH}
_SLIDING, _FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class LayerSpec:
    """How one layer's attention differs from another's.

    Parameters
    ----------
    window : int
        A token sees the last ``window`` tokens, itself included; 0: all of them.
    rope : int
        Which of the model's rotary embeddings it uses.
    """

    window: int
    rope: int


@dataclass(frozen=True)
class DecoderSpec:
    """Sizes and options of a pre-norm decoder.

    Parameters
    ----------
    family : str
        ``model_type`` of the config.
    kv_heads : int
        Heads of keys and values; each serves ``heads / kv_heads`` heads of queries.
    max_positions : int
        Longest sequence, prompt and answer together.
    unit_offset : bool
        Norms scale by one plus their weight (Gemma).
    embedding_scale : float
        Token vectors are multiplied by it.
    query_scale : float
        Scores are multiplied by it.
    post_norms : bool
        The outputs of attention and of the feed-forward part are normalised too (Gemma 2, 3).
    query_norm : bool
        Queries and keys are normalised per head (Qwen3, Gemma 3).
    score_cap, logit_cap : float
        ``cap * tanh(x / cap)`` of scores and logits; 0: none (Gemma 2).
    end_tokens : tuple of int
        Tokens that end a text.
    begin_token : int
        Token that begins a text, -1 where there is none.
    """

    family: str
    layers: tuple[LayerSpec, ...]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    max_positions: int
    epsilon: float
    activation: int
    ropes: tuple[Rope, ...]
    query_scale: float
    tied: bool
    qkv_bias: bool
    context_bias: bool
    mlp_bias: bool
    unit_offset: bool
    embedding_scale: float
    post_norms: bool
    query_norm: bool
    score_cap: float
    logit_cap: float
    begin_token: int
    end_tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Family:
    """What a family does differently from Llama."""

    gemma: bool = False  # unit offset, scaled embeddings, tied unless told otherwise
    post_norms: bool = False
    query_norm: bool = False
    always_bias: bool = False  # of query, key and value
    windowed: bool = True  # reads sliding_window
    switched: bool = False  # and only where use_sliding_window is set, behind max_window_layers
    theta: float = 10_000.0
    local_theta: float = 0.0  # of layers with a window, where theirs differs
    pattern: int = 0  # every pattern-th layer sees everything, where the config names no layers
    score_cap: float = 0.0
    logit_cap: float = 0.0
    own_scale: bool = False  # reads query_pre_attn_scalar


_FAMILIES = {
    "llama": _Family(windowed=False),
    "mistral": _Family(),
    "qwen2": _Family(always_bias=True, switched=True),
    "qwen3": _Family(query_norm=True, switched=True),
    "gemma": _Family(gemma=True, windowed=False),
    "gemma2": _Family(
        gemma=True, post_norms=True, pattern=2, own_scale=True, score_cap=50.0, logit_cap=30.0
    ),
    "gemma3_text": _Family(
        gemma=True, post_norms=True, query_norm=True, pattern=6, own_scale=True,
        theta=1_000_000.0, local_theta=10_000.0,
    ),
}  # fmt: skip
FAMILIES = tuple(sorted(_FAMILIES))
"""``model_type`` of every decoder that can be computed."""


def read_decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Read a decoder's sizes out of its parsed ``config.json``.

    Raises
    ------
    ModelFormatError
        A number is missing, of another type or out of bounds.
    NotSupportedError
        A model of another family, or with an option the decoder does not compute.
    """
    name = config.get("model_type")
    family = _FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise NotSupportedError(
            f"models of type {short(name)} are not supported",
            "supported decoders: " + ", ".join(FAMILIES),
        )
    _refuse_variants(config)
    hidden = whole(config, "hidden_size", None, 16_384)
    heads = whole(config, "num_attention_heads", None, 1024)
    head_dim = _head_dim(config, hidden, heads)
    layers, ropes = _layers(config, family)
    bias = flag(config, "attention_bias", False)
    scalar = real(config, "query_pre_attn_scalar", 256.0, 1e-3) if family.own_scale else head_dim
    vocabulary = whole(config, "vocab_size", None, 4 << 20)
    return DecoderSpec(
        family=str(name),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=head_dim,
        intermediate=whole(config, "intermediate_size", None, 131_072),
        vocabulary=vocabulary,
        max_positions=whole(config, "max_position_embeddings", None, 1 << 24),
        epsilon=real(config, "rms_norm_eps", 1e-6, 0.0, 0.1),
        activation=_activation(config, family),
        ropes=ropes,
        query_scale=1.0 / math.sqrt(scalar),
        tied=flag(config, "tie_word_embeddings", family.gemma),
        qkv_bias=family.always_bias or bias,
        context_bias=bias,
        mlp_bias=flag(config, "mlp_bias", False),
        unit_offset=family.gemma,
        embedding_scale=math.sqrt(hidden) if family.gemma else 1.0,
        post_norms=family.post_norms,
        query_norm=family.query_norm,
        score_cap=_cap(config, "attn_logit_softcapping", family.score_cap),
        logit_cap=_cap(config, "final_logit_softcapping", family.logit_cap),
        begin_token=next(iter(_tokens(config, "bos_token_id", vocabulary)), -1),
        end_tokens=_tokens(config, "eos_token_id", vocabulary),
    )


def decoder_tensors(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor the decoder reads."""
    hidden, width = spec.hidden, spec.intermediate
    query, key = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not spec.tied:
        shapes["lm_head.weight"] = (spec.vocabulary, hidden)
    matrices = {
        "self_attn.q_proj": (query, hidden), "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden), "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (width, hidden), "mlp.up_proj": (width, hidden),
        "mlp.down_proj": (hidden, width),
    }  # fmt: skip
    norms = ["input_layernorm", "post_attention_layernorm"]
    if spec.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for number in range(len(spec.layers)):
        prefix = f"model.layers.{number}."
        for part, shape in matrices.items():
            shapes[f"{prefix}{part}.weight"] = shape
            if _has_bias(spec, part):
                shapes[f"{prefix}{part}.bias"] = shape[:1]
        shapes.update({f"{prefix}{norm}.weight": (hidden,) for norm in norms})
        if spec.query_norm:
            for norm in ("self_attn.q_norm", "self_attn.k_norm"):
                shapes[f"{prefix}{norm}.weight"] = (spec.head_dim,)
    return shapes


def _has_bias(spec: DecoderSpec, part: str) -> bool:
    if part.startswith("mlp."):
        return spec.mlp_bias
    return spec.context_bias if part == "self_attn.o_proj" else spec.qkv_bias


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden % heads:
        raise ModelFormatError(
            f"config.json: hidden size {hidden} is no multiple of its {heads} heads"
        )
    head_dim = whole(config, "head_dim", max(1, hidden // heads), 1024)
    if head_dim % 2:
        raise ModelFormatError(f"config.json: head_dim is {head_dim}, not an even number")
    return head_dim


def _kv_heads(config: Mapping[str, Any], heads: int) -> int:
    kv_heads = whole(config, "num_key_value_heads", heads, 1024)
    if heads % kv_heads:
        raise ModelFormatError(
            f"config.json: {heads} heads are no multiple of {kv_heads} key and value heads"
        )
    return kv_heads


def _layers(
    config: Mapping[str, Any], family: _Family
) -> tuple[tuple[LayerSpec, ...], tuple[Rope, ...]]:
    """Return each layer's attention, and the rotary embeddings they name."""
    count = whole(config, "num_hidden_layers", None, 256)
    window = _window(config, family)
    kinds = _layer_types(config, family, count, window)
    ropes = [read_rope(config, _FULL, family.theta)]
    if family.local_theta:
        local = config
        if config.get("rope_parameters") is None:  # older files name the local base apart
            base = config.get("rope_local_base_freq")
            local = {"rope_theta": family.local_theta if base is None else base}
        ropes.append(read_rope(local, _SLIDING, family.local_theta))
    layers = tuple(
        LayerSpec(window, len(ropes) - 1) if kind == _SLIDING else LayerSpec(0, 0)
        for kind in kinds
    )  # fmt: skip
    return layers, tuple(ropes)


def _window(config: Mapping[str, Any], family: _Family) -> int:
    if not family.windowed or (
        family.switched and not flag(config, "use_sliding_window", False)
    ):  # fmt: skip
        return 0
    default = 4096 if family.pattern or family.switched else None
    if config.get("sliding_window", default) is None:
        return 0
    return whole(config, "sliding_window", default, 1 << 24)


def _layer_types(
    config: Mapping[str, Any], family: _Family, count: int, window: int
) -> list[str]:  # fmt: skip
    if window == 0:
        return [_FULL] * count
    named = config.get("layer_types")
    if named is not None:
        if not isinstance(named, list) or len(named) != count:
            raise ModelFormatError(f"config.json: layer_types does not name {count} layers")
        unknown = [kind for kind in named if kind not in (_SLIDING, _FULL)]
        if unknown:
            raise NotSupportedError(f"config.json: layers of type {short(unknown[0])}")
        return named
    if family.pattern:
        pattern = whole(config, "sliding_window_pattern", family.pattern, 256)
        return [_SLIDING if (number + 1) % pattern else _FULL for number in range(count)]
    first = whole(config, "max_window_layers", 28, 1 << 20, 0) if family.switched else 0
    return [_SLIDING if number >= first else _FULL for number in range(count)]


def _activation(config: Mapping[str, Any], family: _Family) -> int:
    if family.gemma:  # early files say hidden_act = 'gelu' and mean the approximation
        name = config.get("hidden_activation") or "gelu_pytorch_tanh"
    else:
        name = config.get("hidden_act", "silu")
    code = _ACTIVATIONS.get(name) if isinstance(name, str) else None
    if code is None:
        raise NotSupportedError(
            f"config.json: activation {short(name)} is not supported",
            "supported: " + ", ".join(_ACTIVATIONS),
        )
    return code


def _cap(config: Mapping[str, Any], key: str, default: float) -> float:
    if not config.get(key, default):
        return 0.0
    return real(config, key, default, 1e-3)


def _tokens(config: Mapping[str, Any], key: str, vocabulary: int) -> tuple[int, ...]:
    value = config.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for token in values:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise ModelFormatError(
                f"config.json: {key} is {short(token)}, the vocabulary has {vocabulary} tokens"
            )
    return tuple(values[:64])


def _refuse_variants(config: Mapping[str, Any]) -> None:
    if config.get("quantization_config"):
        raise NotSupportedError(
            "config.json: the weights are quantised by another tool", "use the float model"
        )
    for key in ("use_bidirectional_attention", "add_cross_attention"):
        if config.get(key):
            raise NotSupportedError(f"config.json: {key} makes this no plain decoder")
