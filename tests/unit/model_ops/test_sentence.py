from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import NotSupportedError
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.sentence import SentenceSettings, pool, pooled_width, read_settings
from tests.golden.models.tiny_models import CONFIGS

SPEC = read_spec(CONFIGS["bert"])


def settings(pooling: tuple[str, ...], normalize: bool = False) -> SentenceSettings:
    return SentenceSettings(pooling, normalize, 20, False, "", False)


def from_files(**files: object) -> SentenceSettings:
    encoded = {name: json.dumps(value).encode() for name, value in files.items()}
    return read_settings(encoded, SPEC, {})


def pooling(config: dict, **more: object) -> SentenceSettings:
    module = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    return from_files(**{"modules.json": [module], "1_Pooling/config.json": config, **more})


def test_each_mode_against_its_definition() -> None:
    rng = np.random.default_rng(1)
    lengths = [1, 5, 2, 9]
    offsets = np.cumsum([0, *lengths])
    hidden = rng.standard_normal((17, 4)).astype(np.float32)
    texts = np.split(hidden, offsets[1:-1])
    definitions = {
        "mean": lambda t: t.mean(axis=0), "cls": lambda t: t[0], "max": lambda t: t.max(axis=0),
        "lasttoken": lambda t: t[-1], "mean_sqrt_len": lambda t: t.sum(axis=0) / len(t) ** 0.5,
    }  # fmt: skip
    for mode, define in definitions.items():
        expected = np.stack([define(text) for text in texts])
        assert np.allclose(pool(hidden, offsets, settings((mode,))), expected, atol=1e-6)
    both = pool(hidden, offsets, settings(("cls", "max"), normalize=True))
    assert both.shape == (4, 8)
    assert np.allclose(np.linalg.norm(both, axis=1), 1.0)
    assert pooled_width(settings(("cls", "max")), SPEC) == 48


def test_a_zero_vector_stays_zero() -> None:
    vectors = pool(np.zeros((3, 4), np.float32), np.array([0, 3]), settings(("mean",), True))
    assert vectors.tolist() == [[0.0] * 4]


def test_old_and_new_pooling_configs() -> None:
    assert pooling({"pooling_mode_cls_token": True}).pooling == ("cls",)
    assert pooling({"pooling_mode": "mean_sqrt_len_tokens"}).pooling == ("mean_sqrt_len",)
    both = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}
    assert pooling(both).pooling == ("cls", "max")
    assert pooling({}).pooling == ("mean",)
    with pytest.raises(NotSupportedError, match="weightedmean"):
        pooling({"pooling_mode_weightedmean_tokens": True})


def test_pooling_without_the_prompt_is_refused_where_there_is_a_prompt() -> None:
    without: dict[str, Any] = {"pooling_mode": "mean", "include_prompt": False}
    assert pooling(without).pooling == ("mean",)  # there is none: nothing to leave out
    prompts = {"config_sentence_transformers.json": {"prompts": {"query": "query: "}}}
    with pytest.raises(NotSupportedError, match="include_prompt"):
        pooling(without, **prompts)
    assert pooling({**without, "include_prompt": True}, **prompts).prompts["query"] == "query: "


def test_the_default_prompt_is_used() -> None:
    config = {"prompts": {"query": "query: ", "doc": ""}, "default_prompt_name": "query"}
    assert from_files(**{"config_sentence_transformers.json": config}).prompt == "query: "
    config["default_prompt_name"] = None  # type: ignore[assignment]
    assert from_files(**{"config_sentence_transformers.json": config}).prompt == ""
