"""Adapters of encoders and classifiers: equal to weights with the adapter merged in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.kernels import dispatch
from tarsdb.model_ops import Classifier, Encoder
from tests.golden.models.tiny_heads import (
    HEADS,
    head_pairs,
    head_tensors,
    head_texts,
    words_tokenizer,
)
from tests.golden.models.tiny_lora import encoder_lora_tensors, lora_files, merged
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors


@pytest.fixture(params=["numpy", "compiled"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "numpy":
        dispatch.use("portable")
    elif dispatch.level() == "portable":
        pytest.skip("no compiled kernels here")
    yield request.param
    dispatch.use(None)


def files_of(config: dict[str, Any]) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": words_tokenizer(config).encode(),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapted_encoder_equals_merged_weights(name: str, way: str) -> None:
    config, texts = CONFIGS[name], head_texts()
    base, lora = tiny_tensors(config), encoder_lora_tensors(config)
    encoder = Encoder.from_files(files_of(config), base)
    adapted = encoder.with_adapter(encoder.new_adapter(lora_files(()), lora))
    expected = Encoder.from_files(files_of(config), merged(base, lora, lora_files(()))).encode(
        texts
    )
    assert np.abs(adapted.encode(texts) - expected).max() < 1e-4
    assert np.abs(encoder.encode(texts) - expected).max() > 0.01  # and something is added
    assert adapted.base is encoder


@pytest.mark.parametrize("keep", ["query", "attention", "output.dense", "layer.1."])
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_some_matrices_over_packed_weights(keep: str, quantize: str, way: str) -> None:
    config, texts = CONFIGS["bert"], head_texts()
    base, lora = tiny_tensors(config), encoder_lora_tensors(config, keep=keep)
    encoder = Encoder.from_files(files_of(config), base, {"quantize": quantize})
    adapted = encoder.with_adapter(encoder.new_adapter(lora_files(()), lora))
    found = adapted.encode(texts)
    expected = Encoder.from_files(files_of(config), merged(base, lora, lora_files(()))).encode(
        texts
    )
    assert np.abs(found - expected).max() < (1e-4 if quantize == "none" else 0.1)
    alone = np.concatenate([adapted.encode([text]) for text in texts])
    assert np.array_equal(found, alone) or way == "numpy"
    np.testing.assert_allclose(found, alone, atol=2e-6 if quantize == "none" else 0.1)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_classifier_takes_an_adapter_and_its_head(name: str, way: str) -> None:
    config = HEADS[name]
    base = head_tensors(config)
    prefix = next(key for key in base if "embeddings" in key).partition(".")[0] + "."
    lora = encoder_lora_tensors(config, prefix)
    head = {key: base[key] * 0.5 + 0.1 for key in base if key.startswith("classifier")}
    files = lora_files((), modules_to_save=["classifier", "score"])
    model = Classifier.from_files(files_of(config), base)
    given = {**lora, **{f"base_model.model.{key}": array for key, array in head.items()}}
    adapted = model.with_adapter(model.new_adapter(files, given))
    whole = Classifier.from_files(files_of(config), {**merged(base, lora, lora_files(())), **head})
    for texts in (head_texts(), head_pairs()):
        assert np.abs(adapted.logits(texts) - whole.logits(texts)).max() < 1e-4
        assert np.abs(adapted.logits(texts) - model.logits(texts)).max() > 0.01


def test_what_does_not_fit_is_named() -> None:
    config = HEADS["bert"]
    base, lora = head_tensors(config), encoder_lora_tensors(config, "bert.")
    model = Classifier.from_files(files_of(config), base)
    encoder = Encoder.from_files(files_of(config), base)
    name = "base_model.model.bert.encoder.layer.1.output.dense.lora_B.weight"
    head = {"base_model.model.classifier.weight": np.zeros((4, 24), np.float32)}

    def refused(tensors: dict, message: str, error: type[Exception], **more: Any) -> None:
        with pytest.raises(error, match=message):
            model.new_adapter(lora_files((), **more), tensors)

    refused({}, "has no tensors", ModelFormatError)
    refused(
        {**lora, name: lora[name].T},
        r"output\.dense\.lora_B.*\(4, 24\), the base's encoder\.layer\.1.*\(24, 4\)",
        ModelFormatError,
    )
    refused({**lora, name: lora[name] * np.nan}, r"lora_B.*NaN", ModelFormatError)
    refused({k: v for k, v in lora.items() if k != name}, "lacks lora_B", ModelFormatError)
    refused({**lora, **head}, r"\(4, 24\), the base's head asks for \(3, 24\)", ModelFormatError)
    refused(
        {**lora, "base_model.model.bert.embeddings.word_embeddings.lora_A.weight": lora[name]},
        "word_embeddings", NotSupportedError,
    )  # fmt: skip
    refused(lora, "modules_to_save", NotSupportedError, modules_to_save=["embeddings"])
    refused(lora, "use_dora", NotSupportedError, use_dora=True)
    with pytest.raises(NotSupportedError, match="classifier"):  # an encoder has no head
        encoder.new_adapter(lora_files(()), {**lora, **head})
