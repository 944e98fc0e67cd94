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
