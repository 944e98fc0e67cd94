"""Encoders from ONNX files: the weights they were exported from; other graphs are refused."""

from __future__ import annotations

import pathlib
import shutil

import numpy as np
import pytest

from tarsdb.errors import ModelFormatError, NotSupportedError
from tarsdb.model_ops import Encoder, read_model_directory
from tarsdb.model_ops.architecture import read_spec
from tarsdb.model_ops.onnx_file import read_onnx_encoder
from tests.golden.models.tiny_models import CONFIGS, tiny_tensors
from tests.unit.model_ops.conftest import write_json

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_weights_are_those_that_were_exported(name: str) -> None:
    config = CONFIGS[name]
    found = read_onnx_encoder(str(GOLDEN / f"tiny_{name}.onnx"), read_spec(config))
    expected = tiny_tensors(config)
    for tensor, values in expected.items():
        assert np.array_equal(found[f"model.{tensor}"], values), tensor
    assert len(expected) > 30


@pytest.mark.parametrize("place", ["model.onnx", "onnx/model.onnx"])
def test_a_directory_with_an_onnx_file_is_a_model(model_dir: pathlib.Path, place: str) -> None:
    expected = read_model_directory(str(model_dir))
    (model_dir / place).parent.mkdir(exist_ok=True)
    shutil.copy(GOLDEN / "tiny_bert.onnx", model_dir / place)
    (model_dir / "model.safetensors").unlink()
    found = read_model_directory(str(model_dir))
    texts = ["parse the date", "how do i parse a string"]
    vectors = [Encoder.from_files(m.files, m.tensors).encode(texts) for m in (expected, found)]
    assert np.array_equal(*vectors)


def test_a_graph_that_is_another_encoders_is_refused(model_dir: pathlib.Path) -> None:
    shutil.copy(GOLDEN / "tiny_bert.onnx", model_dir / "model.onnx")
    (model_dir / "model.safetensors").unlink()
    for change, message in (
        ({"num_hidden_layers": 3}, r"2 attentions \(Softmax\), the encoder of config.json has 3"),
        ({"hidden_act": "relu"}, "0 activations"),
        ({"vocab_size": 91}, r"word_embeddings.*\(90, 24\).*\(91, 24\)"),
        ({"intermediate_size": 41}, r"intermediate.dense.*\(40, 24\).*\(41, 24\)"),
    ):
        write_json(model_dir / "config.json", {**CONFIGS["bert"], **change})
        with pytest.raises(ModelFormatError, match=message):
            read_model_directory(str(model_dir))


def test_damaged_and_quantised_files_are_refused(tmp_path: pathlib.Path) -> None:
    good, path = (GOLDEN / "tiny_bert.onnx").read_bytes(), tmp_path / "m.onnx"
    spec = read_spec(CONFIGS["bert"])
    for size in (0, 1, 7, 100, 5000, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ModelFormatError):
            read_onnx_encoder(str(path), spec)
    path.write_bytes(good.replace(b"\x22\x07Softmax", b"\x22\x07QLinear"))
    with pytest.raises(NotSupportedError, match="'QLinear'"):
        read_onnx_encoder(str(path), spec)
    random, outcomes = np.random.RandomState(5), []
    for place in random.randint(0, len(good), 150).tolist():
        changed = bytearray(good)
        changed[place] ^= 1 << random.randint(8)
        path.write_bytes(bytes(changed))
        try:
            outcomes.append(len(read_onnx_encoder(str(path), spec)))
        except (ModelFormatError, NotSupportedError):
            outcomes.append(0)
    assert len(outcomes) == 150
