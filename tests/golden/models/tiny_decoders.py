"""Tiny decoders of every supported family: seeded weights, so only their answers are stored."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.model_ops.decoder_spec import decoder_tensors, read_decoder_spec

_SIZES = {
    "vocab_size": 90, "hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 56, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 70, "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 32}  # fmt: skip
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_SLIDING = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
_NO_HEAD_DIM = {key: value for key, value in _SIZES.items() if key != "head_dim"}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "model_type": "llama"},
    "llama_biased": {**_SIZES, "model_type": "llama", "attention_bias": True, "mlp_bias": True,
                     "tie_word_embeddings": True, "num_key_value_heads": 4},
    "llama_linear": {**_SIZES, "model_type": "llama",
                     "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {**_SIZES, "model_type": "llama", "rope_theta": 500.0, "rope_scaling": _LLAMA3},
    "llama_yarn": {**_SIZES, "model_type": "llama", "rope_scaling": _YARN},
    "mistral": {**_SIZES, "model_type": "mistral", "sliding_window": 7},
    "qwen2": {**_NO_HEAD_DIM, "model_type": "qwen2", "tie_word_embeddings": True,
              "rope_theta": 1e6},
    "qwen2_sliding": {**_NO_HEAD_DIM, "model_type": "qwen2", **_SLIDING},
    "qwen3": {**_SIZES, "model_type": "qwen3", "head_dim": 16},
    "gemma": {**_SIZES, "model_type": "gemma", "tie_word_embeddings": True,
              "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {**_SIZES, "model_type": "gemma2", "tie_word_embeddings": True, "sliding_window": 9,
               "query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0,
               "final_logit_softcapping": 3.0},
    "gemma3": {**_SIZES, "model_type": "gemma3_text", "tie_word_embeddings": True,
               "sliding_window": 9, "query_pre_attn_scalar": 20,
               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}  # fmt: skip
FIRST_LETTER = 33
"""The tiny models' tokenizer has one letter per token: token t is the letter of this number + t."""
LENGTHS = (1, 5, 16, 17, 41)


def tiny_decoder_tensors(config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Return weights of a config, large enough that every part of the maths shows."""
    random = np.random.RandomState(13)  # its stream is frozen, unlike default_rng's
    spec = read_decoder_spec(config)
    middle = 0.0 if spec.unit_offset else 1.0
    tensors = {}
    for name, shape in decoder_tensors(spec).items():
        values = random.standard_normal(shape) * (0.3 if len(shape) == 2 else 0.2)
        is_scale = "norm" in name
        tensors[name] = (values + (middle if is_scale else 0.0)).astype(np.float32)
    return tensors


def tiny_prompts() -> list[list[int]]:
    """Return token ids of a few sequences."""
    random = np.random.RandomState(17)
    return [random.randint(3, 90, size=length).tolist() for length in LENGTHS]


def tiny_tokenizer(vocabulary: int) -> str:
    """Return the tokenizer.json of a tiny model; tokens 0 to 2 are <pad>, <s> and </s>."""
    import tokenizers

    letters = {chr(FIRST_LETTER + token): token for token in range(3, vocabulary)}
    special = {"<pad>": 0, "<s>": 1, "</s>": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={**special, **letters}, merges=[]))
    tokenizer.add_special_tokens(list(special))
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    return str(tokenizer.to_str())


def tiny_text(tokens: list[int]) -> str:
    """Return the text of tokens; special ones have none."""
    return "".join(chr(FIRST_LETTER + token) for token in tokens if token > 2)


def write_tiny_decoder(folder: pathlib.Path, name: str, chat_template: str = "") -> None:
    """Write a tiny model as a directory in the Hugging Face layout."""
    import safetensors.numpy

    folder.mkdir(parents=True)
    config = CONFIGS[name]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tiny_tokenizer(config["vocab_size"]))
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template)
    safetensors.numpy.save_file(tiny_decoder_tensors(config), folder / "model.safetensors")
