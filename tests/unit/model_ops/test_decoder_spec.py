from __future__ import annotations

import numpy as np
import pytest

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops.decoder_spec import decoder_tensors, read_decoder_spec
from tarsdb.model_ops.rope import Angles
from tests.golden.models.tiny_decoders import CONFIGS

LLAMA = CONFIGS["llama"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**9}, "hidden_size is 1000000000, outside"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, "whole number, not True"),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3"),
        ({"num_attention_heads": None}, "num_attention_heads"),
        ({"head_dim": 7}, "head_dim is 7, not an even number"),
        ({"head_dim": None, "hidden_size": 42}, "42 is no multiple of its 4 heads"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number"),
        ({"intermediate_size": 4.5}, "intermediate_size"),
        ({"max_position_embeddings": 10**300}, "max_position_embeddings"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": 90}, "eos_token_id is 90, the vocabulary has 90"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id is 'x'"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_scaling": []}, "no object"),
        ({"rope_scaling": {"type": "linear"}}, "factor must be a number, not None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0,
                           "high_freq_factor": 4.0}}, "high_freq_factor 4.0 is not above"),
    ],
)  # fmt: skip
def test_untrusted_numbers_are_bounded(change: dict, message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        read_decoder_spec({**LLAMA, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "'bert' are not supported"),
        ({"model_type": ["llama"]}, "not supported"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rotary scaling 'longrope'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
        ({"model_type": "gemma2", "layer_types": ["linear_attention"] * 3}, "linear_attention"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict, message: str) -> None:
    with pytest.raises(NotSupportedError, match=message):
        read_decoder_spec({**LLAMA, **change})


def windows(config: dict, **changes: object) -> list[int]:
    return [layer.window for layer in read_decoder_spec({**config, **changes}).layers]


def test_windows_of_each_family() -> None:
    assert windows(CONFIGS["mistral"]) == [7, 7, 7]
    assert windows(CONFIGS["mistral"], sliding_window=None) == [0, 0, 0]
    assert windows(LLAMA, sliding_window=7) == [0, 0, 0]
    assert windows(CONFIGS["qwen2"], sliding_window=7) == [0, 0, 0]
    assert windows(CONFIGS["qwen2_sliding"]) == [0, 9, 9]
    assert windows(CONFIGS["gemma2"]) == [9, 0, 9]
    pattern = {**CONFIGS["gemma3"], "layer_types": None, "sliding_window_pattern": 3}
    assert windows(pattern) == [9, 9, 0]
    with pytest.raises(ModelFormatError, match="does not name 3 layers"):
        windows(CONFIGS["gemma3"], layer_types=["full_attention"])


def test_older_and_newer_files_name_the_same_rotary_embeddings() -> None:
    linear = {"rope_type": "linear", "factor": 4.0}
    older = read_decoder_spec({**LLAMA, "rope_theta": 5e5, "rope_scaling": linear})
    newer = read_decoder_spec({**LLAMA, "rope_parameters": {"rope_theta": 5e5, **linear}})
    assert older.ropes == newer.ropes
    gemma = CONFIGS["gemma3"]
    older = read_decoder_spec({**gemma, "rope_theta": 7e5, "rope_local_base_freq": 2e4,
                               "rope_scaling": linear})  # fmt: skip
    parts = {"full_attention": {"rope_theta": 7e5, **linear},
             "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"}}  # fmt: skip
    newer = read_decoder_spec({**gemma, "rope_parameters": parts})
    assert older.ropes == newer.ropes
    assert older.ropes[0] != older.ropes[1]
    assert [layer.rope for layer in older.layers] == [1, 0, 1]


def test_dynamic_scaling_changes_nothing_up_to_the_longest_text() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 4.0}
    assert read_decoder_spec({**LLAMA, "rope_scaling": dynamic}) == read_decoder_spec(LLAMA)


def test_angles_do_not_depend_on_what_was_asked_before() -> None:
    ropes = read_decoder_spec(CONFIGS["llama3"]).ropes
    far = np.array([5000, 3])
    early = Angles(ropes, 12)
    early.at(np.array([0]))
    assert np.array_equal(early.at(far), Angles(ropes, 12).at(far))
    assert early.at(np.array([], np.int64)).shape == (1, 0, 12)


def test_a_tied_model_has_no_head_of_its_own() -> None:
    assert "lm_head.weight" in decoder_tensors(read_decoder_spec(LLAMA))
    assert "lm_head.weight" not in decoder_tensors(read_decoder_spec(CONFIGS["qwen2"]))
