"""A decoder in a GGUF file as a Hugging Face directory would hold it: config, tensors, tokenizer.

Tensors get the names and the layout of ``decoder_spec``: llama.cpp keeps the rotated halves of
Llama's queries and keys in turns, and adds the one of Gemma's norms to their weights. Numbers are
passed on as they are; whoever reads a config checks them. Knows no file format.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.gguf.blocks import CODINGS
from tarsdb.model_ops.gguf.container import GgufTensors, read_gguf
from tarsdb.model_ops.gguf.tokenizer import end_tokens, read_chat_template, tokenizer_json
from tarsdb.model_ops.rope import Rope

F32 = npt.NDArray[np.float32]
Value = TypeVar("Value", bound=np.generic)

_FAMILIES = {
    "llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3": "gemma3_text",
}  # fmt: skip
"""``general.architecture`` -> ``model_type``."""
_SIZES = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base", "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping", "vocab_size": "vocab_size",
}  # fmt: skip
_PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_WHOLE = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
}  # fmt: skip
_FACTORS = "rope_freqs.weight"
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What every Llama 3.1 to 3.3 was trained with; the file has the factors that follow from it."""
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the models that scale scores by hidden size / heads instead of a head's."""
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class DecoderTensors(Mapping[str, F32]):
    """A file's tensors by the names of ``decoder_spec``, each read when it is asked for."""

    def __init__(self, tensors: GgufTensors, architecture: str, config: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._heads = {}
        if architecture in ("llama", "mistral"):
            self._heads = {"q_proj": config.get("num_attention_heads"),
                           "k_proj": config.get("num_key_value_heads")}  # fmt: skip
        self._shift = np.float32(1 if architecture.startswith("gemma") else 0)
        parts = {**_PARTS, **(_POST_NORMS if architecture in ("gemma2", "gemma3") else {})}
        named = {_renamed(name, parts): name for name in tensors}
        self._names = {new: old for new, old in named.items() if new is not None}

    def __getitem__(self, name: str) -> F32:
        values, part = self._tensors[self._names[name]], name.split(".")[-2]
        if part in self._heads:
            return _halved(name, values, self._heads[part])
        return values - self._shift if "norm" in part else values

    def stored(self, name: str) -> tuple[str, tuple[int, ...], npt.NDArray[Any]]:
        """Return type, shape and elements that stand for a tensor: of a matrix the file's bytes.

        Whole rows change places where llama.cpp has them in other ones, so no code changes.
        """
        old, part = self._names[name], name.split(".")[-2]
        entry = self._tensors.entries[old]
        if len(entry.shape) == 1:  # a norm or bias: little, and some are changed
            return "<f4", entry.shape, self[name]
        rows: npt.NDArray[np.uint8] = self._tensors.rows(old)
        if part in self._heads:
            rows = _halved(name, rows, self._heads[part])
        return CODINGS[entry.coding].stored, entry.shape, rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor; nothing is read."""
        return {new: self._tensors.entries[old].shape for new, old in self._names.items()}


def read_gguf_decoder(path: str) -> tuple[dict[str, bytes], DecoderTensors]:
    """Read a model file.

    Returns
    -------
    files : dict of str to bytes
        ``config.json``, ``tokenizer.json`` and, where the file has a chat template,
        ``tokenizer_config.json``. A ``tokenizer.json`` beside the file goes before the file's own.
    tensors : DecoderTensors

    Raises
    ------
    ModelFormatError
        The file is damaged, or lacks something.
    NotSupportedError
        A family, a coding of weights or a tokenizer that is not computed.
    """
    metadata, tensors = read_gguf(path)
    architecture = str(metadata.get("general.architecture"))
    if architecture not in _FAMILIES:
        raise NotSupportedError(
            f"{path} holds a model of the architecture {architecture!r:.60}",
            "supported: " + ", ".join(_FAMILIES),
        )
    parts = metadata.get("split.count", 1)
    if parts != 1:
        raise NotSupportedError(
            f"{path} is one of {parts!r:.20} files of a model", "llama-gguf-split --merge makes one"
        )
    config = _config(path, architecture, metadata, tensors)
    files = {"config.json": json.dumps(config).encode()}
    beside = os.path.join(os.path.dirname(path), "tokenizer.json")
    if not os.path.isfile(beside):
        files["tokenizer.json"] = tokenizer_json(path, metadata)
    template = read_chat_template(metadata)
    if template is not None:
        files["tokenizer_config.json"] = template
    return files, DecoderTensors(tensors, architecture, config)


def _config(
    path: str, architecture: str, metadata: Mapping[str, Any], tensors: GgufTensors
) -> dict[str, Any]:
    words = tensors.entries.get("token_embd.weight")
    if words is None:
        raise ModelFormatError(f"{path} lacks the tensor 'token_embd.weight'")
    config: dict[str, Any] = {"model_type": _FAMILIES[architecture], "vocab_size": words.shape[0]}
    for key, own in _SIZES.items():
        value = metadata.get(f"{architecture}.{own}")
        if value is not None:
            config[key] = value
    config["vocab_size"] = words.shape[0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["attention_bias"] = "blk.0.attn_output.bias" in tensors
    config["mlp_bias"] = "blk.0.ffn_down.bias" in tensors
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    scaling = _rope_scaling(path, architecture, metadata, tensors, config)
    if scaling is not None:
        config["rope_scaling"] = scaling
    config.update(_gemma(architecture, config))
    begin = metadata.get("tokenizer.ggml.bos_token_id")
    if begin is not None:
        config["bos_token_id"] = begin
    config["eos_token_id"] = end_tokens(metadata)
    return config


def _gemma(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what files of Gemma 2 and 3 leave out, as llama.cpp fills it in."""
    layers = _LARGEST_GEMMA.get(architecture)
    if layers is None:
        return {}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    scalar = config.get("head_dim", 256)
    if config.get("num_hidden_layers") == layers and isinstance(heads, int) and heads > 0:
        scalar = int(hidden or 0) // heads
    return {"query_pre_attn_scalar": scalar}


def _rope_scaling(
    path: str, architecture: str, metadata: Mapping[str, Any], tensors: GgufTensors,
    config: Mapping[str, Any],
) -> dict[str, Any] | None:  # fmt: skip
    """Return the scaling as a ``config.json`` has it."""
    if _FACTORS in tensors:
        return _llama3(path, tensors[_FACTORS], config)
    prefix = f"{architecture}.rope.scaling."
    kind = metadata.get(f"{prefix}type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": metadata.get(f"{prefix}factor")}
    original = metadata.get(f"{prefix}original_context_length")
    if original is not None:
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3(path: str, divisors: F32, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scaling whose frequencies are a file's, if it is that of Llama 3.1."""
    factor, theta = float(divisors.max()), config.get("rope_theta", 10_000.0)
    size = 2 * len(divisors)
    if isinstance(theta, float) and theta >= 2 and factor >= 1:
        low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
        original = int(_LLAMA3["original_max_position_embeddings"])
        stretched = Rope(theta, "llama3", factor, original, low, high).frequencies(size)
        if np.allclose(Rope(theta).frequencies(size) / divisors, stretched, rtol=1e-3):
            return {"rope_type": "llama3", "factor": factor, **_LLAMA3}
    raise NotSupportedError(
        f"the rotary frequencies of {path} ({_FACTORS}) are not those of Llama 3.1",
        "take the model's Hugging Face directory",
    )


def _renamed(name: str, parts: Mapping[str, str]) -> str | None:
    """Return the name a tensor has here; None for one no decoder reads."""
    stem, _, kind = name.rpartition(".")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    found = _BLOCK.fullmatch(name)
    if found is None or found[2] not in parts:
        return None
    return f"model.layers.{found[1]}.{parts[found[2]]}.{found[3]}"


def _halved(name: str, values: npt.NDArray[Value], heads: Any) -> npt.NDArray[Value]:
    """Put the pairs that turn together from neighbouring rows into the halves of a head."""
    if not isinstance(heads, int) or heads < 1 or len(values) % (2 * heads):
        raise ModelFormatError(
            f"tensor {name!r} has shape {values.shape}, which {heads!r:.20} heads do not divide"
        )
    pairs = values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(values.shape))
