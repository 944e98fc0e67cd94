"""Tiny classifiers and rerankers of every supported family, with a tokenizer of their own."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.heads import head_shapes, read_head
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors

_PREFIXES = {
    "bert": "bert.", "roberta": "roberta.", "xlm-roberta": "roberta.", "mpnet": "mpnet.",
    "distilbert": "distilbert.", "modernbert": "model.",
}  # fmt: skip
_CLASSES = {
    "bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "mpnet": "MPNet",
    "distilbert": "DistilBert", "modernbert": "ModernBert",
}  # fmt: skip


def _config(family: str, labels: int, **more: Any) -> dict[str, Any]:
    names = {str(number): f"label {number}" for number in range(labels)}
    architectures = [f"{_CLASSES[family]}ForSequenceClassification"]
    return {**CONFIGS[family], "architectures": architectures, "id2label": names, **more}


HEADS: dict[str, dict[str, Any]] = {
    "bert": _config("bert", 3),
    "bert_reranker": _config("bert", 1),
    "bert_multi": _config("bert", 4, problem_type="multi_label_classification"),
    "roberta": _config("roberta", 3),
    "xlm-roberta": _config("xlm-roberta", 1),
    "mpnet": _config("mpnet", 2),
    "distilbert": _config("distilbert", 5, seq_classif_dropout=0.0),
    "modernbert": _config("modernbert", 3),
    "modernbert_reranker": _config(
        "modernbert", 1, classifier_pooling="mean", norm_bias=True, classifier_bias=True
    ),
}


def head_tensors(config: dict[str, Any]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights of encoder and head."""
    prefix = _PREFIXES[config["model_type"]]
    tensors = {prefix + name: array for name, array in tiny_tensors(config).items()}
    random = np.random.RandomState(13)
    for name, shape in head_shapes(read_spec(config), read_head(config, prefix)).items():
        tensors[name] = (random.standard_normal(shape) * 0.4).astype(np.float32)
    return tensors


def words_tokenizer(config: dict[str, Any]) -> str:
    """Return a tokenizer.json whose words w4 to w89 are the tokens 4 to 89."""
    import tokenizers
    from tokenizers import pre_tokenizers, processors

    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    vocabulary |= {f"w{number}": number for number in range(4, 90)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain = config["model_type"] in ("roberta", "xlm-roberta", "mpnet")
    pair = "[CLS] $A [SEP] [SEP] $B [SEP]" if plain else "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return str(tokenizer.to_str())


def write_head_model(folder: pathlib.Path, config: dict[str, Any]) -> str:
    """Write a model directory and return its path."""
    import safetensors.numpy

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(words_tokenizer(config))
    safetensors.numpy.save_file(head_tensors(config), folder / "model.safetensors")
    return str(folder)


def head_texts() -> list[str]:
    """Return a few texts; the last one is longer than the models read."""
    random = np.random.RandomState(17)
    lengths = (1, 5, 0, 40, 5, 90)
    return [" ".join(f"w{n}" for n in random.randint(4, 90, size)) for size in lengths]


def head_pairs() -> list[tuple[str, str]]:
    """Return pairs of texts, most of them within what the models read."""
    random = np.random.RandomState(19)
    lengths = ((3, 9), (1, 1), (0, 4), (6, 0), (7, 80), (80, 7), (60, 61), (45, 44), (100, 30))
    return [
        tuple(" ".join(f"w{n}" for n in random.randint(4, 90, size)) for size in sizes)  # type: ignore[misc]
        for sizes in lengths
    ]
