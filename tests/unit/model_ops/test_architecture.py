from __future__ import annotations

import pytest

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.architecture import read_spec, tensor_shapes
from tests.golden.models.tiny_models import CONFIGS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 25}, "25 is no multiple of its 3 heads"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, outside"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, "whole number, not True"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"intermediate_size": 4.5}, "intermediate_size"),
        ({"max_position_embeddings": 3}, "3 positions"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"hidden_size": 10**300}, "hidden_size"),
    ],
)
def test_untrusted_numbers_are_bounded(change: dict, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        read_spec({**CONFIGS["bert"], **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"hidden_act": "swish"}, "swish"),
        ({"hidden_act": ["gelu"]}, "activation"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "decoder"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
)
def test_what_is_not_computed_is_said(change: dict, message: str) -> None:
    with pytest.raises(NotSupportedError, match=message):
        read_spec({**CONFIGS["bert"], **change})


def test_a_padded_position_table_holds_fewer_tokens() -> None:
    assert read_spec(CONFIGS["bert"]).max_tokens == 70
    assert read_spec(CONFIGS["roberta"]).max_tokens == 68
    assert read_spec(CONFIGS["mpnet"]).max_tokens == 68


def test_shapes_follow_the_sizes() -> None:
    shapes = tensor_shapes(read_spec(CONFIGS["distilbert"]))
    assert shapes["transformer.layer.1.ffn.lin1.weight"] == (40, 24)
    assert shapes["transformer.layer.1.ffn.lin2.bias"] == (24,)
    assert "embeddings.token_type_embeddings.weight" not in shapes


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("modernbert", {"layer_types": ["full_attention"]}, ModelFormatError, "of 2 layers"),
        ("modernbert", {"layer_types": ["causal"] * 2}, ModelFormatError, "layer_types"),
        ("modernbert", {"local_attention": 0}, ModelFormatError, "local_attention is 0"),
        ("modernbert", {"global_rope_theta": "x"}, ModelFormatError, "global_rope_theta"),
        ("modernbert", {"norm_bias": 3}, ModelFormatError, "norm_bias"),
        ("modernbert", {"num_attention_heads": 8}, ModelFormatError, "heads of 3 have no halves"),
        ("nomic", {"rotary_emb_interleaved": True}, NotSupportedError, "rotary_emb_interleaved"),
        ("nomic", {"prenorm": True}, NotSupportedError, "prenorm is True"),
        ("nomic", {"rotary_emb_fraction": 0.5}, NotSupportedError, "rotary_emb_fraction is 0.5"),
        ("nomic", {"rotary_scaling_factor": 2}, NotSupportedError, "rotary_scaling_factor is 2"),
    ],
)
def test_rotary_configs_are_checked(name: str, change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        read_spec({**CONFIGS[name], **change})


def test_modernbert_alternates_and_its_first_layer_has_no_norm() -> None:
    spec = read_spec({**CONFIGS["modernbert"], "num_hidden_layers": 5})
    assert spec.rotary is not None
    assert spec.rotary.reaches == (0, 6, 0, 6, 0)
    assert spec.rotary.kinds == (0, 1, 0, 1, 0)
    assert [rope.theta for rope in spec.rotary.ropes] == [160.0, 10.0]
    names = tensor_shapes(spec)
    assert "layers.0.attn_norm.weight" not in names
    assert {"layers.1.attn_norm.weight", "layers.4.attn_norm.weight", "final_norm.weight"} < {
        *names
    }
    assert not any(name.endswith("bias") for name in names)


def test_nomic_bert_has_two_ways_to_write_its_config() -> None:
    """As its authors wrote it, and as transformers does."""
    hub = {
        "model_type": "nomic_bert", "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40,
        "n_positions": 8192, "max_trained_positions": 70, "vocab_size": 90, "type_vocab_size": 2,
        "activation_function": "swiglu", "layer_norm_epsilon": 1e-5, "rotary_emb_base": 100,
        "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_scaling_factor": None,
        "prenorm": False, "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    }  # fmt: skip
    assert read_spec(hub) == read_spec(CONFIGS["nomic"])
    assert read_spec({**hub, "mlp_fc2_bias": True}).unbiased == {"qkv", "context", "gate", "expand"}
