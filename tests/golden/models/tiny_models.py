"""Tiny encoders of every supported family: seeded weights, so only their answers are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.model_ops.architecture import read_spec, tensor_shapes

_SIZES = {
    "vocab_size": 90, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 70, "type_vocab_size": 2,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "pad_token_id": 0,
}  # fmt: skip
_MODERN = {
    **{key: value for key, value in _SIZES.items()
       if key not in ("type_vocab_size", "hidden_act", "layer_norm_eps")},
    "model_type": "modernbert", "hidden_activation": "gelu", "norm_eps": 1e-5,
    "local_attention": 12, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2,
    "eos_token_id": 3,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**_SIZES, "model_type": "bert"},
    "bert_tanh": {**_SIZES, "model_type": "bert", "hidden_act": "gelu_new"},
    "bert_relu": {**_SIZES, "model_type": "bert", "hidden_act": "relu"},
    "roberta": {**_SIZES, "model_type": "roberta", "pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {**_SIZES, "model_type": "xlm-roberta", "pad_token_id": 1, "type_vocab_size": 1},
    "mpnet": {**_SIZES, "model_type": "mpnet", "relative_attention_num_buckets": 32,
              "pad_token_id": 1},
    "distilbert": {"model_type": "distilbert", "vocab_size": 90, "dim": 24, "n_layers": 2,
                   "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 70,
                   "activation": "gelu", "pad_token_id": 0},
    "modernbert": {**_MODERN, "global_rope_theta": 160.0, "local_rope_theta": 10.0,
                   "global_attn_every_n_layers": 2, "norm_bias": False},
    "modernbert_biased": {**_MODERN, "layer_types": ["sliding_attention", "full_attention"],
                          "attention_bias": True, "mlp_bias": True, "norm_bias": True,
                          "hidden_activation": "gelu_pytorch_tanh"},
    "nomic": {**_SIZES, "model_type": "nomic_bert", "hidden_act": "silu",
              "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
}  # fmt: skip
LENGTHS = (2, 1, 7, 7, 40, 2)


def tiny_tensors(config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Return weights of a config, large enough that every part of the maths shows."""
    random = np.random.RandomState(7)  # its stream is frozen, unlike default_rng's
    tensors = {}
    for name, shape in tensor_shapes(read_spec(config)).items():
        spread = 0.3 if len(shape) == 2 else 0.1
        values = random.standard_normal(shape) * spread
        is_scale = "norm" in name.lower() and name.endswith("weight")
        tensors[name] = (values + (1.0 if is_scale else 0.0)).astype(np.float32)
    return tensors


def tiny_ids() -> list[list[int]]:
    """Return token ids of a few texts; none is a padding id."""
    random = np.random.RandomState(11)
    return [random.randint(2, 90, size=length).tolist() for length in LENGTHS]
