"""Encoders whose graph onnxruntime runs, behind ``embed``, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

import tarsdb
from tarsdb.errors import DataError, ModelError, ModelFormatError, NotSupportedError
from tarsdb.model_ops import Encoder, read_model_directory
from tests.golden.models.tiny_models import CONFIGS
from tests.unit.engine.test_model_functions import write_model

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "models"
OPTIMISED = GOLDEN / "tiny_bert_optimised.onnx"
TEXTS = ["w5 w6 w7", "w60", "", "w8 w9 " * 60]
needs_runtime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="pip install 'tarsdb[onnx]'"
)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a rewritten graph; its safetensors say what it computes."""
    write_model(tmp_path / "m", CONFIGS["bert"])
    (tmp_path / "m" / "onnx").mkdir()
    shutil.copy(OPTIMISED, tmp_path / "m" / "onnx" / "model.onnx")
    return tmp_path / "m"


@pytest.fixture
def db(tmp_path: pathlib.Path) -> Iterator[tarsdb.Connection]:
    with tarsdb.connect(tmp_path / "db.tars") as connection:
        yield connection


def own(folder: pathlib.Path, **options: str) -> np.ndarray:
    model = read_model_directory(str(folder), options)
    return Encoder.from_files(model.files, model.tensors, options).encode(TEXTS)


def test_a_rewritten_graph_is_refused_with_a_way_out(
    db: tarsdb.Connection, folder: pathlib.Path
) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotSupportedError, match=r"an optimiser.*'Attention'") as raised:
        db.execute(f"CREATE MODEL m FROM '{folder}'")
    assert "runtime = 'onnxruntime'" in str(raised.value)


@needs_runtime
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_equal_those_of_the_weights(
    db: tarsdb.Connection, folder: pathlib.Path, pooling: str
) -> None:
    expected = own(folder, pooling=pooling)
    (folder / "1_Pooling").mkdir()
    config = {"pooling_mode_cls_token": pooling == "cls",
              "pooling_mode_mean_tokens": pooling == "mean"}  # fmt: skip
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    db.execute(f"CREATE MODEL m FROM '{folder}' WITH (runtime = 'onnxruntime')")
    db.execute("CREATE TABLE t (id INT PRIMARY KEY, body TEXT)")
    db.executemany("INSERT INTO t VALUES (?, ?)", list(enumerate(TEXTS)))
    found = np.stack([v for (v,) in db.execute("SELECT embed('m', body) FROM t ORDER BY id")])
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found[1:] - expected[:-1]).max() > 0.1  # the comparison can fail
    assert db.execute("SELECT task, dim FROM tars_models").fetchone() == ("embed", 24)
    (alone,) = db.execute("SELECT embed('m', ?)", (TEXTS[3],)).fetchone()
    assert np.array_equal(alone, found[3])


@needs_runtime
def test_options_and_files_that_do_not_fit(db: tarsdb.Connection, folder: pathlib.Path) -> None:
    def refused(error: type[Exception], message: str, options: str = "") -> None:
        with pytest.raises(error, match=message):
            db.execute(f"CREATE MODEL m FROM '{folder}' WITH (runtime = 'onnxruntime'{options})")

    refused(ModelError, "no option 'quantize'", ", quantize = 'int8'")
    refused(ModelError, "unknown model option 'runtime'", ", task = 'classify'")
    with pytest.raises(ModelError, match="cannot be 'tvm'"):
        db.execute(f"CREATE MODEL m FROM '{folder}' WITH (runtime = 'tvm')")
    db.execute(
        f"CREATE MODEL strict FROM '{folder}' WITH (runtime = 'onnxruntime', overflow = 'error')"
    )
    with pytest.raises(DataError, match="the model reads 70"):
        db.execute("SELECT embed('strict', ?)", (TEXTS[3],)).fetchall()
    graph = folder / "onnx" / "model.onnx"
    for other, message in (
        ("tiny_classifier", "takes features"), ("tiny_inputs", "takes features"),
    ):  # fmt: skip
        shutil.copy(GOLDEN / f"{other}.onnx", graph)
        refused(NotSupportedError, message)
    graph.write_bytes(OPTIMISED.read_bytes()[:-40])
    refused(ModelFormatError, "onnxruntime refuses")
    graph.unlink()
    refused(ModelFormatError, "has no model.onnx or onnx/model.onnx")
