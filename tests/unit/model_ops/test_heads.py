"""Classifiers and rerankers against transformers' answers, stored in tests/golden/models."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tarsdb.errors import DataError, ModelError, ModelFormatError, NotSupportedError
from tarsdb.model_ops import Classifier, read_model_directory
from tests.golden.models.tiny_heads import (
    HEADS,
    head_pairs,
    head_tensors,
    head_texts,
    words_tokenizer,
    write_head_model,
)

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"


def files_of(config: dict[str, Any]) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": words_tokenizer(config).encode(),
    }


def classifier(config: dict[str, Any], **options: Any) -> Classifier:
    return Classifier.from_files(files_of(config), head_tensors(config), options)


@pytest.mark.parametrize("name", HEADS)
def test_outputs_equal_transformers(name: str) -> None:
    expected = np.load(GOLDEN / "heads.npz")
    model = classifier(HEADS[name])
    texts, pairs = model.logits(head_texts()), model.logits(head_pairs())
    assert np.abs(texts - expected[f"{name}_texts"]).max() < 3e-5
    assert np.abs(pairs - expected[f"{name}_pairs"]).max() < 3e-5
    assert model.cut.total == 6  # the last text, and the pairs of more tokens than are read
    # the comparison can fail: each text has outputs of its own
    assert np.abs(np.diff(expected[f"{name}_pairs"], axis=0)).max(axis=1).min() > 1e-3


def test_second_texts_have_a_type_of_their_own() -> None:
    model = classifier(HEADS["bert"])
    joined = " ".join(("w7 w8", "[SEP]", "w9"))
    pair, one = model.logits([("w7 w8", "w9")]), model.logits([joined])
    assert model.tokenizer.encode_pairs([("w7 w8", "w9")]).ids.tolist() == [2, 7, 8, 3, 9, 3]
    assert model.tokenizer.tokens(joined) == [2, 7, 8, 3, 9, 3]
    assert np.abs(pair - one).max() > 0.01


@pytest.mark.parametrize(
    ("first", "second", "room", "kept"),
    [(3, 9, 8, (3, 5)), (9, 3, 8, (5, 3)), (9, 9, 7, (3, 4)), (9, 8, 7, (4, 3)),
     (0, 9, 4, (0, 4)), (9, 9, 0, (0, 0))],
)  # fmt: skip
def test_the_longer_text_is_cut_first(
    first: int, second: int, room: int, kept: tuple[int, int]
) -> None:
    from tarsdb.model_ops.tokenizer import _longest_first

    assert _longest_first(first, second, room) == kept


def test_a_row_does_not_depend_on_its_batch() -> None:
    model = classifier(HEADS["bert"])
    together = model.logits(head_pairs())
    alone = np.concatenate([model.logits([pair]) for pair in head_pairs()])
    assert np.abs(together - alone).max() < 1e-5


def test_probabilities() -> None:
    single = classifier(HEADS["bert"]).probabilities(head_texts())
    assert np.allclose(single.sum(axis=1), 1.0)
    model = classifier(HEADS["bert_multi"])
    expected = 1 / (1 + np.exp(-model.logits(head_texts()).astype(np.float64)))
    multi = model.probabilities(head_texts())
    assert np.allclose(multi, expected)
    assert np.abs(multi.sum(axis=1) - 1).max() > 0.1


def test_relevance_is_what_the_config_asks_for() -> None:
    pairs, config = head_pairs(), HEADS["bert_reranker"]
    logits = classifier(config).logits(pairs)[:, 0].astype(np.float64)
    assert np.allclose(classifier(config).relevance(pairs), 1 / (1 + np.exp(-logits)))
    named = {"activation_fn": "torch.nn.modules.linear.Identity"}
    plain = classifier({**config, "sentence_transformers": named})
    assert np.allclose(plain.relevance(pairs), logits, atol=1e-5)
    older = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    assert np.allclose(classifier({**config, **older}).relevance(pairs), logits, atol=1e-5)
    with pytest.raises(ModelError, match="one output, this model has 3"):
        classifier(HEADS["bert"]).relevance(pairs)


def test_no_texts_and_wrong_texts() -> None:
    model = classifier(HEADS["bert"])
    assert model.logits([]).shape == (0, 3)
    assert model.probabilities([]).shape == (0, 3)
    with pytest.raises(DataError, match="text 1 to embed is NULL"):
        model.logits([("w5", "w6"), ("w5", None)])  # type: ignore[list-item]
    with pytest.raises(DataError, match="cannot be mixed"):
        model.logits(["w5", ("w5", "w6")])
    with pytest.raises(DataError, match="Unicode"):
        model.logits([("w5", "\ud800")])
    strict = classifier(HEADS["bert"], overflow="error")
    with pytest.raises(DataError, match="text 5 has 92 tokens"):
        strict.logits(head_texts())
    with pytest.raises(DataError, match="text 4 has 90 tokens"):
        strict.logits(head_pairs())


def test_very_long_texts_of_a_pair_are_cut_alike() -> None:
    model = classifier(HEADS["bert"])
    first = model.logits([("w5 " * 30, "w6 " * 100)])
    assert np.allclose(first, model.logits([("w5 " * 30, "w6 " * 50_000)]), atol=1e-5)
    spaces = " " * 200_000
    assert np.allclose(first, model.logits([("w5 " * 30, spaces + "w6 " * 100)]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bert.pooler.dense.weight", None, "lacks 1 tensors: bert.pooler.dense.weight"),
        ("classifier.bias", None, "lacks 1 tensors: classifier.bias"),
        ("classifier.weight", np.zeros((2, 24), np.float32),
         r"'classifier.weight' of the model has shape \(2, 24\), config.json asks for \(3, 24\)"),
        ("classifier.bias", np.full(3, np.nan, np.float32), "'classifier.bias' holds NaN"),
        ("classifier.bias", np.zeros(3, np.int64), "'classifier.bias' has dtype int64"),
    ],
)  # fmt: skip
def test_bad_tensors_are_named(name: str, change: Any, message: str) -> None:
    config = HEADS["bert"]
    tensors = head_tensors(config)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change
    with pytest.raises(ModelFormatError, match=message):
        Classifier.from_files(files_of(config), tensors)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, ModelFormatError, "the numbers 0 to 1"),
        ({"id2label": {"0": "a", "1": "a"}}, ModelFormatError, "different labels"),
        ({"id2label": []}, ModelFormatError, "id2label is no object"),
        ({"id2label": None, "num_labels": 0}, ModelFormatError, "num_labels is 0"),
        ({"problem_type": "ranking"}, NotSupportedError, "problem_type 'ranking'"),
        ({"problem_type": "regression"}, NotSupportedError, "regression with 3 outputs"),
        ({"model_type": "albert"}, NotSupportedError, "albert"),
    ],
)
def test_bad_configs_are_named(change: dict[str, Any], kind: type, message: str) -> None:
    config = HEADS["bert"]
    files = files_of({**config, **change})
    with pytest.raises(kind, match=message):
        Classifier.from_files(files, head_tensors(config))


def test_labels_without_names() -> None:
    config = {key: value for key, value in HEADS["mpnet"].items() if key != "id2label"}
    assert classifier(config).labels == ("LABEL_0", "LABEL_1")


def test_the_task_is_told_by_the_directory(tmp_path: pathlib.Path) -> None:
    several = write_head_model(tmp_path / "several", HEADS["roberta"])
    one = write_head_model(tmp_path / "one", HEADS["bert_reranker"])
    assert read_model_directory(several).task == "classify"
    assert read_model_directory(one).task == "rerank"
    assert read_model_directory(one, {"task": "embed", "pooling": "mean"}).dim == 24
    assert read_model_directory(one, {"task": "classify"}).task == "classify"
    with pytest.raises(ModelError, match=r"config\.json names 3 labels"):
        read_model_directory(several, {"task": "rerank"})
    with pytest.raises(ModelError, match="task 'sing' is not known"):
        read_model_directory(one, {"task": "sing"})
    with pytest.raises(ModelError, match="unknown model option 'pooling'"):
        read_model_directory(several, {"pooling": "mean"})


def test_an_encoder_is_no_classifier(model_dir: pathlib.Path) -> None:
    assert read_model_directory(str(model_dir)).task == "embed"
    with pytest.raises(ModelFormatError, match=r"lacks 4 tensors: pooler\.dense\.weight"):
        read_model_directory(str(model_dir), {"task": "classify"})
